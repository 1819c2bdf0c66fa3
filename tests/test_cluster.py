"""A study by the workers of a cluster: the same points as here, whatever happens to a worker."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import test_collecting
from ports import free_port
from test_studies import CORPUS, folder, write  # noqa: F401 (a fixture)

from lmlab.core import registry
from lmlab.core.errors import UserError
from lmlab.data import documents
from lmlab.data import shard as sharding
from lmlab.data.tokenizers import base as tokenizers
from lmlab.experiments import cluster as experiments_cluster
from lmlab.experiments.studies import running, study, workers

pytestmark = pytest.mark.pipeline


@pytest.fixture
def cluster(folder: Path) -> Iterator[Any]:  # noqa: F811
    """Two workers in the folder of a study, and their scheduler, on this machine alone."""
    from distributed import LocalCluster

    settings = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with LocalCluster(host="127.0.0.1", **settings, silence_logs=50) as made:
        yield made


def points_of(folder: Path, arm: str, run: workers.Run) -> list[Any]:  # noqa: F811
    record = running.run_arm(study.read(folder, False), arm, CORPUS, run)
    without = [point.model_dump() for point in record.points]
    for point in without:
        for key in ("training_seconds", "validation_seconds", "tokens_per_second"):
            point["result"].pop(key, None)
    return without


def forget(folder: Path) -> None:  # noqa: F811
    """Nothing is left of what was run."""
    for path in [*(folder / "points").glob("*.json"), *Path(".scratch").rglob("*.json")]:
        path.unlink()


def processes(cluster: Any) -> list[int]:
    return [worker.process.pid for worker in cluster.workers.values()]


def test_a_cluster_gives_the_points_of_this_machine(
    folder: Path,  # noqa: F811
    cluster: Any,
) -> None:
    with workers.here(1) as run:
        own = points_of(folder, "swept", run)
    forget(folder)
    with workers.at(cluster.scheduler_address) as run:
        assert points_of(folder, "swept", run) == own
    assert len(own) > 2


def test_a_lost_worker_loses_its_run_alone(folder: Path, cluster: Any) -> None:  # noqa: F811
    write(folder, seeds=[0, 1, 2, 3])
    with workers.here(1) as run:
        own = points_of(folder, "plain", run)
    forget(folder)

    def kill_one() -> None:
        time.sleep(1.0)
        os.kill(processes(cluster)[0], signal.SIGKILL)

    with workers.at(cluster.scheduler_address) as run, ThreadPoolExecutor(1) as thread:
        killed = thread.submit(kill_one)
        assert points_of(folder, "plain", run) == own
        killed.result()


def test_a_worker_that_is_not_like_this_project_is_refused(
    folder: Path,  # noqa: F811
    cluster: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As if the caller had edited a file since the workers began."""
    made = workers._made

    def edited(task: workers.Task) -> Any:
        real = made(task)
        path = next(path for path in real.code if path.endswith("training/loop.py"))
        return real.model_copy(update={"code": {**real.code, path: "0" * 12}})

    monkeypatch.setattr(workers, "_made", edited)
    refused = pytest.raises(UserError, match=r"not like this project: code: .*training/loop\.py")
    with workers.at(cluster.scheduler_address) as run, refused:
        points_of(folder, "plain", run)


def at(address: str) -> None:
    with workers.at(address):
        pass


def test_nobody_at_an_address_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiments_cluster, "SECONDS_TO_ANSWER", 0.5)
    for address, message in [
        (f"tcp://127.0.0.1:{free_port()}", "no scheduler answers at"),
        ("127.0.0.1", "is no address of a scheduler"),
        ("tcp://127.0.0.1:nothing", "is no address of a scheduler"),
        ("tcp://127.0.0.1:99999", "is no address of a scheduler"),
        ("tcp://127.0.0.1", "is no address of a scheduler"),
        ("tls://", "is no address of a scheduler"),
        ("http://127.0.0.1:8786", "is no address of a scheduler"),
    ]:
        with pytest.raises(UserError, match=message):
            at(address)


def tls(security: Any) -> dict[str, Any]:
    """Dask's settings for a client that has these certificates."""
    return certificates(security.tls_ca_file, security.tls_client_cert, security.tls_client_key)


def certificates(ca: str, cert: str, key: str) -> dict[str, Any]:
    section = "distributed.comm.tls"
    return {f"{section}.ca-file": ca, f"{section}.client.cert": cert, f"{section}.client.key": key}


def test_a_cluster_is_reached_by_tls_and_by_nobody_without_its_certificate() -> None:
    import dask
    from distributed import LocalCluster, Security

    security, stranger = Security.temporary(), Security.temporary()
    settings = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": None}
    with LocalCluster(
        host="127.0.0.1", protocol="tls://", security=security, silence_logs=50, **settings
    ) as made:
        address = made.scheduler_address
        assert address.startswith("tls://")
        with dask.config.set(tls(security)), experiments_cluster.reached(address) as client:
            assert client.submit(len, "abc").result() == 3
        with (
            dask.config.set(tls(stranger)),
            pytest.raises(UserError, match=r"no scheduler answers"),
        ):
            at(address)
        with pytest.raises(UserError, match=r"tls:// address needs certificates"):
            at(address)


def test_a_certificate_that_is_not_there_is_a_line() -> None:
    import dask

    with (
        dask.config.set(certificates("nowhere.pem", "nowhere.pem", "nowhere.pem")),
        pytest.raises(UserError, match=r"a certificate cannot be read: .*No such file"),
    ):
        at("tls://127.0.0.1:1")


def test_without_workers_there_is_a_line() -> None:
    from distributed import LocalCluster

    settings = {"n_workers": 0, "dashboard_address": None, "silence_logs": 50}
    with LocalCluster(host="127.0.0.1", **settings) as empty:
        address = empty.scheduler_address
        with pytest.raises(UserError, match="no worker waits at"):
            at(address)


def test_without_dask_a_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiments_cluster, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'lmlab\[cluster\]'"):
        at("tcp://127.0.0.1:1")


def slow(expected: Any, *task: Any) -> dict[str, Any]:
    """In place of a run: it takes longer than anybody waits."""
    time.sleep(60)
    return {}


@pytest.mark.parametrize("leaves", ["workers", "scheduler"])
def test_a_study_ends_when_nobody_is_left(
    leaves: str,
    folder: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from distributed import LocalCluster

    monkeypatch.setattr(experiments_cluster, "SECONDS_ALONE", 1.0)
    monkeypatch.setattr(workers, "run_if_alike", slow)
    settings = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": None}
    with LocalCluster(host="127.0.0.1", **settings, silence_logs=50) as made:

        def leave() -> None:
            time.sleep(1.0)
            if leaves == "scheduler":
                made.close()
            else:
                made.scale(0)

        def run_all() -> None:
            with workers.at(made.scheduler_address) as run:
                thread.submit(leave)
                points_of(folder, "plain", run)

        # a cluster that is closed ends its workers first
        nobody = pytest.raises(UserError, match=r"no worker is left|is gone")
        with ThreadPoolExecutor(1) as thread, nobody:
            run_all()


# ---------------------------------------------------------------- shards


@pytest.fixture
def encoding(
    tree: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict[str, bytes]]:
    """Shards in a folder of that name, by an executor: their bytes."""
    monkeypatch.setattr(documents, "ROW_GROUP_BYTES", 200)
    monkeypatch.chdir(tmp_path)
    texts = [f"{number} times {number} is {number * number}.\n" * 9 for number in range(12)]
    corpus, choice = tmp_path / "texts", registry.choose(tree, "tokenizers", "byte")
    test_collecting.build(test_collecting.WHOLE, corpus, *[[text] for text in texts])
    tokenizers.save(choice, tokenizers.fit(choice, texts), tmp_path / "made" / "tokenizer.json")

    def build(name: str, executor: Executor | None = None) -> dict[str, bytes]:
        params = sharding.ShardParams(megabytes=0.0002, processes=1)
        sharding.build(params, corpus, tmp_path / "made", tmp_path / name, executor)
        return {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}

    return build


def test_a_cluster_writes_the_shards_of_this_machine_even_if_a_worker_is_lost(
    encoding: Callable[..., dict[str, bytes]], cluster: Any
) -> None:
    here = encoding("here")
    assert len(here) > 5
    address = cluster.scheduler_address
    with experiments_cluster.reached(address) as client:
        assert encoding("by the workers", experiments_cluster.Workers(client, address)) == here
        os.kill(processes(cluster)[0], signal.SIGKILL)
        assert encoding("by the other", experiments_cluster.Workers(client, address)) == here


def test_a_worker_that_would_encode_otherwise_is_refused(
    encoding: Callable[..., dict[str, bytes]], cluster: Any
) -> None:
    path = "data/tokenizers/byte.py"
    address = cluster.scheduler_address
    refused = pytest.raises(UserError, match=rf"not like this project: {path}; check out")
    with experiments_cluster.reached(address) as client, refused:
        workers_ = experiments_cluster.Workers(client, address)
        workers_._expected[path] = "another"
        encoding("refused", workers_)


def test_what_is_given_up_is_not_waited_for(
    encoding: Callable[..., dict[str, bytes]], cluster: Any
) -> None:
    address = cluster.scheduler_address
    with experiments_cluster.reached(address) as client:
        given_up = experiments_cluster.Workers(client, address).submit(time.sleep, 60)
        started = time.monotonic()
        with ThreadPoolExecutor(1) as thread:
            waiting = thread.submit(given_up.result)
            time.sleep(1)
            given_up.cancel()
            assert isinstance(waiting.exception(30), UserError)
        assert time.monotonic() - started < 30

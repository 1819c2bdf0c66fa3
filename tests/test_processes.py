"""Several processes take the steps of one, in the same bytes; if one is lost they all end."""

import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import small
import test_perturbing_rules
import test_results
import test_training
import torch
from test_training import BASE, FOLDERS, Corpus

from lmlab.core import registry
from lmlab.core.errors import UserError
from lmlab.core.files import write_json, write_sums
from lmlab.core.params import section
from lmlab.data.batches import Batches
from lmlab.evaluation import evaluate as evaluation
from lmlab.evaluation import probe as probing
from lmlab.evaluation.evaluate import EvaluateParams
from lmlab.evaluation.measures import base as measures
from lmlab.evaluation.probe import ProbeParams
from lmlab.model import meeting, processes
from lmlab.model.models import base as models
from lmlab.training import loop
from lmlab.training.results import LOG, RunFolders, Timing
from lmlab.training.step import TrainParams

corpus = test_training.corpus  # the fixture

SHORT = {**BASE, "steps": 4, "sample_every": 0, "validate_every": 2, "checkpoint_seconds": 1e6}
FEW = {"population": 3, "directions": 3, "at_once": 2, "samples": 2, "maps_at_once": 3}
CASES: dict[str, dict[str, Any]] = {
    **{f"rule {name}": {"learning_rule": name, **FEW} for name in registry.names("learning_rules")},
    **{f"optimizer {name}": {"optimizer": name} for name in registry.names("optimizers")},
    **{
        f"intervention {name}": {"intervention": name, "dropout": 0.2}
        for name in registry.names("interventions")
    },
    "tables of n-grams": {"embedding": "n_gram", "row_width": 4, "dropout": 0.3},
    "tied": {"tied": True},
    "a window clipped by the norm of its gradient in a few micro-batches": {
        "intervention": "sample_clipping",
        "second_intervention": "gradient_noise",
        "gradient_accumulation": 4,
    },
    "a population within windows": {
        "learning_rule": "spsa",
        "intervention": "sample_clipping",
        "gradient_accumulation": 2,
    },
    "bfloat16": {"precision": "bfloat16"},
    "a run that diverges": {"learning_rate": 1e6, "optimizer": "sgd", "clip": 0.0},
    "the best weights": {"keep": "best", "learning_rate": 0.3},
    "no patience": {"patience": 1, "validate_every": 1, "learning_rate": 0.9, "steps": 9},
    **{f"model {name}": {"model": name, "dropout": 0.1} for name in registry.names("models")},
}
NEEDS_START = {"distillation"}
CASES = {name: case for name, case in CASES.items() if name.split()[-1] not in NEEDS_START}


def settings(count: int, pieces: int, **changes: Any) -> dict[str, Any]:
    return {
        **SHORT,
        "batch": 8,
        "processes": count,
        "gradient_accumulation": pieces,
        **changes,
    }


def arguments(corpus: Corpus, home: Path, **changes: Any) -> tuple[Any, ...]:
    tree = small.tree(**changes)
    params = section(tree, "train", TrainParams)
    folders = RunFolders(*(home / name for name in FOLDERS), state=home / "state")
    return params, registry.choices(tree, "train", params), *corpus, folders, None


def written(home: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(home)): path.read_bytes()
        for path in sorted(home.rglob("*"))
        if path.is_file()
    }


def trained(corpus: Corpus, home: Path, **changes: Any) -> dict[str, bytes]:
    """What a run writes, on as many processes as it says."""
    loop.train(*arguments(corpus, home, **changes))
    return written(home)


def train_all(runs: list[tuple[Any, ...]]) -> None:
    """One run after the other; on each process of a group."""
    torch.set_num_threads(1)
    for run in runs:
        loop._train(*run)


def pieces_of(case: dict[str, Any], count: int) -> int:
    """The micro-batches of one process that takes the steps of so many."""
    own = int(case.get("gradient_accumulation", 1))
    return own if case.get("learning_rule") in test_perturbing_rules.RULES else math.lcm(own, count)


def divided(count: int) -> dict[str, int]:
    """A batch that so many processes can share."""
    return {"batch": 12} if count == 3 else {"batch": 8}


KINDS = sorted({name.split()[0] for name in CASES})


@pytest.mark.parametrize(("count", "kind"), [*((2, kind) for kind in KINDS), (4, "rule"), (3, "a")])
def test_several_processes_write_the_bytes_of_one(
    count: int, kind: str, corpus: Corpus, tmp_path: Path
) -> None:
    """With as many micro-batches, or, for a rule that shares its population, as it is."""
    cases = {name: case for name, case in CASES.items() if name.split()[0] == kind}
    runs = [
        arguments(
            corpus, tmp_path / name / "several", **{**settings(count, 1), **case, **divided(count)}
        )
        for name, case in cases.items()
    ]
    meeting.run("train.processes", count, "gloo", train_all, runs)
    other = []
    for name, case in cases.items():
        pieces = {"gradient_accumulation": pieces_of(case, count)}
        alone = trained(
            corpus,
            tmp_path / name / "alone",
            **{**settings(1, 1), **case, **divided(count), **pieces},
        )
        assert {"model/weights.safetensors", "training/log.jsonl"} <= {*alone}
        several = written(tmp_path / name / "several")
        other += [f"{name}: {key}" for key in alone if several.get(key) != alone[key]]
        assert {*several} == {*alone}
    assert not other


def test_any_number_of_processes_goes_on_from_the_same_checkpoint(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = settings(1, 4, dropout=0.2, validate_every=0, steps=6, checkpoint_seconds=0.0)
    whole = trained(corpus, tmp_path / "whole", **changes)
    for step, count in ((3, 1), (2, 2)):  # the second goes on from step 2, and ends before its own
        with monkeypatch.context() as patched:
            test_training.stop_at(patched, loop, "take_step", step)
            with pytest.raises(test_training.Stopped):
                trained(corpus, tmp_path / "stopped", **{**changes, "processes": count})
    assert trained(corpus, tmp_path / "stopped", **{**changes, "processes": 4}) == whole


def test_each_process_reads_its_own_windows_of_the_batch(corpus: Corpus) -> None:
    shards, _ = corpus
    batches = Batches(shards, 6, 8, 0, 10**6)
    for step in (0, 7):
        whole = batches.at(step)
        pieces = [batches.at(step, piece, 3) for piece in range(3)]
        for one, parts in zip(whole, zip(*pieces, strict=True), strict=True):
            assert torch.equal(torch.cat(parts), one)


def sent_per_step(corpus: Corpus, home: Path, **changes: Any) -> float:
    steps = (3, 8)
    of_validation = {"validate_every": 0, "log_every": 100}
    sent = []
    for count in steps:
        run = arguments(
            corpus, home, **{**settings(2, 1, **of_validation), **changes, "steps": count}
        )
        timing: Timing = loop.train(*run)
        sent.append(timing.sent_bytes)
    return (sent[1] - sent[0]) / (steps[1] - steps[0])


def test_a_population_is_shared_by_exchanging_losses_and_a_batch_by_exchanging_gradients(
    corpus: Corpus, tmp_path: Path
) -> None:
    run = arguments(corpus, tmp_path, **settings(1, 1))
    gradients = 4 * sum(p.numel() for p in loop.Trainer.build(*run[:-1]).run.model.parameters())
    assert sent_per_step(corpus, tmp_path / "backprop") == pytest.approx(gradients, rel=0.02)
    pairs = {"learning_rule": "evolution_strategies", "population": 5}
    assert sent_per_step(corpus, tmp_path / "population", **pairs) == 6 * 4  # 11 losses in 6 turns


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"processes": 3}, "train.processes: 3 processes cannot share a batch of 8 windows"),
        ({"processes": 2, "step_in_backward": True, "clip": 0.0}, "step_in_backward"),
        (
            {
                "processes": 2,
                "intervention": "gradient_noise",
                "second_intervention": "sample_clipping",
            },
            "train.processes: sample_clipping",
        ),
    ],
)
def test_what_cannot_be_shared_is_refused_by_name(
    corpus: Corpus, tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(UserError, match=named):
        loop.train(*arguments(corpus, tmp_path, **{**settings(1, 1), **changes}))


def test_torchrun_and_the_params_name_the_same_number_of_processes(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = {"RANK": "0", "WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"train.processes is 2, and torchrun has started 4"):
        loop.train(*arguments(corpus, tmp_path, **settings(2, 1)))


def raise_on_second(error: Exception) -> None:
    if processes.share().rank == 1:
        raise error
    processes.every(0)


def raise_everywhere(error: Exception) -> None:
    processes.check_same({"it": str(processes.share().rank)}, "be alike")


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (raise_on_second, r"^process 1 of 3: its disk is gone$"),
        (raise_everywhere, r"^process 1 of 3, on \S+, has not what process 0 has: it; be alike$"),
    ],
)
def test_what_another_process_cannot_do_is_said_in_one_line(
    function: Callable[..., None], expected: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=expected):
        meeting.run("train.processes", 3, "gloo", function, UserError("its disk is gone"))
    assert capfd.readouterr() == ("", "")


def refusal() -> str:
    try:
        meeting.run("train.processes", 2, "gloo", raise_everywhere, None)
    except UserError as error:
        return str(error)
    return ""


def test_a_process_that_may_start_no_others_says_so() -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert "train.processes is 2, and a process of a pool" in pool.apply(refusal)


# ---------------------------------------------------------------- processes that are lost

LONG = {"steps": 400, "validate_every": 20, "log_every": 5, "checkpoint_seconds": 0.2}
MAIN = """
import json, sys
from pathlib import Path
from lmlab.core import registry
from lmlab.core.errors import one_line
from lmlab.core.params import section
from lmlab.data.shards import open_shards
from lmlab.data.tokenizers import base as tokenizers
from lmlab.training import loop
from lmlab.training.results import RunFolders
from lmlab.training.step import TrainParams

given = json.loads(Path(sys.argv[1]).read_text())
params = section(given["tree"], "train", TrainParams)
parts = registry.choices(given["tree"], "train", params)
tokenizer = Path(given["tokenizer"])
folders = RunFolders(*map(Path, given["folders"]))
shards = open_shards(Path(given["shards"]), tokenizer)
one_line(loop.train)(params, parts, shards, tokenizers.load(tokenizer), folders)
"""


def started(corpus: Corpus, home: Path, **changes: Any) -> subprocess.Popen[str]:
    """A run in a process of its own."""
    shards = corpus[0].folder
    given = {
        "tree": small.tree(**changes),
        "shards": str(shards),
        "tokenizer": str(shards.parent / "tokenizer" / "tokenizer.json"),
        "folders": [str(home / name) for name in (*FOLDERS, "state")],
    }
    file = home.with_suffix(".json")
    file.write_text(json.dumps(given))
    command = [sys.executable, "-c", MAIN, str(file)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(corpus: Corpus, home: Path, **changes: Any) -> str:
    """What a run in a process of its own prints."""
    process = started(corpus, home, **changes)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    return output


def begun(corpus: Corpus, home: Path, **changes: Any) -> subprocess.Popen[str]:
    """A long run in a process of its own, at its steps."""
    first = started(corpus, home, **changes)
    test_training.until(lambda: list(Path(".scratch").glob("*/checkpoint.safetensors")))
    return first


def test_of_two_runs_that_are_the_same_one_takes_over_what_the_other_has_made(
    corpus: Corpus, tmp_path: Path
) -> None:
    changes = settings(2, 1, **{**LONG, "steps": 600, "validate_every": 0})
    runs = [started(corpus, tmp_path / name, **changes) for name in ("one", "other")]
    outputs = []
    for run in runs:
        output, errors = run.communicate(timeout=120)
        assert (run.returncode, errors) == (0, "")
        outputs.append(output)
    waited = ["another process is already executing this run" in output for output in outputs]
    assert sorted(waited) == [False, True]
    assert written(tmp_path / "one") == written(tmp_path / "other")


def helpers_of(first: subprocess.Popen[str]) -> list[psutil.Process]:
    return [
        child
        for child in psutil.Process(first.pid).children()
        if "spawn_main" in " ".join(child.cmdline())
    ]


@pytest.mark.parametrize(
    ("number", "how", "said"),
    [
        (1, signal.SIGKILL, "error: process 2 of 3 was ended by SIGKILL; run the same command"),
        (0, signal.SIGSTOP, "error: process 1 of 3 was stopped and does not answer; run the same"),
        (None, signal.SIGKILL, ""),
    ],
)
def test_a_process_that_is_lost_ends_all_in_one_line_and_nothing_is_lost(
    corpus: Corpus,
    tmp_path: Path,
    number: int | None,
    how: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    changes = settings(3, 1, **LONG, batch=6)
    first = begun(corpus, tmp_path / "run", **changes)
    helpers = helpers_of(first)
    assert len(helpers) == 2
    listening = [
        connection.laddr.ip
        for each in [psutil.Process(first.pid), *helpers]
        for connection in each.net_connections()
        if connection.status == psutil.CONN_LISTEN
    ]
    assert {*listening} <= {"127.0.0.1", "::1"}
    lost = first.pid if number is None else helpers[number].pid
    os.kill(lost, how)
    started = time.monotonic()
    _, errors = first.communicate(timeout=60)
    _, alive = psutil.wait_procs(helpers, timeout=20)
    assert not alive
    assert time.monotonic() - started < 40
    assert not [*(tmp_path / "temporary").iterdir()]
    assert errors.startswith(said)
    assert len(errors.splitlines()) == bool(said)
    assert first.returncode == (2 if said else -signal.SIGKILL)

    alone = {**changes, "processes": 1, "gradient_accumulation": 3}
    assert "resuming from step" in ended(corpus, tmp_path / "run", **alone)
    assert written(tmp_path / "run") == trained(corpus, tmp_path / "whole", **alone)


# ---------------------------------------------------------------- the stages after training


def test_several_processes_share_the_probes_and_write_the_same(corpus: Corpus) -> None:
    test_training.train(corpus, "run", **{**SHORT, "snapshots": 3})
    written_by = {}
    for count in (1, 2, 3):
        chosen = registry.names("probes")
        chosen.remove("cost")  # which tells the time
        tree = small.tree(probes=chosen, windows=2, text="7 times", threads=1, processes=count)
        params = section(tree, "probe", ProbeParams)
        looks = (params, probing.chosen(tree, params), *corpus, Path("run/snapshots"))
        folder = Path(f"run/probes-{count}")
        meeting.run("probe.processes", count, "gloo", probing.look, *looks, folder)
        written_by[count] = written(folder)
    assert {"probes.parquet", "close_up.json"} <= {*written_by[1]}
    assert written_by[2] == written_by[1]
    assert written_by[3] == written_by[1]


def test_several_processes_share_the_text_and_the_measures_and_write_the_same(
    corpus: Corpus,
) -> None:
    shards, tokenizer = corpus
    home, texts = Path("run"), shards.folder.parent / "corpus"
    write_json(texts / "manifest.json", small.corpus_manifest().record())
    write_sums(texts)
    test_training.train(corpus, "run", **{**SHORT, "snapshots": 0})
    written_by = {}
    for count in (1, 2):
        tree = small.tree(
            **{**test_results.BASE, "measures": ["entropy_gap", "n_gram_mixture", "learning_curve"]}
        )
        params = section(tree, "evaluate", EvaluateParams)
        model, record = models.load(home / "model", torch.device("cpu"))
        folder = home / f"results-{count}"
        meeting.run(
            *("evaluate.processes", count, "gloo", evaluation.evaluate, params),
            *(measures.chosen(tree, params.measures), model, record, shards, tokenizer),
            *(texts, home / "training" / LOG, folder),
        )
        written_by[count] = written(folder)
    assert "measures.json" in written_by[1]
    assert written_by[2] == written_by[1]

"""A small copy of the project, run once; each test gets a copy of that copy.

What is about DVC runs DVC in it as a user would. What is about the stages runs them in this
process, which has torch loaded.
"""

import fcntl
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import warm
from ruamel.yaml import YAML

from lmlab.core import errors

PROJECT = Path(__file__).resolve().parents[2]
STAGES = ("start", "download", "tokenizer", "shard", "train", "evaluate", "probe", "report")
SMALL = {
    "download.corpus": "grammar",
    "corpora.grammar.documents": 12,
    "corpora.grammar.sentences": 15,
    "corpora.markov.documents": 10,
    "corpora.markov.characters": 300,
    "train.steps": 6,
    "train.batch": 4,
    "train.context": 16,
    "train.threads": 1,
    "train.optimizer": "adamw",
    "train.precision": "float32",
    "train.log_every": 2,
    "train.validate_every": 3,
    "train.sample_every": 0,
    "models.transformer.depth": 1,
    "models.transformer.width": 16,
    "models.transformer.embedding": "token",
    **{
        f"models.{name}.width": 16
        for name in ("convolution", "lstm", "min_gru", "perceptron", "rwkv", "state_space")
    },
    **{
        f"models.{name}.layers": 2
        for name in ("convolution", "hybrid", "lstm", "perceptron", "rwkv", "state_space")
    },
    "models.n_gram_table.buckets": 64,
    "layers.embedding.n_gram.buckets": 64,
    "models.rwkv.heads": 2,
    "models.state_space.heads": 2,
    **{f"tokenizers.{name}.vocabulary_size": 300 for name in ("bpe", "unigram", "word")},
    "layers.attention.multi_head.heads": 2,
    "schedules.linear.warmup": 2,
    "evaluate.stride": 8,
    "evaluate.ngram_order": 3,
    "evaluate.sample_tokens": 20,
    "evaluate.threads": 1,
    "probe.threads": 1,
    "probe.windows": 4,
    "measures.induction.sequences": 4,
    "measures.novelty.texts": 4,
    "measures.novelty.tokens": 20,
    "measures.prequential.windows": 8,
    "shard.processes": 1,
}


@dataclass
class Workspace:
    """A checkout of the project in a folder of its own, with its own Git and DVC."""

    folder: Path
    home: Path
    warm_python: Path
    """The folder of a `python` that has torch loaded (see `warm`)."""

    @property
    def environment(self) -> dict[str, str]:
        kept = {
            key: os.environ[key]
            for key in ("PATH", "LANG", "TMPDIR", "SSL_CERT_FILE")
            if key in os.environ
        }
        kept["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
        return kept | {
            "HOME": str(self.home),
            "LMLAB_CACHE": str(self.home / "cache"),
            "DVC_SITE_CACHE_DIR": str(self.home / "site"),
            "DVC_GLOBAL_CONFIG_DIR": str(self.home / "config"),
            "DVC_NO_ANALYTICS": "1",
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_AUTHOR_NAME": "test",
            "GIT_AUTHOR_EMAIL": "test@example.org",
            "GIT_COMMITTER_NAME": "test",
            "GIT_COMMITTER_EMAIL": "test@example.org",
            "OMP_NUM_THREADS": "1",
        }

    @property
    def _quick_environment(self) -> dict[str, str]:
        """The same with a `python` that starts at once."""
        path = self.environment["PATH"]
        return self.environment | {"PATH": f"{self.warm_python}{os.pathsep}{path}"}

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command in the folder; on failure show what it printed.

        DVC's own run in a fork of this process, which has its modules loaded: to load them takes
        longer than most commands.
        """
        if command[0] == "dvc":
            done = self._run_dvc(command)
        else:
            done = subprocess.run(
                command,
                cwd=self.folder,
                env=self._quick_environment,
                capture_output=True,
                text=True,
                check=False,
                timeout=1500,
            )
        if check and done.returncode:
            pytest.fail(
                f"{' '.join(command)} gave"
                f" {done.returncode}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
            )
        return done

    def _run_dvc(self, command: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
        """What `dvc` with these words comes to."""
        import dvc.cli
        import dvc.logger

        environment = self._quick_environment

        def main() -> None:
            for number, file in enumerate((os.devnull, said[0].name, said[1].name)):
                os.dup2(os.open(file, os.O_RDWR), number)
            sys.stdout, sys.stderr = (open(number, "w", encoding="utf-8") for number in (1, 2))  # noqa: SIM115
            os.chdir(self.folder)
            os.environ.clear()
            os.environ.update(environment)
            # its handlers write to the streams of the moment in which it is called
            dvc.logger.setup()
            sys.exit(dvc.cli.main(list(command[1:])))

        with tempfile.NamedTemporaryFile() as out, tempfile.NamedTemporaryFile() as err:
            said = out, err
            process = multiprocessing.get_context("fork").Process(target=main)
            process.start()
            process.join(timeout=1500)
            if process.exitcode is None:
                process.kill()
                pytest.fail(f"{' '.join(command)} did not end")
            texts = [Path(file.name).read_text(encoding="utf-8") for file in said]
        return subprocess.CompletedProcess(command, process.exitcode, *texts)

    def reruns(self, *flags: str) -> set[str]:
        """`dvc repro`, and the stages whose command it ran."""
        return set(re.findall(r"Running stage '(\w+)'", self.run("dvc", "repro", *flags).stdout))

    def status(self) -> set[str]:
        """The stages whose own code, params, inputs or outputs are not those of dvc.lock: what is
        *directly* stale.
        """
        from dvc.repo import Repo

        with pytest.MonkeyPatch.context() as patched:
            for name, value in self.environment.items():
                patched.setenv(name, value)
            patched.chdir(self.folder)
            with Repo() as repository:
                return {name for name in repository.status() if name != "data"}

    def set(self, values: dict[str, Any], must_change: bool = True) -> None:
        """Change values in params.yaml by their dotted keys."""
        yaml = YAML()
        tree = yaml.load(self.path("params.yaml"))
        for dotted, value in values.items():
            *blocks, key = dotted.split(".")
            at = tree
            for block in blocks:
                at = at[block]
            assert key in at, dotted
            assert at[key] != value or not must_change, (
                f"{dotted} is {value!r} already: the test would prove nothing"
            )
            at[key] = value
        with self.path("params.yaml").open("w") as file:
            yaml.dump(tree, file)

    def merge(self, block: str) -> None:
        """Add blocks to params.yaml, given as YAML."""

        def merge(into: Any, more: Any) -> None:
            for key, value in more.items():
                if key in into and isinstance(value, dict):
                    merge(into[key], value)
                else:
                    into[key] = value

        yaml = YAML()
        tree = yaml.load(self.path("params.yaml"))
        merge(tree, YAML(typ="safe").load(block))
        with self.path("params.yaml").open("w") as file:
            yaml.dump(tree, file)

    def path(self, relative: str) -> Path:
        """A file of the workspace."""
        return self.folder / relative

    def touch_code(self, relative: str) -> None:
        """Change a source file's bytes without changing what it does."""
        with self.path(relative).open("a") as file:
            file.write("\n# edited\n")

    def json(self, relative: str) -> Any:
        """A JSON file's value."""
        return json.loads(self.path(relative).read_text())


@pytest.fixture(scope="session")
def warm_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a `python` that has torch loaded."""
    return warm.start(tmp_path_factory.mktemp("warm"))


@pytest.fixture(scope="session")
def finished(
    tmp_path_factory: pytest.TempPathFactory, worker_id: str, warm_python: Path
) -> Workspace:
    """The project, shrunk, after one `dvc repro` and one commit, for all workers. Not to be
    changed: take `workspace`.
    """
    shared = tmp_path_factory.getbasetemp()
    shared = shared if worker_id == "master" else shared.parent
    workspace = Workspace(shared / "finished", shared / "home", warm_python)
    with open(shared / "finished.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (shared / "finished.done").exists():
            shutil.rmtree(workspace.folder, ignore_errors=True)
            _build(workspace)
            (shared / "finished.done").touch()
    return workspace


def _build(workspace: Workspace) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in listed.split("\0"):
        if (
            name
            and not name.startswith(("tests/", "results/", "studies/", "dvc.lock"))
            and (PROJECT / name).is_file()
        ):
            (workspace.folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(PROJECT / name, workspace.folder / name)
    workspace.home.mkdir(exist_ok=True)
    workspace.set(SMALL, must_change=False)
    workspace.run("git", "init", "-q", "-b", "main")
    assert workspace.reruns() == set(STAGES)
    workspace.run("git", "add", "-A")
    workspace.run("git", "commit", "-q", "-m", "first run")


@pytest.fixture
def workspace(finished: Workspace, tmp_path: Path) -> Workspace:
    """A copy of the finished run, to be changed at will."""
    shutil.copytree(finished.folder, tmp_path / "lab", symlinks=True)
    home = tmp_path / "home"
    home.mkdir()
    return Workspace(tmp_path / "lab", home, finished.warm_python)


@dataclass
class Inside:
    """A workspace whose stages run in this process."""

    workspace: Workspace

    def run(self, *stages: str) -> None:
        """The stages' commands as their scripts would run them; raises what they raise."""
        for stage in stages:
            script = import_module(f"pipeline.{stage}")
            import_module("pipeline").staged(getattr(script, stage))()

    def refused(self, stage: str, capsys: pytest.CaptureFixture[str]) -> str:
        """What a stage's command prints to stderr as it ends with exit code 2."""
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            errors.one_line(self.run)(stage)
        assert ended.value.code == 2
        return capsys.readouterr().err


@pytest.fixture
def inside(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Iterator[Inside]:
    """The workspace as this process's folder, for stages that run here, from the project's own
    source.
    """
    hooks = sys.excepthook, signal.getsignal(signal.SIGINT)
    monkeypatch.syspath_prepend(str(PROJECT))
    monkeypatch.chdir(workspace.folder)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.delenv("DVC_STAGE", raising=False)
    monkeypatch.setenv("LMLAB_CACHE", str(workspace.home / "cache"))
    threads = torch.get_num_threads()
    yield Inside(workspace)
    torch.set_num_threads(threads)
    sys.excepthook = hooks[0]
    signal.signal(signal.SIGINT, hooks[1])

"""A small copy of the project, run once; each test gets a copy of that copy and runs DVC in it as a user would."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

PROJECT = Path(__file__).resolve().parents[2]
SMALL = {
    "download.corpus": "grammar",
    "corpora.grammar.documents": 12,
    "corpora.grammar.sentences": 15,
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
    "models.min_gru.width": 16,
    "models.hybrid.layers": 2,
    "layers.attention.multi_head.heads": 2,
    "schedules.linear.warmup": 2,
    "evaluate.stride": 8,
    "evaluate.ngram_order": 3,
    "evaluate.sample_tokens": 20,
    "evaluate.threads": 1,
    "probe.threads": 1,
    "probe.windows": 4,
    "shard.processes": 1,
}


@dataclass
class Workspace:
    """A checkout of the project in a folder of its own, with its own Git and DVC."""

    folder: Path
    home: Path

    @property
    def environment(self) -> dict[str, str]:
        kept = {key: os.environ[key] for key in ("PATH", "LANG", "TMPDIR", "SSL_CERT_FILE") if key in os.environ}
        kept["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
        return kept | {
            "HOME": str(self.home),
            "LMLAB_CACHE": str(self.home / "cache"),
            "DVC_SITE_CACHE_DIR": str(self.home / "site"),
            "DVC_GLOBAL_CONFIG_DIR": str(self.home / "config"),
            "DVC_NO_ANALYTICS": "1",
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_AUTHOR_NAME": "test", "GIT_AUTHOR_EMAIL": "test@example.org",
            "GIT_COMMITTER_NAME": "test", "GIT_COMMITTER_EMAIL": "test@example.org",
            "OMP_NUM_THREADS": "1",
        }  # fmt: skip

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command in the folder; on failure show what it printed."""
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False, timeout=1500
        )
        if check and done.returncode:
            pytest.fail(f"{' '.join(command)} gave {done.returncode}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
        return done

    def reruns(self, *flags: str) -> set[str]:
        """`dvc repro`, and the stages whose command it ran."""
        return set(re.findall(r"Running stage '(\w+)'", self.run("dvc", "repro", *flags).stdout))

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
            assert at[key] != value or not must_change, f"{dotted} is {value!r} already: the test would prove nothing"
            at[key] = value
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
def finished(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The project, shrunk, after one `dvc repro` and one commit. Not to be changed: take `workspace`."""
    folder = tmp_path_factory.mktemp("finished")
    workspace = Workspace(folder, tmp_path_factory.mktemp("home"))
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=PROJECT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for name in listed.split("\0"):
        if name and not name.startswith(("tests/", "results/", "studies/", "dvc.lock")) and (PROJECT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(PROJECT / name, folder / name)
    workspace.set(SMALL, must_change=False)
    workspace.run("git", "init", "-q", "-b", "main")
    assert workspace.reruns() == {"download", "tokenizer", "shard", "train", "evaluate", "probe", "report"}
    workspace.run("git", "add", "-A")
    workspace.run("git", "commit", "-q", "-m", "first run")
    return workspace


@pytest.fixture
def workspace(finished: Workspace, tmp_path: Path) -> Workspace:
    """A copy of the finished run, to be changed at will."""
    shutil.copytree(finished.folder, tmp_path / "lab", symlinks=True)
    home = tmp_path / "home"
    home.mkdir()
    return Workspace(tmp_path / "lab", home)

"""A repository in which runs are pretended: commits as DVC makes them of experiments, written at
once by git fast-import.
"""

import hashlib
import json
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

WHO = "test <test@example.org> 1700000000 +0000"
IDENTITY = ("-c", "user.name=test", "-c", "user.email=test@example.org")
"""Options of git, on a machine whose Git does not know who works there."""
PARAMS = {
    "train": {
        "optimizer": "adamw",
        "model": "lstm",
        "steps": 10,
        "seed": 0,
        "data_seed": 0,
        "context": 8,
        "validate_every": 5,
    },
    "optimizers": {"adamw": {"learning_rate": 0.004}, "lion": {"learning_rate": 0.001}},
    "models": {"lstm": {"width": 4}},
    "tokenizer": {"name": "bpe"},
    "evaluate": {"stride": 4, "ngram_order": 3},
    "measures": {"n_gram_mixture": {"order": 3}, "learning_curve": {"targets": [3.0, 2.5]}},
}
LOCK = """\
schema: '2.0'
stages:
  evaluate:
    cmd: python -m pipeline.evaluate
    deps:
    - path: src/lmlab/scoring.py
      hash: md5
      md5: {code}
      size: 1
    outs:
    - path: results/metrics.json
      hash: md5
      md5: {metrics}
      size: 1
    - path: results/measures.json
      hash: md5
      md5: {measures}
      size: 1
"""


@dataclass(frozen=True)
class Pretended:
    """A run: what of its params is other than in PARAMS, by dotted keys, and what it measured."""

    name: str
    seed: int = 0
    changes: dict[str, Any] = field(default_factory=dict)
    measures: dict[str, Any] = field(default_factory=dict)
    """measures.json, nested; an empty one is that of a run that diverged."""
    files: dict[str, str] = field(default_factory=dict)
    """More files, by path."""
    code: str = "c0"

    def tree(self) -> dict[str, Any]:
        """Its params.yaml."""
        tree = json.loads(json.dumps(PARAMS))
        for key, value in {"train.seed": self.seed, **self.changes}.items():
            *blocks, last = key.split(".")
            at = tree
            for block in blocks:
                at = at.setdefault(block, {})
            at[last] = value
        return tree  # type: ignore[no-any-return]

    def contents(self) -> dict[str, str]:
        """Its files as Git has them."""
        status: dict[str, Any] = {"status": "finished"}
        if not self.measures:
            diverged = {"step": 3, "reason": "loss nan"}
            status = {
                "status": "diverged",
                "diverged": diverged,
                "parameters": 5,
                "tokens_seen": 24,
            }
        measures = json.dumps({**status, **self.measures})
        metrics = json.dumps(status)
        lock = LOCK.format(code=self.code, metrics=_md5(metrics), measures=_md5(measures))
        return {
            "params.yaml": json.dumps(self.tree(), indent=1),  # which is YAML
            "dvc.lock": lock,
            "results/metrics.json": metrics,
            "results/measures.json": measures,
            **self.files,
        }


def bits(value: float, **more: Any) -> dict[str, Any]:
    """The measures of a run that validation text costs so many bits per byte."""
    return {
        "validation": {"bits_per_byte": value, "bytes": 100, "tokens": 100},
        "window": 8,
        "stride": 4,
        **more,
    }


def _md5(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


class Laboratory:
    """The repository; HEAD is a commit without a run, from which all experiments begin."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)
        self.git("init", "-q", "-b", "main")
        self._import([_commit("refs/heads/main", {"README": "a laboratory"})])
        self.head = self.git("rev-parse", "HEAD")

    def git(self, *words: str, given: str | None = None) -> str:
        """What git prints."""
        return subprocess.run(
            ["git", *IDENTITY, *words],
            cwd=self.root,
            input=given,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()

    def experiments(self, runs: Iterable[Pretended]) -> None:
        """Finished or diverged ones."""
        row = f"refs/exps/{self.head[:2]}/{self.head[2:]}"
        self._import([_commit(f"{row}/{run.name}", run.contents(), self.head) for run in runs])

    def unfinished(self, runs: Sequence[Pretended], log: str = "failed") -> None:
        """Those in DVC's log of failed ones, or in its `stash` of queued ones."""
        if not runs:
            return
        self._import(
            [
                _commit(
                    f"refs/pretended/{run.name}", {"params.yaml": run.contents()["params.yaml"]}
                )
                for run in runs
            ]
        )
        for run in runs:
            message = f"commit: dvc-exp:{self.head}:{self.head}:{run.name}"
            commit = self.git("rev-parse", f"refs/pretended/{run.name}")
            self.git(
                "update-ref",
                "--create-reflog",
                "-m",
                message,
                f"refs/exps/celery/{log}",
                commit,
            )

    def begun(
        self, run: Pretended, status: int, exists: bool = True, location: str = "dvc-task"
    ) -> None:
        """One that DVC has begun, as it keeps that in its own folder; outside the queue it never
        notes an end there.
        """
        self._import(
            [_commit(f"refs/pretended/{run.name}", {"params.yaml": run.contents()["params.yaml"]})]
        )
        commit = self.git("rev-parse", f"refs/pretended/{run.name}")
        folder = self.root / ".dvc/tmp/exps/run" / commit
        folder.mkdir(parents=True)
        where = str(self.root if exists else self.root / "gone")
        record = {
            "baseline_rev": self.head,
            "root_dir": where,
            "name": run.name,
            "location": location,
            "status": status,
        }
        record["result_hash"] = None
        (folder / f"{commit}.run").write_text(json.dumps(record))

    def workspace(self, run: Pretended) -> None:
        """A run in the workspace."""
        for path, content in run.contents().items():
            (self.root / path).parent.mkdir(exist_ok=True)
            (self.root / path).write_text(content)

    def _import(self, commits: Sequence[str]) -> None:
        self.git("fast-import", "--quiet", "--force", given="".join(commits))


def _commit(ref: str, files: dict[str, str], parent: str = "") -> str:
    lines = [f"commit {ref}\ncommitter {WHO}\ndata 1\nx\n"]
    if parent:
        lines.append(f"from {parent}\ndeleteall\n")
    for path, content in files.items():
        lines.append(f"M 100644 inline {path}\ndata {len(content.encode())}\n{content}\n")
    return "".join([*lines, "\n"])


def plain(path: Path) -> Any:
    """A YAML file."""
    return YAML(typ="safe").load(path.read_text())

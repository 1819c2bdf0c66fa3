"""A miniature of the project, in which every stage has next to nothing to do: what is left is the
pipeline's own cost.
"""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

PROJECT = Path(__file__).resolve().parents[1]
STAGES = ("download", "tokenizer", "shard", "train", "evaluate", "probe", "report")
MINIATURE: dict[str, Any] = {
    "download.corpus": "grammar",
    "corpora.grammar.documents": 12,
    "corpora.grammar.sentences": 15,
    "train.steps": 4,
    "train.batch": 4,
    "train.context": 16,
    "models.transformer.depth": 1,
    "models.transformer.width": 16,
    "layers.attention.multi_head.heads": 2,
    "evaluate.stride": 8,
    "evaluate.ngram_order": 3,
    "evaluate.sample_tokens": 20,
    "probe.windows": 4,
}
LONGEST = 300
"""Seconds that an experiment of the queue may take."""


class Miniature:
    """A clone of the last commit, made small and committed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "project"
        self.environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "DVC_NO_ANALYTICS": "1",
            "DVC_SITE_CACHE_DIR": str(folder / "site"),
            "GIT_AUTHOR_NAME": "benchmark",
            "GIT_AUTHOR_EMAIL": "benchmark@example.org",
            "GIT_COMMITTER_NAME": "benchmark",
            "GIT_COMMITTER_EMAIL": "benchmark@example.org",
        }
        subprocess.run(["git", "clone", "-q", str(PROJECT), str(self.folder)], check=True)
        yaml = YAML()
        path = self.folder / "params.yaml"
        tree = yaml.load(path)
        for dotted, value in MINIATURE.items():
            *blocks, key = dotted.split(".")
            at = tree
            for block in blocks:
                at = at[block]
            at[key] = value
        yaml.dump(tree, path)
        self.seconds("dvc", "repro")
        self.seconds("git", "commit", "-qam", "A miniature")

    def seconds(self, *command: str, folder: Path | None = None) -> float:
        """What a command takes, here or in another folder."""
        start = time.perf_counter()
        done = subprocess.run(
            command,
            cwd=folder or self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(
                f"{' '.join(command)} gave"
                f" {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
            )
        return time.perf_counter() - start

    def worked(self, count: int) -> float:
        """Seconds until the queue has finished so many experiments more, its worker's start
        included.
        """
        before, start = self._finished(), time.perf_counter()
        begin = ["dvc", "queue", "start", "-j", "1"]
        # its worker keeps what it is given to write to, so nobody may wait for the end of that
        subprocess.run(
            begin, cwd=self.folder, env=self.environment, stdout=subprocess.DEVNULL, check=True
        )
        while (
            taken := time.perf_counter() - start
        ) < count * LONGEST and self._finished() < before + count:
            time.sleep(0.2)
        self.seconds("dvc", "queue", "stop", "--kill")
        if taken > count * LONGEST:
            raise SystemExit(f"the queue has not finished {count} experiments in {taken:.0f} s")
        return taken

    def _finished(self) -> int:
        """How many experiments Git knows: refs/exps/<their baseline>/<name>. The queue's own
        records lie beside those.
        """
        listed = ["git", "for-each-ref", "refs/exps/??/**"]
        done = subprocess.run(
            listed,
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=True,
        )
        return len(done.stdout.splitlines())

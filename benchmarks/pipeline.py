"""What the pipeline costs beside its stages' own work, on a miniature of the project in a folder of
its own.

    python benchmarks/pipeline.py --queued 100 --worked 10

The miniature is the last commit, a few numbers lowered so that each stage has next to nothing to
do. What is timed: the start of the command line and of every stage (its imports), `dvc repro` with
nothing to do, `dvc exp run` with another seed over the seconds its stages took, queueing
experiments, and working through the first few of them. `python` alone is the yardstick. Writes
benchmarks/results/pipeline.csv.
"""

import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from common import RESULTS, write
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

    def seconds(self, *command: str) -> float:
        """What a command takes."""
        start = time.perf_counter()
        done = subprocess.run(
            command,
            cwd=self.folder,
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


def main(
    repeats: Annotated[int, typer.Option(help="Times that each is done; medians are shown.")] = 3,
    queued: Annotated[int, typer.Option(help="Experiments to queue.")] = 20,
    worked: Annotated[int, typer.Option(help="Of them, how many to run.")] = 3,
    out: Annotated[Path, typer.Option(help="Where to write the table.")] = RESULTS / "pipeline.csv",
) -> None:
    """Print and write seconds."""
    rows: list[dict[str, Any]] = []

    def add(what: str, seconds: float, of: str) -> None:
        rows.append({"what": what, "seconds": seconds, "of": of})
        typer.echo(f"{what:32}{seconds:8.2f} s  {of}")

    with TemporaryDirectory() as made:
        project = Miniature(Path(made))
        starts: dict[str, list[str]] = {
            "python": ["python", "-c", "pass"],
            "lmlab --help": ["lmlab", "--help"],
            "dvc --version": ["dvc", "--version"],
            "import torch": ["python", "-c", "import torch"],
            **{
                f"start of {stage}": ["python", "-m", f"pipeline.{stage}", "--help"]
                for stage in STAGES
            },
            "lmlab check": ["lmlab", "check"],
            "dvc repro, nothing to do": ["dvc", "repro"],
        }
        found: dict[str, list[float]] = {what: [] for what in starts}
        for _ in range(repeats):
            for what, command in starts.items():
                found[what].append(project.seconds(*command))
        for what, seconds in found.items():
            add(what, median(seconds), "a call")
        stages = sum(
            project.seconds("python", "-m", f"pipeline.{stage}")
            for stage in ("train", "evaluate", "probe", "report")
        )
        project.seconds("dvc", "repro", "--force")
        whole = median(
            project.seconds("dvc", "exp", "run", "-S", f"train.seed={seed}")
            for seed in range(1, 1 + repeats)
        )
        add("dvc exp run, another seed", whole, "an experiment: four stages")
        add("of it the four stages", stages, "each as a command")
        add("of it DVC", whole - stages, "an experiment")
        if queued:
            taken = project.seconds(
                "dvc", "exp", "run", "--queue", "-S", f"train.seed=range(100,{100 + queued})"
            )
            add(f"queueing {queued} experiments", taken, "one command")
            add("listing them", project.seconds("dvc", "queue", "status"), "a call")
        if worked := min(worked, queued):
            add(
                f"the first {worked} of the queue",
                project.worked(worked) / worked,
                "an experiment: four stages",
            )
    write(rows, out)


if __name__ == "__main__":
    typer.run(main)

"""What the pipeline costs beside its stages' own work, on a miniature of the project in a folder of
its own.

    python benchmarks/pipeline.py --queued 100 --worked 10

The miniature is the last commit, a few numbers lowered so that each stage has next to nothing to
do. What is timed: the start of the command line and of every stage (its imports), `dvc repro` with
nothing to do, `dvc exp run` with another seed over the seconds its stages took, queueing
experiments, and working through the first few of them. `python` alone is the yardstick. Writes
benchmarks/results/pipeline.csv.
"""

from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from common import RESULTS, write
from miniature import STAGES, Miniature


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

"""`lmlab study`: run a study, write its table, and say what of it is stale."""

import os
from collections.abc import Iterator
from pathlib import Path

from lmlab.core import params
from lmlab.core.errors import UserError
from lmlab.experiments.studies import running, scaling_findings, study, table, workers

STUDIES = Path("studies")
TEMPLATE = "template"


def find(name: str) -> Path:
    """The folder of a study, by its name below studies/ or by a path to it."""
    for folder in (STUDIES / name, Path(name)):
        if name and (folder / "params.yaml").exists() and folder.resolve() != Path().resolve():
            return folder
    nearest = params.nearest(name, names())
    raise UserError(f"there is no study {name!r} below {STUDIES}/; {nearest}")


def names() -> list[str]:
    """The studies of the project, without the template."""
    folders = (path.parent for path in STUDIES.glob("*/params.yaml"))
    return sorted(folder.name for folder in folders if folder.name != TEMPLATE)


def run(folder: Path, arms: list[str], quick: bool, cluster: str = "") -> None:
    """Run all arms, or some, as far as their points are missing or stale: on this machine, or by
    the workers of the cluster at an address.
    """
    asked = study.read(folder, quick)
    wanted = arms or list(asked.arms)
    for name in wanted:
        asked.arm(name)  # raises UserError for a typo before anything runs
    corpus = running.make_corpus(asked)
    processes = asked.params.processes or os.cpu_count() or 1
    with workers.at(cluster) if cluster else workers.here(processes) as made:
        for number, name in enumerate(wanted, 1):
            print(f"{asked.name}: arm {number} of {len(wanted)}: {name}", flush=True)
            running.run_arm(asked, name, corpus, made)


def table_lines(folder: Path, arms: list[str], quick: bool) -> Iterator[str]:
    """Write the study's table and charts; the table, to be shown."""
    found = table.write(study.read(folder, quick), also=arms)
    yield found.to_string(index=False, float_format="%.4g", na_rep="")


def fit_lines(folder: Path, quick: bool) -> Iterator[str]:
    """Fit the study's scaling law; what came out, a line each."""
    found = scaling_findings.write(study.read(folder, quick))
    for key, (low, high) in found["intervals"].items():
        value = found["law"].get(key, found["size_exponent"])
        yield f"{key}: {value:.4g} ({low:.4g} to {high:.4g})"
    for row in found["held_out"]:
        measured = ", ".join(f"{nats:.4f}" for nats in row.get("measured", []))
        predicted = f"{row['nats']:.4f} ({row['low']:.4f} to {row['high']:.4f})"
        yield (
            f"{row['arm']}, {row['tokens']:,} tokens: predicted {predicted},"
            f" {measured or 'not yet measured'}"
        )
    if lacking := found.get("resamples_without_a_term"):
        yield (
            f"{lacking} of {found['replicates']} resamples lack an effect of size or text;"
            " intervals are without them"
        )
    if diverged := found.get("diverged"):
        yield f"left out, as they diverged: {len(diverged)} runs ({'; '.join(diverged)})"


def check(name: str, quick: bool) -> list[str]:
    """What is missing or stale in a study, or in all of them without a name: a line for each arm,
    and for each file of points that belongs to no arm.
    """
    folders = [find(name)] if name else [STUDIES / known for known in names()]
    lines = []
    for folder in folders:
        asked = study.read(folder, quick)
        corpus = running.corpus_of(asked)
        for arm in asked.arms:
            if reasons := running.stale(asked, arm, corpus):
                more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
                lines.append(f"{folder}: {arm}: {reasons[0]}{more}")
        for file in sorted((asked.output / "points").glob("*.json")):
            if file.stem not in asked.arms:
                lines.append(f"{file}: the study has no such arm; delete the file")
    return lines

"""What several processes exchange in a step of each rule that perturbs, and what they save, beside
backprop's, in one run.

    python benchmarks/processes.py

Rules with a population share it and send each other losses; backprop shares the batch and sends
gradients. One process and several take turns at the same steps, whose weights are compared; figures
are ratios of medians. Each process has one thread, so as many cores as processes are needed for the
times to mean anything. The model is the plain transformer (`PLAIN` in common.py) at width 128 and
depth 4 on the grammar. Writes benchmarks/results/processes.csv.
"""

from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Annotated, Any, NamedTuple

import torch
import typer
from common import RESULTS, pinned, prepare, seconds, show, write

from lmlab.core import params, registry
from lmlab.core.errors import UserError
from lmlab.core.params import Tree, changed
from lmlab.data.batches import Batches
from lmlab.data.shards import Shards
from lmlab.model import meeting, processes
from lmlab.model.device import use_device
from lmlab.training import checkpoint
from lmlab.training import step as stepping
from lmlab.training.step import TrainParams

MEMBERS = {
    "evolution_strategies": "population",
    "low_rank_evolution": "population",
    "spsa": "directions",
    "forward_gradient": "directions",
    "node_perturbation": "samples",
    "activity_forward_gradient": "samples",
}
"""The option that says how many members there are, by rule."""
SETTINGS = {
    "download.corpus": "grammar",
    "models.transformer.width": 128,
    "models.transformer.depth": 4,
    "train.context": 64,
    "train.batch": 8,
    "train.optimizer": "sgd",
    "train.schedule": "constant",
    "train.threads": 1,
    "learning_rules.forward_gradient.at_once": 1,
    "learning_rules.node_perturbation.maps_at_once": 0,
    "learning_rules.activity_forward_gradient.maps_at_once": 0,
}


class Measured(NamedTuple):
    """Of some steps by so many processes, on the first of them."""

    seconds: float
    """The median step."""
    sent: float
    """Bytes in a step, by each process."""
    digest: str
    """Of the weights after them."""


def measure(tree: Tree, shards: Shards, steps: int) -> Measured:
    """Take a first step that is not counted, then some more; on each process."""
    section = params.section(tree, "train", TrainParams)
    device = use_device(section.device, section.threads)
    parts = registry.choices(tree, "train", section)
    run = stepping.begin(section, parts, shards.vocabulary_size, device)
    settled = run.params
    batches = Batches(shards, settled.batch, settled.context, 0, settled.pool_tokens)
    schedule = parts["schedule"].build(1 + steps)

    def take() -> None:
        stepping.take_step(run, schedule, batches)
        run.step += 1

    take()
    sent = processes.sent_bytes()
    times = [seconds(take) for _ in range(steps)]
    sent_in_a_step = (processes.sent_bytes() - sent) / steps
    return Measured(median(times), sent_in_a_step, checkpoint.digest(run.learned()))


def by(count: int, tree: Tree, shards: Shards, steps: int) -> Measured:
    """`measure` by so many processes; by one with as many micro-batches as they would have."""
    together = changed(tree, {"train.processes": count})
    return meeting.run("--processes", count, "gloo", measure, together, shards, steps)


def compared(rule: str, members: int, count: int, shards: Shards, steps: int) -> dict[str, Any]:
    """A row of the table."""
    settings: dict[str, Any] = {"train.learning_rule": rule}
    if rule in MEMBERS:
        settings[f"learning_rules.{rule}.{MEMBERS[rule]}"] = members
    tree = pinned({**SETTINGS, **settings})
    pieces = 1 if rule in MEMBERS else count
    alone = by(1, changed(tree, {"train.gradient_accumulation": pieces}), shards, steps)
    together = by(count, tree, shards, steps)
    return {
        "rule": rule,
        "members": members if rule in MEMBERS else "",
        "processes": count,
        "bytes": together.sent,
        "times_faster": alone.seconds / together.seconds,
        "same_bytes": alone.digest == together.digest,
    }


def main(
    rule: Annotated[
        list[str] | None, typer.Option(help="By default backprop and all rules that perturb.")
    ] = None,
    members: Annotated[list[int] | None, typer.Option(help="By default 8 and 64.")] = None,
    count: Annotated[int, typer.Option("--processes", help="That share a step.")] = 2,
    steps: Annotated[int, typer.Option(help="That are timed.")] = 5,
    out: Annotated[Path, typer.Option(help="Where to write the table.")] = RESULTS
    / "processes.csv",
) -> None:
    """Print and write what each rule exchanges and saves."""
    names = rule or ["backprop", *MEMBERS]
    unknown = {*names} - {"backprop", *MEMBERS}
    if unknown:
        raise UserError(f"--rule: {', '.join(sorted(unknown))}: backprop, {', '.join(MEMBERS)}")
    torch.set_num_threads(1)
    rows = []
    with TemporaryDirectory() as folder:
        shards, _ = prepare(pinned(SETTINGS), Path(folder))
        for name in names:
            for number in (members or [8, 64]) if name in MEMBERS else [0]:
                rows.append(compared(name, number, count, shards, steps))
                show(rows[-1:])
    of_backprop = next((row["bytes"] for row in rows if row["rule"] == "backprop"), None)
    for row in rows:
        row["of_backprop"] = row["bytes"] / of_backprop if of_backprop else None
    show(rows)
    write(rows, out)


if __name__ == "__main__":
    typer.run(main)

"""Snapshots: what a run was at a few of its steps, kept whole, so that what is asked of it can be
thought of afterwards.

A snapshot has the weights before a step and after it (so the update that was made is there too, to
the last bit) and the learning rule's state before it. The weights are those that the run trains at,
also where an optimizer recommends others. Until the run ends they lie in its scratch folder, each
written before any checkpoint that is later than it.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lmlab.core.errors import UserError
from lmlab.core.files import read_json, whole_folder, write_json
from lmlab.training import checkpoint

RECORD = "run.json"
FOLDER = "snapshots"
"""In the run's scratch folder."""


def positions(steps: int, count: int) -> list[int]:
    """The steps, from 0 on, at which `count` snapshots are taken: the first, the last, the others
    evenly between.

    A single one is taken at the last; no step has two.
    """
    if count == 1:
        return [steps - 1]
    count = min(count, steps + 1)  # more would be the same steps again
    return sorted({round(number * (steps - 1) / (count - 1)) for number in range(count)})


def before(model: nn.Module, rule: nn.Module) -> dict[str, dict[str, Tensor]]:
    """Copies of what a step is about to change."""
    return {
        name: {key: value.detach().clone() for key, value in module.state_dict().items()}
        for name, module in (("model", model), ("rule", rule))
    }


def write(scratch: Path, state: dict[str, Any]) -> None:
    """Write one snapshot: `step`, `tokens` read before it, `learning_rate`, and states `model`,
    `rule` and `after`.
    """
    checkpoint.write(scratch / FOLDER / _name(state["step"]), state)


def has_all(scratch: Path, due: list[int], step: int) -> bool:
    """Whether all that were due before a step are there."""
    return all((scratch / FOLDER / _name(taken)).exists() for taken in due if taken < step)


def publish(scratch: Path, folder: Path, due: list[int], run: dict[str, Any]) -> None:
    """Copy the snapshots to the folder where they stay, with `run.json`: what is needed to build
    model and rule again.
    """
    with whole_folder(folder) as made:
        for step in due:
            shutil.copyfile(scratch / FOLDER / _name(step), made / _name(step))
        write_json(made / RECORD, {**run, "snapshots": [_name(step) for step in due]})


def read(folder: Path) -> tuple[dict[str, Any], Iterator[dict[str, Any]]]:
    """What `publish` wrote: the record, and the snapshots in order. Raises UserError naming a file
    that is not whole.
    """
    record = read_json(folder / RECORD, made_by="train")

    def each() -> Iterator[dict[str, Any]]:
        for name in record["snapshots"]:
            state = checkpoint.read(folder / name)
            if state is None:
                raise UserError(
                    f"{folder / name} is missing or damaged; run `dvc repro --force train` to"
                    " make it again"
                )
            yield state

    return record, each()


def _name(step: int) -> str:
    return f"step-{step:08d}.safetensors"

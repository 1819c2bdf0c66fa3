"""Snapshots: a run before and after a few of its steps, for probes to look into later.

A snapshot has the weights before a step and after it, so that their difference is the update to the
last bit, and the learning rule's state before it. The weights are those that the run trains at,
also where the optimizer recommends others for evaluation. Until the run ends snapshots lie in its
scratch folder; each is written before any checkpoint of a later step.
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
    """The steps, counted from 0, at which `count` snapshots are taken.

    The first step, the last and the others evenly between them; a single one at the last. No step
    has two, so there are at most as many as steps.
    """
    if count == 1:
        return [steps - 1]
    count = min(count, steps + 1)  # more would be the same steps again
    evenly = (number * (steps - 1) / (count - 1) for number in range(count))
    return sorted({round(step) for step in evenly})


def before(model: nn.Module, rule: nn.Module) -> dict[str, dict[str, Tensor]]:
    """Copies of the states that a step is about to change."""
    return {"model": _copied_state(model), "rule": _copied_state(rule)}


def _copied_state(module: nn.Module) -> dict[str, Tensor]:
    return {key: value.detach().clone() for key, value in module.state_dict().items()}


def write(scratch: Path, state: dict[str, Any]) -> None:
    """Write one snapshot.

    Its keys are `step`, `tokens` trained on before that step, `learning_rate`, and the states
    `model` and `rule` before the step and `after`, the model's after it.
    """
    checkpoint.write(scratch / FOLDER / _name(state["step"]), state)


def has_all(scratch: Path, due: list[int], step: int) -> bool:
    """Whether the snapshots of all due steps before `step` are there."""
    files = [scratch / FOLDER / _name(due_step) for due_step in due if due_step < step]
    return all(file.exists() for file in files)


def publish(scratch: Path, folder: Path, steps: list[int], run: dict[str, Any]) -> None:
    """Copy the snapshots of these steps to the folder where they stay, with their record.

    The record `run.json` is `run`, which says how to build model and rule again, and the names of
    the snapshots.
    """
    names = [_name(step) for step in steps]
    with whole_folder(folder) as partial:
        for name in names:
            shutil.copyfile(scratch / FOLDER / name, partial / name)
        write_json(partial / RECORD, {**run, "snapshots": names})


def read(folder: Path) -> tuple[dict[str, Any], Iterator[dict[str, Any]]]:
    """What `publish` wrote: the record, and the snapshots in order, each read when it is asked for.

    Raises UserError naming a file that is missing or damaged.
    """
    record = read_json(folder / RECORD, made_by="train")
    return record, _states(folder, record["snapshots"])


def _states(folder: Path, names: list[str]) -> Iterator[dict[str, Any]]:
    for name in names:
        state = checkpoint.read(folder / name)
        if state is None:
            raise UserError(
                f"{folder / name} is missing or damaged; run `dvc repro --force train` to make it"
                " again"
            )
        yield state


def _name(step: int) -> str:
    return f"step-{step:08d}.safetensors"

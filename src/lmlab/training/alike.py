"""That all processes of a run would end in the same results: what decides these is compared."""

import json
import platform
from pathlib import Path
from typing import Any

import torch

from lmlab.core.files import sha256
from lmlab.model import processes
from lmlab.training.step import Run

ROOMS = ("core", "data", "model", "training")
"""Whose code decides a run's results."""


def check(decisive: dict[str, Any], device: torch.device) -> None:
    """Raise UserError where another process of the run differs in what decides its results."""
    if processes.share().total == 1:
        return
    facts = {
        **{f"train.{key}": json.dumps(value) for key, value in decisive["params"].items()},
        **{f"train.{key}'s options": json.dumps(value) for key, value in decisive["parts"].items()},
        **{key: json.dumps(decisive[key]) for key in decisive if key not in ("params", "parts")},
        **_code(),
        "torch's version": torch.__version__,
        "kind of processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "kind of device": torch.cuda.get_device_name() if device.type == "cuda" else device.type,
    }
    processes.check_same(
        facts, "let all processes have one commit, params.yaml, data and kind of machine"
    )


def _code() -> dict[str, str]:
    """The SHA-256 of each file of the lab that may decide a run's results."""
    package = Path(__file__).parents[1]
    files = [path for room in ROOMS for path in sorted((package / room).rglob("*.py"))]
    return {str(path.relative_to(package)): sha256(path) for path in files}


def how_shared(run: Run) -> str:
    """How the run's processes share its work."""
    count, pieces = run.params.processes, run.params.gradient_accumulation
    if run.rule.shares_population:
        return f"{count} processes share the rule's population; the bytes are those of one process"
    each = f"{pieces // count} of its {pieces} micro-batches"
    return (
        f"{count} processes share the batch, each {each}; the bytes are those of one process with"
        f" train.gradient_accumulation {pieces}"
    )

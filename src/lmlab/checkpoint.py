"""Save and resume, exactly: everything that decides what a run does next, in one file without code.

The file is a safetensors archive: tensors as they are, everything else as JSON in its header. It lies in a scratch folder
outside the stage's outputs (which DVC deletes before a stage starts), under a key made of all that decides the run's
result; so no other run can pick it up, and a run that is killed and started again finds it.
"""

import hashlib
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lmlab.files import sha256, whole_file

FILE = "checkpoint.safetensors"


def run_key(decides: dict[str, Any]) -> str:
    """A short name for a run: a hash of what decides its result, of torch's version and of all lmlab code it has loaded."""
    code = {
        name: sha256(Path(module.__file__))
        for name, module in sorted(sys.modules.items())
        if name.startswith("lmlab") and module.__file__
    }
    everything = {"decides": decides, "torch": torch.__version__, "code": code}
    return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()[:20]


def scratch_folder(key: str) -> Path:
    """Where the run named `key` keeps its checkpoint: in the project itself, also for experiments run in a copy of it.

    DVC gives the project's own folder as DVC_ROOT, and only this use is made of it.
    """
    return Path(os.environ.get("DVC_ROOT", ".")) / ".scratch" / f"train-{key}"


def save(folder: Path, state: dict[str, Any]) -> None:
    """Write `state` as the folder's checkpoint, whole or not at all."""
    write(folder / FILE, state)


def load(folder: Path) -> dict[str, Any] | None:
    """What `save` wrote last, or None when there is nothing or (after a crash of the machine) nothing whole."""
    return read(folder / FILE)


def write(path: Path, state: dict[str, Any]) -> None:
    """Write a tree of dicts and lists with tensors and plain values as leaves, whole or not at all."""
    tensors: dict[str, Tensor] = {}
    skeleton = _take_out(state, tensors)
    with whole_file(path) as partial:
        save_file(tensors, partial, metadata={"state": json.dumps(skeleton)})


def read(path: Path) -> dict[str, Any] | None:
    """What `write` wrote, or None when there is nothing whole."""
    try:
        with safe_open(path, framework="pt") as opened:
            skeleton = json.loads(opened.metadata()["state"])
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 (not a dict)
        state: dict[str, Any] = _put_back(skeleton, tensors)
    except (FileNotFoundError, SafetensorError, ValueError, KeyError, TypeError):
        return None
    return state


def discard(folder: Path) -> None:
    """Delete a run's scratch folder."""
    shutil.rmtree(folder, ignore_errors=True)


def _take_out(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The tree with each tensor replaced by its name in `tensors`, and each dict by its pairs (JSON keys are text only)."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        # a copy, because safetensors refuses tensors that share memory, as tied weights do
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[key, _take_out(item, tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return {"list": [_take_out(item, tensors) for item in value]}
    return {"value": value}


def _put_back(node: dict[str, Any], tensors: dict[str, Tensor]) -> Any:
    if "tensor" in node:
        return tensors[node["tensor"]]
    if "dict" in node:
        return {key: _put_back(item, tensors) for key, item in node["dict"]}
    if "list" in node:
        return [_put_back(item, tensors) for item in node["list"]]
    return node["value"]

"""Save a run and resume it exactly: one file with everything that decides what the run does next.

The file is a safetensors archive, which holds no code. Tensors are in it as they are; everything
else is JSON, whose bytes are one more tensor (the header has a limited length). The header has a
hash of all of it. The file lies in a scratch folder outside the stage's outputs, which DVC deletes
before a stage starts. The folder is named by a hash of all that decides the run's results: no other
run can take the checkpoint, and a run that is killed and started again finds it. What grows with
the run, such as its log, lies beside it in files that are only appended to (`Lines`).

Two processes may be at the very same run. The second waits until the first has ended, then takes
over its outputs, or its last checkpoint if it was killed.
"""

import hashlib
import io
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import psutil
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lmlab.core.files import sha256, whole_file, whole_folder, write_json
from lmlab.core.scratch import alone

FILE = "checkpoint.safetensors"
SKELETON = "json"
"""The name of the tensor whose bytes are the JSON; the other names are numbers."""
WAITING = "waiting-"
"""Prefix of the file that each process waiting for the run has; its process id follows."""
FINISHED = "finished"
"""Folder of a finished run's outputs, kept for the processes that wait for them."""


def run_key(decisive: dict[str, Any]) -> str:
    """A short name for a run: a hash of what decides its results.

    That is `decisive`, torch's version and all lmlab code that is loaded.
    """
    code = {
        name: sha256(Path(module.__file__))
        for name, module in sorted(sys.modules.items())
        if name.startswith("lmlab") and module.__file__
    }
    everything = {"decides": decisive, "torch": torch.__version__, "code": code}
    return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()[:20]


def digest(state: dict[str, Any]) -> str:
    """SHA-256 of a tree of dicts and lists."""
    tensors: dict[str, Tensor] = {}
    skeleton = json.dumps(_take_out(state, tensors))
    return hashlib.sha256(f"{skeleton} {_digest(tensors)}".encode()).hexdigest()


@contextmanager
def exclusive(folder: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Inside, no other process is at the run of this scratch folder: one that is is waited for."""
    waiting = folder / f"{WAITING}{os.getpid()}"

    def wait() -> None:
        on_wait()
        waiting.touch()  # seen by `awaited`

    with alone(folder, wait):
        waiting.unlink(missing_ok=True)
        yield


def awaited(folder: Path) -> bool:
    """Whether a living process waits for this run."""
    process_ids = [path.name.removeprefix(WAITING) for path in folder.glob(f"{WAITING}*")]
    return any(psutil.pid_exists(int(text)) for text in process_ids if text.isdecimal())


def hand_on(folder: Path, outputs: Mapping[str, Path], facts: dict[str, Any]) -> None:
    """Keep a finished run's output folders and `facts` for the processes that wait for the run."""
    with whole_folder(folder / FINISHED) as kept:
        write_json(kept / "facts.json", facts)
        for name, output in outputs.items():
            shutil.copytree(output, kept / name)


def take_over(folder: Path, outputs: Mapping[str, Path]) -> dict[str, Any] | None:
    """Copy what `hand_on` has kept to `outputs` and return its facts; None where there is none."""
    kept = folder / FINISHED
    if not kept.is_dir():
        return None
    for name, output in outputs.items():
        with whole_folder(output) as partial:
            shutil.copytree(kept / name, partial, dirs_exist_ok=True)
    facts: dict[str, Any] = json.loads((kept / "facts.json").read_text(encoding="utf-8"))
    return facts


def save(folder: Path, state: dict[str, Any]) -> None:
    """Write `state` as the folder's checkpoint, whole or not at all."""
    write(folder / FILE, state)


def load(folder: Path) -> dict[str, Any] | None:
    """What `save` wrote last, or None where there is no checkpoint or only a damaged one."""
    return read(folder / FILE)


def write(path: Path, state: dict[str, Any]) -> None:
    """Write a tree of dicts and lists, whole or not at all. Leaves are tensors or plain values."""
    tensors: dict[str, Tensor] = {}
    skeleton = json.dumps(_take_out(state, tensors)).encode()
    tensors[SKELETON] = torch.frombuffer(bytearray(skeleton), dtype=torch.uint8)
    with whole_file(path) as partial:
        # a single entry: the order of several would differ from run to run
        save_file(tensors, partial, metadata={"sha256": _digest(tensors)})


def read(path: Path) -> dict[str, Any] | None:
    """What `write` wrote, or None where the file is missing or differs in any bit."""
    try:
        with safe_open(path, framework="pt") as opened:
            digest = opened.metadata()["sha256"]
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 (not a dict)
        if digest != _digest(tensors):
            return None
        state: dict[str, Any] = _put_back(json.loads(tensors[SKELETON].numpy().tobytes()), tensors)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return None
    return state


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of every tensor's name, type, shape and bytes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


class Lines:
    """A JSON Lines file that is only appended to, so that a checkpoint need not hold its content.

    A checkpoint holds its `place`. A run that resumes from there opens it at that place (`begin`),
    and what was written later is cut off. Without a path the lines are in memory, of a process that
    saves nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._file: IO[bytes]
        self._hash = hashlib.sha256()

    def begin(self, place: tuple[int, str] | None = None) -> bool:
        """Open the file at an earlier `place`, or empty.

        Returns False, and leaves the file as it is, where its content up to there has changed.
        """
        if self.path is None:
            self._file = io.BytesIO()
            return True
        self.path.parent.mkdir(parents=True, exist_ok=True)
        length, digest = place or (0, hashlib.sha256().hexdigest())
        with open(self.path, "ab+") as file:
            file.seek(0)
            before = file.read(length)
        self._hash = hashlib.sha256(before)
        if self._hash.hexdigest() != digest:
            return False
        self._file = open(self.path, "rb+")  # noqa: SIM115 (open until `close`)
        self._file.truncate(length)
        self._file.seek(length)
        return True

    def close(self) -> None:
        """Nothing more will be added."""
        self._file.close()

    def add(self, value: Any) -> None:
        """Append a line; it is in the file at once."""
        line = json.dumps(value).encode() + b"\n"
        self._file.write(line)
        self._file.flush()
        self._hash.update(line)

    def place(self) -> tuple[int, str]:
        """The file's length, all of it safe on disk by now, and the hash of its content."""
        os.fsync(self._file.fileno())
        return self._file.tell(), self._hash.hexdigest()

    def read(self) -> list[Any]:
        """All lines, parsed."""
        if isinstance(self._file, io.BytesIO):
            written = self._file.getvalue()
        else:
            assert self.path is not None
            written = self.path.read_bytes()
        return [json.loads(line) for line in written.splitlines()]


def discard(folder: Path) -> None:
    """Delete a run's scratch folder."""
    shutil.rmtree(folder, ignore_errors=True)


def _take_out(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The tree with tensors moved to `tensors` and replaced by their names there.

    A dict becomes a list of pairs, as JSON would turn its keys into strings.
    """
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

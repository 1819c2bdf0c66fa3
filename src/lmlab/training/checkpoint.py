"""Save and resume, exactly: everything that decides what a run does next, in one file without code.

The file is a safetensors archive: tensors as they are, everything else as JSON whose bytes are a
tensor too (a header may not be as long), and in its header a hash of all of it. It lies in a
scratch folder outside the stage's outputs (which DVC deletes before a stage starts), under a key
made of all that decides the run's result; so no other run can pick it up, and a run that is killed
and started again finds it. What grows with the run, such as its log, lies beside it in files that
are only ever added to (`Lines`).

Two processes may be given the very same run. The second waits until the first has ended, and takes
over what that has made: its outputs, or its last checkpoint if it was killed.
"""

import fcntl
import hashlib
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

FILE = "checkpoint.safetensors"
SKELETON = "json"
"""The tensor whose bytes are all that is no tensor; others are called by numbers."""
LOCK = "lock"
WAITING = "waiting-"
"""Begins the name of a file for each process that waits for the run; its number follows."""
FINISHED = "finished"
"""What a run has made, kept for those that wait for it."""


def run_key(decides: dict[str, Any]) -> str:
    """A short name for a run: a hash of what decides its result, of torch's version and of all
    lmlab code it has loaded.
    """
    code = {
        name: sha256(Path(module.__file__))
        for name, module in sorted(sys.modules.items())
        if name.startswith("lmlab") and module.__file__
    }
    everything = {"decides": decides, "torch": torch.__version__, "code": code}
    return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()[:20]


def scratch_folder(key: str) -> Path:
    """Where the run named `key` keeps its checkpoint: in the project itself, also for experiments
    run in a copy of it.

    DVC gives the project's own folder as DVC_ROOT, and only this use is made of it.
    """
    return Path(os.environ.get("DVC_ROOT", ".")) / ".scratch" / f"train-{key}"


@contextmanager
def alone(folder: Path, wait: Callable[[], None]) -> Iterator[None]:
    """Wait until no other process is at the run that this scratch folder belongs to; `wait` is
    called first if there is one.

    However a process ends, its hold ends with it.
    """
    mine = folder / f"{WAITING}{os.getpid()}"
    told = False
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / LOCK, "a", encoding="utf-8") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not told:
                    wait()
                    told = True
                mine.touch()
                fcntl.flock(lock, fcntl.LOCK_EX)
            mine.unlink(missing_ok=True)
            if not _is(lock, folder / LOCK):
                continue  # who was here before has taken the folder away
            yield
            return


def _is(file: IO[str], path: Path) -> bool:
    """Whether an open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def awaited(folder: Path) -> bool:
    """Whether a process that lives waits for this run."""
    numbers = [path.name.removeprefix(WAITING) for path in folder.glob(f"{WAITING}*")]
    return any(psutil.pid_exists(int(number)) for number in numbers if number.isdecimal())


def hand_on(folder: Path, outputs: Mapping[str, Path], facts: dict[str, Any]) -> None:
    """Keep a finished run's output folders, and what is to be told of it, for the processes that
    wait for the same run.
    """
    with whole_folder(folder / FINISHED) as kept:
        write_json(kept / "facts.json", facts)
        for name, output in outputs.items():
            shutil.copytree(output, kept / name)


def take_over(folder: Path, outputs: Mapping[str, Path]) -> dict[str, Any] | None:
    """Put in place what `hand_on` has kept, if it has, and return what was told."""
    kept = folder / FINISHED
    if not kept.is_dir():
        return None
    for name, output in outputs.items():
        with whole_folder(output) as made:
            shutil.copytree(kept / name, made, dirs_exist_ok=True)
    facts: dict[str, Any] = json.loads((kept / "facts.json").read_text(encoding="utf-8"))
    return facts


def save(folder: Path, state: dict[str, Any]) -> None:
    """Write `state` as the folder's checkpoint, whole or not at all."""
    write(folder / FILE, state)


def load(folder: Path) -> dict[str, Any] | None:
    """What `save` wrote last, or None when there is nothing or (after a crash of the machine)
    nothing whole.
    """
    return read(folder / FILE)


def write(path: Path, state: dict[str, Any]) -> None:
    """Write a tree of dicts and lists with tensors and plain values as leaves, whole or not at
    all.
    """
    tensors: dict[str, Tensor] = {}
    skeleton = json.dumps(_take_out(state, tensors)).encode()
    tensors[SKELETON] = torch.frombuffer(bytearray(skeleton), dtype=torch.uint8)
    with whole_file(path) as partial:
        # one entry alone: the order of several differs from run to run
        save_file(tensors, partial, metadata={"sha256": _digest(tensors)})


def read(path: Path) -> dict[str, Any] | None:
    """What `write` wrote, or None when there is nothing, or not all of it to the last bit."""
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
    """A file of JSON, a value a line, that is only added to, so that a checkpoint need not hold
    what has been said before.

    A checkpoint has its `place`; who resumes from it goes on there (`begin`), and whatever was
    written later is cut off.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._hash = hashlib.sha256()

    def begin(self, place: tuple[int, str] | None = None) -> bool:
        """Open the file at a place that was reached before, or empty; False where it is not what it
        was at that place.
        """
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
        """No more is added."""
        self._file.close()

    def add(self, value: Any) -> None:
        """Write a line; it is in the file at once."""
        line = json.dumps(value).encode() + b"\n"
        self._file.write(line)
        self._file.flush()
        self._hash.update(line)

    def place(self) -> tuple[int, str]:
        """How long the file is now, all of it safe on disk, and the hash of what is in it."""
        os.fsync(self._file.fileno())
        return self._file.tell(), self._hash.hexdigest()

    def read(self) -> list[Any]:
        """All lines there are."""
        return [json.loads(line) for line in self.path.read_bytes().splitlines()]


def discard(folder: Path) -> None:
    """Delete a run's scratch folder."""
    shutil.rmtree(folder, ignore_errors=True)


def _take_out(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The tree with each tensor replaced by its name in `tensors`, and each dict by its pairs (JSON
    keys are text only).
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

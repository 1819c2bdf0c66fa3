"""Where tensors live and how many threads work on them, set once for a process, and only in ways that repeat bit for bit."""

import os

import torch

from lmlab.errors import UserError


def use_device(name: str, threads: int) -> torch.device:
    """Set threads and determinism for the whole process and return the device. Raises UserError if it is not there."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # or CUDA products differ from run to run
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=name != "cpu")
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there[name]:
        raise UserError(
            f"params.yaml: the device {name!r} is not there; set train.device, evaluate.device and probe.device to 'cpu'"
        )
    return torch.device(name)

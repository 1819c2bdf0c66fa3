"""Where tensors live and how many threads work on them, set once for a process, and only in ways
that repeat bit for bit.
"""

import ctypes
import os
import platform
from pathlib import Path

import torch

from lmlab.core.errors import UserError

BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16")
"""What torch calls a processor's instructions that multiply bfloat16: Intel's and AMD's, Intel's
for tiles, Arm's.
"""
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h


def use_device(name: str, threads: int) -> torch.device:
    """Set threads and determinism for the whole process and return the device. Raises UserError if
    it is not there.
    """
    os.environ.setdefault(
        "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
    )  # or CUDA products differ from run to run
    torch.set_num_threads(threads)
    # the same as `use_deterministic_algorithms`, which would load torch's compiler to tell it too:
    # most of a second
    torch.set_deterministic_debug_mode("error" if name == "cpu" else "warn")
    _keep_memory()
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if not there[name]:
        raise UserError(
            f"params.yaml: the device {name!r} is not there; set train.device, evaluate.device"
            " and probe.device to 'cpu'"
        )
    return torch.device(name)


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether it has instructions for bfloat16. Without, a processor takes 2 to 19 times as long as
    for float32 (LOG.md).
    """
    able = torch.cpu.get_capabilities()
    return device.type != "cpu" or any(able.get(name) for name in BFLOAT16)


def gains_by_bfloat16(device: torch.device) -> bool:
    """Whether it is of those on which training was measured to be faster than in float32 (LOG.md).

    Those are Intel's that multiply tiles, and AMD's: by `avx512_bf16` Intel's own multiply no
    faster than in float32.
    """
    able = torch.cpu.get_capabilities()
    by_amd = str(able.get("cpu_name", "")).startswith("AMD")
    return device.type == "cpu" and bool(
        able.get("amx_bf16") or (by_amd and able.get("avx512_bf16"))
    )


def multiplying_in(precision: str, device: torch.device) -> torch.autocast:
    """Inside, matrices are multiplied in the precision, bfloat16 or that of the weights."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


def memory_bytes() -> int:
    """The machine's memory, or what a container may have of it."""
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        allowed = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
    except OSError:
        return there
    return min(there, int(allowed)) if allowed.isdigit() else there


def _keep_memory() -> None:
    """Have the C library keep what tensors leave behind for the next ones, as the system is slow to
    hand it out anew.

    By default every tensor of some megabytes is a mapping of its own. Only the GNU library offers
    this (mallopt(3)).
    """
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        library.mallopt(M_MMAP_MAX, 0)
        library.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)

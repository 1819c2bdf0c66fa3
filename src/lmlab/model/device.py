"""The device and the number of threads, set once per process so that results repeat bit for bit."""

import ctypes
import os
import platform
from pathlib import Path

import torch

from lmlab.core.errors import UserError

BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16")
"""torch's names for CPU instructions that multiply bfloat16: Intel and AMD, Intel's tiles, Arm."""
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # from malloc.h


def use_device(name: str, threads: int) -> torch.device:
    """Set threads and determinism for the whole process and return the device.

    Raises UserError if the device is not available.
    """
    # without this, CUDA matrix products differ from run to run
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(threads)
    # the same as `use_deterministic_algorithms`, which would also load torch's compiler to set it
    # there: most of a second
    torch.set_deterministic_debug_mode("error" if name == "cpu" else "warn")
    _keep_memory()
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    available = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if not available[name]:
        raise UserError(
            f"params.yaml: the device {name!r} is not available; set train.device,"
            " evaluate.device and probe.device to 'cpu'"
        )
    return torch.device(name)


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions that multiply bfloat16.

    A CPU without them takes 2 to 19 times as long as in float32 (docs/log).
    """
    capabilities = torch.cpu.get_capabilities()
    return device.type != "cpu" or any(capabilities.get(name) for name in BFLOAT16)


def trains_faster_in_bfloat16(device: torch.device) -> bool:
    """Whether training is known to be faster than in float32: on an NVIDIA GPU that has bfloat16,
    and on a CPU on which it was measured to be (docs/log).

    The latter are Intel CPUs that multiply tiles, and AMD's. With `avx512_bf16` alone, Intel's are
    no faster than in float32.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    is_amd = str(capabilities.get("cpu_name", "")).startswith("AMD")
    fast = capabilities.get("amx_bf16") or (is_amd and capabilities.get("avx512_bf16"))
    return device.type == "cpu" and bool(fast)


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """A context that multiplies matrices in bfloat16, or for another precision in the weights'."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


def memory_bytes() -> int:
    """The machine's memory, or the container's limit if that is lower."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
    except OSError:
        return physical
    return min(physical, int(limit)) if limit.isdigit() else physical


def _keep_memory() -> None:
    """Make the C library reuse the memory of freed tensors, which the system is slow to hand out.

    By default every tensor of some megabytes gets a mapping of its own. Only the GNU C library
    offers this (mallopt(3)).
    """
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        library.mallopt(M_MMAP_MAX, 0)
        library.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)

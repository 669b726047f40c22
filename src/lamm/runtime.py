"""Settings of the process that make CPU training faster, each decided by what this machine does.

Two things dominate a small model's step on a CPU: the C allocator gives every large buffer back to
the kernel and fetches it again, page fault by page fault; and float32 products may have a faster
kernel of the same accuracy.
"""

from __future__ import annotations

import ctypes
import logging
import sys

import torch

logger = logging.getLogger(__name__)

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h of glibc
_MATMUL_ERROR_BOUND = 1e-5


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed memory for the next allocation of this process.

    It raises the peak memory a little and saves most page faults. Elsewhere than on Linux with
    glibc nothing is changed.

    Returns:
        Whether the allocator took the setting.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library: its allocator stays as it is
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, -1))


def matmul_error(precision: str, size: int = 256) -> float:
    """Largest relative error of a float32 product under a matmul precision setting.

    Args:
        precision: a value of `torch.set_float32_matmul_precision`.
        size: edge of the square matrices multiplied.
    """
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(size, size, generator=generator)
    right = torch.randn(size, size, generator=generator)
    exact = left.double() @ right.double()
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        error = (left @ right).double() - exact
    finally:
        torch.set_float32_matmul_precision(before)
    return float(error.abs().max() / exact.abs().max())


def tune_cpu() -> dict[str, object]:
    """Apply both settings to this process; say what was done.

    The "medium" matmul precision lets oneDNN do float32 products. On some processors that means
    bfloat16 inside, so it is taken only where its measured error is that of float32.
    """
    error = matmul_error("medium")
    if error < _MATMUL_ERROR_BOUND:
        torch.set_float32_matmul_precision("medium")
    settings = {
        "allocator_keeps_memory": keep_freed_memory(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "float32_matmul_error": error,
        "threads": torch.get_num_threads(),
    }
    logger.debug("CPU settings: %s", settings)
    return settings

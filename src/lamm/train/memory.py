"""Out of memory: which errors mean it, and giving back what only caches hold."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")

_SAID_BY_ALLOCATORS = (
    "out of memory",
    "DefaultCPUAllocator",
    "not enough memory",
    "std::bad_alloc",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that an allocation failed: of a GPU, of the CPU, or of a library."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(
        text in str(error) for text in _SAID_BY_ALLOCATORS
    )


def if_memory_suffices(call: Callable[[], T], device: torch.device) -> T | None:
    """What a call gives, or None where memory ran out on the way; what it held is free then."""
    try:
        return call()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    release_memory(device)  # outside the handler, whose error holds what the call had made
    return None


def release_memory(device: torch.device) -> None:
    """Free what failed calls left in cycles and what the device's allocator keeps for later."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()

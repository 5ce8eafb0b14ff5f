"""Out of memory: half the batch, from the beginning of what was read, until one sample is left."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch

log = logging.getLogger(__name__)
# torch's CPU allocator raises a plain RuntimeError.
_CPU_MESSAGES = ("DefaultCPUAllocator", "not enough memory", "can't allocate memory")


class OutOfMemory(MemoryError):
    """Not even one sample fits."""


def is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return not isinstance(error, OutOfMemory)
    return isinstance(error, RuntimeError) and any(m in str(error) for m in _CPU_MESSAGES)


def retry_with_half(once: Callable[[], None], holder: Any, what: str) -> None:
    """Calls `once`, and again with half of `holder.batch_size` for as long as memory is short.

    Raises:
        OutOfMemory: at a batch size of 1.
    """
    while True:
        try:
            return once()
        except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
            if not is_out_of_memory(error):
                raise
            first = str(error).strip().partition("\n")[0]
        # Outside of the handler, whose traceback would keep the tensors of the failed pass alive.
        if holder.batch_size <= 1:
            raise OutOfMemory(
                f"{what}: expected a batch of one sample to fit in memory, found none left "
                f"({first})"
            )
        holder.batch_size //= 2
        log.warning("%s: out of memory, goes on with batches of %d", what, holder.batch_size)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

"""Memory that files are read into, used again once nobody looks at what is in it.

Fresh memory for every batch costs about as much as reading it from the page cache, for the system
clears each page first.
"""

from __future__ import annotations

import math
import weakref
from collections import deque

import numpy as np
import torch
from torch import Tensor

_KEPT = 8  # free buffers at most


class Buffers:
    """Lends tensors; a tensor's memory comes back when it and all its views are gone."""

    def __init__(self) -> None:
        self._free: deque[np.ndarray] = deque(maxlen=_KEPT)

    def lend(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor [shape] of no particular content."""
        size = math.prod(shape) * dtype.itemsize
        try:
            whole = self._free.pop()
        except IndexError:
            whole = np.empty(0, np.uint8)
        if len(whole) < size:
            whole = np.empty(size, np.uint8)
        # torch keeps this very view alive for as long as any tensor on its memory lives.
        view = whole[:size]
        weakref.finalize(view, self._free.append, whole).atexit = False
        return torch.from_numpy(view).view(dtype).view(shape)

"""Every random number of a run from one seed, and all generators restored afterwards.

There are torch's generator of the CPU, that of the device, NumPy's and Python's global ones, and
those that data loaders bring along.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch


def generators_of(loaders: Iterable[Any]) -> list[torch.Generator]:
    """The torch generators that loaders and their samplers hold, each once, in a fixed order."""
    found: list[torch.Generator] = []
    for loader in loaders:
        batch_sampler = getattr(loader, "batch_sampler", None)
        for holder in (
            loader,
            getattr(loader, "sampler", None),
            batch_sampler,
            getattr(batch_sampler, "sampler", None),
        ):
            generator = getattr(holder, "generator", None)
            if isinstance(generator, torch.Generator) and not any(generator is g for g in found):
                found.append(generator)
    return found


class Randomness:
    """All generators that matter to a run.

    Args:
        device: of the run.
        loaders: see `generators_of`.
    """

    def __init__(self, device: torch.device, loaders: Iterable[Any]) -> None:
        self.device = device
        self.own = generators_of(loaders)

    def seed(self, seed: int) -> None:
        """Seeds every generator."""
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            with torch.cuda.device(self.device):
                torch.cuda.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - that a loader's transforms may draw from
        random.seed(seed)
        for generator in self.own:
            generator.manual_seed(seed)

    def state(self) -> dict[str, Any]:
        """Tensors and plain values."""
        numpy = np.random.get_state(legacy=False)  # noqa: NPY002
        return {
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
            "numpy": numpy,
            "python": random.getstate(),
            "own": [generator.get_state() for generator in self.own],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Puts every generator where it was at `state`."""
        torch.set_rng_state(state["torch"])
        if state["cuda"] is not None:
            torch.cuda.set_rng_state(state["cuda"], self.device)
        np.random.set_state(state["numpy"])  # noqa: NPY002
        random.setstate(state["python"])
        for generator, own in zip(self.own, state["own"], strict=True):
            generator.set_state(own)

    @contextlib.contextmanager
    def kept(self, seed: int | None = None) -> Iterator[None]:
        """What is drawn inside, from `seed` on, does not show outside."""
        before = self.state()
        try:
            if seed is not None:
                self.seed(seed)
            yield
        finally:
            self.restore(before)

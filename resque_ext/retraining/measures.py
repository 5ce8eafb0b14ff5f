"""What is measured of the training itself: gradient norms, and how far the weights moved."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

# On CUDA the values of so many steps are read together; every read waits for the device.
PENDING = 64


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Global L2 norm of the gradients, float32 []; 0 where there is none. Does not synchronise."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return torch.zeros(())
    dense = [g.coalesce().values() if g.is_sparse else g for g in gradients]
    # Halves are widened; a float64 model's norms are rounded once, at the end.
    wide = torch.float64 if any(g.dtype == torch.float64 for g in dense) else torch.float32
    norms = torch._foreach_norm(dense, 2, dtype=wide)
    return torch.linalg.vector_norm(torch.stack(norms)).float()


class StepLog:
    """Loss, gradient norm and a fault flag of the steps that were not read yet, on the device.

    Args:
        device: where they come from. On the CPU every step is read at once.
    """

    def __init__(self, device: torch.device) -> None:
        self.capacity = 1 if device.type == "cpu" else PENDING
        self._values = torch.zeros(self.capacity, 3, dtype=torch.float32, device=device)
        self.sizes: list[int] = []  # samples of the pending steps

    @property
    def full(self) -> bool:
        """It has to be read before the next step."""
        return len(self.sizes) == self.capacity

    def add(self, loss: Tensor, norm: Tensor, fault: Tensor | None, samples: int) -> None:
        """One step. `fault` is true where its labels were out of range."""
        row = self._values[len(self.sizes)]
        row[0].copy_(loss.detach())
        row[1].copy_(norm)
        if fault is None:
            row[2].zero_()
        else:
            row[2].copy_(fault)
        self.sizes.append(samples)

    def take(self) -> tuple[list[list[float]], list[int]]:
        """The pending steps' [loss, norm, fault], and their samples; waits for the device."""
        rows, sizes = self._values[: len(self.sizes)].tolist(), self.sizes
        self.sizes = []
        return rows, sizes


class ParameterTrack:
    """Copies of the trainable parameters at the start and at the end of the last epoch.

    Args:
        model: whose trainable parameters are tracked.
    """

    def __init__(self, model: nn.Module) -> None:
        self.parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.start = self._copies()
        self.previous = self._copies()

    def _copies(self) -> dict[str, Tensor]:
        return {n: p.detach().clone() for n, p in self.parameters.items()}

    def changes(self) -> tuple[dict[str, float | None], dict[str, float | None]]:
        """norm(w - w0) / sqrt(n) by name, to the start and to the previous epoch, in float64."""
        return self._change(self.start), self._change(self.previous)

    def end_epoch(self) -> None:
        """From now on the previous epoch is the one that ends here."""
        for name, parameter in self.parameters.items():
            self.previous[name].copy_(parameter.detach())

    def _change(self, since: dict[str, Tensor]) -> dict[str, float | None]:
        norms = {
            name: torch.linalg.vector_norm(p.detach().double() - since[name].double())
            / math.sqrt(max(p.numel(), 1))
            for name, p in self.parameters.items()
        }
        values = torch.stack(list(norms.values())).tolist()  # one wait for the device
        return {n: v if math.isfinite(v) else None for n, v in zip(norms, values, strict=True)}


def mean(values: Iterable[float | None]) -> float | None:
    """Of all values; None where one is unknown, or there is none."""
    known = list(values)
    if not known or None in known:
        return None
    return math.fsum(known) / len(known)

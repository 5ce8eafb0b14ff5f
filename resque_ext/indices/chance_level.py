"""How far labels without any meaning would bring an index of a task: permuted labels, and a law."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from resque_ext.indices.segments import Embeddings

PERMUTATIONS = 3  # one deviates by 0.1 for two classes and by less for more, so 3 show the level
TESTED = 19  # permutations that a p-value of 0.05 takes
_SAMPLE_ROWS = 512
_SAMPLE_ELEMENTS = 2**22


@dataclass(frozen=True)
class Chance:
    """What the same computation gives for permuted labels, which mean nothing.

    Attributes:
        mean: of the index over the permutations: about 1 where nothing leaks, 0 where any labels
            at all would look perfect.
        std: its standard deviation; None for one permutation.
        p_value: the share of permutations, the labels as they are counted in, whose index is no
            larger; None for fewer than 19, which cannot show 0.05.
        permutations: how many.
    """

    mean: float
    std: float | None
    p_value: float | None
    permutations: int

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and None, for JSON."""
        return asdict(self)


def permuted(
    value: float, rows: int, permutations: int, seed: int, value_of: Callable[[Tensor], float]
) -> Chance | None:
    """`value` beside those of permuted labels; None where no permutation is asked for.

    Args:
        value: the index.
        rows: N.
        permutations: how many; the same seed gives the same ones.
        seed: of the permutations.
        value_of: the index of the labels in another order, [N] positions on the CPU.
    """
    if not permutations:
        return None
    rng = np.random.default_rng(seed)
    values = np.array(
        [value_of(torch.from_numpy(rng.permutation(rows))) for _ in range(permutations)]
    )
    # What is equal but for rounding counts as equal.
    reached = int((values <= value + 1e-12).sum())
    return Chance(
        mean=float(values.mean()),
        std=float(values.std(ddof=1)) if permutations > 1 else None,
        p_value=(1 + reached) / (1 + permutations) if permutations >= TESTED else None,
        permutations=permutations,
    )


def effective_dimension(data: Embeddings, index: Tensor, means: Tensor) -> float:
    """(tr S)^2 / tr S^2 of the covariance S within classes, from at most 512 rows.

    Residuals r of rows of different classes are independent of each other, so the mean of (r.r')^2
    over such pairs has no bias; the mean of |r|^2 gives tr S. Where no pair says anything it is
    the width.

    Args:
        data: the embeddings [N, D].
        index: [N] the class of every row.
        means: [C, D] the means of the classes.
    """
    size = min(data.rows, _SAMPLE_ROWS, max(64, _SAMPLE_ELEMENTS // data.width))
    positions = np.sort(np.random.default_rng(0).choice(data.rows, size, replace=False))
    rows = data.rows_at(positions.tolist()).double()
    of_class = index[torch.from_numpy(positions).to(index.device)]
    residuals = (rows - means[of_class]).cpu().numpy()
    classes = of_class.cpu().numpy()
    sizes = torch.bincount(index).cpu().numpy()[classes].astype(np.float64)
    several = sizes > 1  # a single row is its mean
    residuals, classes, sizes = residuals[several], classes[several], sizes[several]
    residuals = residuals / np.sqrt(1 - 1 / sizes)[:, None]
    pairs = classes[:, None] != classes
    squares = np.square(residuals @ residuals.T)[pairs]
    if not squares.any():
        return float(data.width)
    trace = np.square(residuals).sum(axis=1).mean()
    # Six digits: the last ones depend on how many threads a product is made by.
    return float(f"{min(trace**2 / squares.mean(), data.width):.6g}")

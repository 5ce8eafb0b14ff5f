"""What row_distances should give: numpy's own histograms, the formulas in plain float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Rows:
    """Histograms and distances of pairs of rows, as the op orders them; zeros and NaN where a
    value of the pair is not finite."""

    counts: NDArray[np.int32]  # [N, 2 or 4, sum of bins]: old, new, shared old, shared new
    rows: NDArray[np.float64]  # [N, len(bins), 4 or 8]
    float64_edges: NDArray[np.int64]  # [len(bins)]


def binned(features: np.ndarray) -> np.ndarray:
    """The rows [N, M] as they are binned: tokens flattened, images averaged; float32 or float64."""
    wide = features.astype(np.float64)
    if features.ndim == 3:
        wide = wide.reshape(len(features), -1)
    if features.ndim == 4:
        with np.errstate(invalid="ignore"):
            wide = wide.mean((2, 3))
    return wide if features.dtype == np.float64 else wide.astype(np.float32)


def histogram(row: np.ndarray, least, most, bins: int) -> tuple[np.ndarray, bool]:
    """numpy's counts; where numpy refuses, those of float64 edges, and True."""
    with np.errstate(over="ignore"):
        fits = np.isfinite(most - least)
    if fits:
        try:
            return np.histogram(row, bins, (least, most))[0], False
        except ValueError as error:
            if "Too many bins" not in str(error):
                raise
    if row.dtype == np.float32:
        wide = (np.float64(v) for v in (least, most))
        return histogram(row.astype(np.float64), *wide, bins)[0], True
    if not fits:
        return np.histogram(row / 2, bins, (least / 2, most / 2))[0], True
    # No edges to compare with: the place in the range, in the middle where there is none.
    if least == most:
        least, most = least - 0.5, most + 0.5
    place = (row - least) / (most - least) if least < most else np.full(len(row), 0.5)
    index = np.minimum(np.floor(place * bins).astype(int), bins - 1)
    return np.bincount(index, minlength=bins), True


def divergences(p: np.ndarray, q: np.ndarray) -> list[float]:
    """jensen_shannon, bhattacharyya and kl of two rows of heights."""
    middle = (p + q) / 2
    js = [p[i] * np.log(p[i] / middle[i]) for i in np.flatnonzero(p)]
    js += [q[i] * np.log(q[i] / middle[i]) for i in np.flatnonzero(q)]
    kl = [p[i] * np.log(p[i] / q[i]) for i in np.flatnonzero((p > 0) & (q > 0))]
    return [sum(js) / 2, 1 - np.sqrt(p * q).sum(), sum(kl)]


def row_distances(old: np.ndarray, new: np.ndarray, bins: Sequence[int], shared: bool) -> Rows:
    x, y = binned(old), binned(new)
    n, m = x.shape
    counts = np.zeros((n, 4 if shared else 2, sum(bins)), np.int32)
    rows = np.full((n, len(bins), 8 if shared else 4), np.nan)
    float64_edges = np.zeros(len(bins), np.int64)
    for i in range(n):
        if not (np.isfinite(x[i]).all() and np.isfinite(y[i]).all()):
            continue
        low, high = min(x[i].min(), y[i].min()), max(x[i].max(), y[i].max())
        at = 0
        for k, b in enumerate(bins):
            h = []
            for side in range(counts.shape[1]):
                row = (x, y)[side % 2][i]
                ends = (row.min(), row.max()) if side < 2 else (low, high)
                counts[i, side, at : at + b], wide = histogram(row, *ends, b)
                float64_edges[k] += wide
                h.append(counts[i, side, at : at + b] / m)
            heights = np.abs(np.sort(h[0]) - np.sort(h[1])).mean()
            rows[i, k, :4] = [heights, *divergences(h[0], h[1])]
            if shared:
                width = np.float64(high) / b - np.float64(low) / b
                moved = np.abs(np.cumsum(h[2]) - np.cumsum(h[3])).sum() * width
                rows[i, k, 4:] = [moved, *divergences(h[2], h[3])]
            at += b
    return Rows(counts, rows, float64_edges)

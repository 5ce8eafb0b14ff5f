"""What value_histogram should count, from the arithmetic of floating-point numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Bits of sign and exponent, and the exponent of the least normal number, 2^that.
KINDS = {"float16": (6, -14), "bfloat16": (9, -126), "float32": (9, -126), "float64": (9, -126)}


@dataclass(frozen=True)
class Bins:
    """The bins that have values, in ascending order: which side of zero, where they begin."""

    negative: list[bool]
    near: list[float]  # the end nearer to zero, without its sign
    counts: list[int]
    step: list[float]  # how wide each is


def bins(values: np.ndarray, kind: str, bits: int) -> Bins:
    """Finite values in their bins: magnitudes rounded down to `bits` minus sign and exponent.

    A magnitude in [2^e, 2^(e+1)) has a step of 2^(e - those bits); subnormal ones have that of the
    least normal number.
    """
    head, least = KINDS[kind]
    x = values.astype(np.float64).ravel()
    x = x[np.isfinite(x) & (np.abs(x) < 2.0**128)]
    exponent = np.maximum(np.frexp(np.abs(x))[1] - 1, least)
    exponent[x == 0] = least
    step = np.ldexp(1.0, exponent - (bits - head))
    near = np.floor(np.abs(x) / step) * step
    rows = np.stack([np.where(np.signbit(x), -1.0, 1.0), near, step], axis=1)
    unique, counts = np.unique(rows, axis=0, return_counts=True)
    order = np.lexsort((unique[:, 0] * unique[:, 1], unique[:, 0]))
    unique, counts = unique[order], counts[order]
    return Bins(
        (unique[:, 0] < 0).tolist(), *(c.tolist() for c in (unique[:, 1], counts, unique[:, 2]))
    )

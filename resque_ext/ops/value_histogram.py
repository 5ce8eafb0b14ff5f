"""value_histogram: how values are distributed, over bins that are patterns of their own bits."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from resque_ext.data.checks import (
    as_float,
    check_choice,
    check_count,
    check_features,
    describe,
)
from resque_ext.errors import ArgumentError, ArgumentTypeError
from resque_ext.ops import backend, reference
from resque_ext.ops._features import channel_view, kernel_view
from resque_ext.ops._library import define
from resque_ext.ops.spatial_mean import mean_dtype, spatial_mean

MOST_BITS = 20  # of float32 and float64: 2^20 bins are 8 MB


class ValueHistogram(NamedTuple):
    """Counts over bins that tile the numbers in ascending order; sums of histograms are exact.

    Attributes:
        counts: [2^bits] int64, or [C, 2^bits] by channel, on the device of the values. The bins of
            NaN and infinity, at both ends, are always 0.
        dtype: what the bins are patterns of: float16, bfloat16 or float32 (float64 has its bins).
        bits: how many of the top bits of a value make its bin.

    Where `bits` is the width of `dtype` a bin is one value and everything below is exact. Else a
    bin stands for its midpoint, and a value is off by at most 2^-(bits - 8) of itself for float32
    and bfloat16, 2^-(bits - 5) for float16, or, among the subnormal numbers, half a bin. The two
    bins beside zero stand for 0. -0.0 and 0.0 have bins of their own with one value.
    """

    counts: Tensor
    dtype: torch.dtype
    bits: int

    @property
    def lower(self) -> NDArray[np.float64]:
        """[2^bits] the least value of each bin, NaN for those of NaN and infinity."""
        return bin_values(self.dtype, self.bits)[0]

    @property
    def upper(self) -> NDArray[np.float64]:
        """[2^bits] where each bin ends, itself the next one's where a bin is a range."""
        return bin_values(self.dtype, self.bits)[1]

    @property
    def representatives(self) -> NDArray[np.float64]:
        """[2^bits] the value that each bin stands for, NaN for those of NaN and infinity."""
        return bin_values(self.dtype, self.bits)[2]

    @property
    def total(self) -> int:
        """The number of values that were counted. Waits for the device."""
        return int(self.counts.sum())

    def __add__(self, other: Any) -> ValueHistogram:  # type: ignore[override]
        """The histogram of both sets of values."""
        if not isinstance(other, ValueHistogram):
            raise ArgumentTypeError("other", "a ValueHistogram", type(other).__name__)
        mine, theirs = ((h.dtype, h.bits, tuple(h.counts.shape)) for h in (self, other))
        if mine != theirs:
            raise ArgumentError("other", f"(dtype, bits, shape) = {mine}", theirs)
        return self._replace(counts=self.counts + other.counts)

    def points(self) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]:
        """The bins that have values: representatives, counts, and how far from the former a value
        may lie. Waits for the device.

        Raises:
            ValueError: several channels, or no values.
        """
        if self.counts.dim() != 1:
            raise ArgumentError(
                "histogram",
                "one of one channel",
                f"counts of {describe(self.counts)}",
                fix="h._replace(counts=h.counts[c]) is the one of channel c",
            )
        counts = self.counts.cpu().numpy()
        there = np.flatnonzero(counts)
        if not len(there):
            raise ArgumentError("histogram", "at least one value", "none")
        lower, upper, middle = (part[there] for part in bin_values(self.dtype, self.bits))
        return middle, counts[there], np.maximum(middle - lower, upper - middle)

    def moments(self) -> tuple[float, float]:
        """Mean and standard deviation (of the population) of the representatives.

        The mean is off by at most the mean reach of a bin, see :meth:`points`, the deviation by the
        root of the mean square of it.
        """
        values, counts, _ = self.points()
        return weighted_moments(values, counts)

    def quantiles(self, q: ArrayLike) -> NDArray[np.float64]:
        """The least representative that at least a share `q` of the values does not exceed.

        As numpy.quantile(values, q, method="inverted_cdf"), exactly where a bin is one value.

        Raises:
            ValueError: a `q` outside 0..1.
        """
        shares = np.asarray(q, dtype=np.float64)
        if not ((shares >= 0) & (shares <= 1)).all():
            raise ArgumentError("q", "shares from 0 to 1", f"{q!r}")
        values, counts, _ = self.points()
        up_to = counts.cumsum()
        place = np.searchsorted(up_to, shares * up_to[-1], side="left")
        return values[np.minimum(place, len(values) - 1)]


def weighted_moments(values: NDArray[np.float64], weights: NDArray[Any]) -> tuple[float, float]:
    """Mean and population standard deviation of values that count `weights` each.

    From the first value on, and in units of the widest distance from it: so the deviation of one
    value again and again is 0, and no square overflows.
    """
    share = weights / weights.sum()
    offsets = values - values[0]
    unit = np.abs(offsets).max()
    if unit == 0:
        return float(values[0]), 0.0
    offsets /= unit
    mean = (share * offsets).sum()
    deviation = np.sqrt((share * np.square(offsets - mean)).sum())
    return float(values[0] + unit * mean), float(unit * deviation)


@functools.lru_cache(maxsize=8)
def bin_values(dtype: torch.dtype, bits: int) -> tuple[NDArray[np.float64], ...]:
    """Lower and upper end and representative of the 2^bits bins, in their order; read only."""
    width, exponent = 8 * dtype.itemsize, 5 if dtype == torch.float16 else 8
    half, shift = 2 ** (bits - 1), width - bits
    finite = (2**exponent - 1) << (bits - 1 - exponent)
    patterns = np.arange(finite, dtype=np.int64) << shift
    integers = torch.from_numpy(patterns).to(torch.int32 if width == 32 else torch.int16)
    near = integers.view(dtype).double().numpy()  # the end nearer to zero, of the magnitudes
    if shift == 0:
        far = middle = near
    else:
        # Behind the last finite number, the power of two that its exponent would have next.
        far = np.append(near[1:], 2.0 ** (2 ** (exponent - 1)))
        middle = (near + far) / 2
        middle[0] = 0

    def ordered(below: NDArray[np.float64], above: NDArray[np.float64]) -> NDArray[np.float64]:
        out = np.full(2 * half, np.nan)
        out[half - finite : half] = -below[::-1]
        out[half : half + finite] = above
        out.flags.writeable = False
        return out

    return ordered(far, near), ordered(near, far), ordered(middle, middle)


def bin_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype whose bins values of `dtype` are counted in."""
    return torch.float32 if dtype == torch.float64 else dtype


def value_histogram(
    features: Any,
    *,
    bits: int | None = None,
    pool: bool = False,
    by_channel: bool = False,
    nonfinite: str = "error",
    check: bool | None = None,
) -> ValueHistogram:
    """Counts values over bins that need no range, in one pass: the top bits of each value.

    The order of the numbers is that of their bits (sign apart), so a bin is a range of numbers, or
    with all bits of a 16-bit dtype one number. Histograms of parts of the data add up to that of
    the whole, exactly.

    Args:
        features: a tensor of any shape, float32, float64, float16 or bfloat16, on CPU or CUDA; a
            NumPy array is welcome. float64 is cut to float32 (toward zero, so it falls into the bin
            that holds it); from 2^128 on it counts as infinite. Gradients do not flow.
        bits: how many top bits make a bin: 16 by default, so that 16-bit dtypes are exact and a
            float32 is at most 2^-8 of itself from its bin's middle; 15 makes that 2^-7. At least 9
            (6 for float16: sign and exponent), at most 20, or 16 for 16-bit dtypes.
        pool: count the means of [N, C, H, W] over H and W, or of [N, T, D] over the tokens, which
            :func:`spatial_mean` gives as float32 (float64 for float64); [N, D] is taken as it is.
        by_channel: a histogram for each of the C or D channels: 2^bits * 8 bytes each.
        nonfinite: "error": a NaN or infinite value is a ValueError. "skip": such values are left
            out.
        check: whether non-finite values raise at once. The default is True on the CPU and False on
            CUDA, where raising needs a synchronisation; unchecked ones are left out.

    Raises:
        TypeError: a dtype, layout or device that is not taken.
        ValueError: a rank or value that does not fit.
    """
    x = _check_values(features, pool or by_channel)
    bits = _check_bits(bits, pooled_dtype(x, pool))
    check_choice(nonfinite, ("error", "skip"), "nonfinite")
    if check is None:
        check = x.device.type == "cpu"
    for value, name in ((pool, "pool"), (by_channel, "by_channel"), (check, "check")):
        if not isinstance(value, bool):
            raise ArgumentTypeError(name, "True or False", f"{value!r}")
    skip = nonfinite == "skip"
    counts = torch.ops.resque_ext.value_histogram(x, bits, pool, by_channel, skip, check)
    return ValueHistogram(counts, bin_dtype(pooled_dtype(x, pool)), bits)


def _check_values(features: Any, channels: bool) -> Tensor:
    if channels:
        return check_features(features)
    return as_float(features, "features")


def _check_bits(bits: int | None, dtype: torch.dtype) -> int:
    """The number of bits, 16 by default, that values of `dtype` can be distinguished by."""
    if bits is None:
        return 16
    least = 6 if dtype == torch.float16 else 9
    most = 16 if dtype.itemsize == 2 else MOST_BITS
    bits = check_count(bits, "bits")
    if not least <= bits <= most:
        raise ArgumentError("bits", f"{least} <= bits <= {most} for {dtype}", bits)
    return bits


def pooled_dtype(x: Tensor, pool: bool) -> torch.dtype:
    """The dtype of the values that are counted: of the means, where there are any to take."""
    return mean_dtype(x.dtype) if pool and x.dim() > 2 else x.dtype


class Values(NamedTuple):
    """Values as the kernel reads them, and how to name the place of one.

    Attributes:
        view: [n, channels, positions].
        shape: of the tensor whose element a flat index of `view` is.
        order: the dimensions of what was given that `shape` is made of, one by one.
        rows: which rows of what was given these are: the first one, and the step to the next.
        samples: how many rows there are, where `shape` does not say; None: it does.
    """

    view: Tensor
    shape: tuple[int, ...]
    order: tuple[int, ...]
    rows: tuple[int, int] = (0, 1)
    samples: int | None = None

    @classmethod
    def of(cls, x: Tensor, pool: bool, by_channel: bool) -> Values:
        """The means where there are any to take; else a view, or a copy of what has gaps."""
        if pool and x.dim() > 2:
            x = spatial_mean(x)
        if by_channel:
            view = channel_view(x)
            dims = ((0, 2, 1), (0, 1, 2, 3))[x.dim() == 4] if x.dim() > 2 else (0, 1)
            return cls(view, tuple(x.shape[d] for d in dims), dims)
        # In the order of memory, which counts the same.
        order = tuple(sorted(range(x.dim()), key=lambda d: -x.stride(d)))
        inner = x.permute(order)
        if not inner.is_contiguous():
            order, inner = tuple(range(x.dim())), x.contiguous()
        return cls(inner.reshape(1, -1, 1), tuple(inner.shape), order)

    @property
    def length(self) -> int:
        """The number of rows."""
        return self.shape[self.order.index(0)] if self.samples is None else self.samples

    def without_data(self) -> Values:
        """The same shape and dtype, to name places by when the values are gone."""
        return self._replace(view=torch.empty_like(self.view, device="meta"))

    def place(self, flat: int) -> list[int]:
        """The indices, in what was given, of the value with this flat index."""
        indices = np.unravel_index(flat, self.shape) if self.shape else ()
        where = dict(zip(self.order, map(int, indices), strict=True))
        if where:
            where[0] = self.rows[0] + where[0] * self.rows[1]
        return [where[d] for d in range(len(self.shape))]

    def count(
        self, bits: int, by_channel: bool = False, counts: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Adds to `counts` [2^bits] ([channels, 2^bits] by channel), zeros by default.

        Returns:
            The counts and a status [5] int64 with the non-finite values that the pass left out.
        """
        x = self.view
        if counts is None:
            shape = (x.shape[1], 2**bits) if by_channel else (2**bits,)
            counts = torch.zeros(shape, dtype=torch.int64, device=x.device)
        if backend.current_backend() == "torch":
            found, status = reference.value_histogram(x, bits, by_channel)
            return counts.add_(found.view_as(counts)), status
        status = torch.zeros(5, dtype=torch.int64, device=x.device)
        kernels, view = backend.kernels(x.device), kernel_view(x)
        size = kernels.value_histogram_workspace(view, by_channel, bits)
        workspace = torch.empty(size, dtype=torch.uint8, device=x.device)
        backend.launch(
            "value_histogram", x.device, view, by_channel, bits, counts, status, workspace
        )
        return counts, status


def check_finite(parts: Sequence[tuple[Values, Tensor]], name: str, where: str = "") -> None:
    """ValueError with the number of non-finite values in all parts and the first one's place.

    On CUDA this waits for the device.
    """
    total, first = 0, None
    for values, status in parts:
        _, _, count, from_end, _ = status.tolist()
        if count:
            place = values.place(values.view.numel() - from_end)
            total, first = total + count, place if first is None else min(first, place)
    if total:
        beyond = " (or beyond float32)" if parts[0][0].view.dtype == torch.float64 else ""
        raise ArgumentError(
            name,
            "finite values",
            f"{total} NaN or infinite{beyond}, the first at {first}{where}",
            fix="nonfinite='skip' leaves such values out",
        )


@define(
    "value_histogram_status(Tensor features, int bits, bool pool=False, bool by_channel=False) -> "
    "(Tensor counts, Tensor status)"
)
def _value_histogram_status(
    features: Tensor, bits: int, pool: bool = False, by_channel: bool = False
) -> tuple[Tensor, Tensor]:
    """The counts and, from the same pass, what was not finite: see Status in csrc/resque.h."""
    return _values(features, bits, pool, by_channel).count(bits, by_channel)


def _values(features: Tensor, bits: int, pool: bool, by_channel: bool) -> Values:
    # Again, for who calls the registered op itself: what follows hands out raw pointers.
    x = _check_values(features, pool or by_channel)
    _check_bits(bits, pooled_dtype(x, pool))
    return Values.of(x, pool, by_channel)


@_value_histogram_status.fake
def _(features, bits, pool=False, by_channel=False):
    counts = _fake(features, bits, by_channel)
    return counts, counts.new_empty(5)


@define(
    "value_histogram(Tensor features, int bits, bool pool=False, bool by_channel=False, "
    "bool skip_nonfinite=False, bool check=False) -> Tensor counts"
)
def _value_histogram(
    features: Tensor,
    bits: int,
    pool: bool = False,
    by_channel: bool = False,
    skip_nonfinite: bool = False,
    check: bool = False,
) -> Tensor:
    values = _values(features, bits, pool, by_channel)
    counts, status = values.count(bits, by_channel)
    if check and not skip_nonfinite:
        check_finite([(values, status)], "features")
    return counts


@_value_histogram.fake
def _(features, bits, pool=False, by_channel=False, skip_nonfinite=False, check=False):
    return _fake(features, bits, by_channel)


def _fake(features: Tensor, bits: int, by_channel: bool) -> Tensor:
    if not by_channel:
        return features.new_empty(2**bits, dtype=torch.int64)
    width = features.shape[2] if features.dim() == 3 else features.shape[1]
    return features.new_empty((width, 2**bits), dtype=torch.int64)

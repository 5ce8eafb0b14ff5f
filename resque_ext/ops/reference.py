"""Every op in plain PyTorch: the specification, the oracle of the tests, the opponent to beat.

``resque_ext.backend("torch")`` runs the package on these, on any device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def class_order(
    labels: Tensor, num_classes: int, blocks: int = 1, seen: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`resque_ext.ops.class_order.class_order`."""
    n, groups = labels.numel(), num_classes * blocks
    labels = labels.long()
    good = (labels >= 0) & (labels < num_classes)
    safe = torch.where(good, labels, num_classes)
    by_class = torch.argsort(safe, stable=True)
    rows = torch.bincount(safe, minlength=num_classes + 1)
    start = rows.cumsum(0) - rows
    rank = torch.empty_like(safe)
    rank[by_class] = torch.arange(n, device=labels.device) - start[safe[by_class]]
    if seen is not None:
        rank += torch.cat([seen, seen.new_zeros(1)])[safe]
    group = torch.where(good, safe * blocks + rank % blocks, groups)
    order = torch.argsort(group, stable=True).to(torch.int32)
    offsets = torch.zeros(groups + 1, dtype=torch.int64, device=labels.device)
    offsets[1:] = torch.bincount(group, minlength=groups + 1)[:groups].cumsum(0)
    status = torch.zeros(5, dtype=torch.int64, device=labels.device)
    if n:
        position = torch.arange(n, 0, -1, device=labels.device)
        from_end = torch.where(good, 0, position).max()
        status[0] = from_end
        status[1] = torch.where(from_end > 0, labels[(n - from_end).clamp(max=n - 1)], 0)
    return order, offsets, status


def class_moments(
    features: Tensor, order: Tensor, offsets: Tensor, squares: bool, skip_nonfinite: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See :func:`resque_ext.ops.class_moments.grouped_moments`; features are [n, c, positions]."""
    n, channels, _ = features.shape
    groups = offsets.numel() - 1
    group = torch.full((n,), groups, dtype=torch.int64, device=features.device)
    sizes = offsets.diff()
    index = torch.arange(groups, device=features.device)
    valid = order[: int(offsets[-1])].long()
    group[valid] = torch.repeat_interleave(index, sizes)

    pooled = features.double().mean(2)
    bad = ~pooled.isfinite() & (group < groups)[:, None]
    bad_rows = bad.any(1)
    status = torch.zeros(5, dtype=torch.int64, device=features.device)
    status[2], status[4] = bad.sum(), bad_rows.sum()
    if bad.any():
        status[3] = n * channels - bad.flatten().int().argmax()
    if skip_nonfinite:
        group = torch.where(bad_rows, groups, group)
        pooled = torch.where(bad_rows[:, None], 0, pooled)
    keep = group < groups
    group, pooled = group[keep], pooled[keep]
    sums = features.new_zeros(groups, channels, dtype=torch.float64)
    sums.index_add_(0, group, pooled)
    sumsq = features.new_zeros(groups if squares else 0, channels, dtype=torch.float64)
    if squares:
        sumsq.index_add_(0, group, pooled * pooled)
    return torch.bincount(group, minlength=groups), sums, sumsq, status


def pair_counts(
    labels_a: Tensor, labels_b: Tensor, num_a: int, num_b: int
) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`resque_ext.ops.pair_counts.pair_counts`."""
    a, b = labels_a.long(), labels_b.long()
    keep = (a >= 0) & (a < num_a) & (b >= 0) & (b < num_b)
    table = torch.bincount(a[keep] * num_b + b[keep], minlength=num_a * num_b)
    # class_order's status is that of labels out of range, whatever the order.
    status = [class_order(x, size)[2] for x, size in ((a, num_a), (b, num_b))]
    return table.view(num_a, num_b), *status


def lloyd_step(
    features: Tensor, centers: Tensor, update: bool, distances: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See :func:`resque_ext.ops.lloyd_step.lloyd_step`; centers are float64."""
    (n, width), k = features.shape, centers.shape[0]
    labels = torch.empty(n, dtype=torch.int64, device=features.device)
    squared = torch.empty(n, dtype=torch.float64, device=features.device)
    sums = centers.new_zeros(k if update else 0, width)
    status = torch.zeros(5, dtype=torch.int64, device=features.device)
    rows = max(2**22 // max(k * width, 1), 1)
    for i in range(0, n, rows):
        x = features[i : i + rows].double()
        nearest = _pairwise_sum((x[:, None] - centers).square()).min(1)
        labels[i : i + rows], squared[i : i + rows] = nearest.indices, nearest.values
        if update:
            sums.index_add_(0, nearest.indices, x)
        bad = ~x.isfinite()
        if bad.any():
            first = n * width - i * width - bad.flatten().int().argmax()
            status[2] += bad.sum()
            status[3] = torch.maximum(status[3], first)
            status[4] += bad.any(1).sum()
    counts = torch.bincount(labels, minlength=k) if update else labels[:0].clone()
    kept = squared if distances else squared[:0].clone()
    return labels, kept, squared.sum(), sums, counts, labels.new_tensor(n), status


def _pairwise_sum(terms: Tensor) -> Tensor:
    """Sums over the last axis in the order that csrc/resque.h gives for lloyd_step."""
    n = terms.shape[-1]
    if n > 128:
        half = n // 2 // 8 * 8
        return _pairwise_sum(terms[..., :half]) + _pairwise_sum(terms[..., half:])
    whole = n // 8 * 8
    total = terms.new_zeros(terms.shape[:-1])
    if whole:
        lanes = terms[..., :8]
        for i in range(8, whole, 8):
            lanes = lanes + terms[..., i : i + 8]
        pairs = lanes[..., ::2] + lanes[..., 1::2]
        fours = pairs[..., ::2] + pairs[..., 1::2]
        total = fours[..., 0] + fours[..., 1]
    for i in range(whole, n):
        total = total + terms[..., i]
    return total


def spatial_mean(features: Tensor) -> Tensor:
    """See :func:`resque_ext.ops.spatial_mean`; features are [n, c, positions]."""
    means = features.double().mean(2)
    return means if features.dtype == torch.float64 else means.float()


def row_distances(
    old: Tensor,
    new: Tensor,
    bins: Sequence[int],
    shared: bool,
    rows: bool,
    counts: bool,
    skip_nonfinite: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See :func:`resque_ext.ops.row_distances.row_distances_with_status`; rows are [n, m, p], and
    those of `new` may be of another m."""
    n, m, _ = old.shape
    columns, sides = (8, 4) if shared else (4, 2)
    pair = [spatial_mean(x) for x in (old, new)]
    bad = [~x.isfinite() for x in pair]
    status = torch.zeros(2, 5, dtype=torch.int64, device=old.device)
    for words, wrong in zip(status, bad, strict=True):
        words[2], words[4] = wrong.sum(), wrong.any(1).sum()
        if words[2]:
            words[3] = wrong.numel() - wrong.flatten().int().argmax()
    finite = ~(bad[0].any(1) | bad[1].any(1))
    each = old.new_full((n, len(bins), columns), torch.nan, dtype=torch.float64)
    histograms = old.new_zeros((n, sides, sum(bins)), dtype=torch.int32)
    float64_edges = torch.zeros(len(bins), dtype=torch.int64, device=old.device)
    # Some 50 bytes a value are in use at once.
    for part in finite.nonzero()[:, 0].split(max(2**22 // max(m, new.shape[1]), 1)):
        x, y = (side[part] for side in pair)
        low, high = torch.minimum(x.amin(1), y.amin(1)), torch.maximum(x.amax(1), y.amax(1))
        ranges = [(x, x.amin(1), x.amax(1)), (y, y.amin(1), y.amax(1))]
        ranges += [(x, low, high), (y, low, high)] if shared else []
        at = 0
        for k, b in enumerate(bins):
            found = [_histograms(*side, b) for side in ranges]
            h = [one.double() / x.shape[1] for (x, *_), (one, _) in zip(ranges, found, strict=True)]
            apart = (h[0].sort(1).values - h[1].sort(1).values).abs().mean(1)
            values = [apart, *_divergences(h[0], h[1])]
            if shared:
                gap = (h[2].cumsum(1) - h[3].cumsum(1)).abs().sum(1)
                values += [gap * (high.double() / b - low.double() / b), *_divergences(h[2], h[3])]
            each[part, k] = torch.stack(values, 1)
            for side, (one, wide) in enumerate(found):
                histograms[part, side, at : at + b] = one.int()
                float64_edges[k] += wide.sum()
            at += b
    sums = (each[finite] if skip_nonfinite else each).sum(0)
    used = finite.sum() if skip_nonfinite else torch.tensor(n, device=old.device)
    each = each if rows else each[:0]
    return sums, used, each, float64_edges, histograms if counts else histograms[:0], status


def _histograms(x: Tensor, first: Tensor, last: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """numpy's histograms of the rows [n, m] over first..last: counts [n, bins] int64, and which
    rows [n] needed float64 edges."""
    least, most = first[:, None], last[:, None]
    constant = least == most
    first = torch.where(constant, least - 0.5, least)
    last = torch.where(constant, most + 0.5, most)
    delta = last - first
    # Tensors, because dividing by a number multiplies by its reciprocal on CUDA.
    step = delta / torch.full_like(delta, bins)
    steps = torch.arange(bins, dtype=x.dtype, device=x.device)
    edges = torch.cat([first + steps * step, last], 1)
    index = ((x - first) / delta * bins).nan_to_num(0, 0, 0).long().clamp(max=bins - 1)
    ascending = (edges[:, :-1] < edges[:, 1:]).all(1) & delta[:, 0].isfinite()
    corrected = index - (x < edges.gather(1, index)).long()
    more = (x >= edges.gather(1, corrected.clamp(min=0) + 1)) & (corrected != bins - 1)
    corrected = corrected + more.long()
    wide = ~ascending
    if x.dtype == torch.float64:
        # Where nothing ascends, not corrected; a constant row in the middle.
        index = torch.where(delta == 0, bins // 2, index)
        corrected = torch.where(wide[:, None], index, corrected)
    counts = torch.zeros(len(x), bins, dtype=torch.int64, device=x.device)
    counts.scatter_add_(1, corrected.clamp(0, bins - 1), torch.ones_like(index))
    if wide.any():
        again = wide if x.dtype != torch.float64 else ~delta[:, 0].isfinite()
        scale = 1.0 if x.dtype != torch.float64 else 0.5
        if again.any():
            parts = (t[again].double() * scale for t in (x, least[:, 0], most[:, 0]))
            counts[again] = _histograms(*parts, bins)[0]
    return counts, wide


def _divergences(p: Tensor, q: Tensor) -> list[Tensor]:
    """jensen_shannon, bhattacharyya and kl of the heights [n, bins]."""
    middle = (p + q) / 2
    zero = torch.zeros_like(p)

    def relative(p: Tensor, q: Tensor) -> Tensor:
        return torch.where((p > 0) & (q > 0), p * (p.log() - q.log()), zero).sum(1)

    js = (relative(p, middle) + relative(q, middle)) / 2
    return [js, 1 - (p * q).sqrt().sum(1), relative(p, q)]


def cut_to_float32(values: Tensor) -> Tensor:
    """The next float32 toward zero; infinity from 2^128 on."""
    rounded = values.float()
    beyond = (rounded.double().abs() > values.abs()) & (values.abs() < 2.0**128)
    return (rounded.view(torch.int32) - beyond.to(torch.int32)).view(torch.float32)


def value_bins(values: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """The bin of every value among the 2^bits in the order of the values, and whether it is finite.

    See :func:`resque_ext.ops.value_histogram`.
    """
    if values.dtype == torch.float64:
        values = cut_to_float32(values)
    wide = values.dtype == torch.float32
    width, exponent = 32 if wide else 16, 5 if values.dtype == torch.float16 else 8
    whole = values.view(torch.int32 if wide else torch.int16).long() & (2**width - 1)
    pattern, half = whole >> (width - bits), 2 ** (bits - 1)
    finite = (pattern & (half - 1)) < (2**exponent - 1) << (bits - 1 - exponent)
    return torch.where(pattern < half, half + pattern, 2 * half - 1 - pattern), finite


def value_histogram(features: Tensor, bits: int, by_channel: bool) -> tuple[Tensor, Tensor]:
    """See :func:`resque_ext.ops.value_histogram`; features are [n, c, positions]."""
    bins, finite = value_bins(features.contiguous(), bits)
    groups = features.shape[1] if by_channel else 1
    if by_channel:
        bins = bins + (torch.arange(groups, device=bins.device) << bits)[:, None]
    counts = torch.bincount(bins[finite], minlength=groups << bits).view(groups, -1)
    status = torch.zeros(5, dtype=torch.int64, device=features.device)
    if not finite.all():
        status[2] = (~finite).sum()
        status[3] = finite.numel() - (~finite).flatten().int().argmax()
    return counts, status

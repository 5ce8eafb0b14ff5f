"""Every op in plain PyTorch: the specification, the oracle of the tests, the opponent to beat.

``resque_ext.backend("torch")`` runs the package on these, on any device.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from resque_ext.ops._features import expect_memory

# Values that are widened at a time: 1 MB of float64, which stays in a processor's cache. Features
# that are widened whole cost four times as much, most of it the first write to fresh memory.
PIECE = 2**17


def _pieces(rows: int, width: int, values: int = PIECE) -> Iterator[slice]:
    """The rows in runs of at most `values` values."""
    step = max(values // max(width, 1), 1)
    return (slice(i, min(i + step, rows)) for i in range(0, rows, step))


def class_order(
    labels: Tensor, num_classes: int, blocks: int = 1, seen: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`resque_ext.ops.class_order.class_order`."""
    n, groups = labels.numel(), num_classes * blocks
    group, status = labelled(labels, num_classes)
    order = torch.argsort(group, stable=True)
    rows = torch.bincount(group, minlength=num_classes + 1)
    if blocks > 1:
        start = rows.cumsum(0) - rows
        rank = torch.empty_like(group)
        rank[order] = torch.arange(n, device=labels.device) - start[group[order]]
        if seen is not None:
            rank += torch.cat([seen, seen.new_zeros(1)])[group]
        group = torch.where(group < num_classes, group * blocks + rank % blocks, groups)
        order = torch.argsort(group, stable=True)
        rows = torch.bincount(group, minlength=groups + 1)
    offsets = torch.zeros(groups + 1, dtype=torch.int64, device=labels.device)
    offsets[1:] = rows[:groups].cumsum(0)
    return order.to(torch.int32), offsets, status


def labelled(labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """The labels as int64, `num_classes` where one is out of range, and the status that says so."""
    expect_memory(labels, "labels")  # where there is none, torch itself ends the process
    labels = labels.long()
    bad = (labels < 0) | (labels >= num_classes)
    status = torch.zeros(5, dtype=torch.int64, device=labels.device)
    if len(labels):
        first = bad.to(torch.uint8).argmax()
        status[0] = torch.where(bad[first], len(labels) - first, 0)
        status[1] = torch.where(bad[first], labels[first], 0)
    return labels.masked_fill(bad, num_classes), status


def groups_of(order: Tensor, offsets: Tensor, rows: int) -> Tensor:
    """The group of every row, the number of groups where it is in none."""
    groups = offsets.numel() - 1
    group = torch.full((rows,), groups, dtype=torch.int64, device=order.device)
    index = torch.arange(groups, device=order.device)
    group[order[: int(offsets[-1])].long()] = torch.repeat_interleave(index, offsets.diff())
    return group


def class_moments(
    features: Tensor, group: Tensor, groups: int, squares: bool, skip_nonfinite: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See :func:`resque_ext.ops.class_moments.grouped_moments`.

    Args:
        features: [n, channels, positions]
        group: [n] int64, `groups` for a row in none.
    """
    n, channels, positions = features.shape
    # The last one takes the rows that are in none.
    sums = features.new_zeros(groups + 1, channels, dtype=torch.float64)
    sumsq = features.new_zeros(groups + 1 if squares else 0, channels, dtype=torch.float64)
    for piece in _pieces(n, channels * positions):
        pooled = _means(features[piece])
        sums.index_add_(0, group[piece], pooled)
        if squares:
            sumsq.index_add_(0, group[piece], pooled.square())
    sums, sumsq = sums[:groups], sumsq[:groups]
    status = torch.zeros(5, dtype=torch.int64, device=features.device)
    if not sums.isfinite().all():  # or all that was added is finite
        bad = ~_means(features).isfinite() & (group < groups)[:, None]
        rows = bad.any(1)
        status[2], status[4] = bad.sum(), rows.sum()
        if status[2]:
            status[3] = bad.numel() - bad.flatten().int().argmax()
            if skip_nonfinite:
                keep = ~rows
                kept = class_moments(features[keep], group[keep], groups, squares, False)
                return (*kept[:3], status)
    return torch.bincount(group, minlength=groups + 1)[:groups], sums, sumsq, status


def pair_counts(
    labels_a: Tensor, labels_b: Tensor, num_a: int, num_b: int
) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`resque_ext.ops.pair_counts.pair_counts`."""
    (a, status_a), (b, status_b) = labelled(labels_a, num_a), labelled(labels_b, num_b)
    cells = num_a * num_b
    cell = (a * num_b + b).masked_fill_((a == num_a) | (b == num_b), cells)
    table = torch.bincount(cell, minlength=cells + 1)[:cells]
    return table.view(num_a, num_b), status_a, status_b


def lloyd_step(
    features: Tensor, centers: Tensor, update: bool, distances: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See :func:`resque_ext.ops.lloyd_step.lloyd_step`; centers are float64."""
    (n, width), k = features.shape, centers.shape[0]
    labels = torch.empty(n, dtype=torch.int64, device=features.device)
    squared = torch.empty(n, dtype=torch.float64, device=features.device)
    sums = centers.new_zeros(k if update else 0, width)
    status = torch.zeros(5, dtype=torch.int64, device=features.device)
    counts = torch.zeros(k if update else 0, dtype=torch.int64, device=features.device)
    rechecked = 0
    for piece in _pieces(n, max(width, k)):
        x = features[piece].double()
        labels[piece], again = _nearest(x, centers)
        rechecked += again
        squared[piece] = _pairwise_sum((x - centers[labels[piece]]).square())
        if update:
            sums.index_add_(0, labels[piece], x)
    if update:
        counts = torch.bincount(labels, minlength=k)
    inertia = squared.sum()
    if not inertia.isfinite():  # or all features are finite
        bad = ~features.isfinite()
        status[2], status[4] = bad.sum(), bad.any(1).sum()
        if status[2]:
            status[3] = bad.numel() - bad.flatten().int().argmax()
    kept = squared if distances else squared[:0].clone()
    return labels, kept, inertia, sums, counts, labels.new_tensor(rechecked), status


def _nearest(x: Tensor, centers: Tensor) -> tuple[Tensor, int]:
    """The nearest centre of the rows, and how many rows a product could not decide.

    With t = |c|^2 / 2 - x.c the squared distance is |x|^2 + 2 t, and a product gives t to a few
    units in the last place of |x|^2 + |c|^2 for each column. Labels are defined by distances that
    are rounded in another order: these decide where two centres are closer than both roundings.
    """
    k, width = centers.shape
    if k == 1:
        return torch.zeros(len(x), dtype=torch.int64, device=x.device), 0
    squares = centers.square().sum(1)
    found = torch.addmm(squares / 2, x, centers.T, alpha=-1).topk(2, largest=False)
    label = found.indices[:, 0].clone()
    # At most 2 (width + 64) roundings of either kind, twice over; 2^-1000 is for underflow.
    unit = (width + 64) * 2.0**-50
    margin = unit * (x.square().sum(1) + squares.max()) + 2.0**-1000
    undecided = ~(found.values[:, 1] - found.values[:, 0] > margin)  # also where one is NaN
    again = undecided.nonzero()[:, 0]
    for part in again.split(max(PIECE // max(k * width, 1), 1)):
        label[part] = _pairwise_sum((x[part, None] - centers).square()).min(1).indices
    return label, len(again)


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
    n, channels, positions = features.shape
    means = features.new_empty(
        n, channels, dtype=torch.promote_types(features.dtype, torch.float32)
    )
    for piece in _pieces(n, channels * positions):
        means[piece] = _means(features[piece])
    return means


def _means(features: Tensor) -> Tensor:
    """The means over positions in float64."""
    x = features.double()
    return x[:, :, 0] if x.shape[2] == 1 else x.mean(2)


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
    for part in finite.nonzero()[:, 0].split(max(PIECE // max(m, new.shape[1]), 1)):
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


def value_histogram(features: Tensor, bits: int, by_channel: bool) -> tuple[Tensor, Tensor]:
    """See :func:`resque_ext.ops.value_histogram`; features are [n, c, positions]."""
    groups, half = features.shape[1] if by_channel else 1, 2 ** (bits - 1)
    counts = torch.zeros(groups << bits, dtype=torch.int64, device=features.device)
    first = (torch.arange(groups, device=features.device) << bits)[:, None] + half
    rows = features if by_channel else features.contiguous().view(-1, 1, 1)
    for piece in _pieces(len(rows), rows.shape[1:].numel(), max(PIECE, 4 * len(counts))):
        place = (_patterns(rows[piece], bits) + first).flatten()
        counts += torch.bincount(place, minlength=len(counts))
    # By signed pattern: those with the sign, -0.0 first, then the others.
    negative, positive = counts.view(groups, 2, half).unbind(1)
    counts = torch.cat([negative.flip(1), positive], 1)
    exponent = 5 if features.dtype == torch.float16 else 8
    ends = (2**exponent - 1) << (bits - 1 - exponent)  # of the finite patterns
    wrong = torch.cat([counts[:, half + ends :], counts[:, : half - ends]], 1)
    status = torch.zeros(5, dtype=torch.int64, device=features.device)
    status[2] = wrong.sum()
    if status[2]:
        bad = (_patterns(features, bits) & (half - 1)) >= ends
        status[3] = bad.numel() - bad.flatten().int().argmax()
        counts[:, half + ends :] = 0
        counts[:, : half - ends] = 0
    return counts, status


def _patterns(values: Tensor, bits: int) -> Tensor:
    """The top bits of every value, as an integer with a sign."""
    if values.dtype == torch.float64:
        values = cut_to_float32(values)
    width = 8 * values.dtype.itemsize
    whole = values.contiguous().view(torch.int32 if width == 32 else torch.int16)
    return (whole >> (width - bits)).long()

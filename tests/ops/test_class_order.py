"""class_order, to the last row, against lists that are filled one by one."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import oracles
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import resque_ext
from resque_ext.ops.class_order import class_order

# On CUDA a digit has 8 bits and the largest key is the number of classes: 1, 2 and 3 passes.
CLASSES = [1, 3, 255, 256, 257, 65_535, 65_536, 100_000]
TILE = 2048  # rows that one block of the CUDA kernels sorts
HERE = SimpleNamespace(device=torch.device("cpu"))
IN_EVERY_ORDER = [f"cuda_on_cpu:{order}" for order in ("forward", "reverse", "random")]


def drawn(n, classes, dtype=np.int64, bad=0.0, seed=0):
    """Labels, and among them a share that names no class."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    wrong = rng.choice([-1, classes, classes + 7, -(2**31), 2**31 - 1], n)
    return np.where(rng.random(n) < bad, wrong, labels).astype(dtype)


def check(place, labels, classes, blocks=1, seen=None):
    """`labels` may be an array or a tensor, strides and all."""
    y = torch.as_tensor(labels)
    y = y if y.device == place.device else y.to(place.device)
    before = None if seen is None else torch.as_tensor(seen).to(place.device)
    found = class_order(y, classes, blocks, before)
    assert [part.dtype for part in found] == [torch.int32, torch.int64, torch.int64]
    order, offsets, status = (part.cpu().tolist() for part in found)
    expected = oracles.class_order(y.tolist(), classes, blocks, seen)
    assert offsets == expected.offsets
    assert status == expected.status
    # Rows without a group leave the last places of `order` unused.
    assert order[: offsets[-1]] == expected.order
    assert len(order) == len(y)


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("classes", CLASSES)
def test_classes(place, classes, dtype):
    check(place, drawn(5_000, classes, dtype), classes)
    check(place, drawn(5_000, classes, dtype, bad=0.02), classes)


@pytest.mark.parametrize("n", [0, 1, TILE - 1, TILE, TILE + 1, 3 * TILE + 5])
@pytest.mark.parametrize("classes", [1, 10, 300])
def test_rows(place, n, classes):
    check(place, drawn(n, classes), classes)


def test_more_tiles_than_threads(place):
    """Sums over the tiles go round twice: 257 tiles of 2,048 rows for 256 threads."""
    check(place, drawn(256 * TILE + 3, 10, np.int32), 10)


# The CPU cuts 70,000 rows into 4 segments for its threads, or into 1 where there are many classes.
@pytest.mark.parametrize(("classes", "blocks"), [(5, 1), (300, 3), (4_000, 2), (30_000, 1)])
def test_segments_and_threads_of_the_cpu(classes, blocks):
    seen = np.random.default_rng(3).integers(0, 99, classes).tolist()
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            for bad in (0.0, 0.0001):
                labels = drawn(70_000, classes, bad=bad, seed=threads)
                check(HERE, labels, classes, blocks, seen)
            labels = np.sort(drawn(70_000, classes, np.int32))
            check(HERE, labels, classes, blocks)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("place", IN_EVERY_ORDER, indirect=True)
@pytest.mark.parametrize(("classes", "blocks"), [(3, 1), (300, 1), (70_000, 2)])
def test_every_order_of_threads(place, classes, blocks):
    check(place, drawn(2 * TILE + 77, classes, bad=0.1), classes, blocks)


@pytest.mark.parametrize("blocks", [1, 2, 3, 16])
@pytest.mark.parametrize("with_seen", [False, True])
@pytest.mark.parametrize("classes", [1, 7, 300])
def test_blocks(place, classes, blocks, with_seen):
    rng = np.random.default_rng(1)
    seen = rng.choice([0, 1, 2, 15, 16, 2**40 + 1], classes).tolist() if with_seen else None
    check(place, drawn(3_000, classes, bad=0.02), classes, blocks, seen)


@pytest.mark.parametrize("classes", [255, 256, 65_535, 65_536])
def test_blocks_at_the_ends_of_digits(place, classes):
    check(place, drawn(2_500, classes), classes, 2)


def test_blocks_across_calls_deal_as_one_call(place):
    labels, blocks = drawn(1_000, 5), 3
    _, offsets, _ = class_order(torch.tensor(labels, device=place.device), 5, blocks)
    sizes = np.zeros(15, np.int64)
    seen = np.zeros(5, np.int64)
    for part in np.split(labels, [10, 400, 401]):
        y, before = (torch.tensor(a, device=place.device) for a in (part, seen))
        sizes += class_order(y, 5, blocks, before)[1].diff().cpu().numpy()
        seen += np.bincount(part, minlength=5)
    np.testing.assert_array_equal(sizes, offsets.diff().cpu().numpy())


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("step", [2, 3])
def test_strided_labels(place, step, dtype):
    base = torch.tensor(drawn(3_000, 20, bad=0.01)).to(place.device, dtype)
    check(place, base[::step], 20, 2)
    check(place, base[1::step], 20)
    check(place, base[:1].expand(100), 20)


@pytest.mark.parametrize("labels", [[4] * 2_500, [0, 9] * 1_200, [9] + [0] * 2_100, [3]])
def test_empty_classes(place, labels):
    check(place, np.array(labels), 10)
    check(place, np.array(labels), 10, 4)


def test_rows_of_a_class_keep_their_order(place):
    labels = torch.tensor(drawn(10_000, 4), device=place.device)
    order, offsets, _ = class_order(labels, 4)
    for c in range(4):
        assert order[offsets[c] : offsets[c + 1]].diff().min() > 0


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("bad", [-1, 10, 255, 256, 2**31 - 1, -(2**31)])
@pytest.mark.parametrize("at", [0, 1, 2_047, 2_048, 4_999])
def test_first_bad_label(place, at, bad, dtype):
    labels = drawn(5_000, 10, dtype)
    labels[at] = bad
    labels[at + 1 :: 700] = -5
    check(place, labels, 10)


@pytest.mark.parametrize("bad", [2**32, 2**32 + 3, -(2**63), 2**63 - 1, -(2**32) + 2])
def test_labels_that_fit_once_cut_to_32_bits(place, bad):
    check(place, np.array([1, 3, bad, 0, bad + 1 if bad < 0 else bad - 1]), 5)
    check(place, np.array([1, 3, bad, 0]), 100_000, 2)


def test_only_bad_labels(place):
    check(place, np.full(3_000, -1), 4)
    check(place, np.full(3_000, 4), 4, 3)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # a place has no state
)
@given(data=st.data())
def test_any_labels(place, data):
    classes = data.draw(st.sampled_from([1, 2, 5, 255, 256, 1_000, 65_536]))
    blocks = data.draw(st.integers(1, 5))
    label = st.integers(-1, classes) | st.integers(0, min(classes - 1, 3))
    labels = data.draw(st.lists(label, max_size=80))
    few = classes <= 5 and data.draw(st.booleans())
    count = st.integers(0, 2**62)
    seen = data.draw(st.lists(count, min_size=classes, max_size=classes)) if few else None
    check(place, np.array(labels, np.int64), classes, blocks, seen)


@pytest.mark.parametrize(("classes", "blocks"), [(1, 1), (10, 3), (300, 1), (65_536, 2)])
def test_torch_backend(classes, blocks):
    labels = drawn(3_000, classes, bad=0.05)
    seen = np.random.default_rng(2).integers(0, 99, classes).tolist()
    with resque_ext.backend("torch"):
        check(HERE, labels, classes, blocks)
        check(HERE, labels, classes, blocks, seen)
        check(HERE, labels[:0], classes, blocks)


@pytest.mark.parametrize(
    ("classes", "blocks", "message"),
    [
        (0, 1, "classes: expected at least 1, found 0"),
        (3, 0, "blocks: expected at least 1, found 0"),
        (2**20, 2**11, r"classes: expected classes \* blocks < 2\^31, found 1048576"),
    ],
)
def test_sizes_that_the_kernels_refuse(place, monkeypatch, classes, blocks, message):
    """The launchers check once more; the sizes of the outputs are taken down to keep them small."""
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda size, **kw: empty(min(size, 16), **kw))
    with pytest.raises(ValueError, match=message):
        class_order(torch.zeros(1, dtype=torch.int64, device=place.device), classes, blocks)

"""Sources: every row once whoever shares the reading, in an order that the seed determines."""

import gc
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from resque_ext.screening.sources import (
    ArraySource,
    BatchSource,
    BlockOrder,
    NpySource,
    Source,
    SourceError,
)
from resque_ext.screening.sources.buffers import Buffers
from resque_ext.screening.sources.order import Plan, rows_of

ROWS = 53


def values(rows=ROWS, width=3, dtype=np.float32):
    """Row i is i * width, i * width + 1, ..."""
    return np.arange(rows * width, dtype=dtype).reshape(rows, width)


def labels(rows=ROWS):
    return np.arange(rows) % 5


def npy(folder, x=None, y=None):
    np.save(folder / "features.npy", values() if x is None else x)
    np.save(folder / "labels.npy", labels() if y is None else y)
    return NpySource(folder)


def in_batches(size=7):
    x, y = torch.from_numpy(values()), torch.from_numpy(labels())
    return list(zip(x.split(size), y.split(size), strict=True))


MAKERS = {
    "arrays": lambda folder: ArraySource(values(), labels()),
    "npy": npy,
    "batches": lambda folder: BatchSource(in_batches(), rows=ROWS),
}


@pytest.fixture(scope="module", params=MAKERS)
def source(request, tmp_path_factory):
    return MAKERS[request.param](tmp_path_factory.mktemp(request.param))


def numbers(batches):
    """The rows' numbers, once it is certain that features and labels belong together."""
    found = []
    for x, y in batches:
        rows = (x[:, 0] / x.shape[1]).long()
        assert torch.equal(x, torch.from_numpy(values())[rows])
        assert torch.equal(y.long(), rows % 5)
        found += rows.tolist()
    return found


def test_a_source_says_what_it_has(source):
    assert isinstance(source, Source)
    assert source.rows == ROWS
    assert source.name
    sizes = [len(y) for _, y in source.batches(10)]
    assert sizes == [10, 10, 10, 10, 10, 3]
    for _ in range(2):
        assert numbers(source.batches(10)) == list(range(ROWS))


@settings(max_examples=60, deadline=None)
@given(data=st.data(), world=st.integers(1, 5), size=st.integers(1, 60))
def test_shares_cover_every_row_once(source, data, world, size):
    start = data.draw(st.integers(0, ROWS + 3))
    stop = data.draw(st.none() | st.integers(0, ROWS + 3))
    order = None
    if source.access != "sequence":
        order = data.draw(
            st.none() | st.builds(BlockOrder, st.integers(0, 9), st.none() | st.integers(1, 60))
        )
    part = {"start": start, "stop": stop, "order": order}
    shares = [
        numbers(source.batches(size, **part, rank=rank, world_size=world)) for rank in range(world)
    ]
    whole = numbers(source.batches(10, order=order))
    assert sorted(whole) == list(range(ROWS))
    read = [row for share in shares for row in share]
    assert sorted(read) == sorted(whole[start:stop])
    if source.access != "sequence":
        assert read == whole[start:stop]
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_seeded_order_is_reproducible_and_mixes(tmp_path):
    source = npy(tmp_path)
    first = numbers(source.batches(8, order=BlockOrder(3)))
    assert first == numbers(source.batches(50, order=BlockOrder(3)))
    assert first != numbers(source.batches(8, order=BlockOrder(4)))
    # Written down, because it has to stay the same in every version.
    assert first[:8] == [51, 34, 39, 35, 14, 28, 42, 44]
    blocks = numbers(source.batches(8, order=BlockOrder(3, rows=10)))
    assert sorted(blocks) == list(range(ROWS)) != blocks
    assert all(b == a + 1 or b % 10 == 0 for a, b in zip(blocks, blocks[1:], strict=False))


def test_a_prefix_of_an_order_is_a_sample():
    """Every row is as likely as any other to be among the first; 4 standard errors of 2,000."""
    counts = np.zeros(20)
    for seed in range(2_000):
        plan = Plan.of(20, BlockOrder(seed), 1)
        counts[rows_of(next(plan.spans(0, 5, 5)))] += 1
    assert np.abs(counts / 2_000 - 0.25).max() < 4 * np.sqrt(0.25 * 0.75 / 2_000)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"batch_size": 0}, ValueError, "batch_size: expected 1 <= batch_size"),
        ({"start": -1}, ValueError, "start: expected at least 0, found -1"),
        ({"stop": 1.5}, TypeError, "stop: expected an integer, found 1.5"),
        ({"rank": 2, "world_size": 2}, ValueError, "rank: expected 0 <= rank < world_size = 2"),
        ({"world_size": 0}, ValueError, "world_size: expected 1 <= world_size"),
        ({"on_fault": "ignore"}, ValueError, "on_fault: expected one of 'raise', 'skip'"),
        ({"on_fault": "skip"}, TypeError, "faults: expected a list that names what is skipped"),
        ({"order": 3}, TypeError, "order: expected a BlockOrder or None, found 3"),
    ],
)
def test_arguments_are_checked_before_anything_is_read(source, given, error, message):
    with pytest.raises(error, match=re.escape(message)):
        source.batches(**{"batch_size": 4} | given)


def test_batches_cannot_be_put_in_order():
    with pytest.raises(ValueError, match="order: expected None for batches, which is read in its"):
        BatchSource(in_batches()).batches(4, order=BlockOrder(0))


@pytest.mark.parametrize("rows", [{"seed": -1}, {"seed": 0, "rows": 0}])
def test_orders_are_checked(rows):
    with pytest.raises(ValueError, match="order: "):
        BlockOrder(**rows)


def test_batches_of_mappings_are_cut_and_joined():
    made = [({"a": x, "b": (x[:, :1],)}, y) for x, y in in_batches(6)]
    found = list(BatchSource(lambda: made).batches(9))
    assert [len(y) for _, y in found] == [9, 9, 9, 9, 9, 8]
    assert numbers((x["a"], y) for x, y in found) == list(range(ROWS))
    assert torch.equal(torch.cat([x["b"][0] for x, _ in found])[:, 0], torch.arange(ROWS) * 3.0)


@pytest.mark.parametrize(
    ("batches", "error", "message"),
    [
        (iter([]), TypeError, "found the one-shot iterator list_iterator"),
        (5, TypeError, "expected an iterable of batches, found int"),
        (lambda: 5, TypeError, "expected a function that returns an iterable of batches"),
        ([], ValueError, "expected at least one batch, found none"),
        ([torch.ones(2, 2)], TypeError, r"expected batches (inputs, labels), found shape (2, 2)"),
        ([(torch.ones(2, 2), torch.ones(3).long())], ValueError, "expected one label a row, found"),
        ([(torch.ones(2, 2), torch.ones(2))], TypeError, "labels: expected int32 or int64"),
    ],
)
def test_batches_that_are_refused(batches, error, message):
    with pytest.raises(error, match=re.escape(message)):
        list(BatchSource(batches).batches(4))


def test_batches_of_another_count_than_said_are_an_error():
    with pytest.raises(ValueError, match="expected 60 rows as it says, found 53"):
        list(BatchSource(in_batches(), rows=60).batches(10))


def test_a_batch_adapter():
    made = [{"x": x, "y": y} for x, y in in_batches()]
    source = BatchSource(made, batch_adapter=lambda b: (b["x"], b["y"]))
    assert numbers(source.batches(10)) == list(range(ROWS))


def test_arrays_as_inputs_become_floats():
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 3, 2, 2)
    source = ArraySource(pixels, np.arange(2), kind="inputs")
    x, _ = next(source.batches(2))
    assert torch.equal(x, torch.from_numpy(pixels).float() / 255)


@pytest.mark.parametrize(
    ("x", "y", "error", "message"),
    [
        (np.ones((2, 2)), [0, 1], TypeError, "labels: expected a torch.Tensor or numpy.ndarray"),
        (np.ones((2, 2), int), labels(2), TypeError, "features: expected float32"),
        (np.ones((2, 2)), labels(3), ValueError, "expected features [N, ...] and as many labels"),
        (np.ones((0, 2)), labels(0), ValueError, "expected features [N, ...] and as many labels"),
    ],
)
def test_arrays_that_are_refused(x, y, error, message):
    with pytest.raises(error, match=re.escape(message)):
        ArraySource(x, y)


def test_buffers_are_lent_again_only_when_nobody_looks():
    buffers = Buffers()
    first = buffers.lend((4, 2), torch.float16)
    place, view = first.data_ptr(), first[1:].view(torch.int16)
    del first
    gc.collect()
    other = buffers.lend((4, 2), torch.float16)
    assert other.data_ptr() != place  # a view of the first is still looked at
    del view
    assert buffers.lend((2, 2), torch.float32).data_ptr() == place


def test_batches_that_are_kept_keep_their_values(tmp_path):
    kept = list(npy(tmp_path).batches(8))
    assert numbers(kept) == list(range(ROWS))


def test_a_file_that_changes_while_it_is_read_is_a_fault(tmp_path):
    source = npy(tmp_path)
    batches = source.batches(20)
    next(batches)
    with (tmp_path / "features.npy").open("r+b") as file:
        file.truncate(128 + 25 * 12)
    with pytest.raises(
        SourceError, match=r"features\.npy: rows 20 to 39: expected .* found the end"
    ):
        next(batches)
    faults = []
    with pytest.raises(StopIteration):
        next(source.batches(60, on_fault="skip", faults=faults))
    assert [(f.source, f.member) for f in faults] == [(str(tmp_path / "features.npy"), None)]
    assert numbers(source.batches(20, on_fault="skip", faults=faults)) == list(range(20))
    assert len(faults) == 3

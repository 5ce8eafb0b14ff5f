"""Sources: every row once whoever shares the reading, in an order that the seed determines."""

import gc
import itertools
import re

import numpy as np
import pytest
import torch
from helpers import sources_made
from helpers.sources_made import ROWS, in_batches, labels, npy
from hypothesis import given, settings
from hypothesis import strategies as st

from resque_ext.data.sources import (
    ArraySource,
    BatchSource,
    BlockOrder,
    DatasetSource,
    Source,
    SourceError,
    TarSource,
)
from resque_ext.data.sources.buffers import Buffers
from resque_ext.data.sources.order import Plan, rows_of


@pytest.fixture(scope="module", params=sources_made.MAKERS)
def case(request, tmp_path_factory):
    return sources_made.make(request.param, tmp_path_factory.mktemp(request.param))


def numbers(batches):
    return sources_made.Case(None).numbers(batches)


def test_a_source_says_what_it_has(case):
    source = case.source
    assert isinstance(source, Source)
    assert source.rows == ROWS
    assert source.name in repr(source)
    sizes = [len(y) for _, y in source.batches(10)]
    assert sizes == [10, 10, 10, 10, 10, 3]
    for _ in range(2):
        assert case.numbers(source.batches(10)) == list(range(ROWS))


@settings(max_examples=40, deadline=None)
@given(data=st.data(), world=st.integers(1, 5), size=st.integers(1, 60))
def test_shares_cover_every_row_once(case, data, world, size):
    source, numbers = case.source, case.numbers
    start = data.draw(st.integers(0, ROWS + 3))
    stop = data.draw(st.none() | st.integers(0, ROWS + 3))
    order = None
    if source.access != "sequence":
        parts = st.none() if source.name.endswith("parquet") else st.none() | st.integers(1, 60)
        order = data.draw(st.none() | st.builds(BlockOrder, st.integers(0, 9), parts))
    part = {"start": start, "stop": stop, "order": order}
    shares = [
        numbers(source.batches(size, **part, rank=rank, world_size=world)) for rank in range(world)
    ]
    whole = numbers(source.batches(10, order=order))
    assert sorted(whole) == list(range(ROWS))
    read = [row for share in shares for row in share]
    assert sorted(read) == sorted(whole[start:stop])
    if source.access in ("rows", "blocks"):
        assert read == whole[start:stop]
    if source.access != "sequence":
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
    assert all(b == a + 1 or b % 10 == 0 for a, b in itertools.pairwise(blocks))


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
def test_arguments_are_checked_before_anything_is_read(case, given, error, message):
    with pytest.raises(error, match=re.escape(message)):
        case.source.batches(**{"batch_size": 4} | given)


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
        ([3], TypeError, "expected batches (inputs, labels), or inputs alone, found int"),
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
        (np.ones((2, 2)), {0, 1}, TypeError, "labels: expected a torch.Tensor or numpy.ndarray"),
        (np.ones((2, 2), bool), labels(2), TypeError, "features: expected float32"),
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


def test_every_seeded_order_mixes(case):
    if case.source.access == "sequence":
        return
    orders = [case.numbers(case.source.batches(10, order=BlockOrder(seed))) for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == list(range(ROWS)) != orders[0]
    # 53 rows are held at once, or single rows are read, or the rows of a group are shuffled.
    assert sum(abs(b - a) == 1 for a, b in itertools.pairwise(orders[0])) < ROWS // 3


def test_shards_are_mixed_as_far_as_samples_are_held(tmp_path):
    case = sources_made.make("tar_images", tmp_path)
    order = case.numbers(case.source.batches(10, order=BlockOrder(0, rows=5)))
    shards = [row // 20 for row in order]
    assert shards != sorted(shards)
    assert len(set(shards[:8])) == 1  # the shortest has 13 rows, and five are held
    assert order[:8] != sorted(order[:8])


def test_what_sources_say_of_classes(tmp_path):
    for kind, expected in {
        "images": tuple(f"class{i}" for i in range(5)),
        "pictures": ("zero", "one", "two", "three", "four"),
        "columns": ("a", "b", "c", "d", "e"),
        "npy": None,
    }.items():
        (tmp_path / kind).mkdir()
        assert sources_made.make(kind, tmp_path / kind).source.classes == expected


@pytest.mark.parametrize("kind", ["npy", "npz", "safetensors", "parquet", "tar_images", "images"])
def test_a_fingerprint_tells_data_from_others(tmp_path, kind):
    case = sources_made.make(kind, tmp_path)
    before = case.source.fingerprint()
    assert before == case.source.fingerprint() is not None
    file = next(f for f in sorted(tmp_path.rglob("*")) if f.is_file())
    content = file.read_bytes()
    file.write_bytes(content[:-1] + b"?")
    if kind != "npz":  # which was read when it was opened
        assert case.source.fingerprint() != before
    file.write_bytes(content)  # as it was, but at another time
    assert sources_made.make(kind, tmp_path).source.fingerprint() != before


def test_what_cannot_be_told_apart_has_no_fingerprint(tmp_path):
    assert BatchSource(in_batches()).fingerprint() is None
    assert sources_made.make("pictures", tmp_path).source.fingerprint() is None
    assert sources_made.make("columns", tmp_path).source.fingerprint()["hash"] == "0123456789abcdef"
    pattern = sources_made.shards(tmp_path, lambda row: (f"{row}.png", sources_made.png(row)))
    named = TarSource(pattern, transforms=['resize={"size": 2}'])
    assert named.fingerprint()["transforms"] == ['resize={"size": 2}']
    assert TarSource(pattern, transforms=[torch.square]).fingerprint() is None
    assert next(named.batches(2))[0].shape[2:] == (2, 2)


def test_names_of_classes_in_a_dataset():
    datasets = pytest.importorskip("datasets")
    names = ["cat", "ant", None, "bee", "cat"]
    rows = {"x": np.arange(10.0).reshape(5, 2).tolist(), "animal": names}
    source = DatasetSource(
        datasets.Dataset.from_dict(rows), kind="embeddings", columns=("x", "animal")
    )
    assert (source.classes, source.sorted_names) == (("ant", "bee", "cat"), True)
    faults = []
    ((x, y),) = source.batches(8, on_fault="skip", faults=faults)
    assert y.tolist() == [2, 0, 1, 2]
    assert x[:, 0].tolist() == [0, 2, 6, 8]
    assert faults[0].member == "row 2"


@pytest.mark.parametrize("form", [lambda x: x, lambda x: [x], lambda x: (x, None), np.asarray])
def test_batches_without_labels_have_none_that_is_a_class(form):
    x = torch.arange(12.0).reshape(6, 2)
    ((inputs, labels),) = BatchSource([form(x)], kind="embeddings").batches(8)
    assert torch.equal(inputs, x)
    assert labels.tolist() == [-100] * 6

"""RESQUE_task of data in passes: the bits of the same rows in memory, whatever they come from."""

import contextlib
from collections import deque

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import resque_ext
from resque_ext import resque_task
from resque_ext.indices import segments
from resque_ext.indices.resque_task import one_minus_ari

N, D, CLASSES = 303, 12, 5
ROWS = 27  # of a segment here: 12 segments, the last one shorter


@pytest.fixture(autouse=True)
def small_segments(monkeypatch):
    monkeypatch.setattr(segments, "SEGMENT_ELEMENTS", ROWS * D + 7)


def rows_of(dtype=np.float32, shape=(D,), seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, CLASSES, N)
    means = rng.standard_normal((CLASSES, *shape)) / 2  # they overlap: some iterations to go
    return (means[y] + rng.standard_normal((N, *shape))).astype(dtype), y


def cut(x, sizes):
    """Consecutive parts of these sizes, again and again until the end."""
    parts, start, turn = [], 0, 0
    while start < len(x):
        parts.append(x[start : start + sizes[turn % len(sizes)]])
        start += len(parts[-1])
        turn += 1
    return parts


def same(found, expected):
    assert found.to_dict() == expected.to_dict()
    for name in ("cluster_labels", "centers", "classes", "table"):
        assert getattr(found, name).tobytes() == getattr(expected, name).tobytes()


SIZES = {"ones": [1], "sevens": [7], "segments": [ROWS], "uneven": [1, 80, 0, 13], "all": [N]}


@pytest.mark.parametrize(
    "options",
    [{}, pytest.param({"init": "k-means++", "seed": 3}, marks=pytest.mark.full)],
    ids=["means", "++"],
)
@pytest.mark.parametrize(
    ("sizes", "dtype"),
    [*((s, np.float32) for s in SIZES), ("uneven", np.float64), ("uneven", np.float16)],
)
def test_batches_and_shards(sizes, dtype, options):
    x, y = rows_of(dtype)
    options = options | {"chance": 0 if sizes == "ones" else 1}
    expected = resque_task(x, y, baselines=True, **options)
    assert expected.n_iter > 2
    parts = cut(x, SIZES[sizes])
    labels = cut(y, SIZES[sizes])
    for features in (
        parts,
        tuple(torch.tensor(part) for part in parts),
        lambda: iter(parts),
        lambda: (torch.tensor(part) for part in parts),
    ):
        same(resque_task(features, y, baselines=True, **options), expected)
    same(resque_task(parts, labels, baselines=True, **options), expected)
    same(resque_task(lambda: zip(parts, labels, strict=True), baselines=True, **options), expected)


def test_one_segment_is_the_same_row_order(monkeypatch):
    """Segments of another size may round otherwise, but labels are those of exact distances."""
    x, y = rows_of()
    many = resque_task(x, y)
    monkeypatch.setattr(segments, "SEGMENT_ELEMENTS", 2**26)
    one = resque_task(x, y)
    np.testing.assert_array_equal(one.cluster_labels, many.cluster_labels)
    np.testing.assert_allclose(one.centers, many.centers, rtol=1e-12, atol=1e-14)


def test_segments_depend_on_the_width_alone():
    x, _ = rows_of()
    for features in (x, cut(x, [13]), lambda: cut(x, [400])):
        source = segments.open_source(features, torch.zeros(N))
        assert source.segment_rows == ROWS
        found = [(start, len(rows)) for start, rows in source.segments(torch.device("cpu"))]
        assert found == [(i, min(ROWS, N - i)) for i in range(0, N, ROWS)]


@pytest.mark.parametrize("options", [{}, {"init": "k-means++"}], ids=["means", "++"])
def test_mapped_files(tmp_path, options):
    x, y = rows_of()
    expected = resque_task(x, y, **options)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)
    parts = []
    for i, part in enumerate(cut(x, [301])):
        parts.append(tmp_path / f"part{i}.npy")
        np.save(parts[-1], part)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    for features in (tmp_path / "x.npy", str(tmp_path / "x.npy"), mapped, parts):
        same(resque_task(features, y, **options), expected)
    same(resque_task([mapped[:100], x[100:450], torch.tensor(x[450:])], y, **options), expected)
    same(resque_task(tmp_path / "x.npy", tmp_path / "y.npy", **options), expected)
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), x)


def test_loaders_that_begin_anew():
    x, y = rows_of()
    expected = resque_task(x, y)
    data = torch.utils.data.TensorDataset(torch.tensor(x), torch.tensor(y))
    same(resque_task(torch.utils.data.DataLoader(data, batch_size=64)), expected)
    only = torch.utils.data.DataLoader(torch.tensor(x), batch_size=50)
    same(resque_task(only, y), expected)


def test_a_batch_may_be_overwritten_when_the_next_is_made():
    x, y = rows_of()
    expected = resque_task(x, y, init="k-means++")

    def batches():
        memory = torch.empty(64, D)
        for part in cut(x, [64]):
            memory[: len(part)] = torch.tensor(part)
            yield memory[: len(part)]
            memory.fill_(torch.nan)

    same(resque_task(batches, y, init="k-means++"), expected)


@pytest.mark.parametrize(
    ("embedding", "shape"),
    [
        ("pooled", (4, 3, 2)),
        ("flattened", (5, 4)),
        pytest.param("pooled", (5, 4), marks=pytest.mark.full),
        pytest.param("flattened", (4, 3, 2), marks=pytest.mark.full),
    ],
    ids=["pooled maps", "flattened tokens", "pooled tokens", "flattened maps"],
)
def test_layers(tmp_path, embedding, shape):
    x, y = rows_of(shape=shape)
    expected = resque_task(x, y, embedding=embedding, baselines=True)
    np.save(tmp_path / "x.npy", x)
    last = torch.channels_last if len(shape) == 3 else torch.contiguous_format
    for features in (
        tmp_path / "x.npy",
        cut(x, [40, 3]),
        lambda: cut(x, [17]),
        torch.tensor(x).contiguous(memory_format=last),
    ):
        same(resque_task(features, y, embedding=embedding, baselines=True), expected)
    value = one_minus_ari(tmp_path / "x.npy", y, embedding=embedding)
    assert value == expected.value


def test_strided_rows_give_the_same_bits():
    x, y = rows_of()
    expected = resque_task(x, y)
    wide = np.zeros((N, D + 5), np.float32)
    wide[:, 3 : 3 + D] = x
    for features in (wide[:, 3 : 3 + D], np.asfortranarray(x), torch.tensor(x).T.contiguous().T):
        same(resque_task(features, y), expected)


@pytest.mark.parametrize("name", ["native", "torch"])
def test_on_either_backend(name):
    x, y = rows_of()
    with resque_ext.backend(name):
        same(resque_task(cut(x, [70]), y), resque_task(x, y))


def test_empty_centres_in_passes():
    """The rows farthest from their centres are looked for in all segments, and fetched."""
    x, y = rows_of()
    start = np.concatenate([x[:3], np.full((4, D), 50.0)])
    expected = resque_task(x, y, init=start)
    assert (expected.table.sum(0) > 0).all()
    for features in (cut(x, [64]), lambda: cut(x, [64])):
        same(resque_task(features, y, init=start), expected)


@given(st.lists(st.integers(0, 9), max_size=12), st.integers(1, 7))
def test_cutting_keeps_every_row(lengths, rows):
    total = sum(lengths)
    x = torch.arange(total)
    parts, start = [], 0
    for length in lengths:
        parts.append(x[start : start + length])
        start += length
    cut, now = [], []
    for piece, at, last in segments._cut(parts, rows, total):
        assert at == sum(map(len, now))
        assert len(piece) > 0
        now.append(piece)
        if last:
            cut.append(torch.cat(now))
            now = []
    assert not now
    assert [s.tolist() for s in cut] == [p.tolist() for p in x.split(rows) if len(p)]


# --- What is refused


def test_one_shot_iterators():
    x, y = rows_of()
    for features in (iter(cut(x, [50])), (part for part in cut(x, [50])), map(torch.tensor, [x])):
        with pytest.raises(TypeError, match=r"features: .*several passes .*one-shot iterator"):
            resque_task(features, y)


def test_a_function_that_gives_its_rows_only_once():
    x, y = rows_of()
    once = iter([cut(x, [50]), cut(x, [50])])  # one is looked at for the shape
    with pytest.raises(ValueError, match=f"in every pass, found {N} labels and 0 rows"):
        resque_task(lambda: next(once, []), y)


def test_passes_that_differ():
    x, y = rows_of()
    lengths = iter([N, N, N - 1, N])
    with pytest.raises(ValueError, match=f"in every pass, found {N} labels and {N - 1} rows"):
        resque_task(lambda: [x[: next(lengths)]], y)
    longer = iter([N, N + 1])
    with pytest.raises(ValueError, match=f"found {N} labels and more rows"):
        resque_task(lambda: [np.concatenate([x, x])[: next(longer)]], y)
    turns = iter(range(99))

    def shuffled():
        order = np.random.default_rng(next(turns)).permutation(N)
        return zip(cut(x[order], [100]), cut(y[order], [100]), strict=True)

    with pytest.raises(ValueError, match=r"the same labels in every pass, .* begins at row 0"):
        resque_task(shuffled)


@pytest.mark.parametrize(
    ("features", "error", "message"),
    [
        ([], ValueError, "features: expected at least one shard, found an empty list"),
        (lambda: [], ValueError, "features: expected at least one batch, found none"),
        (lambda: 3, TypeError, "returns an iterable of batches, found one that returns int"),
        ([torch.zeros(5, 2), torch.zeros(5, 3)], ValueError, r"features\[0\], features\[1\]: .*"),
        ([torch.zeros(5, 2), torch.zeros(5, 2).half()], ValueError, r"float32 and \(2,\), .*16"),
        ([torch.zeros(5, 2), 7], TypeError, r"features\[1\]: expected a torch.Tensor or numpy"),
        (
            [torch.zeros(5, 2), np.float32(7)],
            ValueError,
            r"features\[1\]: expected at least one axis",
        ),
        (np.array(1.0), ValueError, "features: expected at least one axis"),
        (lambda: [torch.zeros(5, 2), torch.zeros(5, 3)], ValueError, "rows of shape"),
        (lambda: [torch.zeros(5, 2).bool()], TypeError, "features: expected float32, float64"),
        (lambda: ["abc"], TypeError, "features: expected a torch.Tensor or numpy.ndarray"),
        (lambda: [torch.zeros(9, 2)], ValueError, "found 10 labels and 9 rows"),
        (torch.zeros(9, 2), ValueError, "found 9 rows of features and 10 labels"),
    ],
)
def test_refused_features(features, error, message):
    with pytest.raises(error, match=message):
        resque_task(features, torch.arange(10) % 2)


@pytest.mark.parametrize(
    ("batches", "error", "message"),
    [
        ([torch.zeros(5, 2)], TypeError, "labels: expected them to be given, or batches that are"),
        ([(torch.zeros(5, 2), torch.zeros(4).long())], ValueError, r"\(5, 2\).*\(4,\)"),
        ([(torch.zeros(5, 2), torch.zeros(5))], TypeError, "labels: expected int32 or int64"),
        ([], ValueError, "features: expected at least one batch, found none"),
    ],
)
def test_refused_pairs(batches, error, message):
    with pytest.raises(error, match=message):
        resque_task(lambda: batches)


def test_refused_files(tmp_path):
    x, y = rows_of()
    np.save(tmp_path / "x.npy", x)
    whole = (tmp_path / "x.npy").read_bytes()
    (tmp_path / "cut.npy").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "head.npy").write_bytes(whole[:20])
    (tmp_path / "empty.npy").write_bytes(b"")
    (tmp_path / "text.npy").write_text("1 2 3")
    np.save(tmp_path / "objects.npy", np.array([None, {}]), allow_pickle=True)
    np.savez(tmp_path / "both.npz", features=x, labels=y)
    names = ("cut", "head", "empty", "text", "objects")
    for path in (*(tmp_path / f"{name}.npy" for name in names), tmp_path / "both.npz", tmp_path):
        with pytest.raises(ValueError, match=r"expected a .*array|expected a .npy file") as caught:
            resque_task(path, y)
        assert "\n" not in str(caught.value)
        assert str(path) in str(caught.value)
    with pytest.raises(FileNotFoundError, match=r"no.npy: expected a .npy file, found none"):
        resque_task(tmp_path / "no.npy", y)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_anywhere(bad):
    x, y = rows_of()
    x[[200, 277], [3, 5]] = bad
    for features in (x, cut(x, [33]), lambda: cut(x, [500])):
        with pytest.raises(
            ValueError, match=r"found 2 .* in 2 rows, the first at row 200, column 3"
        ):
            resque_task(features, y)


# --- Copies beside the work: streams whose operations run as late, or as early, as they may


class Token:
    def __init__(self, stream):
        self.stream, self.done = stream, False


class Stream:
    """Runs what is queued at once, or only when somebody waits for it."""

    current = None

    def __init__(self, lazy):
        self.lazy, self.queue = lazy, deque()

    def push(self, operation):
        self.queue.append(operation)
        if not self.lazy:
            self.run(lambda: not self.queue)

    def run(self, until):
        while not until():
            self.queue.popleft()()

    def wait_event(self, event):
        token = event.token
        self.push(lambda: token.stream.run(lambda: token.done))

    def wait_stream(self, other):
        event = Event()
        event.record(other)
        self.wait_event(event)


class Event:
    def __init__(self):
        self.token = Token(None)
        self.token.done, self.token.stream = True, Stream(False)

    def record(self, stream):
        token = self.token = Token(stream)
        stream.push(lambda: setattr(token, "done", True))

    def synchronize(self):
        self.token.stream.run(lambda: self.token.done)


class OnDevice:
    """Memory that only operations of a stream touch."""

    def __init__(self, memory):
        self.memory = memory

    def __getitem__(self, rows):
        return OnDevice(self.memory[rows])

    def __len__(self):
        return len(self.memory)

    def copy_(self, source, non_blocking):
        assert non_blocking
        Stream.current.push(lambda: self.memory.copy_(source))


@pytest.fixture(params=["late copies", "late work", "all late", "all at once"])
def streams(request, monkeypatch):
    late = request.param
    work = Stream(late in ("late work", "all late"))
    copies = Stream(late in ("late copies", "all late"))
    empty = torch.empty

    def fake_empty(shape, dtype, device=None, pin_memory=False):
        memory = empty(shape, dtype=dtype).fill_(torch.nan)
        return memory if pin_memory else OnDevice(memory)

    @contextlib.contextmanager
    def on(stream):
        Stream.current = stream
        yield
        Stream.current = work

    monkeypatch.setattr(torch, "empty", fake_empty)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: copies)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: work)
    monkeypatch.setattr(torch.cuda, "stream", on)
    return work, copies


def staged(x, sizes):
    buffer = segments._StagedBuffer((ROWS, D), torch.float32, torch.device("cuda"))
    parts = (torch.tensor(part) for part in cut(x, sizes))
    return buffer.fill(segments._cut(parts, ROWS, len(x)))


@pytest.mark.parametrize("sizes", SIZES)
def test_work_sees_what_was_copied(streams, sizes):
    work, copies = streams
    x, _ = rows_of()
    seen = []
    for segment in staged(x, SIZES[sizes]):
        # Like a kernel: what it reads is what is there when it runs.
        work.push(lambda segment=segment: seen.append(segment.memory.clone()))
    for stream in (copies, work):
        stream.run(lambda stream=stream: not stream.queue)
    np.testing.assert_array_equal(torch.cat(seen).numpy(), x)


@pytest.mark.parametrize("streams", ["late copies"], indirect=True)
def test_a_copy_is_under_way_while_a_segment_is_worked_on(streams):
    _, copies = streams
    for turn, _ in enumerate(staged(rows_of()[0], [50])):
        # This segment's copy was waited for by the work; the next one's is queued behind it.
        assert (len(copies.queue) > 0) == (turn < 11)


def test_buffers_are_not_given_away_before_the_last_copy(streams):
    """Who breaks off leaves copies under way: the work's stream waits for them."""
    work, copies = streams
    segments = staged(rows_of()[0], [50])
    next(segments)
    segments.close()
    work.run(lambda: not work.queue)
    assert not copies.queue

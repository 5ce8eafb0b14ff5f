"""What holds numbers without being a tensor, through every public function: NumPy is the oracle."""

import array
import math

import numpy as np
import pytest
import torch

import resque_ext as r
from resque_ext import ops
from resque_ext.data.checks import as_float, as_tensor, check_labels

RNG = np.random.default_rng(0)
OLD, NEW = (RNG.integers(-50, 50, (40, 3)) + np.array([60, 0, 5 * k]) for k in (1, 4))
Y = np.arange(40) % 4
NAMES = np.array(["dog", "ant", "cat", "eel"])  # sorted: ant, cat, dog, eel
PLACES = np.array([2, 0, 1, 3])


class OnlyArray:
    def __init__(self, x):
        self.x = np.asarray(x)

    def __array__(self, dtype=None, copy=None):
        return self.x


class OnlyDlpack:
    def __init__(self, x):
        self.x = torch.as_tensor(np.asarray(x))

    def __dlpack__(self, **options):
        return self.x.__dlpack__(**({"max_version": (1, 0)} | options))

    def __dlpack_device__(self):
        return self.x.__dlpack_device__()


def pandas_frame(x):
    return pytest.importorskip("pandas").DataFrame(x) if x.ndim == 2 else pandas_series(x)


def pandas_series(x):
    return pytest.importorskip("pandas").Series(x if x.ndim == 1 else list(x))


def pandas_nullable(x):
    pandas = pytest.importorskip("pandas")
    kind = "Int64" if x.dtype.kind == "i" else "Float64"
    frame = pandas.DataFrame(x).astype(kind)
    return frame if x.ndim == 2 else frame[0]


def polars_frame(x):
    polars = pytest.importorskip("polars")
    return polars.DataFrame(x) if x.ndim == 2 else polars.Series(x)


def polars_lists(x):
    return pytest.importorskip("polars").Series(x.tolist())


def arrow(x):
    pyarrow = pytest.importorskip("pyarrow")
    if x.ndim == 1:
        return pyarrow.chunked_array([x[:7], x[7:]])
    return pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(x.reshape(-1)), x.shape[1])


def column(x):
    datasets = pytest.importorskip("datasets")
    return datasets.Dataset.from_dict({"x": x.tolist()})["x"]


FORMS = {
    "lists": np.ndarray.tolist,
    "tuples": lambda x: tuple(map(tuple, x.tolist())) if x.ndim == 2 else tuple(x.tolist()),
    "arrays in a list": list,
    "tensors in a list": lambda x: list(torch.from_numpy(x)),
    "big-endian": lambda x: x.astype(x.dtype.newbyteorder(">")),
    "Fortran order": np.asfortranarray,
    "reversed": lambda x: x[::-1].copy()[::-1],
    "objects": lambda x: x.astype(object),
    "__array__": OnlyArray,
    "__dlpack__": OnlyDlpack,
    "capsule": lambda x: torch.from_numpy(x).__dlpack__(max_version=(1, 0)),
    "memoryview": memoryview,
    "array.array": lambda x: array.array("q", x) if x.ndim == 1 else x,
    "pandas": pandas_frame,
    "pandas column": pandas_series,
    "pandas nullable": pandas_nullable,
    "polars": polars_frame,
    "polars lists": polars_lists,
    "pyarrow": arrow,
    "datasets": column,
}


def angle(old, new, y):
    """RESQUE_dist by hand."""
    found = []
    for c in np.unique(y):
        a, b = old[y == c].sum(0).astype(float), new[y == c].sum(0).astype(float)
        found.append(math.acos(a @ b / math.sqrt((a @ a) * (b @ b))) / math.pi)
    return np.mean(found)


@pytest.mark.parametrize("form", FORMS)
def test_one_call_functions(form):
    make = FORMS[form]
    found = r.resque_dist(make(OLD), make(NEW), make(Y), make(Y))
    assert found.value == pytest.approx(angle(OLD, NEW, Y), rel=1e-12)
    expected = torch.from_numpy(OLD).double(), torch.from_numpy(NEW).double()
    y = torch.from_numpy(Y)
    assert r.linear_residual(make(OLD), make(NEW), make(Y), make(Y)).value == pytest.approx(
        r.linear_residual(*expected, y, y).value, rel=1e-12
    )
    assert r.resque_task(make(NEW), make(Y)).value == r.resque_task(expected[1], y).value
    assert r.arm(make(OLD), make(NEW)).value == r.arm(*expected).value
    layers = {"a": make(OLD)}, {"a": make(NEW)}
    direct = {"a": expected[0]}, {"a": expected[1]}
    found, there = (r.representation_distance(*x).to_dict() for x in (layers, direct))
    assert found == there


@pytest.mark.parametrize("form", FORMS)
def test_accumulators_and_ops(form):
    make = FORMS[form]
    acc = r.ResqueDist(4)
    acc.update(make(OLD), make(Y), "old")
    acc.update(make(NEW), make(Y), "new")
    assert acc.compute().value == pytest.approx(angle(OLD, NEW, Y), rel=1e-12)
    counts, sums, sumsq = ops.class_moments(make(OLD), make(Y), 4)
    assert counts.tolist() == [10] * 4
    for c in range(4):
        assert sums[c].tolist() == OLD[c == Y].sum(0).tolist()
        assert sumsq[c].tolist() == (OLD[c == Y] ** 2).sum(0).tolist()
    centers = make(OLD[:2])
    nearest = ((OLD[:, None] - OLD[None, :2]) ** 2).sum(2).argmin(1)
    assert ops.lloyd_step(make(OLD), centers).labels.tolist() == nearest.tolist()
    table = ops.pair_counts(make(Y), make(Y))
    assert table.tolist() == (10 * np.eye(4, dtype=int)).tolist()


@pytest.mark.parametrize(
    ("dtype", "wide"),
    [
        ("int8", torch.float32),
        ("uint8", torch.float32),
        ("int16", torch.float32),
        ("uint16", torch.float32),
        ("int32", torch.float64),
        ("uint32", torch.float64),
        ("int64", torch.float64),
        ("uint64", torch.float64),
    ],
)
def test_integers_are_widened_exactly(dtype, wide):
    ends = np.iinfo(dtype)
    low, high = max(ends.min, -(2**53)), min(ends.max, 2**53)
    values = np.array([[low, high, 0], [1, 2, high - 1]], dtype=dtype)
    for x in (torch.from_numpy(values), values, values.astype(values.dtype.newbyteorder(">"))):
        found = as_float(x, "x")
        if isinstance(x, torch.Tensor):
            assert found.dtype == wide
        assert [[int(v) for v in row] for row in found.tolist()] == values.tolist()


@pytest.mark.parametrize("value", [2**53 + 1, -(2**53) - 1])
def test_integers_that_float64_does_not_have_are_refused(value):
    with pytest.raises(ValueError, match=rf"features: expected integers up to 2\^53.*{value}"):
        r.resque_task(np.array([[value, 1], [2, 3]]), [0, 1])


def test_integer_features_in_every_layout():
    x = RNG.integers(0, 256, (40, 2, 3, 5), dtype=np.uint8)
    means = torch.from_numpy(x.mean((2, 3)))
    found = ops.class_moments(x, Y, 4)[1]
    assert torch.allclose(found, ops.class_moments(means, Y, 4)[1], rtol=1e-12)
    assert ops.value_histogram(x).counts.sum() == x.size


@pytest.mark.parametrize(
    "make",
    [
        list,
        lambda y: np.array(y),
        lambda y: np.array(y, dtype=object),
        pandas_series,
        lambda y: pandas_series(y).astype("category"),
        lambda y: pandas_series(y).astype("string"),
        polars_frame,
        lambda y: pytest.importorskip("polars").Series(
            y, dtype=pytest.importorskip("polars").Categorical
        ),
        lambda y: pytest.importorskip("pyarrow").array(y),
        column,
    ],
)
def test_names_of_classes_mean_the_same_on_both_sides(make):
    # The new side lacks "ant", so numbering each side by itself would shift every class.
    there = Y != 1
    old, new = make(NAMES[Y]), make(NAMES[Y][there])
    places = PLACES[Y]
    options = {"missing": "skip"}
    x, z = OLD, NEW[there]
    found = r.resque_dist(x, z, old, new, **options)
    assert found.value == r.resque_dist(x, z, places, places[there], **options).value
    assert found.missing == (0,)
    assert found.value == pytest.approx(angle(OLD[there], NEW[there], Y[there]), rel=1e-12)
    by_name = r.linear_residual(x, z, old, new, **options).value
    assert by_name == r.linear_residual(x, z, places, places[there], **options).value
    task = r.resque_task(x, old)
    assert task.value == r.resque_task(x, places).value
    assert task.to_dict()["classes"] == ["ant", "cat", "dog", "eel"]


def test_labels_that_are_refused():
    with pytest.raises(TypeError, match="names of classes on every side, found numbers on one"):
        r.resque_dist(OLD, NEW, NAMES[Y], Y)
    with pytest.raises(TypeError, match="expected the name of a class in every row, found NoneTy"):
        r.resque_task(OLD, [None, *NAMES[Y][1:]])
    with pytest.raises(TypeError, match="expected the name of a class in every row, found int"):
        r.resque_task(OLD, [3, *NAMES[Y][1:]])
    acc = r.ResqueDist(4)
    with pytest.raises(TypeError, match=r"found names of classes: .* number them first"):
        acc.update(OLD, NAMES[Y], "old")
    for refused in (1.5 * Y, Y > 1, set(Y.tolist()), "dog"):
        with pytest.raises((TypeError, FileNotFoundError)):
            r.resque_task(OLD, refused)


def test_rows_to_ignore_are_named():
    y = np.where(np.arange(40) == 7, -100, Y)
    hint = r"found -100.* \(-100 marks rows to ignore: leave them out, labels != -100\)"
    with pytest.raises(ValueError, match=hint):
        r.resque_task(OLD, y)
    with pytest.raises(ValueError, match=hint):
        r.resque_dist(OLD, NEW, y, y)
    with pytest.raises(ValueError, match=hint):
        ops.class_moments(OLD, y.tolist(), 4)
    keep = y != -100
    assert r.resque_task(OLD[keep], y[keep]).value == r.resque_task(OLD[keep], Y[keep]).value


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        ([[1, 2], [3]], ValueError, "x: expected rows of one length"),
        ([torch.ones(2), torch.ones(3)], ValueError, "x: expected rows of one length"),
        ([1, None], TypeError, "x: expected real numbers, found numpy dtype object .*NoneType"),
        ([1, "a"], TypeError, "x: expected real numbers, found numpy dtype object .*int, str"),
        (["a"], TypeError, "x: expected real numbers, found numpy dtype <U1"),
        ([1j], TypeError, "x: expected real numbers, found numpy dtype complex128"),
        ("abc", TypeError, "x: expected a torch.Tensor or numpy.ndarray.* found str"),
        ({1: 2}, TypeError, "x: expected a torch.Tensor or numpy.ndarray.* found dict"),
        (3, TypeError, "x: expected a torch.Tensor or numpy.ndarray.* found int"),
        (np.ma.array([1, 2], mask=[0, 1]), TypeError, "x: expected an array without a mask"),
    ],
)
def test_what_holds_no_numbers_is_refused(x, error, message):
    with pytest.raises(error, match=message):
        as_tensor(x, "x")


def test_frames_with_missing_values_or_text_are_refused():
    pandas = pytest.importorskip("pandas")
    with pytest.raises(TypeError, match="features: expected real numbers, found"):
        r.resque_task(pandas.DataFrame({"a": [1.0, 2.0], "b": ["x", "y"]}), [0, 1])
    with pytest.raises(TypeError, match=r"found numpy dtype object .*NAType"):
        as_tensor(pandas.DataFrame({"a": pandas.array([1, None], dtype="Int64"), "b": "x"}), "x")
    with pytest.raises(TypeError, match=r"expected int32 or int64 class indices, .*float64"):
        check_labels(pandas.Series([1, None], dtype="Int64"), "labels")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_an_array_on_a_device_that_is_not_there_is_one_line():
    class OnDevice:
        def __init__(self):
            shape = {"shape": (2,), "typestr": "<f4", "data": (16, False), "version": 3}
            self.__cuda_array_interface__ = shape

    with pytest.raises(TypeError, match="x: expected OnDevice to convert to an array, found"):
        as_tensor(OnDevice(), "x")


def test_a_tensor_shares_its_memory():
    x = torch.ones(3)
    assert as_tensor(x, "x").data_ptr() == x.data_ptr()
    y = np.ones(3)
    for held in (y, OnlyArray(y), OnlyDlpack(y)):
        assert as_tensor(held, "x").data_ptr() == y.ctypes.data

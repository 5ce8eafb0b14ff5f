"""What class_moments refuses: labels out of range, values not finite, other inputs."""

import importlib
import math
import warnings

import numpy as np
import pytest
import torch
from helpers import oracles
from helpers.class_moments_made import (
    DTYPES,
    NHWC,
    arrays,
    check,
    drawn,
    labels_for,
    truth,
    whole_numbers,
)

import resque_ext
from resque_ext.data import checks
from resque_ext.ops import backend as _backend
from resque_ext.ops import class_moments

ops = importlib.import_module(
    "resque_ext.ops.class_moments"
)  # in `ops`, its name is the function's


# --- Labels out of range


PATHS = [(50, 4), (50, 400), (33_000, 4)]  # gathered, gathered, streamed on the CPU


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("bad", [-1, "K", 2**31 - 1, -(2**31)])
@pytest.mark.parametrize(("n", "classes"), PATHS)
def test_labels_out_of_range(place, n, classes, bad, dtype):
    bad = classes if bad == "K" else bad
    x, y = whole_numbers(n, 3), labels_for(n, classes).to(dtype)
    y[[17, 23]] = torch.tensor([bad, -7], dtype=dtype)
    here, there = x.to(place.device), y.to(place.device)
    message = rf"labels: expected class indices 0\.\.{classes - 1}, found {bad} at position 17$"
    for mode in ("error", "skip"):
        with pytest.raises(ValueError, match=message):
            class_moments(here, there, classes, check=True, nonfinite=mode)
    good = [*range(17), *range(18, 23), *range(24, n)]
    found = class_moments(here, there, classes, check=False)
    expected = oracles.class_moments_of_integers(truth(x)[good], y[good].numpy(), classes)
    expected.check(arrays(found), 0)


def test_only_labels_out_of_range(place):
    x, y = drawn(40_000, 2).to(place.device), torch.full((40_000,), 9, device=place.device)
    x[3] = math.nan  # a row without a group: nobody looks at it
    for classes in (3, 300):
        _, sums, _, status = torch.ops.resque_ext.class_moments_status(x, y - 10, classes)
        assert status.tolist() == [40_000, -1, 0, 0, 0]
        assert not sums.any()


# --- Values that are not finite


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("n", "classes"), [(60, 4), (900, 400), (33_000, 4)])
def test_nonfinite(place, n, classes, value, dtype):
    if place.name == "cuda_on_cpu":
        n = min(n, 5_000)
    x, y = whole_numbers(n, 6, dtype=dtype), labels_for(n, classes)
    x[n - 2, 3] = x[19, 4] = x[19, 5] = x[20] = value
    here, there = x.to(place.device), y.to(place.device)
    message = (
        "features: expected finite values, found 9 NaN or infinite in 3 rows, the first at row 19, "
        r"column 4 \(nonfinite='skip' leaves such rows out\)"
    )
    with pytest.raises(ValueError, match=message):
        class_moments(here, there, classes, check=True)

    good = [i for i in range(n) if i not in (19, 20, n - 2)]
    found = class_moments(here, there, classes, nonfinite="skip", check=True)
    expected = oracles.class_moments_of_integers(truth(x)[good], y[good].numpy(), classes)
    expected.check(arrays(found), 0)

    _, sums, sumsq = class_moments(here, there, classes, check=False)
    assert not sums[y[20]].isfinite().any()
    assert not sumsq[y[20]].isfinite().any()
    untouched = [c for c in range(classes) if c not in y[[19, 20, n - 2]]]
    np.testing.assert_array_equal(sums.cpu()[untouched], expected.sums[untouched])


@pytest.mark.parametrize("shape", [(30, 6), (40_000, 2), (30, 4, 3, 3), (30, 5, 4)])
@pytest.mark.parametrize("classes", [3, 200])
def test_nothing_finite(place, shape, classes):
    if place.name == "cuda_on_cpu":
        shape = (min(shape[0], 3_000), *shape[1:])
    x = torch.full(shape, math.nan, device=place.device)
    y = labels_for(shape[0], classes).to(place.device)
    for part in class_moments(x, y, classes, nonfinite="skip"):
        assert not part.any()
    n, width = shape[0], shape[2] if len(shape) == 3 else shape[1]
    *_, status = torch.ops.resque_ext.class_moments_status(x, y, classes)
    assert status.tolist() == [0, 0, n * width, n * width, n]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "tokens"])
def test_nonfinite_through_pooling(place, layout, dtype):
    """It is the mean that counts: one bad position makes one bad feature."""
    x = whole_numbers(60, 8, 4, 4, dtype=dtype)
    x[7, 2, 1, 3], x[7, 2, 0, 0], x[40, 5, 3, 3] = math.inf, -math.inf, math.nan
    x = {
        "NCHW": lambda: x,
        "NHWC": lambda: x.contiguous(**NHWC),
        "tokens": lambda: x.flatten(2).transpose(1, 2),
    }[layout]()
    y = labels_for(60, 3)
    with pytest.raises(ValueError, match=r"found 2 .* in 2 rows, the first at row 7, column 2 "):
        class_moments(x.to(place.device), y.to(place.device), 3, check=True)
    check(place, x, y, 3, nonfinite="skip")
    y[7] = -1
    *_, status = torch.ops.resque_ext.class_moments_status(
        x.to(place.device), y.to(place.device), 3
    )
    assert status.tolist() == [60 - 7, -1, 1, 60 * 8 - (40 * 8 + 5), 1]


# --- Segments: more rows than one call of the extension takes


@pytest.mark.parametrize("backend", ["native", "torch"])
@pytest.mark.parametrize("rows", [9, 50, 99, 100])
def test_segments(place, monkeypatch, rows, backend):
    monkeypatch.setattr(ops, "SEGMENT_ROWS", rows)
    x, y = drawn(100, 5), labels_for(100, 4)
    with resque_ext.backend(backend):
        check(place, x, y, 4)
        check(place, x.view(100, 5, 1, 1).expand(100, 5, 2, 2), y, 4)
        x[[40, 73, 99], [3, 1, 4]] = math.nan
        there = x.to(place.device)
        with pytest.raises(ValueError, match=r"found 3 .* 3 rows, the first at row 40, column 3 "):
            class_moments(there, y.to(place.device), 4, check=True)
        check(place, x, y, 4, nonfinite="skip")
        y[[35, 80]] = torch.tensor([-3, 11])
        with pytest.raises(ValueError, match=r"found -3 at position 35$"):
            class_moments(there, y.to(place.device), 4, check=True)
        *_, status = torch.ops.resque_ext.class_moments_status(there, y.to(place.device), 4)
        assert status.tolist() == [65, -3, 3, 500 - 203, 3]


# --- Refused


@pytest.mark.parametrize(
    ("features", "labels", "error", "message"),
    [
        ({1.0}, torch.zeros(1).long(), TypeError, "features: expected a torch.Tensor .* set"),
        (torch.zeros(3, 2).bool(), None, TypeError, "features: expected float32"),
        (torch.zeros(3, 2).cfloat(), None, TypeError, "features: expected a dense .* complex"),
        (torch.zeros(3, 2).to_sparse(), None, TypeError, "features: .*torch.sparse_coo"),
        (torch.zeros(3, 2, device="meta"), None, TypeError, "features: .*on cpu or cuda.*meta"),
        (np.full((3, 2), None), None, TypeError, "features: .*numpy dtype object"),
        (np.zeros((3, 2), complex), None, TypeError, "features: .*numpy dtype complex128"),
        (torch.zeros(3), None, ValueError, r"features: expected \[N, D\].*shape \(3,\)"),
        (torch.tensor(1.0), None, ValueError, r"features: expected \[N, D\].*shape \(\)"),
        (torch.zeros(3, 1, 1, 1, 1), None, ValueError, r"features: .*\(3, 1, 1, 1, 1\)"),
        (torch.zeros(3, 4, 0, 2), None, ValueError, "features: .*one position"),
        (torch.zeros(3, 0, 2), None, ValueError, "features: .*one position"),
        (None, torch.zeros(3), TypeError, "labels: expected int32 or int64.*float32"),
        (None, torch.zeros(3).bool(), TypeError, "labels: expected int32 or int64.*bool"),
        (None, torch.zeros(3).half(), TypeError, "labels: expected int32 or int64.*float16"),
        (None, torch.zeros(3).cfloat(), TypeError, "labels: expected a dense"),
        (None, {0, 1, 2}, TypeError, "labels: expected a torch.Tensor .* set"),
        (None, torch.zeros(3, 4).long(), ValueError, r"labels: .*one-hot.*labels.argmax\(1\)"),
        (None, torch.tensor(3), ValueError, r"labels: expected shape \[N\].*\(\)"),
        (None, torch.zeros(3, device="meta").long(), TypeError, "labels: .*on cpu or cuda"),
        (None, torch.zeros(4).long(), ValueError, r"features, labels: .*\(3, 2\).*\(4,\)"),
        (None, torch.zeros(0).long(), ValueError, r"features, labels: .*\(3, 2\).*\(0,\)"),
        (None, np.array([2**63], np.uint64), TypeError, r"labels: expected values below 2\^63"),
        (None, np.array(["a"]), TypeError, "labels: .*found names of classes"),
    ],
)
def test_refused(features, labels, error, message):
    x = torch.zeros(3, 2) if features is None else features
    y = torch.zeros(3).long() if labels is None else labels
    with pytest.raises(error, match=message):
        class_moments(x, y, 3)


def test_quantized_features_are_refused():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # quantized tensors are on their way out
        x = torch.quantize_per_tensor(torch.zeros(3, 2), 0.1, 0, torch.qint8)
    with pytest.raises(TypeError, match="features: expected a dense real tensor, found quantized"):
        class_moments(x, torch.zeros(3).long(), 2)


@pytest.mark.parametrize(
    ("classes", "error"),
    [
        *[(value, TypeError) for value in (2.0, "2", None, True, np.float64(2), torch.tensor(2))],
        *[(value, ValueError) for value in (0, -1, 2**31, 2**70)],
    ],
)
def test_refused_num_classes(classes, error):
    with pytest.raises(error, match="num_classes: expected"):
        class_moments(torch.zeros(3, 2), torch.zeros(3).long(), classes)


def test_num_classes_of_numpy():
    assert len(class_moments(torch.zeros(3, 2), torch.zeros(3).long(), np.int32(4))[0]) == 4


def test_refused_options():
    with pytest.raises(
        ValueError, match="nonfinite: expected one of 'error', 'skip', found 'drop'"
    ):
        class_moments(torch.zeros(3, 2), torch.zeros(3).long(), 2, nonfinite="drop")
    with pytest.raises(ValueError, match=r"name: expected one of .*, found 'numpy'"):
        resque_ext.backend("numpy").__enter__()


def test_features_and_labels_on_two_devices():
    """Only on CUDA can both be taken by themselves."""
    x, y = torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64, device="meta")
    with pytest.raises(ValueError, match=r"expected one device.*cpu.*meta"):
        checks.check_pair(x, y, ("features", "labels"))


def test_features_that_are_refused_by_the_launcher(place):
    """Neither channels nor positions side by side: the kernels would read the wrong places."""
    zeros = torch.zeros(1_000, dtype=torch.int64, device=place.device)
    for sizes in ((2, 3, 1, 6, 2, 1), (2, 3, 4, 24, 8, 2), (2, 1, 4, 8, 8, 2), (2, 1, 0, 1, 1, 1)):
        view = _backend.extension().Features(zeros, 0, *sizes)
        args = (view, zeros, zeros, 1, True, False, *[zeros] * 5)
        with pytest.raises(
            ValueError, match=r"stride_c: expected 1|positions: expected at least 1"
        ):
            _backend.launch("class_moments", place.device, *args)

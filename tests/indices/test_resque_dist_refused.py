"""What ResqueDist and resque_dist refuse: each by its argument's name, the state as it was."""

import sys

import numpy as np
import pytest
import torch
from helpers.resque_dist_made import SIDES, X, Y, filled, on_backends, sample, snapshot, unchanged

from resque_ext import ResqueDist, backend, resque_dist
from resque_ext.indices.resque_dist import default_blocks

# Batches that are refused


def spoilt(row, column, value, dtype=torch.float64):
    x = X.clone()
    x[row, column] = value
    return x.to(dtype)


def relabelled(position, label):
    y = Y.clone()
    y[position] = label
    return y


FINITE = "expected finite values, found 1 NaN or infinite in 1 rows, the first at row"
BAD_BATCHES = {
    "label too large": (
        X,
        relabelled(5, 3),
        ValueError,
        r"labels: .* 0\.\.2, found 3 at position 5",
    ),
    "label below 0": (
        X,
        relabelled(11, -1),
        ValueError,
        r"labels: .*0\.\.2, found -1 at position 11",
    ),
    "label far away": (
        X,
        relabelled(0, 2**62),
        ValueError,
        r"labels: .* found 4611686018427387904 ",
    ),
    "int32 label": (X, relabelled(2, 7).int(), ValueError, r"labels: .* found 7 at position 2"),
    "NaN": (spoilt(7, 2, np.nan), Y, ValueError, rf"features: {FINITE} 7, column 2"),
    "inf": (spoilt(0, 0, -np.inf), Y, ValueError, rf"features: {FINITE} 0, column 0"),
    "inf in half": (
        spoilt(3, 1, 1e6, torch.half),
        Y,
        ValueError,
        rf"features: {FINITE} 3, column 1",
    ),
    "width": (
        X[:, :3],
        Y,
        ValueError,
        r"features: expected width 4 on cpu .* found shape \(12, 3\)",
    ),
    "width of maps": (
        X[:, :2, None, None],
        Y,
        ValueError,
        r"features: expected width 4 .*12, 2, 1, 1",
    ),
    "no columns": (X[:, :0], Y, ValueError, r"features: expected at least one column, .*\(12, 0\)"),
    "no positions": (X[:, :0, None], Y, ValueError, r"features: expected at least one position"),
    "rank 1": (X[:, 0], Y, ValueError, r"features: expected \[N, D\], .* found shape \(12,\)"),
    "rank 5": (
        X[..., None, None, None],
        Y,
        ValueError,
        r"features: expected \[N, D\], \[N, C, H, W\]",
    ),
    "bool": (X > 0, Y, TypeError, r"features: expected float32, .* found .* torch.bool"),
    "complex": (X.cfloat(), Y, TypeError, r"features: expected a dense real tensor, found complex"),
    "sparse": (X.to_sparse(), Y, TypeError, r"features: expected a dense .*sparse_coo"),
    "meta": (
        X.to("meta"),
        Y,
        TypeError,
        r"features: expected a tensor on cpu or cuda, found .* meta",
    ),
    "a set": (
        {1.0},
        Y,
        TypeError,
        r"features: expected a torch.Tensor or numpy.ndarray, found set",
    ),
    "objects": (
        np.array([None]),
        Y,
        TypeError,
        r"features: expected real numbers, found .* object",
    ),
    "meta labels": (X, Y.to("meta"), TypeError, r"labels: expected a tensor on cpu or cuda"),
    "float labels": (X, Y.float(), TypeError, r"labels: expected int32 or int64 .* torch.float32"),
    "bool labels": (X, Y > 0, TypeError, r"labels: expected int32 or int64 .* torch.bool"),
    "a set of labels": (
        X,
        set(Y.tolist()),
        TypeError,
        r"labels: expected a torch.Tensor .* found set",
    ),
    "one-hot": (
        X,
        torch.eye(3).long()[Y],
        ValueError,
        r"labels: expected shape \[N\].*argmax\(1\)",
    ),
    "a label too few": (
        X,
        Y[:-1],
        ValueError,
        r"features, labels: expected one label a row, found features \(shape \(12, 4\), "
        r"torch.float64, cpu\) and labels \(shape \(11,\), torch.int64, cpu\)",
    ),
}


@on_backends
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("case", BAD_BATCHES)
def test_a_refused_batch_leaves_the_state_bit_for_bit(case, side, name_of_backend):
    x, y, error, message = BAD_BATCHES[case]
    acc = filled()
    before = snapshot(acc)
    with backend(name_of_backend), pytest.raises(error, match=message):
        acc.update(x, y, side)
    unchanged(acc, before)
    acc.update(X, Y, side)


@pytest.mark.parametrize("case", [c for c in BAD_BATCHES if "width" not in c])
def test_a_refused_first_batch_fixes_no_width(case):
    x, y, error, message = BAD_BATCHES[case]
    acc = ResqueDist(3)
    with pytest.raises(error, match=message):
        acc.update(x, y, "old")
    assert acc.width is None
    acc.update(torch.ones(3, 9), torch.arange(3), "old")


def test_side_is_old_or_new():
    acc = filled()
    before = snapshot(acc)
    for side in ("both", "OLD", None, 0):
        with pytest.raises(ValueError, match=f"side: expected one of 'old', 'new', found {side!r}"):
            acc.update(X, Y, side)
    unchanged(acc, before)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_classes": 0}, ValueError, "num_classes: expected 1 <= num_classes < 2.31, found 0"),
        ({"num_classes": 2**31}, ValueError, "num_classes: expected 1 <= .* found 2147483648"),
        ({"num_classes": True}, TypeError, "num_classes: expected an integer, found True"),
        ({"num_classes": 3.0}, TypeError, r"num_classes: expected an integer, found 3\.0"),
        ({"blocks": 1}, ValueError, "blocks: expected 2 <= blocks < 2.31, found 1"),
        ({"blocks": "4"}, TypeError, "blocks: expected an integer, found '4'"),
        (
            {"missing": "ignore"},
            ValueError,
            "missing: expected one of 'error', 'skip', found 'ignore'",
        ),
        ({"nonfinite": None}, ValueError, "nonfinite: expected one of 'error', 'skip', found None"),
    ],
)
def test_options_are_checked(options, error, message):
    with pytest.raises(error, match=message):
        ResqueDist(**{"num_classes": 3, **options})


def test_default_blocks():
    assert [default_blocks(c) for c in (1, 10, 128, 200, 512, 10**6)] == [16, 16, 16, 8, 4, 4]
    assert repr(filled()) == "ResqueDist(num_classes=3, width=4, blocks=16)"


def test_positions_in_errors_count_from_the_first_row(monkeypatch):
    # By its entry in sys.modules: the package's attribute of that name is the function.
    monkeypatch.setattr(sys.modules[ResqueDist.__module__], "SEGMENT_ROWS", 10)
    x, y = torch.randn(30, 3), torch.arange(30) % 2
    wrong = y.clone()
    wrong[25] = 9
    with pytest.raises(ValueError, match="found 9 at position 25"):
        ResqueDist(2).update(x, wrong, "old")
    x[27, 1] = torch.nan
    with pytest.raises(ValueError, match="first at row 27, column 1"):
        ResqueDist(2).update(x, y, "old")


# The one call


def test_one_call_names_its_own_arguments():
    x, y = sample(12, 3, 4, 5)
    for case, (bad, bad_labels, error, message) in BAD_BATCHES.items():
        if case in ("width", "width of maps", "no columns"):
            continue  # here it is the two sides that differ
        name, colon, rest = message.partition(":")
        for side in SIDES:
            own = {"features": side, "labels": f"{side}_labels"}
            own["features, labels"] = f"{side}, {side}_labels"
            rest_of_side = rest.replace("found features", f"found {side}")
            rest_of_side = rest_of_side.replace("and labels", f"and {side}_labels")
            arguments = {"old": x, "new": x, "old_labels": y, "new_labels": y, "num_classes": 3}
            arguments |= {side: bad, f"{side}_labels": bad_labels}
            with pytest.raises(error, match=f"^{own[name]}{colon}{rest_of_side}"):
                resque_dist(**arguments)


def test_one_call_wants_one_width():
    x, y = sample(12, 3, 4)
    with pytest.raises(
        ValueError,
        match=r"old, new: expected one width on one device, found old \(shape \(12, 4\), .*\) "
        r"and new \(shape \(12, 3\), ",
    ):
        resque_dist(x, x[:, :3], y, y)
    with pytest.raises(ValueError, match="missing: expected one of"):
        resque_dist(x, x, y, y, missing="drop")
    with pytest.raises(TypeError, match="num_classes: expected an integer, found '3'"):
        resque_dist(x, x, y, y, "3")


@pytest.mark.parametrize("label", [100_000, 10**12, 2**62])
def test_absurd_labels_are_not_classes(label):
    """Without num_classes they would ask for that many class sums."""
    x, y = sample(12, 3, 4)
    y[4] = label
    message = f"num_classes: expected it to be given for labels as large as {label}, found None"
    with pytest.raises(ValueError, match=message):
        resque_dist(x, x, y, y)
    with pytest.raises(ValueError, match=rf"old_labels: .* 0\.\.2, found {label} at position 4"):
        resque_dist(x, x, y, y, 3)


def test_negative_labels_without_a_number_of_classes():
    x, y = sample(12, 3, 4)
    with pytest.raises(ValueError, match=r"new_labels: .* 0\.\.2, found -2 at position 2"):
        resque_dist(x, x, y, y - 3 * (y == 1))
    with pytest.raises(ValueError, match=r"old_labels: .* 0\.\.0, found -1 at position 0"):
        resque_dist(x, x, y * 0 - 1, y * 0 - 1)

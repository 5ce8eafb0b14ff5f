"""Errors carry fields; their text is made of them once."""

import json
import pickle
import re

import numpy as np
import pytest
import torch

import resque_ext
from resque_ext.data.files import load_arrays
from resque_ext.errors import ArgumentError, ArgumentTypeError, InputError, within

X, Y = torch.randn(12, 4), torch.arange(12) % 3


def test_text_is_made_of_the_fields():
    error = ArgumentError("labels", "0..2", "7 at position {row}", fix="leave it out", row=4)
    assert str(error) == "labels: expected 0..2, found 7 at position 4 (leave it out)"
    assert error.args == (str(error),)
    other = error.but(side="new", row="40 in reading order", fix=None)
    assert str(other) == "new: labels: expected 0..2, found 7 at position 40 in reading order"
    assert type(other) is ArgumentError
    assert str(within("old", other)) == f"new: old: {str(other)[5:]}"
    assert str(within("old", KeyError("k"))) == "\"old: 'k'\""


@pytest.mark.parametrize(
    "error", [json.JSONDecodeError("no", "{", 1), UnicodeDecodeError("ascii", b"\xff", 0, 1, "no")]
)
def test_errors_that_take_more_than_a_message_have_a_place_too(error):
    placed = within("new", error)
    assert type(placed) is ValueError
    assert str(placed) == f"new: {error}"


@pytest.mark.parametrize("kind", [ArgumentError, ArgumentTypeError])
def test_errors_can_be_sent(kind):
    error = kind("labels", int, ["a"], fix="convert", side="old", row=2)
    error.add_note("seen on rank 1") if hasattr(error, "add_note") else None
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert str(again) == str(error)
    assert (again.fix, again.side, again.row) == ("convert", "old", 2)


def test_fields_of_a_label_out_of_range():
    labels = Y.clone()
    labels[7] = -4
    with pytest.raises(ArgumentError) as caught:
        resque_ext.ops.class_moments(X, labels, 3)
    error = caught.value
    assert (error.argument, error.row) == ("labels", 7)
    assert error.expected == "class indices 0..2"


def test_fields_of_a_value_that_is_not_finite_say_the_side():
    bad = X.clone()
    bad[5, 2] = torch.nan
    model = torch.nn.Sequential(torch.nn.Linear(4, 4, bias=False), torch.nn.Linear(4, 3)).eval()
    with pytest.raises(ArgumentError) as caught:
        resque_ext.score(model, [(X, Y)], [(bad, Y)], progress=False)
    error = caught.value
    assert (error.side, error.argument, error.row) == ("new", "features", 5)
    assert "finite" in error.expected


@pytest.mark.parametrize(
    ("call", "kind", "argument"),
    [
        (lambda: resque_ext.score(3, [(X, Y)], [(X, Y)]), TypeError, "model"),
        (lambda: resque_ext.resque_dist(X, X[:, :2], Y, Y), ValueError, None),
        (lambda: resque_ext.shifts.make("nothing", 1), ValueError, None),
        (lambda: resque_ext.shifts.make("gaussian", -1), ValueError, "level"),
        (lambda: resque_ext.ResqueDist(0), ValueError, "num_classes"),
    ],
)
def test_what_is_refused_has_fields(call, kind, argument):
    with pytest.raises(kind) as caught:
        call()
    error = caught.value
    assert isinstance(error, InputError)
    assert argument in (None, error.argument)
    assert re.fullmatch(
        re.escape(f"{error.argument}: expected {error.expected}, found {error.found}") + ".*",
        str(error),
    )


def test_what_was_found_is_whole_and_no_advice(tmp_path):
    with pytest.raises(ArgumentError) as caught:
        resque_ext.pooled(torch.zeros(2, 3, 4), mask=torch.ones(2, 5))
    found = (
        "features (shape (2, 3, 4), torch.float32, cpu) and mask (shape (2, 5), torch.bool, cpu)"
    )
    assert (caught.value.found, caught.value.fix) == (found, None)
    with pytest.raises(ArgumentError) as caught:
        resque_ext.resque_dist(X, X, Y[:7], Y)
    found = "old (shape (12, 4), torch.float32, cpu) and old_labels (shape (7,), torch.int64, cpu)"
    assert (caught.value.found, caught.value.fix) == (found, None)
    path = tmp_path / "x.npz"
    np.savez(path, features=X.numpy())
    with pytest.raises(ArgumentError) as caught:
        load_arrays(path, ("features", "labels"))
    assert (caught.value.found, caught.value.fix) == ("'features' ('labels' missing)", None)

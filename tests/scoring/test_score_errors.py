"""What fails is said before a pass is spent on it, and leaves the results of the others."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from resque_ext import score
from resque_ext.distributed import Ranks
from resque_ext.indices.linear_residual import LinearResidual
from resque_ext.scoring.failures import Failed


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.head(self.body(x).relu())


def side(labels, shift=0.0, size=16):
    x = torch.randn(len(labels), 6, generator=torch.Generator().manual_seed(1)) + shift
    return [(x[i : i + size], labels[i : i + size]) for i in range(0, len(labels), size)]


ALL = torch.arange(60) % 3
SOME = torch.arange(60) % 2
OPTIONS = {"progress": False}
MISSING = r"^labels: expected every class to have an angle, found class 2 has no new rows"


def loader(batches):
    x, y = (torch.cat(part) for part in zip(*batches, strict=True))
    return DataLoader(TensorDataset(x, y), batch_size=16, shuffle=True)


@pytest.mark.parametrize("index", ["resque_dist", "linear_residual"])
@pytest.mark.parametrize("make", [list, loader])
def test_a_missing_class_is_said_before_any_pass(index, make):
    model = Counting()
    with pytest.raises(ValueError, match=MISSING) as early:
        score(model, make(side(ALL)), make(side(SOME)), indices=index, **OPTIONS)
    assert model.calls == 0
    with pytest.raises(ValueError, match=MISSING) as late:  # of batches that have to be read
        score(model, iter(side(ALL)), iter(side(SOME)), indices=index, **OPTIONS)
    assert model.calls > 0
    assert str(early.value) == str(late.value)


def test_a_missing_class_that_is_left_out_is_no_error():
    options = {"resque_dist": {"missing": "skip"}}
    found = score(Counting(), side(ALL), side(SOME), options=options, **OPTIONS)
    assert found.missing == (2,)


@pytest.mark.parametrize("make", [list, iter])
def test_the_others_keep_their_results(make):
    names = ("resque_dist", "arm", "linear_residual")
    found = score(
        Counting(), make(side(ALL)), make(side(SOME, 0.5)), indices=names, errors="keep", **OPTIONS
    )
    alone = score(Counting(), side(ALL), side(SOME, 0.5), indices="arm", **OPTIONS)
    assert found["arm"].to_dict() == alone.to_dict()
    for name in ("resque_dist", "linear_residual"):
        assert isinstance(found[name], Failed)
        with pytest.raises(ValueError, match=MISSING):
            float(found[name])
    plain = json.loads(json.dumps(found.to_dict()))
    assert plain["resque_dist"]["error"].startswith("ArgumentError: labels: expected every class")
    assert plain["arm"] == json.loads(json.dumps(alone.to_dict()))
    assert "resque_dist=ArgumentError: labels" in repr(found)
    assert "arm=0." in repr(found)


def test_one_that_fails_in_the_first_batch_leaves_the_others(monkeypatch):
    seen = []

    def too_wide(self, x, width):
        seen.append(width)
        raise ValueError("features: expected at most 4,096 columns, found 8")

    expected = score(Counting(), side(ALL), side(ALL, 0.5), indices="resque_dist", **OPTIONS)
    monkeypatch.setattr(LinearResidual, "_check_width", too_wide)
    found = score(
        Counting(),
        side(ALL),
        side(ALL, 0.5),
        indices=("linear_residual", "resque_dist"),
        errors="keep",
        **OPTIONS,
    )
    assert seen == [8]  # once, in the first batch
    assert "4,096" in str(found["linear_residual"])
    assert found["resque_dist"].to_dict() == expected.to_dict()
    with pytest.raises(ValueError, match="4,096"):
        score(Counting(), side(ALL), side(ALL), indices="linear_residual", **OPTIONS)


def test_a_pass_of_its_own_is_guarded_too(monkeypatch):
    class Normalized(Counting):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8))

    monkeypatch.setattr(LinearResidual, "update", lambda *_: 1 / 0)
    found = score(
        Normalized(),
        side(ALL),
        side(ALL, 0.5),
        indices=("linear_residual", "resque_dist"),
        adapt_normalization=True,
        errors="keep",
        **OPTIONS,
    )
    assert str(found["linear_residual"]) == "ZeroDivisionError: division by zero"
    assert 0 < float(found["resque_dist"]) < 1


def test_one_index_alone_is_kept_too():
    found = score(Counting(), side(ALL), side(SOME), errors="keep", **OPTIONS)
    with pytest.raises(ValueError, match=MISSING):
        float(found)


def test_what_is_wrong_as_such_raises_in_any_case():
    with pytest.raises(ValueError, match=r"^errors: expected one of 'raise', 'keep', found 'no'"):
        score(Counting(), side(ALL), side(ALL), errors="no", **OPTIONS)
    with pytest.raises(TypeError, match="options"):
        score(Counting(), side(ALL), side(ALL), errors="keep", options=[1], **OPTIONS)
    with pytest.raises(ZeroDivisionError):  # of the caller's own code
        score(Counting(), side(ALL), (1 / 0 for _ in range(2)), errors="keep", **OPTIONS)
    with Ranks() as ranks, pytest.raises(ValueError, match=r"^errors: expected 'raise' with ranks"):
        score(Counting(), side(ALL), side(ALL), errors="keep", ranks=ranks, **OPTIONS)

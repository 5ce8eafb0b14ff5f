"""Tensors whose memory is not what their values say, or that have none: right, or a typed error."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers import odd_tensors
from helpers.odd_tensors import CALLS, KINDS, NEW, C, X, Y
from helpers.places import HELPERS, environment

import resque_ext as R
from resque_ext import backend
from resque_ext.ops.class_moments import grouped_moments


@pytest.mark.parametrize("kind", ["negative", "negative view", "conjugate imaginary"])
@pytest.mark.parametrize("name", CALLS)
def test_negative_bits_are_resolved(kind, name):
    """Their memory holds the values with the other sign."""
    x = KINDS[kind](X)
    assert x.is_neg()
    assert torch.equal(x, X)
    assert odd_tensors._same(CALLS[name](x, Y), CALLS[name](X, Y))


def test_negative_sums_by_hand():
    """In an accumulator, where no dispatcher of torch resolves the bit."""
    acc = R.ResqueDist(C)
    acc.update(torch._neg_view(X), torch._neg_view(-Y), "old")
    acc.update(NEW, Y, "new")
    old, new = -X.double().numpy(), NEW.double().numpy()
    for c, angle in enumerate(acc.compute().per_class):
        a, b = old[c == Y].sum(0), new[c == Y].sum(0)
        cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        assert angle == pytest.approx(np.arccos(cosine) / np.pi, abs=1e-12)


@pytest.mark.parametrize("kind", ["zero", "fake", "freed", "freed view", "two", "masked"])
def test_tensors_without_memory_are_refused(kind):
    state = R.ResqueDist(C)
    with backend("native"), pytest.raises((TypeError, RuntimeError)) as caught:
        state.update(KINDS[kind](X), Y, "old")
    if kind in ("zero", "fake"):
        assert isinstance(caught.value, TypeError)
        assert str(caught.value).startswith("features: expected a tensor with its values in memory")
    assert state.width is None  # as before


def test_outputs_without_memory_are_refused():
    """Under a mode that makes every new tensor one without values."""
    mode = torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True)
    order = torch.arange(len(X), dtype=torch.int32)
    offsets = torch.tensor([0, len(X)])
    with backend("native"), mode, pytest.raises(TypeError, match="memory"):
        grouped_moments(X, order, offsets)


@pytest.mark.parametrize("name", ["spatial_mean", "class_moments"])
def test_ops_under_vmap_and_grad(name):
    call = CALLS[name]
    for place in ("vmap", "grad", "jvp"):
        assert odd_tensors._same(odd_tensors.PLACES[place](call), call(X, Y)), place


@pytest.mark.full
@pytest.mark.parametrize("name_of_backend", ["native", "torch"])
def test_no_kind_of_tensor_ends_the_process(name_of_backend):
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", HELPERS / "odd_tensors.py", name_of_backend],
        capture_output=True,
        text=True,
        timeout=600,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    for kind, outcomes in found.items():
        assert "wrong" not in outcomes.values(), (kind, outcomes)
    always = ("plain", "negative", "negative view", "subclass", "parameter", "lazy clone")
    for kind in (f"{k} {side}" for k in always for side in ("features", "labels")):
        assert set(found[kind].values()) == {"right"}, (kind, found[kind])
    for place in ("inference", "autocast", "dual level"):
        assert set(found[f"in {place}"].values()) == {"right"}, (place, found[f"in {place}"])

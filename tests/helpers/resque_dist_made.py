"""Features of two sides, accumulators filled with them, and the definition in wide floats."""

import dataclasses

import numpy as np
import pytest
import torch

from resque_ext import ResqueDist, ResqueDistResult

SIDES = ("old", "new")
on_backends = pytest.mark.parametrize("name_of_backend", ["native", "torch"])


def sample(n, classes, width, seed=0):
    """Rows away from zero, so that no class sum nearly cancels; classes as even as can be."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    rng.shuffle(labels)
    return torch.from_numpy(rng.normal(size=(n, width)) + 2), torch.from_numpy(labels)


def truth(old, old_labels, new, new_labels, classes):
    """The definition, in the widest floats there are."""
    angles = []
    for c in range(classes):
        units = []
        for x, y in ((old, old_labels), (new, new_labels)):
            u = x.double().numpy().astype(np.longdouble)[y.numpy() == c].sum(axis=0)
            units.append(u / np.sqrt((u**2).sum()))
        u, v = units
        apart, along = np.sqrt(((u - v) ** 2).sum()), np.sqrt(((u + v) ** 2).sum())
        angles.append(float(2 * np.arctan2(apart, along) / np.longdouble(np.pi)))
    return np.array(angles)


def filled(classes=3, width=4, rows=40, **options):
    acc = ResqueDist(classes, **options)
    for seed, side in enumerate(SIDES):
        acc.update(*sample(rows, classes, width, seed), side)
    return acc


def same(a, b, tolerance=0.0):
    """Two results agree in everything, numbers to `tolerance`."""
    for f in dataclasses.fields(ResqueDistResult):
        x, y = getattr(a, f.name), getattr(b, f.name)
        if f.name == "counts":
            for side in SIDES:
                np.testing.assert_array_equal(x[side], y[side])
        elif isinstance(x, float | np.ndarray) and y is not None:
            np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance, err_msg=f.name)
        else:
            assert x == y, f.name


def snapshot(acc):
    return {k: v.clone() for k, v in acc.state_dict().items()} | {"width": acc.width}


def unchanged(acc, before):
    now = snapshot(acc)
    assert now.keys() == before.keys()
    assert now.pop("width") == before["width"]
    for key, tensor in now.items():
        assert tensor.dtype == before[key].dtype
        assert torch.equal(tensor, before[key]), key


X, Y = sample(12, 3, 4, 5)

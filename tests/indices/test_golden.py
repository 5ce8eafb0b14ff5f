"""RESQUE_dist against the published code, and against its formula in extended precision."""

from pathlib import Path

import numpy as np
import pytest
import torch

from resque_ext import backend, ops, resque_dist
from resque_ext.indices import _angles

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = ["cnn_blur_0.9", "cnn_gauss_0.05", "cnn_gauss_0.3", "cnn_sp_0.1", "vit_gauss_0.2"]
# The arccos of a float32 dot product near 1 is off by up to sqrt(2 * 2^-24) / pi = 1.1e-4; the
# published sums are float32 too.
PUBLISHED = 2e-4

on_cases = pytest.mark.parametrize("name", CASES)
on_backends = pytest.mark.parametrize("name_of_backend", ["native", "torch"])


def load(name):
    """The case, laid out so that the package averages over what the published code does."""
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as archive:
        case = dict(archive)
    for side in ("old", "new"):
        assert case[side].dtype == np.float32
        if case[side].ndim == 3:  # [N, T, D], averaged over D there and over the second axis here
            case[side] = case[side].transpose(0, 2, 1)
    return case


def formula(case):
    """The angles of the classes in units of pi, as defined, in the widest floats there are."""
    units = []
    for side in ("old", "new"):
        x = case[side].astype(np.longdouble)
        x = x.mean(axis=1) if x.ndim == 3 else x
        sums = np.stack([x[case["labels"] == c].sum(axis=0) for c in range(case["classes"])])
        units.append(sums / np.sqrt((sums**2).sum(axis=1, keepdims=True)))
    u, v = units
    apart, along = (np.sqrt((w**2).sum(axis=1)) for w in (u - v, u + v))
    return (2 * np.arctan2(apart, along) / np.longdouble(np.pi)).astype(np.float64)


@on_cases
@on_backends
def test_published_value_and_angles(name, name_of_backend):
    case = load(name)
    with backend(name_of_backend):
        result = resque_dist(case["old"], case["new"], case["labels"], case["labels"])
    assert len(result.per_class) == case["classes"] == len(case["class_angles"])
    assert abs(result.value - case["resque_dist"]) < PUBLISHED
    np.testing.assert_allclose(result.per_class, case["class_angles"], rtol=0, atol=PUBLISHED)


@on_cases
@on_backends
def test_formula_in_extended_precision(name, name_of_backend):
    case = load(name)
    angles = formula(case)
    with backend(name_of_backend):
        result = resque_dist(
            torch.from_numpy(case["old"]), torch.from_numpy(case["new"]), *[case["labels"]] * 2
        )
    np.testing.assert_allclose(result.per_class, angles, rtol=1e-9)
    assert abs(result.value / angles.mean() - 1) < 1e-9


@on_cases
def test_sums_of_class_moments_give_the_same_angles(name):
    case = load(name)
    sums = {}
    for side in ("old", "new"):
        counts, sums[side], _ = ops.class_moments(case[side], case["labels"], int(case["classes"]))
        np.testing.assert_array_equal(counts, np.bincount(case["labels"]))
    angles = _angles.angles(sums["old"].numpy(), sums["new"].numpy())
    np.testing.assert_allclose(angles, formula(case), rtol=1e-9)


@on_cases
def test_the_shifts_stand_clear_of_what_chance_would_show(name):
    case = load(name)
    labels = case["labels"]
    result = resque_dist(case["old"], case["new"], labels, labels, paired=True)
    apart = resque_dist(case["old"], case["new"], labels, labels)
    assert 0 < result.std_error < apart.std_error  # both sides are the same samples
    # Sides that share their samples differ by less than two samples would.
    assert 0 < result.noise_floor < 0.1
    assert result.value > 3 * result.std_error


def test_a_convolution_is_pooled_as_published():
    """[N, C, H, W] with the published means: any map that has them, since only the mean is read."""
    case = load("cnn_blur_0.9")
    ripple = np.array([[-0.25, 0.5], [0.125, -0.375]], dtype=np.float32)  # sums to 0, exactly
    maps = [case[side][:, :, None, None] + ripple for side in ("old", "new")]
    for form in (torch.contiguous_format, torch.channels_last):
        old, new = (torch.from_numpy(m).to(memory_format=form) for m in maps)
        result = resque_dist(old, new, case["labels"], case["labels"])
        np.testing.assert_allclose(result.per_class, case["class_angles"], rtol=0, atol=PUBLISHED)

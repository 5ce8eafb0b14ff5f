"""The representation distance and the three clusterings of PreIndex against the published code."""

from pathlib import Path

import numpy as np
import pytest

from resque_ext import backend, preindex, representation_distance

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = ["cnn_blur_0.9", "cnn_gauss_0.05", "cnn_gauss_0.3", "cnn_sp_0.1", "vit_gauss_0.2"]
BINS = (16, 32, 64)


def load(name):
    with np.load(GOLDEN / f"p_{name}.npz", allow_pickle=False) as archive:
        return dict(archive)


def table(found):
    return np.array([list(found[bins].values()) for bins in BINS])


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("name_of_backend", ["native", "torch"])
def test_every_layer_and_their_mean(name, name_of_backend):
    """1e-5: the published value itself rounds through a division by float32 bin widths."""
    case = load(name)
    layers = case["layers"].tolist()
    sides = [{k: case[f"{side}/{k}"] for k in layers} for side in ("old", "new")]
    with backend(name_of_backend):
        r = representation_distance(*sides)
    np.testing.assert_allclose(table(r.p), case["distances"], rtol=1e-5)
    for layer, expected in zip(layers, case["layer_distances"], strict=True):
        np.testing.assert_allclose(table(r.layers[layer]), expected, rtol=1e-5, atol=1e-9)


def test_fused_mean():
    """p to 1e-3 with the embedding layer's own output, whose mean is then fused: a last bit of a
    mean can move a value across an edge (of this layer's 160 rows one, at 64 bins)."""
    case = load("cnn_gauss_0.3")
    sides = []
    for side in ("old", "new"):
        layers = {k: case[f"{side}/{k}"] for k in case["layers"].tolist()}
        sides.append(layers | {str(case["embedding_layer"]): case[f"{side}_embedding"]})
    assert sides[0][str(case["embedding_layer"])].ndim == 4
    found = table(representation_distance(*sides).p)
    np.testing.assert_allclose(found, case["distances"], rtol=1e-3)


@pytest.mark.parametrize("name", ["cnn_gauss_0.3", "vit_gauss_0.2"])
def test_clusterings(name):
    case = load(name)
    layer = case["embedding_layer"]
    old, new = (case.get(f"{side}_embedding", case[f"{side}/{layer}"]) for side in ("old", "new"))
    found = preindex({"e": old}, {"e": new}, old, new, case["labels"]).inv_ari
    values = [found[k] for k in ("old", "new", "new_from_old_centers")]
    np.testing.assert_allclose(values, case["inv_ari"], rtol=0, atol=1e-12)

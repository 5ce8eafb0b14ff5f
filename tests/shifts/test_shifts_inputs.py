"""Shifts of batches as loaders give them: mappings, normalized images; and the published noises."""

import copy
import pickle
from collections import UserDict

import numpy as np
import pytest
import torch
from scipy import ndimage

from resque_ext import score, shifts

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def images(*shape, dtype=torch.float64, seed=0):
    return torch.tensor(np.random.default_rng(seed).random(shape or (2, 3, 9, 7))).to(dtype)


def normalized(x, mean=MEAN, std=STD):
    mean, std = (torch.tensor(v, dtype=x.dtype).view(-1, 1, 1) for v in (mean, std))
    return (x - mean) / std


def raises(error, message, call, *arguments, **options):
    with pytest.raises(error) as caught:
        call(*arguments, **options)
    assert message in str(caught.value)


# Normalized images


@pytest.mark.parametrize("name", ["gaussian", "contrast", "gaussian_blur", "salt_and_pepper"])
@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_normalized_images_are_shifted_in_0_to_1(name, kind):
    x = images()
    found = shifts.make(name, 0.3, 5, mean=kind(MEAN), std=kind(STD))(normalized(x))
    expected = normalized(shifts.make(name, 0.3, 5)(x))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    one = shifts.make(name, 0.3, 5, mean=0.5, std=[0.25])(normalized(x, [0.5], [0.25]))
    expected = normalized(shifts.make(name, 0.3, 5)(x), [0.5], [0.25])
    torch.testing.assert_close(one, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "rounding"), [(torch.float32, 2e-6), (torch.float16, 4e-3), (torch.bfloat16, 4e-2)]
)
def test_normalized_half_types_are_rounded_once(dtype, rounding):
    x = images()
    given = normalized(x).to(dtype)
    found = shifts.make("contrast", 0.3, mean=MEAN, std=STD)(given)
    assert found.dtype == dtype
    expected = normalized(shifts.contrast(x, 0.3))
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=rounding)


def test_normalized_images_without_a_shift_come_back_exactly():
    given = normalized(images(dtype=torch.float16))
    for name, level in (("gaussian", 0), ("none", 3)):
        found = shifts.make(name, level, mean=MEAN, std=STD)(given)
        assert torch.equal(found, given)
        assert found.data_ptr() != given.data_ptr()


def test_normalized_corruptions():
    x = images(2, 3, 20, 20)
    found = shifts.make("fog", severity=3, mean=MEAN, std=STD)(normalized(x))
    torch.testing.assert_close(
        found, normalized(shifts.make("fog", severity=3)(x)), atol=1e-6, rtol=0
    )


def test_refused_normalization():
    make = shifts.make
    shift = make("gaussian", 0.1, mean=MEAN, std=STD)
    message = (
        "mean, std: expected one value for each channel of images of shape [2, 1, 4, 4], found 3"
    )
    raises(ValueError, message, shift, images(2, 1, 4, 4))
    message = "found 42 other, the first 20.485 at [0, 0, 0, 0] after mean and std were undone"
    raises(ValueError, message[9:], make("gaussian", 0.1, mean=0.485, std=20), images() * 0 + 1)
    raises(TypeError, "mean, std: expected both or neither", make, "gaussian", 0.1, mean=0.5)
    raises(ValueError, "as many std above 0 as mean", make, "gaussian", 0.1, mean=MEAN, std=[1, 1])
    raises(ValueError, "as many std above 0 as mean", make, "gaussian", 0.1, mean=0, std=0)
    raises(ValueError, "mean: expected a list of numbers", make, "gaussian", 0.1, mean="x", std=1)


def test_values_outside_0_and_1_name_the_remedy():
    given = normalized(images())
    message = "; normalized images: shifts.make(name, level, mean=..., std=...)"
    for call in (shifts.make("gaussian", 0.1), lambda x: shifts.gaussian(x, 0.1)):
        raises(ValueError, message, call, given)
        raises(ValueError, "images: expected values in [0, 1], found ", call, given)


def test_copies_and_repr_keep_everything():
    shift = shifts.make("gaussian", 0.1, 4, mean=0.5, std=0.25, key="picture")
    assert repr(shift) == (
        "Shift('gaussian', level=0.1, seed=4, mean=[0.5], std=[0.25], key='picture')"
    )
    batch = {"picture": normalized(images(), [0.5], [0.25])}
    again = [pickle.loads(pickle.dumps(shift)), copy.deepcopy(shift), copy.copy(shift)]
    expected = shift(batch)["picture"]
    assert all(torch.equal(other(batch)["picture"], expected) for other in again)
    assert repr(shifts.make("fog", severity=2)) == "Shift('fog', severity=2, seed=0)"
    assert "published=True" in repr(shifts.make("gaussian", 0.1, published=True))


# Mappings


@pytest.mark.parametrize(
    "key", ["pixel_values", "image", "images", "input", "inputs", "x", "photo"]
)
@pytest.mark.parametrize("kind", [dict, UserDict])
def test_mappings(key, kind):
    x, mask = images(), torch.ones(2, 3)
    batch = kind({key: x, "mask": mask, "noise": 3})
    found = shifts.make("gaussian", 0.1, 2)(batch)
    assert torch.equal(found[key], shifts.make("gaussian", 0.1, 2)(x))
    assert found["mask"] is mask
    assert found["noise"] == 3
    assert batch[key] is x


def test_the_key_of_mappings():
    x = images()
    given = shifts.make("contrast", 0.1, key="b")({"a": x, "b": x, "image": x})
    assert torch.equal(given["b"], shifts.contrast(x, 0.1))
    assert given["a"] is given["image"] is x
    message = "key: expected the name of the batch's entry that holds the images"
    for batch in ({"a": x, "b": x}, {"ids": torch.ones(2, 3)}, {}, {"image": x, "input": x}):
        raises(ValueError, message, shifts.make("contrast", 0.1), batch)
    raises(
        ValueError,
        "key: expected one of the batch's, 'a'",
        shifts.make("none", 0, key="b"),
        {"a": x},
    )
    raises(TypeError, "key: expected a text, found 3", shifts.make, "none", 0, key=3)
    raises(TypeError, "images: expected a torch.Tensor", shifts.make("none", 0), {"image": [1]})


class Takes(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = torch.nn.Sequential(
            torch.nn.Conv2d(3, 6, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(54, 3)
        )

    def forward(self, pixel_values):
        return self.body(pixel_values)


def test_score_of_a_normalized_loader_of_mappings():
    x, y = images(30, 3, 5, 5, dtype=torch.float32), torch.arange(30) % 3
    model = Takes().eval()
    shift = shifts.make("gaussian", 0.2, 3, mean=MEAN, std=STD)
    loader = [({"pixel_values": normalized(x)}, y)]
    found = score(model, loader, shift=shift, progress=False)
    new = [({"pixel_values": normalized(shifts.make("gaussian", 0.2, 3)(x))}, y)]
    expected = score(model, loader, new, paired=True, progress=False)
    assert float(found) == pytest.approx(float(expected), rel=1e-4)


# The published noises


def to_uint8(x):
    """What ToPILImage makes of floats: mul(255).byte(), of a value the remainder modulo 256."""
    return np.trunc(x * 255).astype(np.int64).astype(np.uint8) / 255


def drawn(law, shape, seed=1):
    return law(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).numpy()


def published(x, name, level, seed=1, **options):
    generator = torch.Generator().manual_seed(seed)
    found = shifts.apply(x, name, level, generator, published=True, **options)
    assert found.dtype == x.dtype
    return found.numpy()


def test_published_gaussian_wraps_around():
    x = images(4, 3, 30, 30)
    expected = to_uint8(x.numpy() + 0.4 * drawn(torch.randn, x.shape))
    np.testing.assert_allclose(published(x, "gaussian", 0.4), expected, rtol=0, atol=1e-12)
    white = published(torch.ones(1, 3, 64, 64), "gaussian", 0.1)
    assert 0.4 < (white < 0.5).mean() < 0.6  # half of the noise leads above 1, so to black


def test_published_salt_and_pepper():
    x = torch.full((2, 3, 100, 100), 0.2, dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    pepper, salt = (
        torch.rand(2, 1, 100, 100, dtype=torch.float64, generator=generator).numpy() < 0.2
        for _ in range(2)
    )
    expected = np.where(salt, 1.0, np.where(pepper, 0.0, np.trunc(0.2 * 255) / 255))
    found = published(x, "salt_and_pepper", 0.4)
    np.testing.assert_allclose(found, np.broadcast_to(expected, x.shape), rtol=0, atol=1e-12)


def test_published_blur():
    x = images(2, 3, 12, 15)
    expected = ndimage.gaussian_filter(x.numpy(), (0, 0, 0.9, 0.9), mode="reflect")
    np.testing.assert_allclose(published(x, "gaussian_blur", 0.9), to_uint8(expected), atol=1e-12)


def test_published_frost():
    x, texture = images(), images(9, 7, seed=3)
    expected = np.clip(0.98 * x.numpy() + 0.2 * texture.numpy(), 0, 1)
    found = published(x, "frost", 0.2, texture=texture)
    np.testing.assert_allclose(found, to_uint8(expected), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_published_noises_keep_all_256_levels(dtype):
    levels = (torch.arange(256, dtype=torch.uint8).to(dtype) / 255).view(1, 1, 16, 16)
    assert torch.equal(shifts.apply(levels, "salt_and_pepper", 1e-12, published=True), levels)


@pytest.mark.parametrize("name", ["shot", "impulse", "contrast", "brightness", "fog"])
def test_what_no_published_code_has_is_refused(name):
    message = "expected one of gaussian, salt_and_pepper, gaussian_blur, frost, none with publi"
    raises(ValueError, message, shifts.make, name, 0.1, published=True)
    assert list(shifts.PUBLISHED) == [
        "gaussian",
        "salt_and_pepper",
        "gaussian_blur",
        "frost",
        "none",
    ]


@pytest.mark.parametrize("name", ["gaussian", "salt_and_pepper", "gaussian_blur", "frost"])
def test_published_sequences_and_level_0(name):
    x = images(4, 3, 16, 16, dtype=torch.float32)
    shift = shifts.make(name, 0.2, 3, published=True)
    first = shift(x)
    assert torch.equal(shifts.make(name, 0.2, 3, published=True)(x), first)
    shift.reset()
    assert torch.equal(shift(x), first)
    assert torch.equal(shifts.make(name, 0, published=True)(x), x)
    assert not torch.equal(shifts.make(name, 0.2, 3)(x), first)

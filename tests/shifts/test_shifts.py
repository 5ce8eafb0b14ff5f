"""Shifts against numpy and scipy in float64, against their laws, and against bad input."""

import copy
import dataclasses
import math
import pickle

import numpy as np
import pytest
import torch
from scipy import ndimage

from resque_ext import shifts

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
NAMES = ["gaussian", "shot", "impulse", "salt_and_pepper"]
NAMES += ["gaussian_blur", "contrast", "brightness", "frost", "none"]
DRAWING = ["gaussian", "shot", "impulse", "salt_and_pepper", "frost"]
# Half of the last bit of a result in [0.5, 1]; float32 and float64: of each of the few operations.
ROUNDING = {torch.float64: 2**-53, torch.float32: 2**-24, torch.float16: 2**-12}
ROUNDING[torch.bfloat16] = 2**-9

on_devices = pytest.mark.parametrize("device", DEVICES)
for_all = pytest.mark.parametrize("name", NAMES)


def batch(*shape, device="cpu", dtype=torch.float32, seed=0):
    values = np.random.default_rng(seed).random(shape or (2, 3, 9, 7))
    return torch.tensor(values).to(device, dtype)


def seeded(device="cpu", seed=1):
    return torch.Generator(device).manual_seed(seed)


def strong(name):
    return shifts.SHIFTS[name].levels[-1]


def truth(tensor):
    return tensor.double().cpu().numpy()


def close(found, expected, operations):
    """Allow one rounding for the result, and one in the compute dtype for each operation."""
    compute = torch.float64 if found.dtype == torch.float64 else torch.float32
    allowed = ROUNDING[found.dtype] + 2 * operations * ROUNDING[compute]
    np.testing.assert_allclose(truth(found), np.clip(expected, 0, 1), rtol=0, atol=allowed)


@on_devices
@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("size", [(40, 33), (5, 8), (1, 6), (1, 1)])
@pytest.mark.parametrize("sigma", [0.1, 0.4, 1.5, 4.9, 60.0])  # radius 0, 2, 6, 20 and 240
def test_blur_is_scipys(device, dtype, size, sigma):
    images = batch(2, 3, *size, device=device, dtype=dtype)
    found = shifts.gaussian_blur(images, sigma)
    expected = ndimage.gaussian_filter(truth(images), (0, 0, sigma, sigma))
    close(
        found, expected, operations=2 * 2 * min(int(8 * sigma) + 1, 80)
    )  # two passes over the taps


@on_devices
@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
def test_contrast_brightness_and_a_given_texture(device, dtype):
    images = batch(3, 3, 11, 7, device=device, dtype=dtype)
    x, mean = truth(images), truth(images).mean(axis=(1, 2, 3), keepdims=True)
    for level in (0.3, 1):
        close(shifts.contrast(images, level), mean + (1 - level) * (x - mean), operations=5)
    assert len(shifts.contrast(images, 1)[1].unique()) == 1
    for level in (0.25, -0.4, 1, -1):
        close(shifts.brightness(images, level), x + level, operations=1)
    for shape in ((11, 7), (3, 11, 7)):
        texture = batch(*shape, device=device, dtype=torch.float64, seed=5)
        found = shifts.frost(images, 0.3, texture=texture)
        close(found, 0.7 * x + 0.3 * truth(texture), operations=5)
        found = shifts.frost(images, 1, texture=texture)
        close(found, np.broadcast_to(truth(texture), x.shape), operations=1)


# Laws. Bounds are five standard deviations of the estimate, about one chance in two million each;
# the seeds are fixed.


@on_devices
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gaussian_law(device, dtype):
    images = torch.full((2, 3, 128, 128), 0.5, device=device, dtype=dtype)
    noise = truth(shifts.gaussian(images, 0.05, seeded(device))) - 0.5  # clamped at 10 sigma: never
    n = noise.size
    assert abs(noise.mean()) < 5 * 0.05 / math.sqrt(n)
    assert abs(noise.std() / 0.05 - 1) < 5 / math.sqrt(2 * n)
    assert abs((np.abs(noise) < 0.05).mean() - 0.6827) < 5 * math.sqrt(0.6827 * 0.3173 / n)
    assert abs(np.corrcoef(noise[:, 0].ravel(), noise[:, 1].ravel())[0, 1]) < 5 / math.sqrt(n / 3)


@on_devices
@pytest.mark.parametrize("level", [1e-7, 2e-6, 1e-3, 5e-3])  # the first drawn as normal
@pytest.mark.parametrize("x", [0.25, 0.5])
def test_shot_law(device, level, x):
    images = torch.full((2, 3, 128, 128), x, device=device, dtype=torch.float64)
    found = truth(shifts.shot(images, level, seeded(device)))
    n, photons = found.size, x / level
    assert abs(found.mean() - x) < 5 * math.sqrt(level * x / n)
    # A Poisson law's fourth central moment, 3 photons^2 + photons, gives the variance's variance.
    assert abs(found.var() / (level * x) - 1) < 5 * math.sqrt((2 + 1 / photons) / n)
    if level == 5e-3:
        np.testing.assert_allclose(found / level, np.round(found / level), rtol=0, atol=1e-9)


@on_devices
def test_shot_with_one_photon(device):
    images = torch.full((2, 3, 128, 128), 0.3, device=device)
    found = truth(shifts.shot(images, 1, seeded(device)))
    assert set(np.unique(found)) == {0, 1}
    none = math.exp(-0.3)
    assert abs((found == 0).mean() - none) < 5 * math.sqrt(none * (1 - none) / found.size)


def fraction_is(mask, p):
    assert abs(mask.mean() - p) < 5 * math.sqrt(p * (1 - p) / mask.size) + 1e-12


@on_devices
@pytest.mark.parametrize("level", [0.01, 0.3, 1])
def test_impulse_and_salt_and_pepper_law(device, level):
    images = torch.full((2, 3, 128, 128), 0.5, device=device)
    found = truth(shifts.impulse(images, level, seeded(device)))
    fraction_is(found != 0.5, level)
    fraction_is(found == 1, level / 2)
    fraction_is((found != 0.5).all(axis=1), level**3)  # each channel by itself
    found = truth(shifts.salt_and_pepper(images, level, seeded(device)))
    assert (found == found[:, :1]).all()  # one mask
    fraction_is(found[:, 0] != 0.5, level)
    fraction_is(found[:, 0] == 1, level / 2)
    assert not np.array_equal(found[0], found[1])


@on_devices
def test_generated_frost(device):
    images = batch(8, 3, 256, 256, device=device)
    texture = truth(shifts.frost(images, 1, seeded(device)))
    assert texture.min() >= 0
    assert texture.max() <= 1
    np.testing.assert_allclose(texture, np.broadcast_to(texture[:, :1], texture.shape), atol=2e-7)
    assert not np.allclose(texture[0], texture[1], atol=0.1)
    # The square is the mean of max(0, 1 - |z|) over z ~ N(0, 1), 0.3687. The coarsest of the scales
    # has about 500 independent patches here (0.005); mirrored borders lower it by about as much.
    assert abs((texture[:, 0] ** 2).mean() - 0.3687) < 0.02
    pairs = texture[:, 0, :, :-1].ravel(), texture[:, 0, :, 1:].ravel()
    assert np.corrcoef(*pairs)[0, 1] > 0.5  # a texture, not white noise
    found = shifts.frost(images, 0.4, seeded(device))
    close(found, 0.6 * truth(images) + 0.4 * texture, operations=6)


@on_devices
@pytest.mark.parametrize("x", [0.0, 1.0])
def test_noise_is_clamped_and_does_not_wrap(device, x):
    images = torch.full((2, 3, 64, 64), x, device=device)
    found = truth(shifts.gaussian(images, 0.5, seeded(device)))
    assert found.min() >= 0
    assert found.max() <= 1
    fraction_is(found == x, 0.5)  # noise that leads out of [0, 1] stays at the end
    fraction_is(found == 1 - x, 0.5 * math.erfc(math.sqrt(2)))  # beyond two standard deviations
    assert (shifts.brightness(images, 1) == 1).all()
    assert (shifts.brightness(images, -1) == 0).all()


# What holds for every shift.


@on_devices
@for_all
@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
def test_common_contract(name, device, dtype):
    images = batch(device=device, dtype=dtype).requires_grad_()
    before, version = images.detach().clone(), images._version
    generator = seeded(device)
    state = generator.get_state()
    same = shifts.apply(images, name, 0, generator)
    assert torch.equal(same, before)
    assert same.data_ptr() != images.data_ptr()
    assert torch.equal(generator.get_state(), state)
    found = shifts.apply(images, name, strong(name), generator)
    assert torch.equal(generator.get_state(), state) == (name not in DRAWING)
    assert torch.equal(images, before)
    assert images._version == version
    assert (found.shape, found.dtype, found.device) == (images.shape, dtype, images.device)
    assert not found.requires_grad
    assert not same.requires_grad
    assert torch.equal(found, before) == (name == "none")
    direct = getattr(shifts, name)(images, strong(name), seeded(device))
    assert torch.equal(direct, found)
    half = dtype in (torch.float16, torch.bfloat16)
    if half:  # computed in float32, rounded once
        wide = shifts.apply(images.float(), name, strong(name), seeded(device))
        assert torch.equal(found, wide.to(dtype))


@on_devices
@for_all
def test_layouts_give_the_same_and_are_kept(name, device):
    images = batch(4, 3, 20, 18, device=device)
    views = {
        "channels_last": images.to(memory_format=torch.channels_last),
        "sliced": torch.cat((images, images), 3)[..., :18],
        "transposed": images.transpose(2, 3).contiguous().transpose(2, 3),
        "expanded": images[:1, :, :1].expand(4, 3, 20, 18),
    }
    for kind, view in views.items():
        for level in (0, strong(name)):
            found = shifts.apply(view, name, level, seeded(device))
            expected = shifts.apply(view.contiguous(), name, level, seeded(device))
            assert torch.equal(found, expected), kind
            if kind == "channels_last":
                assert found.is_contiguous(memory_format=torch.channels_last)
    for shape in ((0, 3, 4, 4), (2, 0, 4, 4), (2, 3, 0, 4), (2, 3, 4, 0)):
        empty = torch.zeros(shape, device=device)
        assert shifts.apply(empty, name, strong(name)).shape == shape
    assert shifts.apply(batch(1, 1, 1, 1, device=device), name, strong(name)).shape == (1, 1, 1, 1)


@for_all
def test_threads_do_not_matter(name):
    # Odd sizes, one image: chunks of a vector loop end elsewhere for every number of threads.
    images, threads = batch(1, 3, 201, 199), torch.get_num_threads()
    level = strong(name) * 0.7
    try:
        torch.set_num_threads(1)
        for dtype in (torch.float32, torch.float64):
            expected = shifts.apply(images.to(dtype), name, level, seeded())
            for count in (2, 3, 7):
                torch.set_num_threads(count)
                assert torch.equal(shifts.apply(images.to(dtype), name, level, seeded()), expected)
            torch.set_num_threads(1)
    finally:
        torch.set_num_threads(threads)


@on_devices
@for_all
def test_shift_repeats_its_sequence(name, device):
    images = batch(4, 3, 16, 16, device=device)
    shift = shifts.make(name, strong(name), seed=3)
    first, second = shift(images), shift(images)
    drawing = name in DRAWING
    assert torch.equal(first, second) != drawing
    assert torch.equal(first, shifts.make(name, strong(name), seed=3)(images))
    assert torch.equal(first, shifts.make(name, strong(name), seed=4)(images)) != drawing
    assert torch.equal(first, shifts.apply(images, name, strong(name), seeded(device, 3)))
    copies = [pickle.loads(pickle.dumps(shift)), copy.deepcopy(shift), copy.copy(shift)]
    copies.append(pickle.loads(pickle.dumps(copies[0])))  # before its generators are made
    third = shift(images)
    assert all(torch.equal(other(images), third) for other in copies)
    for again in (shift, copies[0], copy.copy(shift)):
        again.reset()
        assert torch.equal(again(images), first)
        assert torch.equal(again(images), second)
    # Splitting a batch: the same images without draws, other noise with them.
    other = seeded(device, 4)
    halves = torch.cat([shifts.apply(part, name, strong(name), other) for part in images.split(2)])
    assert torch.equal(first, halves) != drawing
    torch.manual_seed(3)  # the default is the device's global generator
    default = shifts.apply(images, name, strong(name))
    torch.manual_seed(3)
    assert torch.equal(shifts.apply(images, name, strong(name)), default)
    assert torch.equal(shifts.apply(images, name, strong(name)), default) != drawing


def test_registry():
    assert shifts.names() == NAMES == list(shifts.SHIFTS)
    for name, kind in shifts.SHIFTS.items():
        assert kind.function is getattr(shifts, name)
        assert kind.function.__doc__
        assert kind.unit
        assert all(kind.range[0] <= level <= kind.range[1] for level in kind.levels)
    with pytest.raises(dataclasses.FrozenInstanceError):
        kind.unit = "other"
    assert repr(shifts.make("shot", 0.1, 7)) == "Shift('shot', level=0.1, seed=7)"
    frost = shifts.make("frost", np.float32(0.5), np.int64(2), texture=torch.ones(9, 7))
    assert repr(frost) == "Shift('frost', level=0.5, seed=2, texture=Tensor)"
    assert torch.equal(pickle.loads(pickle.dumps(frost))(batch()), frost(batch()))
    assert (shifts.apply(batch(), "frost", 1, texture=torch.ones(9, 7)) == 1).all()


def small(fill=0.5, **options):
    return torch.full((1, 3, 2, 2), fill, **options)


TWO_BAD = small().index_put((torch.tensor(0), torch.tensor(1)), torch.tensor(math.nan))
BAD_IMAGES = [
    (TypeError, [[0.5]], "images: expected a torch.Tensor, found list"),
    (TypeError, np.zeros((1, 1, 2, 2)), "images: expected a torch.Tensor, found ndarray"),
    (TypeError, small(1, dtype=torch.uint8), "(integers: divide by 255), found torch.uint8"),
    (TypeError, small().bool(), "images: expected dtype float32, float64, float16 or bfloat16"),
    (TypeError, small().cfloat(), "found torch.complex64"),
    (TypeError, small().to_sparse(), "expected a dense tensor with data, found a torch.sparse_coo"),
    (
        TypeError,
        small(device="meta"),
        "images: expected a dense tensor with data, found a meta one",
    ),
    (ValueError, small()[0], "images: expected shape [N, C, H, W], found [3, 2, 2]"),
    (
        ValueError,
        TWO_BAD,
        "expected values in [0, 1], found 4 other, the first nan at [0, 1, 0, 0]",
    ),
    (ValueError, small(2.0), "images: expected values in [0, 1], found 12 other, the first 2.0 at"),
    (ValueError, small(-0.5), "found 12 other, the first -0.5 at [0, 0, 0, 0]"),
    (ValueError, small(math.inf), "found 12 other, the first inf"),
]


def raises(error, message, call, *arguments, **options):
    with pytest.raises(error) as caught:
        call(*arguments, **options)
    assert message in str(caught.value)


@for_all
@pytest.mark.parametrize(("error", "images", "message"), BAD_IMAGES)
@pytest.mark.parametrize("level", [0, 0.5])
def test_bad_images(name, error, images, message, level):
    raises(error, message, shifts.apply, images, name, level)
    raises(error, message, shifts.make(name, level), images)


BAD_CHOICES = [
    (
        ValueError,
        "gaussian",
        -1.0,
        {},
        "level: expected a number in [0, 10] for gaussian, found -1.0",
    ),
    (ValueError, "shot", 1.5, {}, "level: expected a number in [0, 1] for shot, found 1.5"),
    (
        ValueError,
        "brightness",
        math.nan,
        {},
        "level: expected a number in [-1, 1] for brightness, f",
    ),
    (ValueError, "none", math.inf, {}, "level: expected a finite number, found inf"),
    (TypeError, "frost", "1", {}, "level: expected a number, found '1'"),
    (TypeError, "contrast", True, {}, "level: expected a number, found True"),
    (TypeError, "impulse", None, {}, "level: expected a number, found NoneType"),
    (ValueError, "fog", 0.1, {}, f"name: expected one of {', '.join(NAMES)}, found 'fog'"),
    (ValueError, ["none"], 0.1, {}, "found list"),
    (
        TypeError,
        "shot",
        0,
        {"texture": 1},
        "options: expected only options of shot (it has none), f",
    ),
    (TypeError, "frost", 0, {"other": 1}, "only options of frost (texture), found 'other'"),
]


@pytest.mark.parametrize(("error", "name", "level", "options", "message"), BAD_CHOICES)
def test_bad_choices(error, name, level, options, message):
    raises(error, message, shifts.apply, batch(), name, level, **options)
    raises(error, message, shifts.make, name, level, **options)


def test_bad_seed():
    raises(TypeError, "seed: expected an integer, found 1.0", shifts.make, "shot", 0.1, 1.0)
    raises(TypeError, "seed: expected an integer, found True", shifts.make, "shot", 0.1, True)
    for seed in (-1, 2**63):
        message = f"seed: expected an integer in [0, 2^63), found {seed}"
        raises(ValueError, message, shifts.make, "shot", 0.1, seed)


@on_devices
@pytest.mark.parametrize("level", [0, 0.5])
def test_bad_texture(device, level):
    def check(error, message, texture):
        images = batch(device=device)
        raises(error, message, shifts.frost, images, level, texture=texture)

    check(TypeError, "texture: expected a torch.Tensor, found 0.5", 0.5)
    check(TypeError, "texture: expected dtype", torch.ones(9, 7, dtype=torch.uint8))
    for shape in ([7, 9], [1, 9, 7], [2, 3, 9, 7]):
        message = f"texture: expected shape [9, 7] or [3, 9, 7], found {shape}"
        check(ValueError, message, torch.ones(shape, device=device))
    if device == "cpu":
        check(ValueError, "texture: expected values in [0, 1]", torch.full((9, 7), 1.5))
    else:
        check(ValueError, "texture: expected one on the images' device, cuda:0", torch.ones(9, 7))


@for_all
@pytest.mark.parametrize("level", [0, 0.5])
def test_bad_generator(name, level):
    message = "generator: expected a torch.Generator, found 3"
    raises(TypeError, message, shifts.apply, batch(), name, level, 3)

    class Elsewhere(torch.Generator):  # a GPU's generator, where there is no GPU
        device = torch.device("cuda:1")

    message = "generator: expected one on the images' device, cpu, found one on cuda:1"
    raises(ValueError, message, shifts.apply, batch(), name, level, Elsewhere())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="values are unchecked on GPUs only")
@for_all
def test_on_a_gpu_nan_stays_and_others_are_clamped(name):
    images = batch(device="cuda")
    images[0, 0, 0, 0] = math.nan
    images[1, 0, 0, 0] = -3
    with torch.cuda.device(0):
        torch.cuda.set_sync_debug_mode("error")
        try:
            found = shifts.apply(images, name, 0.01, seeded("cuda"))
        finally:
            torch.cuda.set_sync_debug_mode("default")
    if name in ("impulse", "salt_and_pepper"):
        return
    assert found[0, 0, 0, 0].isnan() or name == "gaussian_blur"  # a radius of 0
    assert name == "none" or found[1].min() >= 0

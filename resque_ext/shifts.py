"""Distribution shifts on batches of images: seeded, batched, on the images' device.

Every shift is `shift(images, level, generator=None)` and returns a new tensor.

    images      [N, C, H, W], values in [0, 1], float32, float64, float16 or bfloat16, any memory
                format. Never modified; detached from the graph.
    level       a number; each docstring and `SHIFTS` give its unit and valid range.
    generator   a torch.Generator on the images' device; None is torch's global one of that device.
    returns     same shape, dtype, device and memory format, values in [0, 1].

- Level 0 gives the images back exactly (a copy) and draws nothing from the generator.
- Half types are computed in float32 and rounded once, at the end; float64 in float64.
- Results on the CPU do not depend on the number of threads, draws not on the memory format.
- A random result is a function of the generator's state, the device type, the compute dtype and the
  batch's shape: a batch in two halves gets other noise of the same law. Shifts without draws treat
  every image alone, whatever the batch.
- Values are checked on the CPU only: NaN or a value outside [0, 1] is a ValueError. Elsewhere that
  would stop the stream: NaN goes through to the result (unless impulse or salt and pepper replaces
  it) and other values are clamped.

TypeError for what is no dense floating tensor, no number or no option; ValueError for a wrong rank,
level, value, device or name. Messages name the argument, what was expected and what was found.
"""

import functools
import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class ShiftKind:
    """What the registry knows of a shift."""

    function: Callable[..., torch.Tensor]
    unit: str  # what the level means
    range: tuple[float, float]  # valid levels, both ends included
    levels: tuple[float, ...]  # for demonstrations
    options: tuple[str, ...]  # further keyword arguments of the function


SHIFTS: dict[str, ShiftKind] = {}
_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def _shift(unit, range, levels, options=()):
    """Register a shift. Its body changes the images in place: a copy in the compute dtype, never
    empty; the level is valid and not 0. Bodies keep products and sums apart: each alone is rounded
    exactly, so where a vector loop ends, which depends on the threads, cannot show. `lerp` and
    `add(alpha=)` promise no such thing, as they may or may not fuse the two."""

    def register(body):
        name = body.__name__

        @functools.wraps(body)
        def function(images, level, generator=None, **given):
            _kind(name, given)
            level = _check_level(name, level)
            _check_tensor("images", images)
            _expect(images.dim() == 4, "images", "shape [N, C, H, W]", list(images.shape))
            _check_values("images", images)
            if generator is not None:
                _check_type("generator", generator, torch.Generator, "a torch.Generator")
                _check_device("generator", generator, images.device)
            compute = torch.float64 if images.dtype == torch.float64 else torch.float32
            work = images.detach().to(compute, copy=True)
            if given.get("texture") is not None:
                given["texture"] = _check_texture(given["texture"], work)
            if level and work.numel():
                body(work, level, generator, **given)
                work.clamp_(0, 1)
            return work.to(images.dtype)

        SHIFTS[name] = ShiftKind(function, unit, range, levels, options)
        return function

    return register


@_shift("standard deviation of the noise", (0, 10), (0.02, 0.05, 0.1, 0.2, 0.4))
def gaussian(images, level, generator=None):
    """Add normal noise, independent for every channel value. Level: standard deviation, 0 to 10."""
    images.add_(_draw(torch.randn, images, images.shape, generator).mul_(level))


@_shift("1 / photons at full scale", (0, 1), (0.005, 0.02, 0.05, 0.1, 0.3))
def shot(images, level, generator=None):
    """Photon-counting (Poisson) noise, independent for every channel value.

    Level: 1 / photons at full scale, 0 to 1. x becomes Poisson(x / level) * level, of mean x and
    variance level * x, before clamping. Below 1e-6 (over a million photons) the normal law of
    that mean and variance is drawn: CUDA's Poisson counts end at 2^32.
    """
    clean = images.clamp(0, 1).contiguous()  # contiguous: draws must not follow the memory format
    if level < 1e-6:
        noise = _draw(torch.randn, images, images.shape, generator)
        images.add_(noise.mul_(clean.mul_(level).sqrt_()))
    else:
        # A NaN rate would trip a device-side assertion, which ends the CUDA context: draw it as 0,
        # and multiply the images by 0 rather than overwrite them, which leaves NaN in the result.
        counts = torch.poisson(clean.nan_to_num_(0.0).div_(level), generator=generator)
        images.mul_(0).add_(counts.mul_(level))


@_shift("fraction of channel values replaced", (0, 1), (0.02, 0.05, 0.1, 0.2, 0.4))
def impulse(images, level, generator=None):
    """Replace channel values, each independently, by 0 or 1 with equal chances.

    Level: probability that a value is replaced, 0 to 1 (the fraction, in expectation; it may be
    replaced by what it was). Draws have 24 bits (float64: 53): finer levels round up.
    """
    _replace(images, images.shape, level, generator)


@_shift("fraction of pixels replaced", (0, 1), (0.02, 0.05, 0.1, 0.2, 0.4))
def salt_and_pepper(images, level, generator=None):
    """As `impulse`, but whole pixels, black or white: one mask for all channels of an image."""
    _replace(images, (len(images), 1, *images.shape[2:]), level, generator)


@_shift("sigma in pixels", (0, 1000), (0.5, 1.0, 2.0, 3.0, 5.0))
def gaussian_blur(images, level, generator=None):
    """Blur every channel by a separable Gaussian, without draws. Level: sigma in pixels, 0 to 1000.

    The kernel is cut at radius int(4 * sigma + 0.5) and normalised to sum 1, so a sigma below 0.125
    does nothing. The image is mirrored at its edges (d c b a | a b c d | d c b a) as often as the
    radius needs, which keeps the mean. Both are the defaults of scipy.ndimage.gaussian_filter.
    """
    radius = int(4 * level + 0.5)
    if radius:
        images.copy_(_blur(_blur(images, 2, level, radius), 3, level, radius))


@_shift("fraction of the contrast taken away", (0, 1), (0.2, 0.4, 0.6, 0.8, 0.95))
def contrast(images, level, generator=None):
    """Pull values to their image's mean, without draws: x becomes mean + (1 - level) * (x - mean).

    Level: 0 to 1; 1 leaves a uniform grey. The mean is one number an image, over all its channels
    and pixels.
    """
    _blend(images, _image_means(images), level)


@_shift("amount added", (-1, 1), (-0.4, -0.2, 0.1, 0.2, 0.4))
def brightness(images, level, generator=None):
    """Add the level, -1 to 1, to every value; negative darkens. No draws are made."""
    images.add_(level)


@_shift("weight of the texture", (0, 1), (0.1, 0.2, 0.3, 0.45, 0.6), options=("texture",))
def frost(images, level, generator=None, *, texture=None):
    """Overlay a texture of weight `level`, 0 to 1: x becomes (1 - level) * x + level * texture.

    `texture`: floating [H, W] or [C, H, W] on the images' device, values in [0, 1], the same for
    every image, without draws. None generates bright grey veins of frost, others for each image.
    """
    _blend(images, _veins(images, generator) if texture is None else texture, level)


@_shift("ignored", (-math.inf, math.inf), (0.0,))
def none(images, level, generator=None):
    """No shift: a copy of the images. Any finite level is accepted, and ignored."""


def names():
    """The names of the shifts, in the registry's order: a list of str."""
    return list(SHIFTS)


def apply(images, name, level, generator=None, **options):
    """Shift `images` [N, C, H, W] by the shift called `name`; the module says the rest."""
    return _kind(name, options).function(images, level, generator, **options)


def make(name, level, seed=0, **options):
    """A `Shift`: the named shift at a level, with random sequences of its own."""
    return Shift(name, level, seed, **options)


class Shift:
    """A shift to call with batch after batch; the same seed gives the same sequence of outputs.

    `name` is one of `names()`, `level` in the unit `SHIFTS[name].unit`, `seed` an integer from 0 to
    2^63 - 1, `options` further arguments of the shift, as `texture` for "frost".

    Each device has its own sequence, begun with the seed at the first batch there. Copies, pickled
    ones too, go on from where the original stood; `reset()` starts every sequence again. Processes
    that should draw different noise need different seeds.
    """

    def __init__(self, name, level, seed=0, **options):
        _kind(name, options)
        _check_type("seed", seed, numbers.Integral, "an integer")
        _expect(0 <= seed < 2**63, "seed", "an integer in [0, 2^63)", seed)
        self.name, self.level, self.seed = name, _check_level(name, level), int(seed)
        self.options = options
        self.reset()

    def reset(self):
        """Start the sequence again, on every device."""
        self._generators = {}  # by device, made when first needed
        self._states = {}  # by device, in a copy: what its generators will start from

    def __call__(self, images):
        """Images [N, C, H, W] to the shifted batch; the module says the rest."""
        _check_tensor("images", images)
        device = images.device
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(self.seed)
            if device in self._states:
                self._generators[device].set_state(self._states.pop(device))
        return apply(images, self.name, self.level, self._generators[device], **self.options)

    def __getstate__(self):
        # States instead of generators: a copy may be loaded where a device is missing.
        states = {device: g.get_state() for device, g in self._generators.items()}
        return {**self.__dict__, "_generators": {}, "_states": {**self._states, **states}}

    def __repr__(self):
        shown = "".join(f", {key}={_describe(value)}" for key, value in self.options.items())
        return f"Shift({self.name!r}, level={self.level}, seed={self.seed}{shown})"


def _draw(law, like, shape, generator):
    return law(shape, dtype=like.dtype, device=like.device, generator=generator)


def _replace(images, shape, level, generator):
    """Fill with 0 where a draw is below the level, of these with 1 where it is below level / 2."""
    draws = _draw(torch.rand, images, shape, generator)
    images.masked_fill_(draws < level, 0.0).masked_fill_(draws < level / 2, 1.0)


def _blend(images, target, level):
    images.sub_(target).mul_(1.0 - level).add_(target)  # exactly the target at level 1


def _image_means(images):
    """[N, 1, 1, 1], summed in float64 by halves: a fixed order of additions, where torch.sum would
    split a single image by the number of threads."""
    sums = images.flatten(1).to(torch.float64)  # [N, C*H*W]
    count = sums.shape[1]
    sums = torch.nn.functional.pad(sums, (0, (1 << (count - 1).bit_length()) - count))
    while sums.shape[1] > 1:
        sums = torch.add(*sums.chunk(2, 1))
    return (sums / count).to(images.dtype).view(-1, 1, 1, 1)


def _blur(images, dim, sigma, radius):
    size = images.shape[dim]
    # The mirrored image repeats every 2 * size, so offsets fold into 1 - size..size: the border is
    # never wider than the image and the work is bounded whatever the radius.
    taps = {}
    for offset in range(-radius, radius + 1):
        folded = (offset + size - 1) % (2 * size) - (size - 1)
        taps[folded] = taps.get(folded, 0.0) + math.exp(-0.5 * (offset / sigma) ** 2)
    total = math.fsum(taps.values())
    border = min(radius, size)
    place = torch.arange(-border, size + border, device=images.device) % (2 * size)
    padded = images.index_select(dim, torch.minimum(place, 2 * size - 1 - place))
    blurred = torch.zeros(images.shape, dtype=images.dtype, device=images.device)
    for offset, weight in taps.items():
        blurred.add_(padded.narrow(dim, border + offset, size) * (weight / total))
    return blurred


def _veins(images, generator):
    """Textures [N, 1, H, W] in [0, 1], bright where smooth normal noise (3 scales) crosses 0."""
    n, _, h, w = images.shape
    veins = torch.zeros((n, 1, h, w), dtype=images.dtype, device=images.device)
    for sigma in (1, 3, 9):
        noise = _draw(torch.randn, images, veins.shape, generator)
        smooth = _blur(_blur(noise, 2, sigma, 3 * sigma), 3, sigma, 3 * sigma)
        # Blurred white noise has the standard deviation 1 / (2 sqrt(pi) sigma).
        ridge = 1 - smooth.abs() * (2 * math.sqrt(math.pi) * sigma)
        veins.add_(ridge.clamp_(min=0) * (1 / 3))
    return veins.sqrt_().clamp_(max=1)


def _describe(value):
    return repr(value) if isinstance(value, (str, int, float)) else type(value).__name__


def _expect(holds, argument, expected, found, error=ValueError):
    if not holds:
        raise error(f"{argument}: expected {expected}, found {found}")


def _check_type(argument, value, kind, expected):
    holds = isinstance(value, kind) and not isinstance(value, bool)
    _expect(holds, argument, expected, _describe(value), TypeError)


def _kind(name, options):
    known = isinstance(name, str) and name in SHIFTS
    _expect(known, "name", f"one of {', '.join(SHIFTS)}", _describe(name))
    own = SHIFTS[name].options
    for option in options:
        expected = f"only options of {name} ({', '.join(own) or 'it has none'})"
        _expect(option in own, "options", expected, repr(option), TypeError)
    return SHIFTS[name]


def _check_level(name, level):
    _check_type("level", level, numbers.Real, "a number")
    low, high = SHIFTS[name].range
    expected = f"a number in [{low}, {high}] for {name}" if high < math.inf else "a finite number"
    _expect(math.isfinite(level) and low <= level <= high, "level", expected, level)
    return float(level)


def _check_tensor(argument, tensor):
    _check_type(argument, tensor, torch.Tensor, "a torch.Tensor")
    kind = "meta" if tensor.is_meta else "nested" if tensor.is_nested else tensor.layout
    _expect(kind == torch.strided, argument, "a dense tensor with data", f"a {kind} one", TypeError)
    expected = "dtype float32, float64, float16 or bfloat16 (integers: divide by 255)"
    _expect(tensor.dtype in _DTYPES, argument, expected, tensor.dtype, TypeError)


def _check_values(argument, tensor):
    if tensor.device.type == "cpu":
        wrong = ~((tensor >= 0) & (tensor <= 1))
        if wrong.any():
            first = wrong.nonzero()[0].tolist()
            found = f"{int(wrong.sum())} other, the first {tensor[tuple(first)].item()} at {first}"
            _expect(False, argument, "values in [0, 1]", found)


def _check_device(argument, found, device):
    expected = f"one on the images' device, {device}"
    _expect(found.device == device, argument, expected, f"one on {found.device}")


def _check_texture(texture, images):
    _check_tensor("texture", texture)
    _, c, h, w = images.shape
    fits = tuple(texture.shape) in ((h, w), (c, h, w))
    _expect(fits, "texture", f"shape [{h}, {w}] or [{c}, {h}, {w}]", list(texture.shape))
    _check_device("texture", texture, images.device)
    _check_values("texture", texture)
    return texture.detach().to(images.dtype)

"""Features in every layout, labels for them, and class_moments held against its oracle."""

import numpy as np
import torch

from helpers import oracles
from resque_ext.ops import class_moments

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
HALVES = DTYPES[2:]
EXACT = 1e-12
NHWC = {"memory_format": torch.channels_last}
IN_EVERY_ORDER = [f"cuda_on_cpu:{order}" for order in ("forward", "reverse", "random")]


def drawn(*shape, dtype=torch.float32, seed=0):
    return torch.tensor(np.random.default_rng(seed).standard_normal(shape)).to(dtype)


def labels_for(n, classes, seed=1):
    return torch.tensor(np.random.default_rng(seed).integers(0, classes, n))


def whole_numbers(*shape, dtype=torch.float32):
    return torch.tensor(np.random.default_rng(2).integers(-8, 9, shape)).to(dtype)


def arrays(found):
    return [part.cpu().numpy() for part in found]


def truth(features):
    return features.detach().double().cpu().numpy()


def allowed_error(place, features):
    """CUDA hands the means of narrower types on as float32."""
    fused = features.ndim > 2 and place.kernels == "cuda" and features.dtype != torch.float64
    return 1e-6 if fused else EXACT


def check(place, features, labels, classes, **options):
    x, y = features.to(place.device), labels.to(place.device)
    found = class_moments(x, y, classes, **options)
    assert [part.dtype for part in found] == [torch.int64, torch.float64, torch.float64]
    expected = oracles.class_moments(truth(x), labels.cpu().numpy(), classes)
    expected.check(arrays(found), allowed_error(place, features))
    return found


# --- Layouts: how a base tensor is looked at, and whether a kernel reads it where it lies


VIEWS = {
    "matrix": ((37, 12), lambda x: x, True),
    "5 columns": ((37, 5), lambda x: x, True),
    "1 column": ((37, 1), lambda x: x, True),
    "3 columns": ((37, 3), lambda x: x, True),
    "4 columns": ((37, 4), lambda x: x, True),
    "every other row": ((80, 12), lambda x: x[::2], True),
    "misaligned columns": ((37, 13), lambda x: x[:, 1:], True),
    "aligned columns of odd rows": ((37, 13), lambda x: x[:, :12], True),
    "aligned columns of even rows": ((37, 24), lambda x: x[:, 8:16], True),
    "one row again and again": ((1, 12), lambda x: x.expand(37, 12), True),
    "1 column of many": ((37, 12), lambda x: x[:, 3:4], True),
    "every other column": ((37, 24), lambda x: x[:, ::2], False),
    "one column again and again": ((37, 1), lambda x: x.expand(37, 12), False),
    "transposed": ((12, 37), lambda x: x.t(), False),
    "NCHW": ((9, 5, 3, 4), lambda x: x, True),
    "NCHW, 16 positions": ((9, 8, 4, 4), lambda x: x, True),
    "NCHW, 49 positions": ((5, 3, 7, 7), lambda x: x, True),
    "NCHW, 99 positions": ((5, 3, 11, 9), lambda x: x, True),
    "NHWC": ((9, 8, 3, 4), lambda x: x.contiguous(**NHWC), True),
    "NHWC, 5 channels": ((9, 5, 3, 4), lambda x: x.contiguous(**NHWC), True),
    "NHWC, 25 positions": ((4, 8, 5, 5), lambda x: x.contiguous(**NHWC), True),
    "1 x 1": ((9, 8, 1, 1), lambda x: x, True),
    "1 x 1 of a channel": ((9, 8, 1, 1), lambda x: x[:, 2:3], True),
    "1 x W": ((9, 8, 1, 5), lambda x: x, True),
    "H x 1": ((9, 8, 5, 1), lambda x: x, True),
    "every other image": ((18, 5, 3, 4), lambda x: x[::2], True),
    "every other channel": ((9, 10, 3, 4), lambda x: x[:, ::2], True),
    "channels 1 to 6": ((9, 8, 3, 4), lambda x: x[:, 1:7], True),
    "NHWC, channels 1 to 6": ((9, 8, 3, 4), lambda x: x.contiguous(**NHWC)[:, 1:7], True),
    "upper half": ((9, 5, 6, 4), lambda x: x[:, :, :3], True),
    "one line": ((9, 5, 6, 4), lambda x: x[:, :, 2:3], True),
    "one image again and again": ((1, 5, 3, 4), lambda x: x.expand(9, 5, 3, 4), True),
    "left half": ((9, 5, 3, 8), lambda x: x[..., :4], False),
    "every other line": ((9, 5, 6, 4), lambda x: x[:, :, ::2], False),
    "every other position": ((9, 5, 3, 8), lambda x: x[..., ::2], False),
    "one line across": ((9, 5, 3, 4), lambda x: x[..., 1:2], False),
    "W x H": ((9, 5, 3, 4), lambda x: x.transpose(2, 3), False),
    "other axes first": ((3, 9, 4, 5), lambda x: x.permute(1, 3, 0, 2), False),
    "one position again and again": ((9, 5, 1, 1), lambda x: x.expand(9, 5, 3, 4), True),
    "one line again and again": ((9, 5, 1, 4), lambda x: x.expand(9, 5, 3, 4), False),
    "tokens": ((9, 7, 8), lambda x: x, True),
    "tokens of 5": ((9, 11, 5), lambda x: x, True),
    "1 token": ((9, 1, 8), lambda x: x, True),
    "all tokens but the first": ((9, 8, 8), lambda x: x[:, 1:], True),
    "every other token": ((9, 8, 8), lambda x: x[:, ::2], True),
    "tokens side by side": ((9, 8, 7), lambda x: x.transpose(1, 2), True),
    "every other feature": ((9, 7, 16), lambda x: x[..., ::2], False),
    # A single channel has any stride: where it is not 1, the positions must lie side by side.
    "1 channel": ((9, 1, 3, 4), lambda x: x, True),
    "1 channel, every other position": ((9, 1, 3, 8), lambda x: x[..., ::2], False),
    "1 channel of NHWC": ((9, 5, 3, 4), lambda x: x.contiguous(**NHWC)[:, 2:3], True),
    "1 feature, tokens apart": ((9, 7, 2), lambda x: x[..., ::2], False),
    "1 feature of many": ((9, 7, 5), lambda x: x[..., 3:4], True),
}

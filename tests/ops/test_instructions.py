"""The instructions that PTX alone has words for, one at a time: on a GPU, and their emulated twins.

What the CUDA kernels prove rests on them: labels of k-means on how a tensor core rounds. Run these
first on a GPU that is new.
"""

import math
import re
import shutil
import subprocess

import numpy as np
import pytest
import torch
from cuda_on_cpu import build

from resque_ext.ops import backend as _backend

SOURCE = build.Path(build.__file__).parent / "device" / "instructions.cu"
BOUNDS = (build.CSRC / "cuda" / "lloyd_step_bounds.cuh").read_text()
# What one step of a tensor core may lose, of the largest partial sum.
STEP = int(re.search(r"kStep = (\d+) / 8388608\.0f;", BOUNDS)[1]) * 2.0**-23

WHERE = ["cuda", *(f"cuda_on_cpu:{sm}" for sm in (75, 80, 90)), "cuda_on_cpu:90:nearest"]


def compiled_by_nvcc(folder):
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    if not hasattr(_backend.extension(), "cuda"):
        pytest.skip("resque_ext was built without CUDA kernels")
    nvcc = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if nvcc is None:
        pytest.skip("needs nvcc")
    arch = "sm_{}{}".format(*torch.cuda.get_device_capability())
    program = folder / "instructions"
    command = [nvcc, "-std=c++17", f"-arch={arch}", f"-I{build.CSRC}", SOURCE, "-o", program]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return program


@pytest.fixture(scope="module", params=WHERE)
def run(request, tmp_path_factory):
    """Runs an instruction by name: an array of records in, an array of records out."""
    place, _, form = request.param.partition(":")
    if place == "cuda":
        program = compiled_by_nvcc(tmp_path_factory.mktemp("instructions"))
    else:
        if reason := build.unavailable():
            pytest.skip(reason)
        sm = form.partition(":")[0]
        program = build.build_module([SOURCE], "instructions", defines=[f"RESQUE_SM={sm}"])

    def call(name, records, result):
        with pytest.MonkeyPatch.context() as patch:
            if form.endswith("nearest"):
                patch.setenv("RESQUE_CUDA_ON_CPU_ADDITION", "nearest")
            done = subprocess.run(
                [program, name], input=records.tobytes(), capture_output=True, timeout=30
            )
        assert done.returncode == 0, done.stderr.decode()
        return np.frombuffer(done.stdout, dtype=result)

    return call


PRODUCT = np.dtype([("a", "f2", (16, 16)), ("b", "f2", (16, 8)), ("c", "f4", (16, 8))])
SUM = np.dtype(("f4", (16, 8)))


def products(tiles):
    return np.zeros(tiles, dtype=PRODUCT)


def test_a_product_of_whole_numbers_is_exact(run):
    """Every number at its place: sums of up to 16 * 64 + 500 are exact however they are added."""
    random = np.random.default_rng(1)
    x = products(20)
    for name, most in (("a", 8), ("b", 8), ("c", 500)):
        x[name] = random.integers(-most, most + 1, x[name].shape)
    wide = {name: x[name].astype(np.float64) for name in "abc"}
    assert (run("mma", x, SUM) == wide["a"] @ wide["b"] + wide["c"]).all()


def test_infinity_and_nan_reach_the_sum(run):
    x = products(3)
    x["a"] = x["b"] = 1
    x["a"][0, 3, 5], x["a"][1, 3, 5], x["c"][2, 3, 5] = np.inf, np.nan, -np.inf
    found = run("mma", x, SUM)
    assert (found[0, 3] == np.inf).all()
    assert np.isnan(found[1, 3]).all()
    assert found[2, 3, 5] == -np.inf
    found = np.delete(found.reshape(3, -1), [*range(24, 32)], axis=1)
    assert (found == 16).all()


def numbers(random, low, high, shape):
    """Of both signs, or of one: from 2^low to 2^(high + 1), half of them with every bit set."""
    exponent = random.integers(low, high + 1, shape)
    fraction = np.where(random.random(shape) < 0.5, 1023, random.integers(0, 1024, shape))
    sign = np.where(random.random(shape) < 0.5, random.choice([-1, 1]), random.choice([-1, 1]))
    return sign * np.ldexp(1 + fraction / 1024, exponent)


def adversarial(random, kind):
    """A tile whose sums lose what there is to lose."""
    a, b = numbers(random, -1, 1, (16, 16)), numbers(random, -1, 1, (16, 8))
    c = np.zeros((16, 8))
    if kind == "small beside the sum":  # bits of the products just below the sum's last
        one_sign = random.random() < 0.7
        a, b = (np.abs(a), np.abs(b)) if one_sign else (a, b)
        c = numbers(random, 22, 26, (16, 8))
    elif kind == "small beside one product":
        a = np.ldexp(a, -13)
        b[:, ::2] = np.abs(b[:, ::2])
        at = random.integers(0, 16)
        a[:, at] = numbers(random, 10, 12, 16)
        c = numbers(random, -14, -10, (16, 8))
    elif kind == "cancelled":  # by what is added to, or by the second eight
        if random.random() < 0.5:
            c = -(a @ b)
        else:
            a[:, 8:], b[8:] = -a[:, :8], b[:8]
            a[:, random.integers(0, 16)] *= 1 + 2**-10
    elif kind == "wide":
        a, b = numbers(random, -14, 15, (16, 16)), numbers(random, -14, 15, (16, 8))
        c = numbers(random, -24, 30, (16, 8))
    elif kind == "denormal":
        a, b = np.ldexp(a, -20), np.ldexp(b, -4)
        c = numbers(random, -30, -18, (16, 8))
    return a, b, c


KINDS = ["small beside the sum", "small beside one product", "cancelled", "wide", "denormal"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_product_may_lose(run, kind):
    """The bound that labels of k-means rest on, against sums that are exact."""
    random = np.random.default_rng(KINDS.index(kind))
    x = products(60)
    for tile in x:
        for name, values in zip("abc", adversarial(random, kind), strict=True):
            tile[name] = values.clip(-60_000, 60_000) if name != "c" else values
    found = run("mma", x, SUM)
    wide = {name: x[name].astype(np.float64) for name in "abc"}
    # Products of float16 are exact in float64.
    terms = wide["a"][:, :, None, :] * wide["b"].transpose(0, 2, 1)[:, None, :, :]
    terms = np.concatenate([terms, wide["c"][..., None], -found.astype(np.float64)[..., None]], -1)
    error = np.array([math.fsum(row) for row in terms.reshape(-1, 18)]).reshape(found.shape)
    lengths = (
        np.linalg.norm(wide["a"], axis=2)[:, :, None] * np.linalg.norm(wide["b"], axis=1)[:, None]
    )
    lost = np.abs(error) / (np.abs(wide["c"]) + lengths)
    # 2^-149 is the last bit of a denormal float32.
    assert (np.abs(error) <= STEP * (np.abs(wide["c"]) + lengths) + 20 * 2.0**-149).all(), (
        lost.max()
    )
    assert kind != "small beside the sum" or lost.max() > 2**-26  # it has lost something


def test_copies_are_there_once_they_are_waited_for(run):
    x = np.random.default_rng(3).integers(0, 2**32, (50, 4, 32, 4), dtype=np.uint32)
    assert (run("copies", x, np.dtype(("u4", (4, 32, 4)))) == x).all()


def test_the_greater_of_two_is_nan_where_one_is(run):
    odd = np.array([np.nan, -np.nan, np.inf, -np.inf, 0, -0.0, 1e-45, -1e-45, 1, -1, 3e38], "f4")
    odd = np.concatenate([odd, np.array([0x7F800001, 0xFFFFFFFF], "u4").view("f4")])
    x = np.stack(np.meshgrid(odd, odd), -1).reshape(-1, 2)
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(run("max", x, "f4"), np.maximum(x[:, 0], x[:, 1]))


def test_two_counts_are_ordered_at_once(run):
    random = np.random.default_rng(4)
    edge = np.array([0, 1, 2, 0x3FF, 0x400, 0x401, 31_742, 31_743], "u2")
    x = np.concatenate(
        [
            np.stack(np.meshgrid(edge, edge, edge, edge), -1).reshape(-1, 2, 2),
            random.integers(0, 31_744, (2_000, 2, 2)).astype("u2"),
        ]
    )
    found = run("order", x, np.dtype(("u2", (2, 2))))
    assert (found == np.sort(x, axis=1)).all()


def test_the_greatest_of_a_warp(run):
    x = np.random.default_rng(5).integers(0, 2**32, (100, 32), dtype=np.uint32)
    x[::2] >>= 20
    found = run("warp_max", x, np.dtype(("u4", (32,))))
    assert (found == x.max(1, keepdims=True)).all()

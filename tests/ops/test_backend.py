"""The switch between kernels and plain PyTorch, and what is said where there is no extension."""

import asyncio
import importlib.machinery
import os
import shutil
import subprocess
import sys
import threading
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import resque_ext
from resque_ext import BackendError, backend, build_info, ops, resque_dist, score
from resque_ext.ops import backend as _backend
from resque_ext.ops.backend import current_backend

ROOT = Path(__file__).resolve().parents[2]
X, Y = torch.arange(12.0).reshape(6, 2) + 1, torch.tensor([0, 1, 0, 1, 1, 0])
BEFORE = current_backend()  # RESQUE_BACKEND may have been set for the tests


# The switch


def test_switch_nests_and_comes_back():
    with backend("torch"):
        assert current_backend() == "torch"
        with backend("native"):
            assert current_backend() == "native"
            with backend("torch"):
                assert current_backend() == "torch"
            assert current_backend() == "native"
        assert current_backend() == "torch"
    assert current_backend() == BEFORE


def test_switch_comes_back_after_an_exception():
    with backend("torch"):
        with pytest.raises(KeyError), backend("native"):
            raise KeyError
        assert current_backend() == "torch"
    assert current_backend() == BEFORE


@pytest.mark.parametrize("name", ["cuda", "", "Native", None, 1])
def test_switch_refuses_other_names(name):
    message = r"name: expected one of \('native', 'torch'\), found " + repr(name)
    with pytest.raises(ValueError, match=message), backend(name):
        pytest.fail("the block must not run")
    assert current_backend() == BEFORE


def test_the_switch_decides_what_runs(monkeypatch):
    """Each backend with the other one out of order."""

    def broken(*_, **__):
        raise AssertionError("the wrong backend")

    with monkeypatch.context() as patch, backend("torch"):
        patch.setattr(_backend, "launch", broken)
        patch.setattr(_backend, "kernels", broken)
        found = ops.class_moments(X, Y, 2)
    with monkeypatch.context() as patch, backend("native"):
        patch.setattr(ops.reference, "class_order", broken)
        patch.setattr(ops.reference, "class_moments", broken)
        for a, b in zip(found, ops.class_moments(X, Y, 2), strict=True):
            assert torch.equal(a, b)


def test_threads_have_their_own():
    """A thread starts with the process's choice; two at the same time do not see each other's."""
    seen, meet = {}, threading.Barrier(2, timeout=60)

    def run(name):
        seen[name, "start"] = current_backend()
        with backend(name):
            meet.wait()
            seen[name] = current_backend()
            meet.wait()

    with backend("torch"):
        threads = [threading.Thread(target=run, args=(name,)) for name in ("native", "torch")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert current_backend() == "torch"
    assert seen["native"] == "native"
    assert seen["torch"] == "torch"
    if not getattr(sys.flags, "thread_inherit_context", 0):  # Python 3.14 may be told to inherit
        assert seen["native", "start"] == seen["torch", "start"] == BEFORE


def test_tasks_have_their_own():
    async def run(name, entered, others):
        with backend(name):
            entered.set()
            await others.wait()
            return current_backend()

    async def both():
        a, b = asyncio.Event(), asyncio.Event()
        return await asyncio.gather(run("native", a, b), run("torch", b, a))

    assert asyncio.run(both()) == ["native", "torch"]


# Other processes


def python(code, *path, **env):
    """Another Python that looks for packages in `path` first, by default where this one did."""
    path = path or (Path(resque_ext.__file__).parents[1],)
    entries = [*map(str, path), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {"PYTHONPATH": os.pathsep.join(entries), "RESQUE_BACKEND": "native", **env}
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **env},
        cwd=Path(sys.executable).parent,
        timeout=300,
    )


NAMES = "import resque_ext; print(resque_ext.build_info()['backend'])"


@pytest.mark.full
@pytest.mark.parametrize("name", ["native", "torch"])
def test_environment_variable(name):
    done = python(NAMES, RESQUE_BACKEND=name)
    assert done.stdout == f"{name}\n", done.stderr


def test_environment_variable_of_another_value():
    done = python(NAMES, RESQUE_BACKEND="gpu")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    expected = "RESQUE_BACKEND: expected one of ('native', 'torch'), found 'gpu'"
    assert last == f"resque_ext.errors.ArgumentError: {expected}"


@pytest.mark.full
def test_instruction_sets():
    """What is slower than the best can be asked for; what is not there is no silent fallback."""
    info = "import resque_ext; print(resque_ext.build_info()['instruction_set'])"
    sets = ["baseline", "avx2", "avx512", "avx512icl"]
    best = sets.index(python(info, RESQUE_ISA="").stdout.strip())
    assert python(info, RESQUE_ISA="baseline").stdout == "baseline\n"
    use = "import torch, resque_ext as r; r.ops.spatial_mean(torch.ones(1, 1))"
    for name in ["sse", *sets[best + 1 :][:1]]:
        done = python(use, RESQUE_ISA=name)
        assert done.returncode == 1
        known = ", ".join(sets[: best + 1])
        assert (
            "BackendError: RESQUE_ISA: expected an instruction set that this processor has "
            f"({known}), found {name!r}; unset it, or set it to one of these. " in done.stderr
        )


# Without the extension


@pytest.fixture
def no_extension(monkeypatch):
    monkeypatch.setattr(_backend, "_C", None)
    reason = f"resque_ext._C is not in FOLDER: it was never built; {_backend._REINSTALL}"
    monkeypatch.setattr(_backend, "_missing", reason)


def uses():
    model = nn.Linear(2, 2)
    return {
        "class_moments": lambda: ops.class_moments(X, Y, 2),
        "class_moments of nothing": lambda: ops.class_moments(X[:0], Y[:0], 2),
        "resque_dist": lambda: resque_dist(X, X + 1, Y, Y),
        "score": lambda: score(model, [(X, Y)], [(X + 1, Y)], progress=False),
    }


@pytest.mark.parametrize("use", uses())
def test_nothing_falls_back_silently(no_extension, use):
    with backend("native"), pytest.raises(BackendError) as caught:
        uses()[use]()
    message = str(caught.value)
    assert "resque_ext._C is not in FOLDER: it was never built" in message  # why
    assert "pip install" in message  # what to do
    assert "resque_ext.backend('torch')" in message  # and until then
    assert isinstance(caught.value, RuntimeError)


@pytest.mark.parametrize("use", uses())
def test_plain_pytorch_needs_no_extension(no_extension, use):
    with backend("torch"):
        uses()[use]()
    info = build_info()
    assert info["extension"] is None
    assert "never built" in info["missing"]


def test_both_backends_agree():
    with backend("native"):
        native = resque_dist(X, X.flip(1), Y, Y)
    with backend("torch"):
        plain = resque_dist(X, X.flip(1), Y, Y)
    np.testing.assert_allclose(native.per_class, plain.per_class, rtol=1e-12)


def test_cuda_tensors_without_cuda_kernels(monkeypatch):
    """No tensor is needed to see what would be said."""
    monkeypatch.setattr(_backend, "_C", type("Extension", (), {"cpu": object()}))
    with pytest.raises(BackendError) as caught:
        _backend.kernels(torch.device("cuda", 0))
    message = str(caught.value)
    assert message.startswith("features: expected tensors on the CPU, found them on cuda:0")
    assert "built without CUDA kernels" in message
    assert "nvcc" in message
    assert "pip install" in message
    assert "resque_ext.backend('torch')" in message
    assert _backend.kernels(torch.device("cpu")) is _backend._C.cpu


# A checkout that stands before the installed package

USES = """
import resque_ext, torch
from resque_ext.ops import backend as _backend
info = resque_ext.build_info()
print(resque_ext.__file__)
print(info["extension"])
print(info["missing"])
x, y = torch.ones(2, 2), torch.tensor([0, 1])
with resque_ext.backend("torch"):
    resque_ext.resque_dist(x, x, y, y)
try:
    resque_ext.resque_dist(x, x, y, y)
    print("works")
except resque_ext.BackendError as error:
    print(error)
"""


@pytest.fixture
def checkout(tmp_path):
    """A checkout without an extension: the Python files, and the C++ sources beside them."""
    package = tmp_path / "checkout" / "resque_ext"
    shutil.copytree(
        Path(resque_ext.__file__).parent,
        package,
        ignore=shutil.ignore_patterns("_C*", "__pycache__"),
    )
    shutil.copytree(ROOT / "csrc", package.parent / "csrc")
    return package


@pytest.fixture
def installed(tmp_path):
    """A folder of packages with this extension in it."""
    built = build_info()["extension"]
    if build_info()["source_digest"] != _backend.checkout_digest(ROOT / "resque_ext"):
        pytest.skip("the extension was built of other sources than the checkout's")
    package = tmp_path / "site" / "resque_ext"
    package.mkdir(parents=True)
    return Path(shutil.copy(built, package))


# What else is installed must not be found; its folder stays, for torch may live there too.
ALONE = """
import importlib.machinery
importlib.machinery.EXTENSION_SUFFIXES = []
"""


def loads(*path, only=False):
    done = python(ALONE + USES if only else USES, *path)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.full
def test_a_checkout_uses_the_installed_extension_of_its_own_sources(checkout, installed):
    package, extension, missing, used = loads(checkout.parent, installed.parents[1])
    assert package == str(checkout / "__init__.py")
    assert extension == str(installed)
    assert missing == "None"
    assert used == "works"


@pytest.mark.full
def test_a_checkout_refuses_an_installed_extension_of_other_sources(checkout, installed):
    with (checkout.parent / "csrc" / "resque.h").open("a") as file:
        file.write("\n")
    _, extension, missing, used = loads(checkout.parent, installed.parents[1])
    assert extension == "None"
    assert f"the extension installed at {installed} was built of other sources" in missing
    assert str(checkout) in missing
    assert "pip install" in missing
    assert used.startswith(missing)


def test_a_package_without_an_extension_says_that_it_was_not_built(checkout):
    shutil.rmtree(checkout.parent / "csrc")
    _, extension, missing, used = loads(checkout.parent, only=True)
    assert extension == "None"
    assert f"resque_ext._C is not in {checkout}: it was never built" in missing
    assert "circular import" not in missing
    assert used.startswith(missing)


def test_an_extension_of_older_sources_is_not_used(monkeypatch):
    older = types.ModuleType("resque_ext._C")
    older.__file__ = "FOLDER/_C.so"
    monkeypatch.setattr(_backend, "_find", lambda: (older, ""))
    module, missing = _backend._load()
    assert module is None
    assert missing.startswith("resque_ext._C at FOLDER/_C.so was built of older sources; install")


@pytest.mark.full
def test_an_extension_that_does_not_load_says_why(checkout):
    """Made for another Python or machine, or cut short."""
    suffix = importlib.machinery.EXTENSION_SUFFIXES[0]
    (checkout / f"_C{suffix}").write_bytes(b"not a shared library")
    _, extension, missing, used = loads(checkout.parent)
    assert extension == "None"
    assert missing.startswith("resque_ext._C does not load (")
    assert "pip install" in missing
    assert used.startswith(missing)


def test_only_another_packages_extension_is_looked_for(checkout, installed, monkeypatch):
    find = _backend._installed_extension
    for entries, expected in (
        ([str(checkout.parent), str(installed.parents[1])], installed),
        ([str(checkout.parent)], None),
        ([], None),
        (["/no/such/folder", str(installed.parents[1])], installed),
    ):
        monkeypatch.setattr(sys, "path", entries)
        assert find(checkout) == expected
    monkeypatch.setattr(sys, "path", [str(installed.parents[1])])
    assert find(installed.parent) is None  # its own is not another's
    monkeypatch.chdir(installed.parents[1])
    monkeypatch.setattr(sys, "path", [""])
    assert find(checkout) == installed

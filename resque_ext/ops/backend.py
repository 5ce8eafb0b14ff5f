"""The compiled extension: loaded once; what is missing and why; the switch to plain PyTorch."""

from __future__ import annotations

import contextlib
import contextvars
import hashlib
import importlib.machinery
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from resque_ext.errors import ArgumentError, BackendError

BACKENDS = ("native", "torch")
_INTERFACE = 2  # of csrc/bindings.cpp
_REINSTALL = "install it from its checkout with: pip install --force-reinstall --no-deps ."


def checkout_digest(package: Path) -> str | None:
    """Digest of the C++ sources beside `package`, as setup.py takes it, or None without any."""
    csrc = package.parent / "csrc"
    if not csrc.is_dir():
        return None
    digest = hashlib.sha256()
    for path in sorted(p for p in csrc.rglob("*") if p.is_file()):
        digest.update(path.relative_to(csrc).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _installed_extension(package: Path) -> Path | None:
    """The extension of an installed resque-ext, for a Python that was started in the checkout.

    There the folder resque_ext shadows the installed package, and holds no extension.
    """
    for entry in sys.path:
        for suffix in importlib.machinery.EXTENSION_SUFFIXES:
            path = Path(entry or ".").resolve() / "resque_ext" / f"_C{suffix}"
            if path.is_file() and path.parent != package:
                return path
    return None


def _load() -> tuple[ModuleType | None, str]:
    """The extension, ready to run, or None and why it is not."""
    module, missing = _find()
    if module is None:
        return None, missing
    if getattr(module, "interface", 0) != _INTERFACE:  # built in place, and the checkout went on
        return None, f"resque_ext._C at {module.__file__} was built of older sources; {_REINSTALL}"
    try:
        module.choose_instruction_set(os.environ.get("RESQUE_ISA", ""))
    except ValueError as error:
        return None, str(error)
    return module, ""


def _find() -> tuple[ModuleType | None, str]:
    """The extension, or None and why it is not there."""
    package = Path(__file__).resolve().parents[1]
    try:
        # Not "from resque_ext import _C": that turns a missing module into another ImportError.
        return importlib.import_module("resque_ext._C"), ""
    except ModuleNotFoundError as error:
        if error.name != "resque_ext._C":
            raise
    except ImportError as error:
        return None, f"resque_ext._C does not load ({error}); {_REINSTALL}"
    path = _installed_extension(package)
    if path is None:
        return None, f"resque_ext._C is not in {package}: it was never built; {_REINSTALL}"
    loader = importlib.machinery.ExtensionFileLoader("resque_ext._C", str(path))
    spec = importlib.util.spec_from_file_location("resque_ext._C", path, loader=loader)
    assert spec is not None  # a loader was given
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    if module.build_info()["source_digest"] != checkout_digest(package):
        return None, (
            f"Python imports resque_ext from the checkout {package}, but the extension installed "
            f"at {path} was built of other sources; {_REINSTALL}"
        )
    sys.modules["resque_ext._C"] = module
    return module, ""


_C, _missing = _load()


def _initial() -> str:
    name = os.environ.get("RESQUE_BACKEND", "native")
    if name not in BACKENDS:
        raise ArgumentError("RESQUE_BACKEND", f"one of {BACKENDS}", f"{name!r}")
    return name


_current: contextvars.ContextVar[str] = contextvars.ContextVar("backend")


def current_backend() -> str:
    """The backend that ops run on here and now: "native" (compiled kernels) or "torch"."""
    return _current.get(None) or _initial()


@contextlib.contextmanager
def backend(name: str) -> Iterator[None]:
    """Runs every op inside the `with` block on compiled kernels or on plain PyTorch.

    Args:
        name: "native", the compiled kernels, or "torch", plain PyTorch.

    The environment variable RESQUE_BACKEND sets it for a whole process. The choice holds for the
    current thread or task. Nothing ever changes it silently: where a kernel is missing, "native"
    raises :class:`BackendError`.

    Raises:
        ValueError: `name` is neither.
    """
    if name not in BACKENDS:
        raise ArgumentError("name", f"one of {BACKENDS}", f"{name!r}")
    token = _current.set(name)
    try:
        yield
    finally:
        _current.reset(token)


def extension() -> ModuleType:
    """The compiled extension, or BackendError with the reason why there is none."""
    if _C is None:
        raise BackendError(
            f"{_missing}. Meanwhile resque_ext.backend('torch') runs on plain PyTorch."
        )
    return _C


def kernels(device: torch.device) -> ModuleType:
    """The submodule of the extension with the kernels for `device`.

    Raises:
        BackendError: there is no extension, or it was built without CUDA kernels.
    """
    found = getattr(extension(), device.type, None)
    if found is None:
        raise BackendError(
            "features: expected tensors on the CPU, found them on "
            f"{device}: resque_ext was built without CUDA kernels (no nvcc, or RESQUE_CUDA=0). "
            f"Install the CUDA toolkit, put nvcc on the PATH, then {_REINSTALL} (RESQUE_CUDA=1 "
            "makes a missing nvcc an error). Meanwhile resque_ext.backend('torch') runs on plain "
            "PyTorch."
        )
    return found


def launch(name: str, device: torch.device, *arguments: Any) -> None:
    """Launches a kernel: on torch's current stream of `device`, or on its number of CPU threads.

    Args:
        name: of the kernel.
        arguments: what csrc/bindings.cpp names; tensors as they are, so that they live until the
            kernel has been launched, or has run.

    Raises:
        TypeError: a tensor without memory.
        KeyboardInterrupt: Ctrl-C ended the kernel (on the CPU); the outputs hold anything.
    """
    kernel = getattr(kernels(device), name)
    if device.type == "cuda":
        stream = torch.cuda.current_stream(device)
        index = device.index if device.index is not None else torch.cuda.current_device()
        kernel(*arguments, index, stream.cuda_stream)
    else:
        kernel(*arguments, torch.get_num_threads())


def build_info() -> dict[str, Any]:
    """What was built: versions, compiler, flags, CUDA architectures, instruction set.

    Plain values. `cuda` is None where the extension holds no CUDA kernels, `extension` where there
    is none at all, and `missing` then says why. `instruction_set` is the best that this processor
    has, or the lesser one that the environment variable RESQUE_ISA asked for: "baseline", "avx2",
    "avx512" or "avx512icl" (AVX-512 as of Ice Lake and Zen 4).
    """
    info: dict[str, Any] = {
        "version": importlib.import_module("resque_ext").__version__,
        "extension": getattr(_C, "__file__", None),
        "missing": _missing or None,
        "backend": current_backend(),
    }
    return info | (_C.build_info() if _C is not None else {})

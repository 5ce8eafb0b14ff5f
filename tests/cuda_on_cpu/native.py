"""The whole extension with its CUDA kernels on the emulator: `resque_ext` then runs them."""

from __future__ import annotations

import ctypes
import functools
import importlib.machinery
import importlib.util
import os
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Any

import pybind11
import pytest

from cuda_on_cpu import build
from resque_ext.ops import backend as _backend

# The emulated GPU's compute capability: "90", or "75" for the code and the limits of older ones.
CAPABILITY = os.environ.get("RESQUE_CUDA_ON_CPU_CAPABILITY", "90")

ORDERS = {"forward": (0, 0), "reverse": (1, 0), "random": (2, 7)}
PYTHON = Path(sysconfig.get_paths()["include"])


def unavailable() -> str | None:
    """Why the module cannot be built here, or None if it can."""
    if not (PYTHON / "Python.h").is_file():
        return "the CUDA emulator's module needs Python's headers, which are not installed"
    return build.unavailable()


@functools.cache
def path() -> Path:
    """The module's file; built when its sources are new."""
    sources = [build.CSRC / "bindings.cpp"]
    for folder, ending in (("cpu", "cpp"), ("cpu/isa", "cpp"), ("cuda", "cu")):
        sources += sorted((build.CSRC / folder).glob(f"*.{ending}"))
    texts = {"SOURCE_DIGEST": "emulated", "CXX_FLAGS": "-O1", "CUDA_ARCHS": "emulated"}
    return build.build_module(
        sources,
        "_C.so",
        include_dirs=[pybind11.get_include(), PYTHON],
        defines=[
            *(f'RESQUE_{name}="{text}"' for name, text in texts.items()),
            *("RESQUE_WITH_CUDA", "RESQUE_BASELINE_ONLY", "RESQUE_ISA=baseline"),
            f"RESQUE_SM={CAPABILITY}",
        ],
        # Half the time of -O2 -g to compile, and no slower to run.
        extra=["-O1", "-g0", "-fvisibility=hidden", "-Wno-psabi"],
    )


@functools.cache
def load() -> ModuleType:
    """The module, beside the extension that is installed: neither knows of the other."""
    loader = importlib.machinery.ExtensionFileLoader("cuda_on_cpu._C", str(path()))
    spec = importlib.util.spec_from_file_location("cuda_on_cpu._C", path(), loader=loader)
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def set_order(order: str) -> None:
    """In which order the threads of the launches from here on take their turns."""
    set_it = ctypes.CDLL(str(path())).cuda_on_cpu_set_order
    set_it.argtypes = [ctypes.c_int, ctypes.c_uint64]
    set_it(*ORDERS[order])


def install(monkeypatch: pytest.MonkeyPatch, order: str = "forward") -> None:
    """Makes the ops run the emulated CUDA kernels on tensors of the CPU."""
    module = load()
    set_order(order)

    def launch(name: str, device: Any, *arguments: Any) -> None:
        getattr(module.cuda, name)(*arguments, 0, 0)

    monkeypatch.setattr(_backend, "_C", module)
    monkeypatch.setattr(_backend, "kernels", lambda device: module.cuda)
    monkeypatch.setattr(_backend, "launch", launch)

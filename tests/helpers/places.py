"""Where things are, and what a process of its own needs to find them."""

from __future__ import annotations

import os
from pathlib import Path

import resque_ext

TESTS = Path(__file__).parents[1]
HELPERS = TESTS / "helpers"
ROOT = TESTS.parent  # the checkout
PACKAGES = Path(resque_ext.__file__).parents[1]  # where the package was imported from


def environment(**more: str) -> dict[str, str]:
    """This process' environment, in which the package and the helpers can be imported."""
    path = [str(PACKAGES), str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(path)} | more

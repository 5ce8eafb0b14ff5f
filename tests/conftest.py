"""The places where the ops run: the CPU, the CUDA kernels on the emulator, and CUDA."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

# For the modules beside the tests: with --import-mode=importlib pytest leaves sys.path alone.
sys.path.insert(0, str(Path(__file__).parent))

from cuda_on_cpu import native

from resque_ext import _backend

# Modules beside the tests, whose assertions say what they compared as those of a test do.
pytest.register_assert_rewrite("class_moments_made", "resque_dist_made", "score_made", "state_made")

TIERS = ("user", "full")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--tier",
        choices=TIERS,
        default="user",
        help="user (default): what a user runs after installation; full: also the exhaustive "
        "tests, which are marked `full` (see tests/README.md)",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out the tests marked `full`, unless that tier was asked for."""
    if config.getoption("tier") == "full":
        return
    left_out = [item for item in items if item.get_closest_marker("full")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("full")]


PLACES = ["cpu", "cuda_on_cpu", *(["cuda"] if torch.cuda.is_available() else [])]
# Where a module says INSTRUCTION_SETS = True, these too: "cpu" has the best here.
OTHER_SETS = ["cpu:baseline", "cpu:avx2", "cpu:avx512"]


@dataclass(frozen=True)
class Place:
    """Where a test runs: `kernels` is "cpu" or "cuda", `device` where its tensors are."""

    name: str
    kernels: str
    device: torch.device


@contextlib.contextmanager
def instruction_set(name: str) -> Iterator[None]:
    """The CPU's kernels as a processor runs them that has no more than this."""
    module = _backend.extension()
    before = module.build_info()["instruction_set"]
    try:
        module.choose_instruction_set(name)
    except ValueError as error:  # which ones are there is tested in test_backend.py
        pytest.skip(str(error))
    try:
        yield
    finally:
        module.choose_instruction_set(before)


@pytest.fixture(scope="session")
def emulated() -> None:
    """Builds the emulated module; a build that fails is not tried again."""
    native.load()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    marks = metafunc.definition.iter_markers("parametrize")
    if "place" in metafunc.fixturenames and not any("place" in mark.args for mark in marks):
        more = OTHER_SETS if getattr(metafunc.module, "INSTRUCTION_SETS", False) else []
        metafunc.parametrize("place", [*PLACES, *more], indirect=True)


@pytest.fixture
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """Each place in turn; a test may ask for "cuda_on_cpu:reverse" or ":random" by itself."""
    name, _, order = request.param.partition(":")
    if name == "cpu" and order:
        with instruction_set(order):
            yield Place(name, name, torch.device(name))
        return
    if name == "cuda_on_cpu":
        if reason := native.unavailable():
            pytest.skip(reason)
        request.getfixturevalue("emulated")
        native.install(monkeypatch, order or "forward")
        yield Place(name, "cuda", torch.device("cpu"))
        native.set_order("forward")
        return
    if name == "cuda" and not hasattr(_backend.extension(), "cuda"):
        pytest.skip("resque_ext was built without CUDA kernels")
    yield Place(name, name, torch.device(name))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the command line in this process: (status, stdout, stderr)."""
    from resque_ext import cli  # its dependencies only where it is tested

    monkeypatch.delenv("COLUMNS", raising=False)

    def call(*arguments: Any) -> tuple[int, str, str]:
        status = cli.main([str(a) for a in arguments])
        return status, *capsys.readouterr()

    return call


@pytest.fixture
def refused(run: Any) -> Any:
    """Runs what the command line must refuse and returns the one line on stderr."""

    def call(*arguments: Any) -> str:
        status, out, err = run(*arguments)
        assert (status, out) == (2, "")
        assert err.startswith("resque-ext: error: ")
        assert err.count("\n") == 1
        assert err.endswith("\n")
        return err

    return call

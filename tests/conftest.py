"""The places where the ops run: the CPU, the CUDA kernels on the emulator, and CUDA."""

from __future__ import annotations

import contextlib
import os
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from cuda_on_cpu import native

from resque_ext.ops import backend as _backend

# Helpers whose assertions say what they compared as those of a test do.
pytest.register_assert_rewrite(
    *(f"helpers.{name}_made" for name in ("class_moments", "resque_dist", "score", "state"))
)

# How long an example takes says nothing: the processors are shared.
hypothesis.settings.register_profile("tests", deadline=None)
hypothesis.settings.load_profile("tests")

TIERS = ("user", "full")
MOST_WORKERS = 8
FEW_CASES = 12  # of a test: they all run


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--tier",
        choices=TIERS,
        default="user",
        help="user (default): what a user runs after installation; full: also the exhaustive "
        "tests, which are marked `full` (see tests/README.md)",
    )
    parser.addoption(
        "--reverse", action="store_true", help="the last test first: none may lean on another"
    )


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads what is set here
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Shares whole folders among the processors; a single file is done before workers start."""
    option = config.option
    if "PYTEST_XDIST_WORKER" in os.environ or not config.pluginmanager.hasplugin("xdist"):
        return  # a worker has none of its own
    whole = all(Path(argument).is_dir() for argument in config.args)
    if option.numprocesses is None and whole and not option.collectonly:
        option.numprocesses, option.maxprocesses = "logical", MOST_WORKERS
        if option.dist == "no":
            option.dist = "worksteal"  # runs of neighbours, which share what a module has set up
    if option.numprocesses:
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # one thread a worker


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out the tests of the full tier, unless that was asked for; the order is as asked."""
    if config.getoption("tier") != "full":
        kept = [item for item in representative(items) if not item.get_closest_marker("full")]
        left_out = set(items).difference(kept)
        if left_out:
            config.hook.pytest_deselected(items=left_out)
            items[:] = kept
    if config.getoption("reverse"):
        items.reverse()


def representative(items: list[pytest.Item]) -> Iterator[pytest.Item]:
    """Of a test with many cases those that bring something new: a value, or a value at its place.

    Its place is "cpu" or "cuda_on_cpu", and the backend if the test has both. An order of threads
    and an instruction set ("cuda_on_cpu:reverse", "cpu:avx2") comes once a test, and not with
    every value again.
    """
    cases = Counter(item.nodeid.partition("[")[0] for item in items)
    seen = set()
    for item in items:
        test, params = item.nodeid.partition("[")[0], getattr(item, "callspec", None)
        if params is None or cases[test] <= FEW_CASES:
            yield item
            continue
        params = dict(params.params)
        place = test, params.pop("place", ""), params.pop("backend", None)
        new = {place}
        if ":" not in place[1]:
            new.update((*place, name, told_apart(value)) for name, value in params.items())
        if not new <= seen:
            yield item
        seen |= new


def told_apart(value: object) -> object:
    """1, 1.0 and True are three values, two literals of one are one; others are themselves."""
    plain = isinstance(value, int | float | str | bytes | tuple | None)
    return repr(value) if plain else id(value)


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


@pytest.fixture(scope="session", autouse=True)
def _own_device_locks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Made GPUs have the same names in all workers, which are not to take them from each other."""
    once = sys.modules.get("resque_ext.energy.once")  # if a collected test has it
    with pytest.MonkeyPatch.context() as patch:
        if once is not None:
            patch.setattr(once, "folder", tmp_path_factory.getbasetemp)
        yield


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

"""The CUDA kernels touch their own memory alone, do not race, and need each of their barriers."""

import functools
import re
from dataclasses import dataclass, field

import pytest

from cuda_on_cpu import build
from cuda_on_cpu.barriers import VARIABLE, count_barriers, switch_barriers

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(build.unavailable() is not None, reason=str(build.unavailable())),
]

CUDA = build.CSRC / "cuda"
DRIVERS = build.Path(__file__).parent / "kernels"
ORDERS = ["forward", "reverse", "random:7"]


@dataclass(frozen=True)
class Driver:
    """A program of kernels/NAME.cpp and the .cu files that it runs, its own first."""

    sources: tuple[str, ...]
    work: tuple[tuple[str, ...], ...] = ((),)  # its arguments, one run each
    # ThreadSanitizer makes a thread of each fiber, 20 us: smaller constants, and the same code. A
    # header of csrc/ that is named here is found before that one.
    smaller: dict[str, tuple[tuple[str, str], ...]] = field(default_factory=dict)
    less_work: tuple[tuple[str, ...], ...] = ((),)


SMALLER_ORDER = (("kDigitBits = 8", "kDigitBits = 6"), ("kThreads = 256", "kThreads = 64"))
SMALLER_MOMENTS = (("min(job.windows, int64_t{1024})", "min(job.windows, int64_t{2})"),)
SMALLER_TILES = (
    ("kFewestTiles = 1024", "kFewestTiles = 1"),
    ("kMostWarps = 8192", "kMostWarps = 2"),
)
SMALLER_CHUNKS = (
    *(("kLaneValues = 120", "kLaneValues = 8"), ("kChunkPairs = 4096", "kChunkPairs = 4")),
    ("kMostWarps = 8192", "kMostWarps = 3"),
)
SMALLER_HISTOGRAM = (
    ("kThreads = 1024", "kThreads = 64"),
    ("kValuesPerBlock = 16384", "kValuesPerBlock = 512"),
    ("kValuesPerLaunch = int64_t{1} << 31", "kValuesPerLaunch = 900"),
    ("kTableBytes = 128 << 10", "kTableBytes = 4 << 10"),
)
SMALLER_PAIRS = (("kThreads = 512", "kThreads = 64"), ("kBlocks = 264", "kBlocks = 2"))
SMALLER_LLOYD = (
    ("kFrameParts = 32", "kFrameParts = 4"),
    ("kSplitThreads = 128", "kSplitThreads = 64"),
    ("kAddThreads = 256", "kAddThreads = 64"),
    ("kNarrow = 128, kWide = 256", "kNarrow = 16, kWide = 32"),
    ("kFewThreads = 512", "kFewThreads = 64"),
    ("kFewTile = 64 << 10", "kFewTile = 8 << 10"),
    ("kSpan = 4096", "kSpan = 64"),
    ("kSlotParts = 32", "kSlotParts = 4"),
    ("kSettleThreads = 256", "kSettleThreads = 64"),
    ("min(a.x.n, int64_t{1024})", "min(a.x.n, int64_t{2})"),
    ("int64_t{528}", "int64_t{1}"),
)
FLOAT32_ALONE = (  # a quarter of the code to compile; barriers are the same for all
    ("case DType::float64: return f(Type<double>{});", ""),
    ("case DType::float16: return f(Type<Half>{});", ""),
    ("case DType::bfloat16: return f(Type<BFloat>{});", ""),
)
DRIVERS_OF = {
    "class_order": Driver(
        ("class_order.cu",), ((), ("257",)), {"class_order.cu": SMALLER_ORDER}, ((), ("17",))
    ),
    "class_moments": Driver(
        ("class_moments.cu", "class_order.cu"),
        ((), ("1250",)),
        {"class_moments.cu": SMALLER_MOMENTS, "class_order.cu": SMALLER_ORDER},
    ),
    "lloyd_step": Driver(
        ("lloyd_step.cu", "class_order.cu", "class_moments.cu"),
        smaller={
            "lloyd_step.cu": SMALLER_LLOYD,
            "class_moments.cu": SMALLER_MOMENTS,
            "class_order.cu": SMALLER_ORDER,
            "dispatch.h": FLOAT32_ALONE,
        },
        less_work=(("float32",),),
    ),
    "pair_counts": Driver(
        ("pair_counts.cu",), ((), ("270",)), {"pair_counts.cu": SMALLER_PAIRS}, ((), ("9",))
    ),
    "spatial_mean": Driver(("spatial_mean.cu",)),
    "row_distances": Driver(
        ("row_distances.cu", "row_distances_long.cu"),
        ((), ("8200",)),
        {"row_distances.cu": SMALLER_TILES},
    ),
    "row_distances_long": Driver(
        ("row_distances_long.cu", "row_distances.cu"),
        smaller={"row_distances_long.cu": SMALLER_CHUNKS},
    ),
    "value_histogram": Driver(
        ("value_histogram.cu",), smaller={"value_histogram.cu": SMALLER_HISTOGRAM}
    ),
}
WORK = [(name, work) for name, driver in DRIVERS_OF.items() for work in driver.work]
LESS_WORK = [(name, work) for name, driver in DRIVERS_OF.items() for work in driver.less_work]


def whole(source):
    """The text of a .cu file with the headers that carry its name in it: they are parts of it."""
    include = re.compile(rf'#include "cuda/({source.removesuffix(".cu")}_\w+\.cuh)"')
    pasted = set()

    def paste(match):
        if match[1] in pasted:
            return ""
        pasted.add(match[1])
        text = (CUDA / match[1]).read_text().replace("#pragma once", "")
        return include.sub(paste, text)

    return include.sub(paste, (CUDA / source).read_text())


BARRIERS = [
    pytest.param(name, index, id=f"{name}-{index}")
    for name, driver in DRIVERS_OF.items()
    for index in range(count_barriers(whole(driver.sources[0])))
]


def label(value):
    return " ".join(value) or "all" if isinstance(value, tuple) else None


def smaller(driver, source):
    text = whole(source) if source.endswith(".cu") else (build.CSRC / source).read_text()
    for old, new in driver.smaller.get(source, ()):
        assert text.count(old) == 1, f"{source} has no single {old!r} any more"
        text = text.replace(old, new)
    return switch_barriers(text) if source == driver.sources[0] else text


def program(name, files, sanitizer):
    return build.build_module(
        [*files, DRIVERS / f"{name}.cpp"], name, include_dirs=[DRIVERS], sanitizer=sanitizer
    )


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Programs of the smaller sources, in which each barrier of the own one can be left out."""
    folder = tmp_path_factory.mktemp("kernels")

    @functools.cache
    def built(name):
        driver = DRIVERS_OF[name]
        (folder / name).mkdir()
        for source in {*driver.sources, *driver.smaller}:
            (folder / name / source).write_text(smaller(driver, source))
        return program(name, [folder / name / source for source in driver.sources], "thread")

    return built


def test_every_source_has_a_driver():
    """Each .cu file is somebody's own, and each driver's program is in the table."""
    own = {driver.sources[0] for driver in DRIVERS_OF.values()}
    assert own == {path.name for path in CUDA.glob("*.cu")}
    assert set(DRIVERS_OF) == {path.stem for path in DRIVERS.glob("*.cpp")}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("name", "work"), WORK, ids=label)
def test_no_memory_but_their_own(monkeypatch, name, work, order):
    monkeypatch.setenv("RESQUE_CUDA_ON_CPU_ORDER", order)
    files = [CUDA / source for source in DRIVERS_OF[name].sources]
    done = build.run([program(name, files, "address"), *work], sanitizer="address", timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "right\n", "")


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("name", "work"), LESS_WORK, ids=label)
def test_no_races(monkeypatch, small, name, work, order):
    monkeypatch.setenv("RESQUE_CUDA_ON_CPU_ORDER", order)
    done = build.run([small(name), *work], sanitizer="thread", timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "right\n", "")


@pytest.mark.parametrize(("name", "index"), BARRIERS)
def test_every_barrier_is_needed(monkeypatch, small, name, index):
    """Without it there is a race, or a wrong result."""
    monkeypatch.setenv(VARIABLE, str(index))
    for work in DRIVERS_OF[name].less_work:
        done = build.run([small(name), *work], sanitizer="thread", timeout=60)
        if re.search("ThreadSanitizer: data race", done.stderr) or done.stdout != "right\n":
            return
    pytest.fail(f"nothing is wrong without barrier {index} of {name}")

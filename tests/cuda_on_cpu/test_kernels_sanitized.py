"""The CUDA kernels touch their own memory alone, do not race, and need each of their barriers."""

import functools
import itertools
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
    """A program of kernels/NAME.cpp and the .cu files that it needs."""

    sources: tuple[str, ...]
    own: tuple[str, ...]  # the .cu and .cuh files whose barriers it leaves out in turn
    work: tuple[tuple[str, ...], ...] = ((),)  # its arguments, one run each
    # ThreadSanitizer makes a thread of each fiber, 20 us: smaller constants, and the same code.
    smaller: dict[str, tuple[tuple[str, str], ...]] = field(default_factory=dict)
    less_work: tuple[tuple[str, ...], ...] = ((),)
    float32_alone: bool = False  # the smaller program: a quarter of the code, and the same barriers

    @property
    def smaller_sources(self) -> tuple[str, ...]:
        left_out = tuple(f"_{dtype}.cu" for dtype in DTYPES[1:]) if self.float32_alone else ()
        return tuple(source for source in self.sources if not source.endswith(left_out))


DTYPES = ("float32", "float64", "float16", "bfloat16")


def each_type(op):
    return tuple(f"{op}_{dtype}.cu" for dtype in DTYPES)


SMALLER_ORDER = (("kDigitBits = 8", "kDigitBits = 6"), ("kThreads = 256", "kThreads = 64"))
SMALLER_MOMENTS = (("kSlotBlocks = 2048", "kSlotBlocks = 2"),)
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
SMALLER_LLOYD = {
    "lloyd_step.cu": (
        ("kSplitThreads = 128", "kSplitThreads = 64"),
        ("kAddThreads = 256", "kAddThreads = 64"),
        ("kSlotParts = 32", "kSlotParts = 4"),
    ),
    "lloyd_step_layout.cuh": (("kNarrow = 128, kWide = 256", "kNarrow = 16, kWide = 32"),),
    "lloyd_step_launch.cuh": (
        ("kFrameParts = 32", "kFrameParts = 4"),
        ("min(a.x.n, int64_t{1024})", "min(a.x.n, int64_t{2})"),
        ("int64_t{528}", "int64_t{1}"),
    ),
    "lloyd_step_few.cuh": (
        ("kFewThreads = 512", "kFewThreads = 64"),
        ("kFewTile = 64 << 10", "kFewTile = 8 << 10"),
        ("kSpan = 4096", "kSpan = 64"),
    ),
    "lloyd_step_many.cuh": (("kSettleThreads = 256", "kSettleThreads = 64"),),
}
FLOAT32_ALONE = (
    ("case DType::float64: return f(Type<double>{});", ""),
    ("case DType::float16: return f(Type<Half>{});", ""),
    ("case DType::bfloat16: return f(Type<BFloat>{});", ""),
)
MOMENTS = ("class_moments.cu", "class_order.cu", "spatial_mean.cu")
DISTANCES = (
    *("row_distances.cu", "row_distances_long.cu", "spatial_mean.cu"),
    *each_type("row_distances"),
)
DRIVERS_OF = {
    "class_order": Driver(
        ("class_order.cu",),
        ("class_order.cu",),
        ((), ("257",)),
        {"class_order.cu": SMALLER_ORDER},
        ((), ("17",)),
    ),
    "class_moments": Driver(
        MOMENTS,
        ("class_moments.cu", "class_moments_slots.cuh"),
        ((), ("1250",)),
        {"class_moments_slots.cuh": SMALLER_MOMENTS, "class_order.cu": SMALLER_ORDER},
    ),
    "lloyd_step": Driver(
        ("lloyd_step.cu", *each_type("lloyd_step"), *MOMENTS),
        (
            *("lloyd_step.cu", "lloyd_step_launch.cuh", "lloyd_step_layout.cuh"),
            *("lloyd_step_few.cuh", "lloyd_step_many.cuh", *each_type("lloyd_step")),
        ),
        smaller={
            **SMALLER_LLOYD,
            "class_moments_slots.cuh": SMALLER_MOMENTS,
            "class_order.cu": SMALLER_ORDER,
        },
        less_work=(("float32",),),
        float32_alone=True,
    ),
    "pair_counts": Driver(
        ("pair_counts.cu",),
        ("pair_counts.cu",),
        ((), ("270",)),
        {"pair_counts.cu": SMALLER_PAIRS},
        ((), ("9",)),
    ),
    "spatial_mean": Driver(("spatial_mean.cu",), ("spatial_mean.cu",)),
    "row_distances": Driver(
        DISTANCES,
        ("row_distances.cu", "row_distances_short.cuh", *each_type("row_distances")),
        ((), ("8200",)),
        {"row_distances.cu": SMALLER_TILES},
    ),
    "row_distances_long": Driver(
        DISTANCES,
        ("row_distances_long.cu",),
        smaller={"row_distances_long.cu": SMALLER_CHUNKS},
    ),
    "value_histogram": Driver(
        ("value_histogram.cu",),
        ("value_histogram.cu",),
        smaller={"value_histogram.cu": SMALLER_HISTOGRAM},
    ),
}
WORK = [(name, work) for name, driver in DRIVERS_OF.items() for work in driver.work]
OLDER = ["lloyd_step", "row_distances", "row_distances_long", "value_histogram"]
LESS_WORK = [(name, work) for name, driver in DRIVERS_OF.items() for work in driver.less_work]


def first_barriers(driver):
    """Of each of its own files: the number of its first barrier, counted through all of them."""
    counts = [count_barriers((CUDA / name).read_text()) for name in driver.own]
    return dict(zip(driver.own, itertools.accumulate([0, *counts]), strict=False)), sum(counts)


BARRIERS = [
    pytest.param(name, index, id=f"{name}-{index}")
    for name, driver in DRIVERS_OF.items()
    for index in range(first_barriers(driver)[1])
]


def label(value):
    return " ".join(value) or "all" if isinstance(value, tuple) else None


def replaced(name, text, pairs):
    for old, new in pairs:
        assert text.count(old) == 1, f"{name} has no single {old!r} any more"
        text = text.replace(old, new)
    return text


def write_smaller(driver, folder):
    """Copies of the files that a smaller program changes; what includes them finds these first."""
    (folder / "cuda").mkdir(parents=True)
    first, _ = first_barriers(driver)
    for name in {*driver.smaller_sources, *driver.own, *driver.smaller}:
        text = replaced(name, (CUDA / name).read_text(), driver.smaller.get(name, ()))
        text = switch_barriers(text, first[name]) if name in first else text
        (folder / "cuda" / name).write_text(text)
    if driver.float32_alone:
        text = (build.CSRC / "dispatch.h").read_text()
        (folder / "dispatch.h").write_text(replaced("dispatch.h", text, FLOAT32_ALONE))


def program(name, files, sanitizer, folders=(), defines=()):
    return build.build_module(
        [*files, DRIVERS / f"{name}.cpp"],
        name,
        include_dirs=[*folders, DRIVERS],
        defines=defines,
        sanitizer=sanitizer,
    )


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Programs of the smaller sources, in which each barrier of the own one can be left out."""
    folder = tmp_path_factory.mktemp("kernels")

    @functools.cache
    def built(name):
        driver, own = DRIVERS_OF[name], folder / name
        write_smaller(driver, own)
        files = [own / "cuda" / source for source in driver.smaller_sources]
        return program(name, files, "thread", folders=[own])

    return built


def test_every_source_has_a_driver():
    """Each .cu file, and each header with a barrier, is one driver's own; each driver is run."""
    own = [name for driver in DRIVERS_OF.values() for name in driver.own]
    assert len(own) == len(set(own))
    assert {name for name in own if name.endswith(".cu")} == {p.name for p in CUDA.glob("*.cu")}
    headers = {p.name for p in CUDA.glob("*.cuh") if count_barriers(p.read_text())}
    assert headers <= set(own)
    assert set(DRIVERS_OF) == {path.stem for path in DRIVERS.glob("*.cpp")}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("name", "work"), WORK, ids=label)
def test_no_memory_but_their_own(monkeypatch, name, work, order):
    monkeypatch.setenv("RESQUE_CUDA_ON_CPU_ORDER", order)
    files = [CUDA / source for source in DRIVERS_OF[name].sources]
    done = build.run([program(name, files, "address"), *work], sanitizer="address", timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "right\n", "")


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", OLDER)
def test_as_older_gpus_run_them(monkeypatch, name, order):
    """With the code for compute capability 7.5, and its 64 KB of shared memory."""
    monkeypatch.setenv("RESQUE_CUDA_ON_CPU_ORDER", order)
    files = [CUDA / source for source in DRIVERS_OF[name].sources]
    older = program(name, files, "address", defines=["RESQUE_SM=75"])
    done = build.run([older], sanitizer="address", timeout=60)
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

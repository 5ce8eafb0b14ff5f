"""The CUDA kernels touch their own memory alone, do not race, and need each of their barriers."""

import re
from dataclasses import dataclass, field

import pytest

from cuda_on_cpu import build
from cuda_on_cpu.barriers import count_barriers, remove_barrier

pytestmark = pytest.mark.skipif(build.unavailable() is not None, reason=str(build.unavailable()))

CUDA = build.CSRC / "cuda"
DRIVERS = build.Path(__file__).parent / "kernels"
ORDERS = ["forward", "reverse", "random:7"]


@dataclass(frozen=True)
class Driver:
    """A program of kernels/NAME.cpp and the .cu files that it runs, its own first."""

    sources: tuple[str, ...]
    work: tuple[tuple[str, ...], ...] = ((),)  # its arguments, one run each
    # ThreadSanitizer makes a thread of each fiber, 20 us: smaller constants, and the same code.
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
DRIVERS_OF = {
    "class_order": Driver(
        ("class_order.cu",), ((), ("257",)), {"class_order.cu": SMALLER_ORDER}, ((), ("17",))
    ),
    "class_moments": Driver(
        ("class_moments.cu", "class_order.cu"),
        ((), ("1250",)),
        {"class_moments.cu": SMALLER_MOMENTS, "class_order.cu": SMALLER_ORDER},
    ),
    # Its blocks are too many threads for ThreadSanitizer as they stand: memory alone is checked.
    "lloyd_step": Driver(("lloyd_step.cu", "class_order.cu", "class_moments.cu"), less_work=()),
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
BARRIERS = [
    pytest.param(name, index, id=f"{name}-{index}")
    for name, driver in DRIVERS_OF.items()
    if driver.less_work
    for index in range(count_barriers((CUDA / driver.sources[0]).read_text()))
]


def label(value):
    return " ".join(value) or "all" if isinstance(value, tuple) else None


def smaller(driver, source):
    text = (CUDA / source).read_text()
    for old, new in driver.smaller.get(source, ()):
        assert text.count(old) == 1, f"{source} has no single {old!r} any more"
        text = text.replace(old, new)
    return text


def program(name, files, sanitizer):
    return build.build_module(
        [*files, DRIVERS / f"{name}.cpp"], name, include_dirs=[DRIVERS], sanitizer=sanitizer
    )


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The folder of the smaller sources: builds that share a file there compile it once."""
    folder = tmp_path_factory.mktemp("kernels")

    def files_of(name):
        files = []
        for source in DRIVERS_OF[name].sources:
            files.append(folder / f"{name}_{source}")
            files[-1].write_text(smaller(DRIVERS_OF[name], source))
        return files

    return files_of


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
    built = program(name, small(name), "thread")
    done = build.run([built, *work], sanitizer="thread", timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "right\n", "")


@pytest.mark.parametrize(("name", "index"), BARRIERS)
def test_every_barrier_is_needed(small, name, index):
    """Without it there is a race, or a wrong result."""
    files = small(name)
    broken = files[0].with_name(f"without_{index}_{files[0].name}")
    broken.write_text(remove_barrier(files[0].read_text(), index))
    built = program(name, [broken, *files[1:]], "thread")
    for work in DRIVERS_OF[name].less_work:
        done = build.run([built, *work], sanitizer="thread", timeout=60)
        if re.search("ThreadSanitizer: data race", done.stderr) or done.stdout != "right\n":
            return
    pytest.fail(f"nothing is wrong without barrier {index} of {name}")

"""The CUDA kernels touch their own memory alone, do not race, and need each of their barriers."""

import re

import pytest

from cuda_on_cpu import build
from cuda_on_cpu.barriers import count_barriers, remove_barrier

pytestmark = pytest.mark.skipif(build.unavailable() is not None, reason=str(build.unavailable()))

MAIN = build.Path(__file__).parent / "kernels_main.cpp"
SOURCES = {path.name: path.read_text() for path in sorted((build.CSRC / "cuda").glob("*.cu"))}
ORDERS = ["forward", "reverse", "random:7"]
WORK = [("order",), ("order-many", "257"), ("moments",), ("moments-many", "1250")]
# ThreadSanitizer makes a thread of each fiber, 20 us: fewer digits and blocks, and the same code.
SMALLER = {
    "class_order.cu": [("kDigitBits = 8", "kDigitBits = 6"), ("kThreads = 256", "kThreads = 64")],
    "class_moments.cu": [("min(job.windows, int64_t{1024})", "min(job.windows, int64_t{2})")],
}
LESS_WORK = [("order",), ("order-many", "17"), ("moments",)]
BARRIERS = [
    pytest.param(name, index, id=f"{name}-{index}")
    for name, text in SOURCES.items()
    for index in range(count_barriers(text))
]


def smaller(name):
    text = SOURCES[name]
    for old, new in SMALLER.get(name, []):
        assert text.count(old) == 1, f"{name} has no single {old!r} any more"
        text = text.replace(old, new)
    return text


def kernels(folder, texts, sanitizer):
    """The program with these sources in place of those of csrc/cuda."""
    for name, text in texts.items():
        (folder / name).write_text(text)
    files = [folder / name if name in texts else build.CSRC / "cuda" / name for name in SOURCES]
    return build.build_module([*files, MAIN], "kernels", sanitizer=sanitizer)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The folder of the smaller sources: builds that share a file there compile it once."""
    folder = tmp_path_factory.mktemp("kernels")
    return folder, kernels(folder, {name: smaller(name) for name in SOURCES}, "thread")


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("work", WORK, ids=" ".join)
def test_no_memory_but_their_own(monkeypatch, tmp_path, work, order):
    monkeypatch.setenv("RESQUE_CUDA_ON_CPU_ORDER", order)
    program = kernels(tmp_path, {}, "address")
    done = build.run([program, *work], sanitizer="address", timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "right\n", "")


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("work", LESS_WORK, ids=" ".join)
def test_no_races(monkeypatch, small, work, order):
    monkeypatch.setenv("RESQUE_CUDA_ON_CPU_ORDER", order)
    done = build.run([small[1], *work], sanitizer="thread", timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "right\n", "")


@pytest.mark.parametrize(("name", "index"), BARRIERS)
def test_every_barrier_is_needed(small, name, index):
    """Without it there is a race, or a wrong result."""
    folder, program = small
    broken = folder / f"without_{index}_{name}"
    broken.write_text(remove_barrier(smaller(name), index))
    files = [broken if other == name else folder / other for other in SOURCES]
    program = build.build_module([*files, MAIN], "kernels", sanitizer="thread")
    for work in LESS_WORK[2:] if name == "class_moments.cu" else LESS_WORK[:2]:
        done = build.run([program, *work], sanitizer="thread", timeout=60)
        if re.search("ThreadSanitizer: data race", done.stderr) or done.stdout != "right\n":
            return
    pytest.fail(f"nothing is wrong without barrier {index} of {name}")

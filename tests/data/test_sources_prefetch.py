"""Reading ahead: the same batches, errors passed on, and no thread that outlives its reader."""

import os
import signal
import subprocess
import sys
import threading
import time
import traceback

import pytest
import torch

from resque_ext.data import prefetch as module
from resque_ext.data.prefetch import prefetch

BEFORE: set[threading.Thread] = set()


@pytest.fixture(autouse=True)
def _before():
    """Threads that other tests' failed readings have left, until they are collected."""
    BEFORE.clear()
    BEFORE.update(threading.enumerate())


def threads():
    """Those of this test alone."""
    return [t for t in threading.enumerate() if t.name == "resque_ext.prefetch" and t not in BEFORE]


def batches(count=20, closed=None):
    try:
        for i in range(count):
            yield {"x": torch.full((2,), i)}, torch.tensor([i, i])
    finally:
        if closed is not None:
            closed.append(threading.current_thread().name)


@pytest.mark.parametrize("depth", [1, 2, 50])
def test_the_same_batches_in_the_same_order(depth):
    closed = []
    found = [(int(x["x"][0]), y.tolist()) for x, y in prefetch(batches(20, closed), depth=depth)]
    assert found == [(i, [i, i]) for i in range(20)]
    assert closed == ["resque_ext.prefetch"]
    assert threads() == []
    assert list(prefetch([])) == []


def test_no_more_is_read_than_asked():
    read = []

    def counted():
        for i in range(50):
            read.append(i)
            yield i

    ahead = prefetch(counted(), depth=3)
    assert next(ahead) == 0
    for _ in range(200):
        time.sleep(0.005)
        if len(read) == 5:
            break
    time.sleep(0.05)
    assert read == [0, 1, 2, 3, 4]  # one taken, three waiting, one in the thread's hand
    ahead.close()
    assert threads() == []


def test_reading_goes_on_while_the_reader_works():
    """Two things wait for each other: without a thread this would never end."""
    reached = threading.Event()

    def waits():
        yield 1
        reached.set()
        yield 2

    for item in prefetch(waits()):
        if item == 1:
            assert reached.wait(10)


def fails():
    yield 1
    raise KeyError("of the source")


def test_an_error_is_raised_here_with_its_traceback():
    ahead = prefetch(fails())
    assert next(ahead) == 1
    with pytest.raises(KeyError, match="of the source") as caught:
        next(ahead)
    assert "in fails" in "".join(traceback.format_tb(caught.value.__traceback__))
    assert threads() == []
    with pytest.raises(TypeError, match="'int' object is not iterable"):
        next(prefetch(5))


@pytest.mark.parametrize("how", ["break", "error", "close", "forgotten"])
def test_no_thread_is_left_when_the_reader_stops(how):
    closed = []
    ahead = prefetch(batches(1_000, closed), depth=1)
    if how == "error":
        with pytest.raises(ZeroDivisionError):
            sum(1 / 0 for _ in ahead)
        ahead.close()
    else:
        for _ in ahead:
            break
    if how == "close":
        ahead.close()
    del ahead
    assert threads() == []
    assert closed == ["resque_ext.prefetch"]


def test_a_batch_keeps_its_form():
    batch = [torch.ones(2), {"a": (torch.zeros(1), "text")}]
    (found,) = prefetch([batch])
    assert isinstance(found, list)
    assert isinstance(found[1]["a"], tuple)
    assert found[1]["a"][1] == "text"


def test_nothing_starts_before_the_first_is_wanted():
    ahead = prefetch(batches())
    assert threads() == []
    ahead.close()


@pytest.mark.parametrize(("depth", "error"), [(0, ValueError), (1.5, TypeError), (True, TypeError)])
def test_a_depth_that_is_refused(depth, error):
    with pytest.raises(error, match="depth: expected"):
        prefetch([], depth=depth)


def test_an_interrupt_ends_it(tmp_path):
    """Ctrl-C while the source gives nothing for long: the program ends at once."""
    program = (
        "import signal, time\n"
        # A job in the background of a shell is begun with this signal ignored, and passes that on.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from resque_ext.data.prefetch import prefetch\n"
        "def slow():\n"
        "    yield 1\n"
        "    while True:\n"
        "        time.sleep(0.05)\n"
        "        yield 2\n"
        "print('ready', flush=True)\n"
        "for item in prefetch(slow()):\n"
        "    pass\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout.readline() == "ready\n"
        time.sleep(0.3)
        os.kill(child.pid, signal.SIGINT)
        _, errors = child.communicate(timeout=30)
    finally:
        child.kill()
    assert "KeyboardInterrupt" in errors
    assert child.returncode != 0


class FakeStream:
    def __init__(self, device=None):
        self.waited = []

    def wait_event(self, event):
        self.waited.append(event)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None


class FakeEvent:
    def record(self, stream):
        self.stream = stream


def test_copies_to_a_device_are_ordered_by_events(monkeypatch):
    """The order of calls, on a device that is none: what a stream must wait for, it waits for."""
    work, made, recorded = FakeStream(), [], []
    monkeypatch.setattr(torch.cuda, "Stream", lambda d: made.append(FakeStream()) or made[-1])
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: work)
    monkeypatch.setattr(torch.cuda, "device", lambda device: FakeStream())
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: x)
    monkeypatch.setattr(torch.Tensor, "to", lambda x, device, non_blocking=False: x.clone())
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda x, s: recorded.append(s))
    found = [int(y[0]) for _, y in prefetch(batches(5), "cuda")]
    assert found == list(range(5))
    assert [event.stream for event in work.waited] == [made[0]] * 5
    assert recorded == [work] * 10  # both tensors of each batch
    assert module._CudaCopies(torch.device("cuda")).device == torch.device("cuda", 0)

"""Batches that are read, and copied to the device, while the ones before are worked on."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from queue import Empty, Queue
from typing import Any

import torch
from torch import Tensor

from resque_ext.data.checks import check_count


def prefetch(
    batches: Iterable[Any], device: str | torch.device = "cpu", depth: int = 2
) -> Iterator[Any]:
    """The same batches in the same order, read ahead by a thread and on `device` when they come.

    For CUDA they go through pinned memory on a stream of their own; the caller's stream waits for a
    batch's copy, the host for nothing.

    Args:
        batches: read by the thread alone; closed by it, too, where it is a generator.
        device: where the tensors of a batch are wanted.
        depth: batches that are read ahead at most, at least 1.

    An exception of `batches` is raised here, with its traceback, behind the batches before it. When
    the caller stops early (an exception, an interrupt, a `break`, `close()`), the thread has ended
    before control goes on, after the batch that it is reading.

    Raises:
        TypeError, ValueError: of `depth`, at once.
    """
    return _ahead(batches, torch.device(device), check_count(depth, "depth"))


class _Failed:
    """What went wrong in the thread."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


_END = object()


def _ahead(batches: Iterable[Any], device: torch.device, depth: int) -> Iterator[Any]:
    place = _CudaCopies(device) if device.type == "cuda" else _HostCopies(device)
    queue: Queue[Any] = Queue(depth)
    stopped = threading.Event()

    def read() -> None:
        iterator = None
        try:
            iterator = iter(batches)
            for batch in iterator:
                queue.put(place.send(batch))
                del batch
                if stopped.is_set():
                    return
            queue.put(_END)
        # To the caller, whatever it is.
        except BaseException as error:
            queue.put(_Failed(error))
        finally:
            if hasattr(iterator, "close"):
                iterator.close()

    thread = threading.Thread(target=read, name="resque_ext.prefetch", daemon=True)
    thread.start()
    try:
        while (item := queue.get()) is not _END:
            if isinstance(item, _Failed):
                try:
                    raise item.error
                finally:
                    del item  # whose traceback has this frame
            yield place.receive(item)
            del item
    finally:
        # From here on the thread puts one item at most, and finds room for it.
        stopped.set()
        try:
            while True:
                queue.get_nowait()
        except Empty:
            thread.join()


class _HostCopies:
    """Batches on the CPU: as they are, but for tensors that lie elsewhere."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def send(self, batch: Any) -> Any:
        return moved(batch, lambda x: x.to(self.device))

    def receive(self, sent: Any) -> Any:
        return sent


class _CudaCopies:
    """Copies through pinned memory on a stream of their own.

    torch's allocators do the guarding: pinned memory is lent again only behind the copy that read
    it, and `record_stream` keeps the device's memory until the caller's work on it is over.
    """

    def __init__(self, device: torch.device) -> None:
        index = torch.cuda.current_device() if device.index is None else device.index
        self.device = torch.device("cuda", index)
        self.stream = torch.cuda.Stream(self.device)

    def send(self, batch: Any) -> Any:
        def copy(x: Tensor) -> Tensor:
            if x.device.type != "cpu":
                return x.to(self.device)
            return x.pin_memory().to(self.device, non_blocking=True)

        with torch.cuda.device(self.device), torch.cuda.stream(self.stream):
            there = moved(batch, copy)
            copied = torch.cuda.Event()
            copied.record(self.stream)
        return there, copied

    def receive(self, sent: Any) -> Any:
        there, copied = sent
        work = torch.cuda.current_stream(self.device)
        work.wait_event(copied)

        def keep(x: Tensor) -> Tensor:
            x.record_stream(work)
            return x

        return moved(there, keep)


def moved(x: Any, call: Any) -> Any:
    """`call` of every tensor of a batch; what is none stays as it is."""
    if isinstance(x, Tensor):
        return call(x)
    if isinstance(x, Mapping):
        return {key: moved(value, call) for key, value in x.items()}
    if type(x) in (tuple, list):
        return type(x)(moved(value, call) for value in x)
    return x

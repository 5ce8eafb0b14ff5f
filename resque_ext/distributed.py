"""Several processes on one dataset: each reads its share, and all end with the whole.

Under `torchrun`, or any other start of `torch.distributed`:

    with Ranks() as ranks:
        for x, y in ranks.watch(batches_of_my_share):
            acc.update(x, y, "old")
        ranks.all_reduce(acc)

or, of a model, `score(..., ranks=ranks)`.

A rank that fails, or dies, is an error on all ranks, wherever they are: in `watch`, at the next
batch; in `all_reduce`, at once; none waits for what will never come.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from datetime import timedelta
from types import TracebackType
from typing import Any, TypeVar

import safetensors.torch
import torch
import torch.distributed as dist
from torch import Tensor

from resque_ext.data.checks import check_count, describe
from resque_ext.errors import ArgumentError, ArgumentTypeError
from resque_ext.indices import ACCUMULATORS
from resque_ext.indices.base import Accumulator, Index

__all__ = ["RankError", "Ranks", "Share", "share"]

T = TypeVar("T")
_NOTE = 4096  # bytes of what ranks tell each other before they exchange anything
_INTERVAL = 1.0  # seconds between two looks at whether all ranks are there
_READING, _DONE, _FAILED = range(3)


class RankError(RuntimeError):
    """Another rank failed or was lost."""


def share(rows: int, rank: int, size: int) -> range:
    """The rows that a rank reads: one run of them, no row twice, none left out, none padded."""
    check_count(rows, "rows", least=0)
    check_count(size, "size")
    if not 0 <= rank < size:
        raise ArgumentError("rank", f"0 <= rank < size = {size}", f"{rank!r}")
    return range(rows * rank // size, rows * (rank + 1) // size)


class Share(torch.utils.data.Sampler[int]):
    """A sampler for a DataLoader: this rank's share of a dataset, in its order.

    Unlike torch's DistributedSampler it repeats no sample to make the shares equal.

    Args:
        dataset: with a length.
        rank, size: by default those of `torch.distributed`; 0 and 1 where that was not started.
    """

    def __init__(self, dataset: Sized, rank: int | None = None, size: int | None = None) -> None:
        here = _here()
        self.rows = share(
            len(dataset), here[0] if rank is None else rank, here[1] if size is None else size
        )

    def __iter__(self) -> Iterator[int]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)


def _here() -> tuple[int, int]:
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


class Ranks:
    """The processes of `torch.distributed`, watched; one alone where that was not started.

    Gloo and NCCL. A context manager that all ranks enter and leave together. Tensors on the CPU go
    through a gloo group of its own, those on CUDA through the default group.

    Args:
        timeout: seconds after which a rank that gives no sign of life is lost. A thread of its own
            gives one every second, so a rank may take as long as it likes over a batch, and the
            others wait for it. One whose process ended is found sooner.

    Attributes:
        rank, size: of this process, and how many there are.
    """

    def __init__(self, timeout: float = 30.0) -> None:
        if not timeout > 0:
            raise ArgumentError("timeout", "seconds above 0", f"{timeout!r}")
        self.rank, self.size = _here()
        self.timeout = timeout
        self._watch: _Watch | None = None  # stays after a failure, to say what it was
        self._group: Any = None
        self._work: Any = None  # the last collective
        self._inside = False
        self._call = 0  # how many times this rank has begun something that all do together

    def __enter__(self) -> Ranks:
        if self._inside:
            raise ArgumentError("ranks", "to be entered once at a time", "inside already")
        self._inside = True
        if self.size > 1:
            limit = timedelta(seconds=self.timeout)
            self._group = dist.new_group(backend="gloo", timeout=limit)
            self._watch = _Watch(dist.new_group(backend="gloo", timeout=limit), self.size)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._inside = False
        if self._watch is None:
            return
        failure = None if error is None else f"{type(error).__name__}: {error}"
        self._watch.end(failure)
        if error is not None:
            return
        self._watch.check()
        self._leave()

    def _leave(self) -> None:
        """Ends the groups, and with them gloo's threads, when all ranks are done.

        A thread of gloo lets go of a collective only after whoever waited for it went on. If it was
        the last to hold it, it then needs the interpreter, for the tensors: where that has ended
        meanwhile, the process aborts; where that waits for the thread to end, neither ever does.
        So threads end here, while what they may still hold is held here too. After a failure the
        groups stay: a thread may wait, until its time is up, for a rank that will never come.
        """
        assert self._watch is not None
        work, watch = self._work, self._watch
        groups = [self._group, watch.group]
        self._work = self._group = self._watch = watch.group = None
        while groups:
            dist.destroy_process_group(groups.pop())  # the last reference: joins its threads
        del work, watch

    def watch(self, batches: Iterable[T]) -> Iterator[T]:
        """The batches, as long as all ranks are well.

        Raises:
            RankError: another rank failed or was lost.
        """
        for batch in batches:
            self.check()
            yield batch
        self.check()

    def check(self) -> None:
        """Raises RankError where another rank is known to have failed; costs next to nothing."""
        if self._watch is not None:
            self._watch.check()

    def all_reduce(self, *accumulators: Any) -> None:
        """Makes every accumulator, on every rank, that of the data of all ranks.

        As if the data of rank 0 had come first, then that of rank 1, and so on: counts are equal to
        those of one process that reads all, and so are values to rounding. Ranks without data take
        part. States of all but ResqueDist are on the CPU after it.

        Args:
            accumulators: ResqueDist, RepresentationDistance, Arm, LinearResidual or another
                :class:`resque_ext.indices.base.Accumulator`, the same on all ranks.

        Raises:
            RankError: another rank failed or was lost.
            ValueError: the ranks' accumulators do not fit together; the same on all ranks.
        """
        for accumulator in accumulators:
            if not isinstance(accumulator, (Accumulator, Index)):
                raise ArgumentTypeError(
                    "accumulators",
                    ", ".join(c.__name__ for c in ACCUMULATORS),
                    describe(accumulator),
                )
        self.begin_call()
        if self.size == 1:
            return
        for accumulator in accumulators:
            accumulator.reduce(self)

    def begin_call(self) -> None:
        """Counts what all ranks do together, so that nothing of one call is taken for another's.

        A rank on which a call failed may go on to the next one while the others still wait in the
        first: `exchange` finds that out.
        """
        self.expect_entered()
        self._call += 1

    def gather(self, value: Any) -> list[Any]:
        """What every rank gives, by rank: of JSON, and of any length."""
        self.expect_entered()
        if self.size == 1:
            return [value]
        mine = json.dumps(value).encode()
        sizes = [note["bytes"] for note in self.exchange({"bytes": len(mine)})]
        return [json.loads(data) for data in self._broadcasts(mine, sizes)]

    def total(self, values: Tensor) -> Tensor:
        """The sum over all ranks, of one shape on all, on the CPU: the same bits on all ranks."""
        self.expect_entered()
        sums = values.detach().cpu().clone()
        if self.size > 1:
            self.exchange({"total": list(sums.shape)})
            self._together(dist.all_reduce, sums, group=self._group)
        return sums

    def expect_entered(self) -> None:
        """What is done together needs the watch; one process alone does not.

        Raises:
            ValueError: outside of `with Ranks() as ranks:`.
        """
        if self.size > 1 and self._watch is None:
            raise ArgumentError("ranks", "to be inside of `with Ranks() as ranks:`", "outside")

    @property
    def device(self) -> torch.device:
        """Where a rank without data has to have what the others have."""
        cuda = self.size > 1 and "nccl" in str(dist.get_backend())
        return torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")

    def gather_states(
        self, state: Mapping[str, Tensor], note: Mapping[str, Any]
    ) -> Iterator[dict[str, Tensor]]:
        """The state of every rank in the order of the ranks, on the CPU, one at a time.

        Args:
            note: says what it is a state of, and has to be the same on all ranks.
        """
        self.expect_entered()
        if self.size == 1:
            yield dict(state)
            return
        mine = safetensors.torch.save({k: v.cpu().contiguous() for k, v in state.items()})
        notes = self.exchange({**note, "bytes": len(mine)})
        sizes = [each.pop("bytes") for each in notes]
        self.expect_equal(notes)
        for data in self._broadcasts(mine, sizes):
            yield safetensors.torch.load(data)

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        """Every rank's tensor, of one shape and kind of device on all."""
        found = [torch.empty_like(tensor) for _ in range(self.size)]
        self._together(dist.all_gather, found, tensor, group=self._group_of(tensor))
        return found

    def add_up(self, tensor: Tensor) -> None:
        """Makes the tensor, in place, the sum over all ranks."""
        self._together(dist.all_reduce, tensor, group=self._group_of(tensor))

    def _broadcasts(self, mine: bytes, sizes: list[int]) -> Iterator[bytes]:
        """The bytes of every rank, one rank after another, whose numbers all know."""
        for rank, size in enumerate(sizes):
            data = torch.empty(size, dtype=torch.uint8)
            if rank == self.rank:
                data = torch.frombuffer(bytearray(mine), dtype=torch.uint8)
            self._together(dist.broadcast, data, rank, group=self._group)
            yield data.numpy().tobytes()

    def exchange(self, note: dict[str, Any]) -> list[dict[str, Any]]:
        """What every rank says, by rank; at the same time the place where all are known to be.

        Args:
            note: of JSON, 4 KB at most.

        Raises:
            RankError: the ranks are in different calls, as after one that failed on some of them.
        """
        notes = [torch.empty(_NOTE, dtype=torch.uint8) for _ in range(self.size)]
        self._together(
            dist.all_gather, notes, _packed({**note, "call": self._call}), group=self._group
        )
        found = [_unpacked(n) for n in notes]
        calls = [each.pop("call") for each in found]
        if len(set(calls)) > 1:
            last = max(range(self.size), key=calls.__getitem__)
            assert self._watch is not None
            raise self._watch.give_up(
                f"rank {last} is in a later call than others, because one failed on it; "
                "leave `with Ranks()` after an error and enter a new one"
            )
        return found

    @staticmethod
    def expect_equal(notes: list[dict[str, Any]]) -> None:
        """Raises ValueError, the same on all ranks, where one said something else."""
        for rank, note in enumerate(notes):
            if note != notes[0]:
                raise ArgumentError(
                    "accumulators",
                    "the same on all ranks",
                    f"{notes[0]} on rank 0 and {note} on rank {rank}",
                )

    def _group_of(self, tensor: Tensor) -> Any:
        return self._group if tensor.device.type == "cpu" else None

    def _together(self, collective: Callable[..., Any], *args: Any, group: Any) -> None:
        """A collective, which waits for a slow rank, but not for one that will never come.

        The group's own timeout counts from the start of a collective, so it starts when all ranks
        have come to it.
        """
        assert self._watch is not None
        self._watch.meet()
        self._work = work = collective(*args, group=group, async_op=True)
        for _ in self._watch.patience():
            if work.is_completed():
                break
        try:
            work.wait()
        except RuntimeError as error:
            raise self._watch.lost(str(error)) from error


class _Watch:
    """A thread that exchanges a sign of life with the other ranks', until all are done."""

    def __init__(self, group: Any, size: int) -> None:
        self.group, self._size = group, size
        self._work: Any = None  # held: see Ranks._leave
        self._note: dict[str, Any] = {"state": _READING, "met": 0}
        self._notes: list[dict[str, Any]] = []  # what all ranks said last
        self._failure: str | None = None
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="resque_ext ranks", daemon=True)
        self._thread.start()

    def check(self) -> None:
        if self._failure is not None:
            raise RankError(self._failure)

    def patience(self) -> Iterator[None]:
        """For loops that wait for other ranks: at once, then after ever longer pauses.

        Raises:
            RankError: another rank failed or was lost.
        """
        pause = 1e-4
        while True:
            self.check()
            yield
            time.sleep(pause)
            pause = min(2 * pause, 0.02)

    def meet(self) -> None:
        """Waits until all ranks have called this as often, however long one takes.

        Raises:
            RankError: another rank failed, was lost or left without having come here.
        """
        met = self._note["met"] + 1
        self._note = self._note | {"met": met}
        self._wake.set()
        for _ in self.patience():
            late = [r for r, note in enumerate(self._notes) if note["met"] < met]
            if self._notes and not late:
                return
            left = [r for r in late if self._notes[r]["state"] == _DONE]
            if left:
                raise RankError(f"rank {left[0]} left before all had reduced their data")

    def give_up(self, failure: str) -> RankError:
        """What to raise now, and from now on, where the ranks cannot go on together."""
        self._failure = self._failure or failure
        return RankError(self._failure)

    def lost(self, reason: str) -> RankError:
        """What to raise where a collective failed: the reason that is known, else that one."""
        self._thread.join(2 * _INTERVAL)
        return RankError(self._failure or _lost(reason))

    def end(self, failure: str | None) -> None:
        """Tells the others that this rank is done, or what it failed with, and waits for them."""
        state = _DONE if failure is None else _FAILED
        self._note = self._note | {"state": state, "failure": failure}
        self._wake.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            while True:
                mine = self._note
                notes = [torch.empty(_NOTE, dtype=torch.uint8) for _ in range(self._size)]
                self._work = dist.all_gather(notes, _packed(mine), self.group, async_op=True)
                self._work.wait()
                self._notes = found = [_unpacked(note) for note in notes]
                failed = [r for r, note in enumerate(found) if note["state"] == _FAILED]
                if failed:
                    self._failure = f"rank {failed[0]} failed: {found[failed[0]]['failure']}"
                    return
                if all(note["state"] == _DONE for note in found):
                    return
                # Who waits for the others lets them set the pace.
                waits = any(note["met"] < self._note["met"] for note in found)
                if waits or self._note["state"] == _DONE:
                    time.sleep(0.01)
                else:
                    self._wake.wait(_INTERVAL)
                self._wake.clear()
        except RuntimeError as error:  # of gloo: a connection that is closed, or a time that is up
            self._failure = _lost(str(error))


def _lost(reason: str) -> str:
    return f"a rank was lost: {' '.join(reason.split())[:300]}"


def _packed(note: dict[str, Any]) -> Tensor:
    """JSON in a tensor of fixed size, cut where a text in it is too long."""
    text = json.dumps(note).encode()
    while len(text) > _NOTE:
        note = note | {"failure": str(note["failure"])[: len(str(note["failure"])) // 2] + "..."}
        text = json.dumps(note).encode()
    return torch.frombuffer(bytearray(text.ljust(_NOTE)), dtype=torch.uint8)


def _unpacked(note: Tensor) -> dict[str, Any]:
    found = json.loads(bytes(note.numpy()))
    assert isinstance(found, dict)
    return found

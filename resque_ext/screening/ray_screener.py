"""A screening whose pairs are read by Ray's workers: one task a pair, on one machine or many.

This process runs every model over its old data, keeps the store and puts the table together. A
worker gets a model's state after its old data as bytes, makes the model itself, and reads its pair
just as it would be read here. The task of a worker that dies is given to another.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from resque_ext.errors import ArgumentError
from resque_ext.model.digest import weights_digest
from resque_ext.screening.old_side import OldSide
from resque_ext.screening.pair_reading import error_line, failed
from resque_ext.screening.progress import Progress
from resque_ext.screening.results import PairResult
from resque_ext.screening.screener import Plan, Screener
from resque_ext.screening.store import Finished, NoStore, PairKey, Store

log = logging.getLogger(__name__)
MAX_RETRIES = 3  # of a task whose worker is lost
AHEAD = 2  # tasks under way for each core: one that runs and one that waits


def check_plan(plan: Plan) -> None:
    """Whether pairs that know nothing of each other can do what is planned, and Ray is there.

    Raises:
        ValueError: they cannot.
        ModuleNotFoundError: Ray is not installed.
    """
    if plan.budget.seconds is not None or plan.budget.samples is not None:
        raise ArgumentError(
            "scheduler",
            "no budget with 'ray', because no pair knows what the others spend",
            plan.budget,
        )
    if plan.anytime:
        raise ArgumentError(
            "scheduler",
            "anytime=False with 'ray', because when a pair may stop "
            "depends on all others of its model",
            "anytime=True",
        )
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # what Ray starts then says nothing
    try:
        import ray  # noqa: F401
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "scheduler: expected Ray to be installed for 'ray' (pip install "
            "'resque-ext[distributed]'), found no module 'ray'"
        ) from None


class RayScreener(Screener):
    """Does what a plan says, with the pairs in Ray's workers.

    Args:
        workers: processes of the cluster that is started; None: one for each core. A cluster that
            this process has joined already (`ray.init`) is used as it is, and then it is the number
            of tasks that are under way at once.
    """

    def __init__(
        self, plan: Plan, store: Store, progress: Progress, workers: int | None = None
    ) -> None:
        super().__init__(plan, store, progress)
        self._workers = workers
        self._under_way: dict[Any, PairKey] = {}  # by what stands for the result
        self._token = uuid.uuid4().hex  # a cluster's workers may see several screenings

    def run(self) -> list[PairResult]:
        if len(self.finished) == len(self.plan.feeds):
            return super().run()  # nothing to start a cluster for
        with _cluster(self._workers) as self._at_once:
            try:
                return super().run()
            finally:
                self._cancel()

    def _one_by_one(self, old: OldSide, keys: list[PairKey]) -> None:
        """Hands the pairs out; of other models and candidates a worker has to know nothing."""
        import ray

        plan, name = self.plan, old.name
        missing = [key for key in keys if key not in self.finished]
        lost = [each for each, index in old.indices.items() if not index.is_storable]
        if lost:
            found = f"{lost[0]!r}, which has no state_dict"
            expected = "indices: expected those whose state can be sent to workers"
            self._fail(missing, ValueError(f"{expected}, found {found}"))
            return
        try:
            digest = self._digest(old)
        except Exception as error:  # of building the model, where no old side was run before
            self._fail(missing, error)
            return
        mine = dataclasses.replace(
            plan,
            models={name: old.entry},
            old={},
            candidates={},
            feeds={},
            device=torch.device(plan.device.type),  # of GPUs a worker sees its own alone
            batch_size=old.batch_size,
        )
        read = old.reads_old and plan.old[name] is not None
        shared = ray.put((mine, digest, old.to_bytes() if read else None))
        needs = {"num_cpus": 1, "num_gpus": int(plan.device.type == "cuda")}
        task = ray.remote(_read).options(max_retries=MAX_RETRIES, **needs)
        for key in missing:
            while len(self._under_way) >= self._at_once:
                self._collect()
            self.progress.begin(f"{name}: {key[1]}")
            candidate = plan.candidates[key[1]]
            again = plan.reads_old_again(candidate)
            data = candidate, plan.feeds[key], plan.old[name] if again else None
            # In a list it is fetched where it is not there yet, and not for every task.
            self._under_way[task.remote(self._token, [shared], key, *data)] = key

    def _settle(self) -> None:
        while self._under_way:
            self._collect()

    def _collect(self) -> None:
        """Waits for a task, and puts what it found into the store."""
        import ray

        (done,), _ = ray.wait(list(self._under_way), num_returns=1)
        key = self._under_way.pop(done)
        try:
            result = PairResult.from_json(ray.get(done))
        except ray.exceptions.RayError as error:
            found = _reason(error)
            if self.plan.on_error == "raise":
                raise found from None
            log.warning("%s, %s: %s", *key, error_line(found))
            result = failed(*key, found, available=self.plan.feeds[key].rows)
        self._finish(Finished(result))

    def _cancel(self) -> None:
        """What is still under way after an error or an interrupt: nobody waits for it any more."""
        import ray

        for task in self._under_way:
            ray.cancel(task, force=True)
        self._under_way.clear()


def _reason(error: Exception) -> Exception:
    """What a task failed with: with on_error="record" only what the worker could not tell."""
    import ray

    cause = getattr(error, "cause", error)
    if not isinstance(cause, ray.exceptions.RayError):
        return cause
    if isinstance(cause, ray.exceptions.RaySystemError):
        line = str(cause).partition("\n")[0]
        return RuntimeError(f"expected a pair that workers can unpack, found {line}")
    return RuntimeError(
        f"expected a worker that lives to read the pair, found {1 + MAX_RETRIES} lost "
        f"({type(cause).__name__})"
    )


@contextlib.contextmanager
def _cluster(workers: int | None) -> Iterator[int]:
    """The cluster that this process has joined, or one of its own for the time.

    Yields how many tasks to have under way in it.
    """
    import ray

    mine = not ray.is_initialized()
    if mine:
        start(workers)
    try:
        cores = max(1, int(ray.cluster_resources().get("CPU", 1)))
        yield AHEAD * cores if mine or workers is None else workers
    finally:
        if mine:
            ray.shutdown()


def start(workers: int | None) -> None:
    """Starts a cluster on this machine; its workers import what this process can import."""
    import ray

    path = os.pathsep.join(place or str(Path.cwd()) for place in sys.path)
    ray.init(
        address="local",
        num_cpus=workers,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        runtime_env={"env_vars": {"PYTHONPATH": path}},
    )


# In a worker: the model of the last task, for the next one is most likely of it too, and what was
# wrong with it.
_last: tuple[tuple[str, str], Plan, OldSide, Exception | None] | None = None


def _read(
    token: str, shared: list[Any], key: PairKey, candidate: Any, feed: Any, old_feed: Any
) -> str:
    """One pair, as JSON, read in the way of a screening that has no other."""
    plan, old, error = _model(token, shared, key[0])
    plan = dataclasses.replace(
        plan, old={key[0]: old_feed}, candidates={key[1]: candidate}, feeds={key: feed}
    )
    screener = Screener(plan, NoStore(), Progress())
    if error is None:
        screener._one_by_one(old, [key])
    else:
        screener._fail([key], error)
    return screener.finished[key].result.to_json()


def _model(token: str, shared: list[Any], name: str) -> tuple[Plan, OldSide, Exception | None]:
    """The plan, and the model after its old data, or why there is none."""
    import ray

    global _last
    if _last is None or _last[0] != (token, name):
        _last = None  # gone before the next one is built: it may be large
        plan, digest, state = ray.get(shared[0])
        old = Screener(plan, NoStore(), Progress()).fresh_side(name)
        error = None
        try:
            if old.entry.make is not None and weights_digest(old.model) != digest:  # type: ignore[arg-type]
                raise ArgumentError(
                    f"models[{name!r}]",
                    "a function that makes the same weights each time",
                    "others in a worker",
                )
            if state is not None:
                old.load_bytes(state)
        except Exception as found:
            error = found
        _last = (token, name), plan, old, error
    return _last[1:]

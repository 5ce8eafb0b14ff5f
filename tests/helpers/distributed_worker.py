"""One rank of a test of several processes: python distributed_worker.py SCENARIO FOLDER RANK SIZE.

Writes what it found to FOLDER/RANK.json.
"""

import json
import os
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, TensorDataset

from resque_ext import Arm, RepresentationDistance, ResqueDist, distributed

CLASSES, WIDTH, ROWS = 5, 7, 211  # no size divides the rows


def dataset(side):
    generator = torch.Generator().manual_seed(("old", "new").index(side))
    labels = torch.randint(CLASSES, (ROWS,), generator=generator)
    centres = torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(7))
    x = torch.randn(ROWS, WIDTH, generator=generator) + centres[labels]
    return x + 0.5 * (side == "new"), labels


def own_rows(ranks, side):
    """This rank's share in batches; with four ranks the second has nothing of either side."""
    x, y = dataset(side)
    cuts = {1: [0, ROWS], 2: [0, 50, ROWS], 4: [0, 90, 90, 91, ROWS]}[ranks.size]
    rows = range(cuts[ranks.rank], cuts[ranks.rank + 1])
    for start in range(rows.start, rows.stop, 16):
        part = slice(start, min(start + 16, rows.stop))
        yield x[part], y[part]


def reduced(ranks, **options):
    acc = ResqueDist(CLASSES, **options)
    for side in ("old", "new"):
        for x, y in ranks.watch(own_rows(ranks, side)):
            acc.update(x, y, side)
    return acc


def sums(ranks):
    acc = reduced(ranks)
    ranks.all_reduce(acc)
    found = acc.compute()
    debiased = acc.debiased()
    state = {k: v.tolist() for k, v in acc.state_dict().items() if k.endswith(("counts", "seen"))}
    return found.to_dict() | {"state": state, "debiased": [debiased.low, debiased.high]}


def grown(ranks):
    """Of a number of classes that no rank knows."""
    acc = ResqueDist(1)
    for side in ("old", "new"):
        for x, y in own_rows(ranks, side):
            acc.grow(int(y.max()) + 1)
            acc.update(x, y, side)
    ranks.all_reduce(acc)
    return acc.compute().to_dict()


def layers(ranks):
    """All accumulators in one call, and more data after it."""
    everything = [Arm(), Arm(per="filter"), Arm(exact=True), RepresentationDistance(bins=(16,))]
    pairs = zip(own_rows(ranks, "old"), own_rows(ranks, "new"), strict=True)
    for (old, _), (new, _) in ranks.watch(pairs):
        for acc in everything[:3]:
            acc.update({"a": old, "b": old[:, :3]}, side="old")
            acc.update({"a": new, "b": new[:, :3]}, side="new")
        everything[3].update({"a": (old, new)})
    ranks.all_reduce(*everything)
    return [acc.compute().to_dict() for acc in everything]


def loader(ranks):
    data = TensorDataset(torch.arange(ROWS))
    return [int(i) for (i,) in ranks.watch(DataLoader(data, sampler=distributed.Share(data)))]


def agree(ranks):
    return {each.__name__: each(ranks) for each in (sums, grown, layers)}, loader(ranks)


def failing(ranks):
    """The last rank fails while it reads; the first waits in all_reduce, the others read."""
    acc = reduced(ranks)
    if ranks.rank == ranks.size - 1:
        time.sleep(0.5)
        raise ValueError("features: expected finite values, found NaN" + " and so on" * 1000)
    if ranks.rank > 0:
        for _ in ranks.watch(iter(lambda: time.sleep(0.01), 1)):
            pass
    ranks.all_reduce(acc)


def killed(ranks):
    acc = reduced(ranks)
    if ranks.rank == ranks.size - 1:
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)
    if ranks.rank > 0:
        for _ in ranks.watch(iter(lambda: time.sleep(0.01), 1)):
            pass
    ranks.all_reduce(acc)


def stopped(ranks):
    """The last rank is alive, but says nothing any more."""
    if ranks.rank == ranks.size - 1:
        (Path(sys.argv[2]) / "stopped").write_text(str(os.getpid()))
        os.kill(os.getpid(), signal.SIGSTOP)
    ranks.all_reduce(reduced(ranks))


def slow(ranks):
    """The last rank takes longer over its batches than the timeout, and over what comes after."""
    last = ranks.rank == ranks.size - 1
    acc = ResqueDist(CLASSES)
    for side in ("old", "new"):
        for i, (x, y) in enumerate(ranks.watch(own_rows(ranks, side))):
            acc.update(x, y, side)
            if last and side == "new" and i < 6:
                time.sleep(1)
    ranks.all_reduce(acc)
    if last:
        time.sleep(5)
    return ranks.gather(float(acc.compute()))


def leaving(ranks):
    """The last rank leaves without what the others wait for."""
    if ranks.rank < ranks.size - 1:
        ranks.all_reduce(reduced(ranks))


def strays(ranks):
    """Rank 0 fails alone and goes on to the next calls; the others wait in the first."""
    found = []
    for number in range(3):
        try:
            if number == 0 and ranks.rank == 0:
                ranks.begin_call()
                raise ZeroDivisionError
            ranks.all_reduce(reduced(ranks))
            found.append("a value")
        except (ZeroDivisionError, distributed.RankError) as error:
            found.append(f"{type(error).__name__}: {error}")
    return found


def unlike(ranks):
    ranks.all_reduce(ResqueDist(3, blocks=4 if ranks.rank else 8))


def again(ranks):
    """Left and entered once more, and not while it is entered."""
    found = [ranks.gather(ranks.rank)]
    for _ in range(5):
        ranks.__exit__(None, None, None)
        try:
            ranks.gather(0)
        except ValueError as error:
            found.append(str(error))
        ranks.__enter__()
        found.append(ranks.gather(ranks.rank))
    try:
        ranks.__enter__()
    except ValueError as error:
        found.append(str(error))
    return found


def widths(ranks):
    acc = ResqueDist(3)
    acc.update(torch.ones(3, 2 + ranks.rank), torch.arange(3), "old")
    ranks.all_reduce(acc)


def threads(expected=0):
    """How many there are, when those that have ended are gone; 0 where nothing lists them."""
    end = time.monotonic() + 10
    while (count := len(list(Path("/proc/self/task").glob("*")))) > expected > 0:
        if time.monotonic() > end:
            break
        time.sleep(0.01)
    return count


def main(scenarios, timeout=4):
    scenario, folder, rank, size = sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:])
    store = dist.FileStore(str(folder / "store"), size)
    if size > 1:
        dist.init_process_group(
            "gloo", store=store, rank=rank, world_size=size, timeout=timedelta(seconds=60)
        )
    before, start = threads(), time.monotonic()
    try:
        with distributed.Ranks(timeout) as ranks:
            result = {"result": scenarios[scenario](ranks)}
    except Exception as error:
        result = {"error": f"{type(error).__name__}: {error}"}
    result["seconds"] = time.monotonic() - start
    # After a failure some wait for a rank that will never come.
    result["threads"] = before, threads(0 if "error" in result else before)
    (folder / f"{rank}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(globals())

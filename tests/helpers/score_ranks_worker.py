"""One rank of a test of score: python score_ranks_worker.py SCENARIO FOLDER RANK SIZE."""

import torch
from torch import nn

from helpers import distributed_worker as worker
from resque_ext import distributed, score
from resque_ext.indices import registry
from resque_ext.model import normalization


class Model(nn.Module):
    """A classifier, or, without its head, a model whose classes nobody knows."""

    def __init__(self, head=True):
        super().__init__()
        self.hidden, self.norm = nn.Linear(worker.WIDTH, 16), nn.BatchNorm1d(16)
        self.head = nn.Linear(16, worker.CLASSES) if head else None
        generator = torch.Generator().manual_seed(3)
        for parameter in self.parameters():
            nn.init.normal_(parameter, 0.2, 0.5, generator=generator)
        self.double()

    def forward(self, x):
        x = torch.relu(self.norm(self.hidden(x)))
        return x.unflatten(1, (4, 4)) if self.head is None else self.head(x)


def rows(ranks, side, scale=1):
    """Shares by rows; with four ranks one has nothing of either side."""
    return [(x.double(), scale * y) for x, y in worker.own_rows(ranks, side)]


def whole_batches(ranks, side):
    """The same batches on any number of ranks; with four one has nothing of either side."""
    x, y = worker.dataset(side)
    batches = list(zip(x.double().split(16), y.split(16), strict=True))
    cuts = {1: [0, 14], 2: [0, 3, 14], 4: [0, 6, 6, 7, 14]}[ranks.size]
    return batches[cuts[ranks.rank] : cuts[ranks.rank + 1]]


def both(ranks, deal=rows, **options):
    return [deal(ranks, side, **options) for side in ("old", "new")]


def one_sided(ranks):
    """All of the old side on the first rank, all of the new side on the last."""
    last = ranks.size - 1
    alone = distributed.Ranks()
    alone.rank, alone.size = 0, 1
    olds, news = both(alone)
    return olds if ranks.rank == 0 else [], news if ranks.rank == last else []


def run(ranks, *data, model=None, **options):
    options = {"progress": False, "ranks": ranks} | options
    return score(model or Model(), *data, **options)


def agree(ranks):
    several = run(ranks, *both(ranks), indices=("resque_dist", "arm"))
    adapted = run(ranks, *both(ranks, whole_batches), adapt_normalization=True)
    unknown = {"model": Model(head=False), "layer": "norm"}
    found = {
        "several": several,
        "adapted": adapted,
        "unknown": run(ranks, *both(ranks, scale=100), **unknown),
        "shifted": run(ranks, both(ranks)[0], shift=torch.tanh),
        "sides": run(ranks, *one_sided(ranks), indices=("arm",)),
    }
    found = {name: each.to_dict() for name, each in found.items()}
    found["layers"] = [several.layer, several.layers, dict(several.skipped)]
    found["accuracies"] = [several.old_accuracy, several.new_accuracy, adapted.new_accuracy]
    if ranks.size == 1:
        alone = {
            "several": run(None, *both(ranks), indices=("resque_dist", "arm")),
            "adapted": run(None, *both(ranks, whole_batches), adapt_normalization=True),
            "shifted": run(None, both(ranks)[0], shift=torch.tanh),
            "sides": run(None, *one_sided(ranks), indices=("arm",)),
        }
        return found, {name: each.to_dict() for name, each in alone.items()}
    return found, None


def wrong(ranks):
    """What each attempt, with Ranks of its own, fails with."""
    olds, news = both(ranks)
    first = ranks.rank == 0
    nan = [(torch.full((4, worker.WIDTH), torch.nan).double(), torch.arange(4))]
    other = nn.Sequential(nn.Linear(worker.WIDTH, 3), nn.Linear(3, worker.CLASSES)).double()
    attempts = {
        "task": lambda r: run(r, olds, news, indices=("resque_dist", "resque_task")),
        "preindex": lambda r: run(r, olds, shift=torch.tanh, indices=("preindex", "arm")),
        "probe": lambda r: run(r, olds, news, indices=("linear_probe",)),
        "match": lambda r: run(r, olds, news, adapt_normalization="match"),
        "empty": lambda r: run(r, olds, []),
        "empty_adapted": lambda r: run(r, olds, [], adapt_normalization=True),
        "arguments": lambda r: run(r, olds, news, indices=("arm", "resque_dist")[first:]),
        "models": lambda r: run(r, olds, news, model=None if first else other),
        "data": lambda r: run(r, olds, news if first else nan),
        "one_row": lambda r: run(
            r, olds, news if first else [(b[0][:1], b[1][:1]) for b in news], adapt_normalization=1
        ),
    }
    found = {}
    for name, attempt in attempts.items():
        try:
            with distributed.Ranks(timeout=20) as each:
                attempt(each)
            found[name] = None
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
    try:
        run(distributed.Ranks(), olds, news)
    except ValueError as error:
        found["outside"] = str(error)
    return found


def statistics(ranks):
    """Of float32 and of a layer that runs on no rank, to the last bit on all ranks."""
    model = Model().float()
    model.idle = nn.BatchNorm1d(3)
    from resque_ext.scoring.over_ranks import join_statistics

    adapted = normalization.adapted(
        model,
        lambda: [x.float() for x, _ in whole_batches(ranks, "new")],
        join=lambda layers: join_statistics(ranks, layers),
    )
    return {
        name: [
            layer.running_mean.tolist(),
            layer.running_var.tolist(),
            int(layer.num_batches_tracked),
        ]
        for name, layer in normalization.reestimable(adapted).items()
    }


def gathered(ranks):
    return ranks.gather({"long": "é" * (5000 * ranks.rank), "rank": ranks.rank})


def indices(ranks):
    """Every index by itself, or why ranks cannot have it."""
    found = {}
    for name in registry.names():
        reads = registry.find(name).reads
        olds, news = both(ranks)
        data = (olds,) if reads.layers == "paired" else (olds, news)
        shift = torch.tanh if reads.layers == "paired" else None
        try:
            found[name] = run(ranks, *data, shift=shift, indices=name).to_dict()
        except ValueError as error:
            if ranks.size == 1 and not registry.find(name).in_one_place:
                raise
            found[name] = str(error)
    return found


def everything(ranks):
    return {each.__name__: each(ranks) for each in (agree, statistics, gathered)}


if __name__ == "__main__":
    worker.main(globals(), timeout=20)

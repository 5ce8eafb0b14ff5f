"""Pairs like those of a screening, from a seed, for the tests of its report."""

import numpy as np

from resque_ext.screening.results import Fault, IndexValue, PairResult, PredictedCost

CLASSES = ("airplane", "bird", "car", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
AT = "2026-01-02T03:04:05+00:00"  # the time stamp of reports
HOSTILE = (
    "<script>window.fired = 1</script>",
    "</script><img src=x onerror='window.fired = 1'>",
    '"><svg onload="window.fired = 1">',
    "&lt;b&gt; &amp; `${1}` '); DROP TABLE",
    "\u202egnp.exe\u202c \u05d0\u05d1 @@DATA@@",
    "__proto__",
    'a,b\nc"d',
)
META = {
    "environment": {"torch": "2.14.1", "device": "cpu"},
    "options": {"indices": ["resque_dist", "arm"], "budget": None, "alpha": 0.05},
}


def make_pairs(models=3, candidates=50, seed=0, classes=CLASSES, layers=20):
    """Some fail, some lack an interval, a floor, a cost or an upper end; ties are plenty."""
    rng = np.random.default_rng(seed)
    layer_names = [f"layer{1 + i // 5}.{i % 5}.conv{1 + i % 2}" for i in range(layers)]
    return [
        _pair(rng, f"model{m}", f"shift={c}", m, c, classes, layer_names)
        for m in range(models)
        for c in range(candidates)
    ]


def _pair(rng, model, candidate, m, c, classes, layers):
    if (m + c) % 25 == 24:
        error = "shard-7.tar: expected a whole member, found a truncated one"
        return PairResult(model, candidate, {}, stopped="error", error=error, old_samples=5000)
    value = 0.01 * 1.07 ** (c % 50) * (1 + 0.2 * m) * (1 + 0.1 * rng.random())
    error = 0.0005 + 0.004 * rng.random()
    arm = abs(value + 0.1 * rng.normal()) + 1e-6
    epochs = 0.1 * float(np.exp(4 * value)) * (1 + rng.random())
    top = epochs * 2 if c % 7 else None
    cost = PredictedCost(epochs, epochs / 2, top, "epochs", c > 40)
    low, high = (value - 2.5 * error, value + 2.5 * error) if c % 10 != 3 else (None, None)
    faults = [Fault("shard-3.tar", f"{i}.png", "expected an image, found noise") for i in range(11)]
    by_class = (value * (0.5 + rng.random(len(classes)))).tolist()
    by_layer = (arm * (0.5 + rng.random(len(layers)))).tolist()
    return PairResult(
        model,
        candidate,
        {
            "resque_dist": IndexValue(value, error, 0.012 + 0.002 * rng.random(), low, high),
            "arm": IndexValue(arm, None, None, arm * 0.9, arm * 1.1),
        },
        {"epochs": cost} if c % 11 != 5 else {},
        5000,
        int(10 ** rng.uniform(1, 4)),
        10000 if c % 2 else None,
        float(10 ** rng.uniform(-2, 3)),
        ("separated", "end", "width", "budget")[c % 4],
        tuple(faults[: (0, 0, 0, 2, 11)[c % 5]]),
        {"resque_dist": dict(zip(classes, by_class, strict=True))},
        {"arm": dict(zip(layers, by_layer, strict=True))},
    )


def brute_force_ranks(pairs, read):
    """The best and worst rank of each pair by its interval, by looking at its model's others."""
    ends = []
    for pair in pairs:
        found = read(pair)
        if found is None:
            ends.append(None)
        elif hasattr(found, "unit"):
            ends.append((found.low, float("inf") if found.high is None else found.high))
        else:
            ends.append((found.value,) * 2 if found.low is None else (found.low, found.high))
    ranks = []
    for pair, e in zip(pairs, ends, strict=True):
        known = [o for p, o in zip(pairs, ends, strict=True) if o and p.model == pair.model]
        above = sum(o[0] > e[1] for o in known) if e else 0
        ranks.append(e and (1 + sum(o[1] < e[0] for o in known), len(known) - above))
    return ranks


def hostile_pairs():
    one = IndexValue(0.5, 0.1)
    return [
        PairResult(
            name, name, {name: one}, classes={name: dict.fromkeys(HOSTILE, 0.25)}, error=name
        )
        for name in HOSTILE
    ]

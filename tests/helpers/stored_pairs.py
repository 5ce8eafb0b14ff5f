"""A header and finished pairs for tests of stores."""

from __future__ import annotations

from resque_ext.screening.results import Fault, IndexValue, PairResult, PredictedCost
from resque_ext.screening.store import Finished, Header

HEADER = Header({"models": {"m": "made"}, "seed": 0}, {"python": "3"}, {"rank_by": "resque_dist"})


def finished(number, size=10):
    result = PairResult(
        "m",
        f"c{number}",
        {"resque_dist": IndexValue(0.1 * number, 0.01, None, 0.0, 0.5)},
        {"epochs": PredictedCost(3.0, 1.0, None, "epochs", True)},
        100,
        50,
        None,
        1.5,
        "width",
        (Fault("a.tar", "b" * size, "damaged"),),
        {"resque_dist": {"0": 0.25}},
    )
    return Finished(result, ((256, 0.1, 0.0, 0.2), None), 2)

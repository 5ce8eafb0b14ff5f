"""Intervals of a whole cost model, on kinds of shift and runs that it was not fitted on."""

import numpy as np
import pytest
import scipy.stats
from helpers.study_runs import random_runs

from resque_ext.retraining import CostModel

DRAWS = 300
STATED = 0.8
# Few kinds of many levels: an interval that took runs of one kind for independent is too narrow.
KINDS, LEVELS = 4, 20
FEWER_LEVELS = 9  # where each run is left out in turn


def inside(seed, of_kind, known):
    """Whether the cost of a run that was left out is in its interval, for one study at random."""
    rng = np.random.default_rng(seed)
    runs = random_runs(
        rng, KINDS + 1, FEWER_LEVELS if known else LEVELS, noise=0.2, of_kind=of_kind
    )
    kind = f"kind{rng.integers(KINDS + 1)}"
    own = [i for i, run in enumerate(runs) if run.kind == kind]
    asked = runs[own[rng.integers(len(own))]]
    out = [asked] if known else [runs[i] for i in own]
    model = CostModel.fit(
        [run for run in runs if not any(run is one for one in out)],
        measures=("epochs",),
        coverage=STATED,
    )
    found = model.predict(asked.predictors, kind=kind, extrapolate="clamp")["epochs"]
    assert found.basis == ("a new level of a known kind" if known else "a new kind of shift")
    assert found.high is not None
    return found.low <= asked.measures["epochs"] <= found.high


def share(of_kind, known):
    return np.mean([inside(seed, of_kind, known) for seed in range(DRAWS)])


@pytest.mark.full
@pytest.mark.parametrize("of_kind", [0.0, 1.5])
def test_a_kind_that_was_left_out_is_covered(of_kind):
    """From what is stated to 1 / (kinds + 1) above it, and the scatter of so many draws."""
    found, most = round(DRAWS * share(of_kind, known=False)), STATED + 1 / (KINDS + 1)
    assert scipy.stats.binom.cdf(found, DRAWS, STATED) > 1e-3, found
    assert scipy.stats.binom.sf(found - 1, DRAWS, most) > 1e-3, found


@pytest.mark.full
def test_a_level_that_was_left_out_is_covered():
    found = round(DRAWS * share(0.0, known=True))
    assert scipy.stats.binom.cdf(found, DRAWS, STATED) > 1e-3, found
    assert scipy.stats.binom.sf(found - 1, DRAWS, STATED + 0.05) > 1e-3, found

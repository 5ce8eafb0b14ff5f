"""Runs of a study that never took place: records with given predictors and costs."""

import numpy as np

from resque_ext.energy import Figure, Measurement
from resque_ext.energy.measurement import unknown
from resque_ext.retraining import RetrainingCost
from resque_ext.retraining.record import AccuracyCheck, GradientNorm, ParameterChange
from resque_ext.studies.study_run import StudyRun

GRAMS = Figure("all", 400.0, "g CO2e/kWh", "given")


def study_run(
    index,
    epochs,
    kind="gaussian",
    level=0.1,
    censored=False,
    *,
    steps=None,
    joules="auto",
    samples_per_epoch=1000,
    device="H100",
    predictors=None,
    **more,
):
    """A run whose other costs are multiples of its epochs."""
    steps = round(epochs * 10) if steps is None else steps
    joules = 100.0 * epochs if joules == "auto" else joules
    energy = unknown("gpu:0", "no counter") if joules is None else None
    figure = energy or Figure("gpu:0", joules, "J", "nvml-counter", 1.0)
    window = Measurement("training", 2.0 * epochs, (figure,), GRAMS)
    cost = RetrainingCost(
        reached=not censored,
        stopped="epochs" if censored else "target",
        target_accuracy=0.9,
        epochs=float(epochs),
        steps=steps,
        samples=round(epochs * samples_per_epoch),
        steps_per_epoch=10,
        samples_per_epoch=samples_per_epoch,
        skipped_steps=0,
        gradient_norm=GradientNorm(
            1.0 if steps else None, 10.0 * epochs if steps else None, (), None
        ),
        parameter_change=ParameterChange(0.01 * epochs, {}, None, {}, ()),
        train_seconds=2.0 * epochs,
        evaluation_seconds=0.5,
        energy={"training": window, "total": window},
        accuracy=(AccuracyCheck(0.0, 0, 0.5), AccuracyCheck(float(epochs), steps, 0.9)),
        loss_of_epoch=(1.0,),
        seed=0,
        device={"device": "cuda:0", "name": device},
        versions={"torch": "2"},
        options={},
    )
    if predictors is None:
        predictors = {"resque_dist_reestimated": index}
    return StudyRun(kind, level, "", 0, "net", predictors, {}, cost, **more)


def random_runs(rng, kinds=6, levels=4, noise=0.3, of_kind=0.0, limit=np.inf, index=None):
    """Costs that rise with the index, times lognormal noise of each run and of each kind.

    `limit`: epochs at which a run is stopped. `index`: draws one, by default evenly from 0 to 1.
    """
    runs = []
    for kind in range(kinds):
        shared = of_kind * rng.normal()
        for level in range(levels):
            x = rng.random() if index is None else index(rng)
            y = 4 * x * np.exp(shared + noise * rng.normal()) + 0.01
            runs.append(study_run(x, min(y, limit), f"kind{kind}", level, bool(y > limit)))
    return runs

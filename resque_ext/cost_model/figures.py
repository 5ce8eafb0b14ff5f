"""Figures of a study: index against cost with the fitted model, and the accuracy of every run.

They need matplotlib (`pip install 'resque-ext[plots]'`), use none of its global state and no
display, and are the same file byte for byte for the same runs and the same matplotlib.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from resque_ext.cost_model.model import UNITS, CostModel
from resque_ext.errors import ArgumentError, ArgumentTypeError
from resque_ext.plots.canvas import (
    draw_costs,
    explain_censored,
    legend,
    looks,
    make_figure,
    styled,
    words,
)
from resque_ext.studies.study_run import StudyRun, checked_runs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = ("png", "svg")
CURVE_POINTS = 200


def cost_figure(
    runs: Iterable[StudyRun],
    model: CostModel,
    measure: str = "epochs",
    *,
    title: str | None = None,
) -> Figure:
    """The first predictor of a model against a cost, a colour and marker a kind of shift.

    Beside the runs stand the model's prediction and its interval for a new kind of shift, or, where
    the runs are of too few kinds for one with an upper end, for a new level of a known kind. Where
    the interval has none it goes to the upper edge. Runs that were stopped short of their target
    are open markers with an arrow upwards. With several predictors there is no curve: each run's
    own prediction is a short line.

    Args:
        runs: of a study.
        model: fitted on such runs.
        measure: one of the model's.
        title: above the axes.

    Raises:
        TypeError, ValueError: no runs, another measure, or matplotlib is not installed.
    """
    checked = _check_runs(runs)
    if not isinstance(model, CostModel):
        raise ArgumentTypeError("model", "a CostModel", type(model).__name__)
    if measure not in model.measures:
        raise ArgumentError("measure", f"one of {list(model.measures)}", f"{measure!r}")
    if measure in model.unknown:
        raise ArgumentError(
            "measure", "one that is known", f"{measure!r}: {model.unknown[measure]}"
        )
    name = model.predictors[0]
    with styled():
        figure, axes = make_figure((8.2, 4.6))
        shown = [
            run
            for run in checked
            if run.predictors.get(name) is not None and run.measures[measure] is not None
        ]
        top = 1.12 * max((run.measures[measure] for run in shown), default=1.0) or 1.0
        if len(model.predictors) == 1:
            _draw_model(axes, model, measure, top)
        else:
            _draw_single_predictions(axes, model, measure, shown)
        for kind, color, marker in _kinds(checked):
            mine = [run for run in shown if run.kind == kind]
            points = [(run.predictors[name], run.measures[measure], run.censored) for run in mine]
            draw_costs(axes, points, words(kind), color, marker)
        if any(run.censored for run in shown):
            explain_censored(axes)
        axes.set_ylim(-0.02 * top, top)
        axes.set_xlabel(f"{words(name)}, before any retraining")
        axes.set_ylabel(f"measured cost: {_label(measure)}")
        if title:
            axes.set_title(title)
        legend(figure)
    return figure


def accuracy_figure(
    runs: Iterable[StudyRun], *, columns: int = 4, title: str | None = None
) -> Figure:
    """Test accuracy over the epochs of retraining, one panel a kind of shift, a line a level.

    Levels of a kind go from light to dark. A run that was stopped short of its target ends in an
    open marker, one that reached it in a filled one; the dashed line is the target.

    Args:
        runs: of a study.
        columns: panels in a row.
        title: above all panels.

    Raises:
        TypeError, ValueError: no runs, no columns, or matplotlib is not installed.
    """
    checked = _check_runs(runs)
    if not isinstance(columns, int) or isinstance(columns, bool) or columns < 1:
        raise ArgumentError("columns", "an integer above 0", f"{columns!r}")
    kinds = _kinds(checked)
    columns = min(columns, len(kinds))
    rows = -(-len(kinds) // columns)
    with styled():
        figure, grid = make_figure((2.3 * columns + 0.6, 1.9 * rows + 0.7), rows, columns)
        panels = list(np.ravel(grid))
        for axes in panels[len(kinds) :]:
            axes.set_visible(False)
        for axes in panels[max(0, len(kinds) - columns) : len(kinds)]:  # the lowest that are seen
            axes.tick_params(labelbottom=True)
        for axes, (kind, color, _) in zip(panels, kinds, strict=False):
            mine = sorted((r for r in checked if r.kind == kind), key=lambda run: run.level)
            _draw_accuracy(axes, mine, color)
            axes.set_title(words(kind))
        figure.supxlabel("epochs of retraining", fontsize=10)
        figure.supylabel("test accuracy", fontsize=10)
        if title:
            figure.suptitle(title, fontsize=11)
    return figure


def save_figures(
    runs: Iterable[StudyRun],
    folder: str | os.PathLike[str],
    model: CostModel | None = None,
    *,
    measures: Sequence[str] = ("epochs",),
    formats: Sequence[str] = ("png",),
) -> list[Path]:
    """Writes `cost_MEASURE` of each measure and `accuracy` into a folder, and returns the paths.

    Args:
        runs: of a study.
        folder: made where it does not exist.
        model: by default a monotone one of RESQUE_dist re-estimated, fitted on the runs.
        measures: to draw against the index.
        formats: of "png", "svg".

    Raises:
        TypeError, ValueError: as of the two figures and of `CostModel.fit`; other formats. Then
            nothing is written.
    """
    checked = _check_runs(runs)
    if isinstance(formats, str) or not set(formats) <= set(FORMATS) or not formats:
        raise ArgumentError("formats", f"some of {list(FORMATS)}", f"{formats!r}")
    if isinstance(measures, str):
        raise ArgumentTypeError("measures", "a sequence of names", f"{measures!r}")
    model = CostModel.fit(checked, measures=tuple(measures)) if model is None else model
    drawn = {f"cost_{measure}": cost_figure(checked, model, measure) for measure in measures}
    drawn["accuracy"] = accuracy_figure(checked)
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    paths = []
    with styled():
        for name, figure in drawn.items():
            for kind in formats:
                paths.append(place / f"{name}.{kind}")
                # Without the date and the version, which would make every file another one.
                clean: Mapping[str, Any] = {"Date": None} if kind == "svg" else {"Software": None}
                figure.savefig(paths[-1], format=kind, metadata=dict(clean))
    return paths


def _draw_model(axes: Axes, model: CostModel, measure: str, top: float) -> None:
    name = model.predictors[0]
    low, high = model.ranges[name]
    at = np.linspace(low, high, CURVE_POINTS)
    found = [model.predict_one(measure, {name: value}) for value in at]
    if all(each.high is None for each in found):
        known = model.kinds[0]
        found = [model.predict_one(measure, {name: value}, kind=known) for value in at]
    first = found[0]
    ends = [top if each.high is None else each.high for each in found]
    label = f"{first.coverage:.0%} interval for {first.basis}"
    axes.fill_between(at, [each.low for each in found], ends, color="0.5", alpha=0.18, lw=0)
    axes.fill_between([], [], [], color="0.5", alpha=0.18, lw=0, label=label)
    values = [each.value for each in found]
    axes.plot(at, values, color="0.25", lw=1.8, label=f"cost model, {model.method}")


def _draw_single_predictions(
    axes: Axes, model: CostModel, measure: str, runs: Sequence[StudyRun]
) -> None:
    name = model.predictors[0]
    usable = [r for r in runs if all(r.predictors.get(n) is not None for n in model.predictors)]
    found = [model.predict_one(measure, r.predictors, extrapolate="clamp").value for r in usable]
    axes.plot(
        [run.predictors[name] for run in usable],
        found,
        color="0.25",
        marker="_",
        markersize=12,
        markeredgewidth=1.6,
        linestyle="",
        label=f"cost model of {len(model.predictors)} predictors, {model.method}",
    )


def _draw_accuracy(axes: Axes, runs: Sequence[StudyRun], color: str) -> None:
    for i, run in enumerate(runs):
        checks = run.cost.accuracy
        if not checks:
            continue
        x, y = [c.epochs for c in checks], [c.accuracy for c in checks]
        alpha = 1.0 if len(runs) == 1 else 0.35 + 0.65 * i / (len(runs) - 1)
        axes.plot(x, y, color=color, alpha=alpha, lw=1.4)
        face = "white" if run.censored else color
        end = {"marker": "o", "markersize": 4.5, "markerfacecolor": face, "markeredgecolor": color}
        axes.plot(x[-1:], y[-1:], linestyle="", label=f"{run.level:g}", alpha=alpha, **end)
    for target in sorted({run.cost.target_accuracy for run in runs}):
        axes.axhline(target, color="0.3", lw=0.9, ls="--")


def _kinds(runs: Sequence[StudyRun]) -> list[tuple[str, str, str]]:
    """Each kind of shift with its colour and marker, in the order of the runs."""
    return looks(run.kind for run in runs)


def _check_runs(runs: Iterable[StudyRun]) -> list[StudyRun]:
    checked = checked_runs(runs)
    if not checked:
        raise ArgumentError("runs", "at least one", "none")
    return checked


def _label(measure: str) -> str:
    unit = UNITS.get(measure, "")
    word = measure.replace("_", " ")
    return word if unit in ("", measure) else f"{word} [{unit}]"

"""The pictures of results, each of plain values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from resque_ext.plots.canvas import (
    draw_costs,
    explain_censored,
    legend,
    looks,
    make_figure,
    styled,
    words,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDE = 4  # panels of a study in a row
ROW, LAYER = 0.26, 0.17  # inches of a pair and of a layer
LONGEST = 48  # letters of a label


def cost_chart(panels: Mapping[str, Sequence[tuple[str, float, float, bool]]], cost: str) -> Figure:
    """Predictors against a measured cost, a panel each.

    Args:
        panels: by predictor, (kind, value, cost, censored) of every run that has both.
        cost: what the vertical axis is, with its unit.
    """
    kinds = looks(kind for runs in panels.values() for kind, *_ in runs)
    columns = min(WIDE, len(panels))
    rows = -(-len(panels) // columns)
    with styled():
        figure, grid = make_figure((3.1 * columns + 1.9, 2.9 * rows), rows, columns, share=False)
        every = list(getattr(grid, "flat", [grid]))
        for axes in every[len(panels) :]:
            axes.set_visible(False)
        for i, (axes, (name, runs)) in enumerate(zip(every, panels.items(), strict=False)):
            for kind, color, marker in kinds:
                points = [(x, y, censored) for k, x, y, censored in runs if k == kind]
                label = words(kind) if i == 0 else "_"
                draw_costs(axes, points, label, color, marker)
            top = 1.15 * max((y for *_, y, _ in runs), default=1.0) or 1.0
            axes.set_ylim(-0.03 * top, top)
            axes.set_xlabel(words(name))
            axes.set_ylabel(cost if i % columns == 0 else "")
        if any(censored for runs in panels.values() for *_, censored in runs):
            explain_censored(every[0])
        legend(figure)
    return figure


def layer_chart(panels: Mapping[str, Mapping[str, float]]) -> Figure:
    """Values of layers, the first on top, a panel an index."""
    names = list(dict.fromkeys(name for values in panels.values() for name in values))
    with styled():
        height = 1.0 + LAYER * max(len(names), 6)
        size = (2.2 + 3.2 * len(panels), height)
        figure, grid = make_figure(size, 1, len(panels), share=False)
        for i, (axes, (index, color, marker)) in enumerate(
            zip(getattr(grid, "flat", [grid]), looks(panels), strict=True)
        ):
            values = panels[index]
            places = [names.index(name) for name in values]
            axes.plot(list(values.values()), places, marker, color=color, markersize=4.5, ls="-")
            axes.set_ylim(len(names) - 0.5, -0.5)
            axes.set_yticks(range(len(names)), [_short(name) for name in names] if i == 0 else [])
            axes.tick_params(axis="y", labelsize=8)
            axes.set_xlabel(words(index))
            axes.set_xlim(left=min(0, *values.values()))
    return figure


def interval_chart(
    rows: Sequence[tuple[str, str, float, float, float]], unit: str, groups: str
) -> Figure:
    """(label, group, value, low, high) of every row, the first on top, a colour a group.

    Args:
        rows: `high` is infinite where the interval has no upper end.
        unit: what the horizontal axis is.
        groups: what a group is.
    """
    finite = [x for *_, value, low, high in rows for x in (value, low, high) if math.isfinite(x)]
    span = (max(finite) - min(finite)) or 1.0
    edge = max(finite) + 0.08 * span
    with styled():
        figure, axes = make_figure((7.6, 1.1 + ROW * max(len(rows), 4)))
        for group, color, marker in looks(row[1] for row in rows):
            mine = [(i, *row[2:]) for i, row in enumerate(rows) if row[1] == group]
            for i, _, low, high in mine:
                axes.plot([low, min(high, edge)], [i, i], color=color, lw=1.6, alpha=0.55)
                if high > edge:
                    axes.plot([edge], [i], marker=">", color=color, markersize=4)
            places, values = [i for i, *_ in mine], [value for _, value, *_ in mine]
            axes.plot(values, places, marker, color=color, markersize=5.5, label=group)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_yticks(range(len(rows)), [_short(row[0]) for row in rows])
        axes.set_xlabel(unit)
        if len({row[1] for row in rows}) > 1:
            legend(figure)
            figure.legends[-1].set_title(groups)
    return figure


def forecast_chart(
    points: Sequence[tuple[int, float]],
    target: float,
    steps: tuple[float, float, float | None] | None,
    verdict: str | None,
) -> Figure:
    """Held-out error over the steps of the probe, the target, and where it is forecast to be met.

    Args:
        points: (step, error) of the probe.
        target: the error that the target accuracy allows.
        steps: value, low and high of the forecast; None if unknown.
        verdict: of the forecast, for the title.
    """
    with styled():
        figure, axes = make_figure((7.6, 3.6))
        right = max([step for step, _ in points] + [1])
        if steps is not None:
            value, low, high = steps
            right = max(right, 2 * value, low, high or 8 * max(value, 1.0))
            end = right if high is None else high
            axes.plot([low, end], [target, target], color="#D55E00", lw=4, alpha=0.35)
            axes.plot([value], [target], "D", color="#D55E00", label="target met (forecast)")
            if high is None:
                axes.plot([right], [target], ">", color="#D55E00")
        found = sorted(points)
        axes.plot(*zip(*found, strict=True), "o-", color="#0072B2", label="held-out error")
        axes.axhline(target, color="0.3", lw=0.9, ls="--", label="error that the target allows")
        axes.set_xscale("symlog", linthresh=1)
        axes.set_xlim(-0.1, 1.2 * right)
        axes.set_ylim(0, 1.1 * max([error for _, error in points] + [target]))
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        axes.set_xlabel("steps of the retraining")
        axes.set_ylabel("held-out error")
        if verdict:
            axes.set_title(verdict)
        legend(figure)
    return figure


def _short(label: str) -> str:
    return label if len(label) <= LONGEST else f"...{label[3 - LONGEST :]}"

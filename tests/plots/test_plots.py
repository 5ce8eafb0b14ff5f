"""Pictures and HTML tables of results: every value is where it belongs, and text stays text."""

import builtins
from html.parser import HTMLParser

import numpy as np
import pytest
from helpers import optional
from helpers.study_runs import random_runs

from resque_ext import Forecast
from resque_ext.forecasting.result import ProbeCost
from resque_ext.indices.base import Facts, IndexResult
from resque_ext.plots.html import table
from resque_ext.retraining import Prediction, Study
from resque_ext.retraining.curve import Point
from resque_ext.scoring.failures import Failed
from resque_ext.scoring.score import Scores
from resque_ext.screening import PairResult, Screening
from resque_ext.screening.results import IndexValue

pytest.importorskip("matplotlib", reason=optional.needs("matplotlib"))


class Cells(HTMLParser):
    """The text of every cell, row by row, and the notes."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.notes, self.tags, self._in = [], [], set(), None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self._in = tag
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif tag == "p":
            self.notes.append("")

    def handle_endtag(self, tag):
        self._in = None

    def handle_data(self, data):
        if self._in in ("td", "th"):
            self.rows[-1][-1] += data
        elif self._in == "p":
            self.notes[-1] += data


def points(axes):
    """Every (x, y) that is drawn as a point."""
    return {
        (float(x), float(y))
        for line in axes.get_lines()
        if line.get_marker() not in ("None", None, "")
        for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)
    }


class Layered(IndexResult):
    @property
    def layer_values(self):
        return {"conv1": 0.5, "conv2": 0.25}


def facts():
    return Facts(layer="fc", layers=("conv1", "conv2"), old_accuracy=0.9, new_accuracy=0.5)


@pytest.fixture
def scores():
    return Scores({"arm": Layered(0.4, layer="fc"), "resque_dist": IndexResult(0.1)}, facts())


def test_layers_are_drawn_in_their_order(scores):
    (axes,) = scores.plot().axes
    assert points(axes) == {(0.5, 0.0), (0.25, 1.0)}
    assert [each.get_text() for each in axes.get_yticklabels()] == ["conv1", "conv2"]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first on top


def test_a_result_alone_is_drawn_too(scores):
    assert points(scores["arm"].plot().axes[0]) == points(scores.plot().axes[0])
    with pytest.raises(ValueError, match="plot: expected a result with values of layers"):
        scores["resque_dist"].plot()


def test_scores_as_a_table(scores):
    found = Cells(Scores({**scores, "bad": Failed(ValueError("x: <b>"))}, facts())._repr_html_())
    assert found.rows[0] == ["index", "value", "± se", "noise floor", "reliable"]
    assert [row[:2] for row in found.rows[1:]] == [
        ["arm", "0.4"],
        ["resque_dist", "0.1"],
        ["bad", "ValueError: x: <b>"],
    ]
    assert "b" not in found.tags


def test_every_run_of_a_study_is_drawn():
    runs = random_runs(np.random.default_rng(0), kinds=4, levels=3, noise=0.1, limit=3.0)
    found = Study(runs)
    (axes,) = found.plot().axes
    name = "resque_dist_reestimated"
    assert points(axes) == {(r.predictors[name], r.measures["epochs"]) for r in runs}
    assert len(axes.texts) == sum(r.censored for r in runs) > 0  # an arrow each
    rows = Cells(found._repr_html_()).rows
    assert len(rows) == 1 + len(runs)
    assert [row[-1] == "no" for row in rows[1:]] == [r.censored for r in runs]
    with pytest.raises(ValueError, match="study: expected runs with one of"):
        found.plot("nope")


def test_a_cost_as_a_table():
    run = random_runs(np.random.default_rng(0), kinds=1, levels=1, noise=0.1, limit=3.0)[0]
    rows = Cells(run.cost._repr_html_()).rows
    known = {name: value for name, value in run.cost.measures().items() if value is not None}
    assert [row[0] for row in rows[1:]] == list(known)
    assert [float(row[1]) for row in rows[1:]] == pytest.approx(list(known.values()), rel=5e-4)


def test_correlations_as_a_table():
    runs = random_runs(np.random.default_rng(0), kinds=4, levels=3, noise=0.1, limit=3.0)
    found = Study(runs).correlations(measures=["epochs"])
    rows = Cells(found._repr_html_()).rows
    assert len(rows) == 1 + len(found)
    assert rows[1][3].startswith(f"{found[0].across.value:.2f}")


def pairs():
    return [
        PairResult("a", "far [x]", {"resque_dist": IndexValue(0.3, 0.01, 0.02, 0.28, 0.32)}),
        PairResult("b", "near", {"resque_dist": IndexValue(0.1, 0.01, 0.02, 0.08, 0.12)}),
        PairResult("b", "gone", {}, error="it failed"),
    ]


def test_pairs_are_drawn_with_their_intervals():
    found = Screening(pairs())
    (axes,) = found.plot().axes
    assert points(axes) == {(0.3, 0.0), (0.1, 1.0)}  # by model
    lines = {tuple(line.get_xdata()) for line in axes.get_lines() if len(line.get_xdata()) == 2}
    assert lines == {(0.08, 0.12), (0.28, 0.32)}
    assert [each.get_text() for each in axes.get_yticklabels()] == ["far [x]", "near"]
    shown = Cells(found._repr_html_())
    assert [row[2] for row in shown.rows[1:]] == ["far [x]", "near", "gone"]
    assert shown.rows[-1][-1] == "it failed"
    assert shown.notes[0].startswith("Ranked within each model")
    with pytest.raises(ValueError, match="rank_by: expected what some pair has, found 'joules'"):
        found.plot("joules")


def forecast_of(high, verdict=None):
    def cost(name, value, end):
        return Prediction(name, value, value / 2, end, "steps", False, False, 0.9, None, "a probe")

    unknown = Prediction("joules", None, None, None, "J", False, False, 0.9, None, "a", "no meter")
    return Forecast(
        "probe",
        verdict,
        0.1,
        {"steps": cost("steps", 64.0, high), "joules": unknown},
        0.9,
        0.2,
        None,
        None,
        (Point(0, 2.0, 0.8), Point(16, 1.0, 0.4)),
        "R16",
        0.9,
        ProbeCost(16, 0, 3, 1.5, None, None, 0.25),
        steps_per_epoch=10,
        test_samples=100,
    )


def test_a_forecast_is_drawn_beside_its_probe():
    (axes,) = forecast_of(256.0).plot().axes
    assert points(axes) >= {(0.0, 0.8), (16.0, 0.4)}
    allowed = 1 - 0.9
    (place,) = points(axes) - {(0.0, 0.8), (16.0, 0.4)}
    assert place == (64.0, pytest.approx(allowed))
    assert any(tuple(line.get_xdata()) == (32.0, 256.0) for line in axes.get_lines())
    (axes,) = forecast_of(None, "unstable").plot().axes
    assert axes.get_title() == "unstable"
    assert max(x for x, _ in points(axes)) > 256  # to the edge: it has no upper end


def test_a_forecast_as_a_table():
    found = Cells(forecast_of(256.0)._repr_html_())
    assert found.rows[1:] == [["steps", "64", "32", "256", "steps"]]
    assert found.notes == ["The forecast took 16 steps, 1.5 s.", "Unknown: no meter"]


@pytest.mark.full
def test_a_notebook_shows_a_figure(scores):
    assert scores.plot()._repr_png_().startswith(b"\x89PNG")
    assert scores.plot()._repr_png_() == scores.plot()._repr_png_()


def test_without_matplotlib_there_is_one_line(scores, monkeypatch):
    real = builtins.__import__

    def fail(name, *rest, **named):
        if name.partition(".")[0] == "matplotlib":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", fail)
    with pytest.raises(ValueError, match="expected matplotlib, found none: pip install"):
        scores.plot()


def test_text_is_never_markup():
    found = Cells(table("<i>", ["<script>"], [["<img src=x>", "a & b"]], ["<p>"]))
    assert found.rows == [["<script>"], ["<img src=x>", "a & b"]]
    assert not found.tags & {"script", "img", "i"}

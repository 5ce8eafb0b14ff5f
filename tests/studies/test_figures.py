"""Figures of a study: what is drawn of every run, that files are equal, and what is refused."""

import builtins
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from helpers import optional
from helpers.study_runs import random_runs, study_run

from resque_ext.retraining import CostModel

pytest.importorskip("matplotlib", reason=optional.needs("matplotlib"))

from matplotlib.colors import to_hex

from resque_ext.cost_model.figures import accuracy_figure, cost_figure, save_figures

INDEX = "resque_dist_reestimated"


@pytest.fixture(scope="module")
def runs():
    return random_runs(np.random.default_rng(0), kinds=10, levels=3, noise=0.1, limit=3.0)


@pytest.fixture(scope="module")
def model(runs):
    return CostModel.fit(runs, measures=("epochs", "joules"))


def drawn(axes, face):
    """Positions of the markers that are filled, or white."""
    found = set()
    for line in axes.get_lines():
        white = to_hex(line.get_markerfacecolor()) == "#ffffff"
        if line.get_linestyle() == "None" and white is (face == "white"):
            found |= set(zip(line.get_xdata(), line.get_ydata(), strict=True))
    return found


@pytest.mark.parametrize("measure", ["epochs", "joules"])
def test_every_run_is_drawn_as_what_it_is(runs, model, measure):
    figure = cost_figure(runs, model, measure)
    (axes,) = figure.axes
    places = {r: (r.predictors[INDEX], r.measures[measure]) for r in map(Hashed, runs)}
    assert drawn(axes, "filled") == {p for r, p in places.items() if not r.censored}
    assert drawn(axes, "white") == {p for r, p in places.items() if r.censored} != set()
    arrows = [text.xy for text in axes.texts]
    assert set(arrows) == drawn(axes, "white")
    assert all(text.xyann[1] > 0 for text in axes.texts)  # upwards
    assert axes.get_ylim()[1] > max(y for _, y in places.values())
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert {f"kind{i}" for i in range(10)} < set(labels)
    assert "cost model, monotone" in labels
    assert "90% interval for a new kind of shift" in labels
    assert "stopped short: costs more" in labels


class Hashed:
    """A run as a key of a dict."""

    def __init__(self, run):
        self.run = run

    def __getattr__(self, name):
        return getattr(self.run, name)


def test_the_curve_is_the_model(runs, model):
    (axes,) = cost_figure(runs, model).axes
    curve = next(line for line in axes.get_lines() if line.get_label() == "cost model, monotone")
    x, y = curve.get_data()
    assert (x[0], x[-1]) == model.ranges[INDEX]
    for i in (0, 77, len(x) - 1):
        assert y[i] == model.predict({INDEX: x[i]})["epochs"].value
    band = axes.collections[0].get_paths()[0].vertices
    low = model.predict({INDEX: x[50]})["epochs"].low
    assert any(np.allclose(corner, (x[50], low)) for corner in band)
    top = axes.get_ylim()[1]  # where the interval has no upper end
    assert band[:, 1].max() == pytest.approx(top)


def test_kinds_differ_in_colour_and_marker():
    runs = [study_run(x / 20, x, f"k{x}") for x in range(1, 15)]
    (axes,) = cost_figure(runs, CostModel.fit(runs)).axes
    kinds = [line for line in axes.get_lines() if line.get_label().startswith("k")]
    looks = {(line.get_color(), line.get_marker()) for line in kinds}
    assert len(kinds) == len(looks) == 14


def test_too_few_kinds_show_the_interval_of_a_known_kind():
    runs = [study_run(x / 20, x, f"k{x % 2}") for x in range(1, 15)]
    figure = cost_figure(runs, CostModel.fit(runs), title="two kinds")
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "90% interval for a new level of a known kind" in labels
    assert "stopped short: costs more" not in labels
    assert figure.axes[0].get_title() == "two kinds"


def test_several_predictors_show_predictions_of_runs():
    rng = np.random.default_rng(0)
    runs = [
        study_run(0, 5 * a + b, f"k{i % 3}", predictors={"a": a, "b": b})
        for i, (a, b) in enumerate(rng.random((12, 2)))
    ]
    model = CostModel.fit(runs, ("a", "b"), ("epochs",))
    (axes,) = cost_figure(runs, model).axes
    (marks,) = (line for line in axes.get_lines() if line.get_marker() == "_")
    assert list(marks.get_xdata()) == [run.predictors["a"] for run in runs]
    expected = [model.predict(run.predictors)["epochs"].value for run in runs]
    assert list(marks.get_ydata()) == expected


def test_accuracy_of_every_run(runs):
    figure = accuracy_figure(runs, columns=3, title="all")
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in panels] == [f"kind{i}" for i in range(10)]
    for axes, kind in zip(panels, range(10), strict=True):
        mine = [run for run in runs if run.kind == f"kind{kind}"]
        lines = [line for line in axes.get_lines() if line.get_linestyle() == "-"]
        found = [list(zip(*line.get_data(), strict=True)) for line in lines]
        assert found == [[(c.epochs, c.accuracy) for c in run.cost.accuracy] for run in mine]
        ends = [line for line in axes.get_lines() if line.get_marker() == "o"]
        white = [to_hex(line.get_markerfacecolor()) == "#ffffff" for line in ends]
        assert white == [run.censored for run in mine]
        targets = [line.get_ydata()[0] for line in axes.get_lines() if line.get_linestyle() == "--"]
        assert targets == [0.9]


def test_files_are_equal_and_small(tmp_path):
    runs = random_runs(np.random.default_rng(0), kinds=4, levels=3, limit=3.0)
    model = CostModel.fit(runs, measures=("epochs",))
    first = save_figures(runs, tmp_path / "a", model, formats=("png", "svg"))
    again = save_figures(runs, tmp_path / "b" / "c", model, formats=("png", "svg"))
    names = ["cost_epochs.png", "cost_epochs.svg", "accuracy.png", "accuracy.svg"]
    assert [path.name for path in first] == names
    for one, other in zip(first, again, strict=True):
        assert one.read_bytes() == other.read_bytes()
        assert one.stat().st_size < 150_000
        if one.suffix == ".svg":
            ElementTree.parse(one)
        else:
            assert one.read_bytes().startswith(b"\x89PNG")


def test_the_callers_settings_stay(runs, model, monkeypatch):
    import matplotlib

    def settings():  # a look at the backend would choose one
        names = [name for name in matplotlib.rcParams if not name.startswith("backend")]
        return {name: matplotlib.rcParams[name] for name in names}

    monkeypatch.setitem(matplotlib.rcParams, "font.size", 30.0)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # an import of it would fail
    before = settings()
    (axes,) = cost_figure(runs, model).axes
    assert settings() == before
    assert axes.xaxis.label.get_size() == 10


def test_without_matplotlib(runs, model, tmp_path, monkeypatch):
    real = builtins.__import__

    def missing(name, *rest):
        if name.partition(".")[0] == "matplotlib":
            raise ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    for call in (
        lambda: cost_figure(runs, model),
        lambda: accuracy_figure(runs),
        lambda: save_figures(runs, tmp_path / "x", model),
    ):
        with pytest.raises(ValueError, match=r"^figures: expected matplotlib.*resque-ext\[plots\]"):
            call()
    assert list(tmp_path.iterdir()) == []


def test_refused(runs, model, tmp_path):
    unmetered = [study_run(x, 10 * x, joules=None) for x in (0.1, 0.5)]
    for call, error, message in (
        (lambda: cost_figure([], model), ValueError, "runs: expected at least one"),
        (lambda: cost_figure([1], model), TypeError, "runs: expected StudyRuns, found int"),
        (lambda: cost_figure(runs, None), TypeError, "model: expected a CostModel"),
        (lambda: cost_figure(runs, model, "seconds"), ValueError, "measure: expected one of"),
        (
            lambda: cost_figure(unmetered, CostModel.fit(unmetered), "joules"),
            ValueError,
            "measure: expected one that is known, found 'joules': not known of the runs",
        ),
        (lambda: accuracy_figure([]), ValueError, "runs: expected at least one"),
        (lambda: accuracy_figure(runs, columns=0), ValueError, "columns: expected"),
        (
            lambda: save_figures(runs, tmp_path / "x", model, formats=("pdf",)),
            ValueError,
            "formats: expected some of",
        ),
        (
            lambda: save_figures(runs, tmp_path / "x", model, formats="png"),
            ValueError,
            "formats: expected some of",
        ),
        (
            lambda: save_figures(runs, tmp_path / "x", model, measures="epochs"),
            TypeError,
            "measures: expected a sequence",
        ),
        (
            lambda: save_figures(runs, tmp_path / "x", model, measures=("euros",)),
            ValueError,
            "measure: expected one of",
        ),
    ):
        with pytest.raises(error) as caught:
            call()
        assert str(caught.value).startswith(message)
    assert list(tmp_path.iterdir()) == []

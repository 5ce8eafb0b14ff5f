"""screen with a target: what is ranked is the cost of reaching it, over all models."""

import csv
import io
import json

import pytest
import torch
from helpers.study_runs import study_run
from helpers.training_oracle import accuracy, fast, network, task
from rich.console import Console
from torch import nn

import resque_ext
from resque_ext import forecast, score
from resque_ext.cost_model import CostModel
from resque_ext.retraining import retrain
from resque_ext.screening import Candidate, Screening, read_store
from resque_ext.screening.results import PairResult
from resque_ext.screening.table import WITHIN
from resque_ext.screening.target import Rows

TARGET = 0.85


def cut(x, y, size=50):
    return list(zip(x.split(size), y.split(size), strict=True))


def data(samples, seed, turn=0.0):
    """The task, its first two inputs turned: what the labels depend on lies elsewhere."""
    x, y = task(samples, seed=seed)
    cos, sin = torch.cos(torch.tensor(turn)), torch.sin(torch.tensor(turn))
    return cut(torch.cat([x[:, :2] @ torch.tensor([[cos, -sin], [sin, cos]]), x[:, 2:]], 1), y)


CANDIDATES = {f"turned {t}": data(500, 3, t) for t in (0.0, 0.5, 1.5)}


@pytest.fixture(scope="module")
def able():
    cost, better = retrain(
        network(dropout=0.0),
        data(400, 1),
        data(200, 2),
        0.93,
        60,
        optimizer=fast,
        meter=None,
        return_model=True,
    )
    assert cost.reached
    return better


def screen(models, candidates=CANDIDATES, old=None, **options):
    return resque_ext.screen(
        models, data(400, 1) if old is None else old, candidates, **{"progress": False} | options
    )


def shelf(able):
    return {"untrained": network(dropout=0.0, seed=7), "trained": able}


def test_an_untrained_model_never_comes_before_a_trained_one(able):
    found = screen(shelf(able), target_accuracy=TARGET)
    assert (found.rank_by, found.across_models) == ("epochs", True)
    order = [(r.model, r.candidate) for r in found.results]
    for candidate in CANDIDATES:
        assert order.index(("trained", candidate)) < order.index(("untrained", candidate))
    by_name = {(r.model, r.candidate): r for r in found.results}
    # The index says otherwise, which is why it ranks within each model alone.
    index = {m: by_name[m, "turned 1.5"].indices["resque_dist"].value for m in shelf(able)}
    assert index["untrained"] < index["trained"]


@pytest.mark.full
@pytest.mark.parametrize("seed", range(8))
def test_no_untrained_model_comes_before_a_trained_one(able, seed):
    models = {"untrained": network(dropout=0.0, seed=seed), "trained": able}
    for probe in (0, 6):
        found = screen(models, target_accuracy=TARGET, probe=probe)
        order = [(r.model, r.candidate) for r in found.results]
        for candidate in CANDIDATES:
            assert order.index(("trained", candidate)) < order.index(("untrained", candidate))


def test_a_target_that_is_met_costs_nothing(able):
    found = screen({"m": able}, target_accuracy=TARGET)
    first = found[0].result
    assert (first.candidate, first.forecast.stage) == ("turned 0.0", "free")
    for cost in first.predicted.values():
        assert (cost.value, cost.low, cost.high) == (0, 0, 0)
    assert found[0].rank == found[0].worst == 1
    assert found[1].result.predicted["epochs"].low > 0


def test_without_a_target_models_are_ranked_apart(able):
    found = screen(shelf(able), anytime=False)
    assert not found.across_models
    assert [(r.result.model, r.rank) for r in found] == [
        *(("untrained", i) for i in (1, 2, 3)),
        *(("trained", i) for i in (1, 2, 3)),
    ]
    for model in ("untrained", "trained"):
        alone = found.of_model(model)
        assert alone.across_models
        assert [r.rank for r in alone] == [1, 2, 3]
    assert WITHIN in " ".join(shown(found).split())
    assert WITHIN not in " ".join(shown(found.of_model("trained")).split())


def shown(found, width=300):
    console = Console(width=width, file=io.StringIO())
    console.print(found)
    return console.file.getvalue()


def test_accuracies_floors_and_warnings_stand_everywhere(able, tmp_path):
    store = tmp_path / "s.jsonl"
    found = screen(shelf(able), target_accuracy=1.0, store=store)
    text = shown(found)
    kept = {(r.model, r.candidate): r for r in read_store(store)[1]}
    rows = list(csv.DictReader(io.StringIO(found.to_csv())))
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))["pairs"]
    page = json.loads(resque_ext.screening.make_report(found.results, kind=".json"))["pairs"]
    pages = {(p["model"], p["candidate"]): p for p in page}
    for r, row, values in zip(found.results, rows, plain, strict=True):
        test = list(rows_of(CANDIDATES[r.candidate], True))
        assert r.forecast.accuracy == pytest.approx(accuracy(shelf(able)[r.model], test))
        assert r.new_accuracy is not None
        assert r.indices["resque_dist"].noise_floor is not None
        assert kept[r.model, r.candidate] == r == PairResult.from_json(r.to_json())
        assert (
            float(row["forecast.accuracy"]) == r.forecast.accuracy == values["forecast"]["accuracy"]
        )
        assert pages[r.model, r.candidate]["forecast"]["verdict"] == r.forecast.verdict
        assert pages[r.model, r.candidate]["new_accuracy"] == r.new_accuracy
        assert f"{r.forecast.accuracy:.1%}" in text
        assert f"{r.indices['resque_dist'].noise_floor:.4f}" in text
        for warning in r.warnings:
            assert warning in text
    assert any(r.forecast.verdict for r in found.results)
    assert any(r.warnings for r in found.results)
    for r in found.results:
        assert r.forecast.reliable == (not r.forecast.warnings)


def rows_of(batches, held_out, size=64, seed=0):
    """The held-out rows of a candidate, as the screening takes them."""
    from resque_ext.screening.candidates import open_feed

    return Rows(open_feed(batches, "x", "inputs"), size, seed, held_out)


def test_rows_held_out_are_those_that_are_not_trained_on():
    x = torch.arange(333.0)[:, None]
    batches = cut(x, torch.arange(333) % 3)
    train, test = (list(rows_of(batches, held)) for held in (False, True))
    rows = [torch.cat([b[0] for b in part])[:, 0].int().tolist() for part in (train, test)]
    assert sorted(rows[0] + rows[1]) == list(range(333))
    assert len(rows[1]) == 333 // 5
    assert [len(b[1]) for b in train[:-1]] == [64] * (len(train) - 1)
    again = [torch.cat([b[0] for b in rows_of(batches, h)]) for h in (False, True)]
    assert [a[:, 0].int().tolist() for a in again] == rows
    whole = list(rows_of(batches, None, 256, None))
    assert torch.equal(torch.cat([b[0] for b in whole]), x)


def test_is_the_forecast_of_these_rows(able):
    candidate = "turned 1.5"
    options = {"optimizer": fast, "coverage": 0.8}
    found = screen(
        {"m": able},
        {candidate: CANDIDATES[candidate]},
        target_accuracy=0.9,
        probe=1,
        forecast_options={**options, "batch_size": 32, "steps": (16,)},
    )
    train, test = (rows_of(CANDIDATES[candidate], held, 32) for held in (False, True))
    expected = forecast(able, data(400, 1), train, test, 0.9, steps=(16,), meter=None, **options)
    r = found[0].result
    assert r.forecast.probe_steps == expected.probe.steps > 0
    assert r.forecast.stage == expected.stage
    epochs = r.predicted["epochs"]
    assert (epochs.value, epochs.low, epochs.high) == (
        expected.epochs.value,
        expected.epochs.low,
        expected.epochs.high,
    )


def test_the_first_pairs_take_a_probe_and_a_restart_takes_no_other(able, tmp_path, monkeypatch):
    store = tmp_path / "s.sqlite"
    found = screen(shelf(able), target_accuracy=0.9, probe=2, store=store)
    probed = [r for r in found.results if r.forecast.probe_steps]
    assert 0 < len(probed) <= 2
    assert {r.model for r in probed} == {"trained"}
    before = found.to_dict()
    again = screen(shelf(able), target_accuracy=0.9, probe=2, store=store)
    assert again.to_dict() == before
    fresh = screen(shelf(able), target_accuracy=0.9, probe=2)
    assert fresh.to_dict(times=False) == found.to_dict(times=False)
    with pytest.raises(OSError, match=r"another one: target\.accuracy was 0\.9, is 0\.8"):
        screen(shelf(able), target_accuracy=0.8, probe=2, store=store)


class Stuck(torch.optim.SGD):
    def step(self, closure=None):
        raise ZeroDivisionError("mine")


def stuck(parameters):
    return Stuck(parameters, lr=0.1)


def test_a_probe_that_fails_leaves_what_was_known(able, tmp_path):
    store, plain = tmp_path / "s.sqlite", screen(shelf(able), target_accuracy=0.9)

    options = {"forecast_options": {"optimizer": stuck}, "probe": 1, "store": store}
    found = screen(shelf(able), target_accuracy=0.9, **options)
    told = [r for r in found.results if r.forecast.probe_error]
    assert [r.error for r in found.results] == [None] * len(found.results)
    (pair,) = told
    assert "mine" in pair.forecast.probe_error
    assert any("the probe failed" in line for line in pair.forecast.warnings)
    assert not pair.forecast.reliable
    (before,) = (r for r in plain.results if (r.model, r.candidate) == (pair.model, pair.candidate))
    assert pair.indices == before.indices
    assert pair.predicted["epochs"] == before.predicted["epochs"]
    again = screen(shelf(able), target_accuracy=0.9, **options)  # tries no other
    assert again.to_dict() == found.to_dict()
    with pytest.raises(ZeroDivisionError, match="mine"):
        screen(shelf(able), target_accuracy=0.9, on_error="raise", **options | {"store": None})


def test_no_probe_begins_once_the_budget_is_spent(able):
    rows = sum(each.new_samples for each in screen(shelf(able), target_accuracy=0.9).results)
    found = screen(shelf(able), target_accuracy=0.9, probe=2, budget={"samples": rows})
    assert all(r.forecast is not None for r in found.results)
    assert not any(r.forecast.probe_steps for r in found.results)


def test_what_may_never_be_reached_comes_last():
    rng = torch.Generator().manual_seed(0)
    noise = cut(torch.randn(500, 6, generator=rng), torch.randint(3, (500,), generator=rng))
    found = screen(
        {"m": network(dropout=0.0)}, {"noise": noise, "task": data(500, 3)}, target_accuracy=0.9
    )
    assert [r.candidate for r in found.results] == ["task", "noise"]
    assert found[1].result.forecast.verdict == "may never reach the target"
    assert found[1].result.predicted["epochs"].high is None


def test_a_pair_that_cannot_be_forecast_is_recorded():
    features = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Flatten(), nn.Unflatten(1, (2, 4)))
    found = screen({"m": features}, target_accuracy=0.9, indices=("arm",))
    assert all("expected an output [N, C]" in r.error for r in found.results)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_accuracy": 1.2}, "target_accuracy: expected above 0 and at most 1, found 1.2"),
        ({"target_accuracy": "x"}, "target_accuracy: expected a number, found str"),
        ({"probe": 2}, "probe: expected a target_accuracy beside it, found None"),
        ({"forecast_options": {}}, "forecast_options: expected a target_accuracy beside it"),
        (
            {"target_accuracy": 0.9, "forecast_options": {"train": 3}},
            "forecast_options: expected arguments of forecast among .*, found 'train'",
        ),
        (
            {"target_accuracy": 0.9, "forecast_options": {"optimzer": None}},
            "forecast_options: expected arguments of forecast among .*optimizer.*'optimzer'",
        ),
        (
            {"target_accuracy": 0.9, "forecast_options": {"steps": 5}},
            "forecast_options: steps: expected numbers such as",
        ),
        (
            {"target_accuracy": 0.9, "forecast_options": {"steps": (17,)}},
            "forecast_options: steps: expected ascending powers of two",
        ),
        (
            {"target_accuracy": 0.9, "forecast_options": {"coverage": 2}},
            "forecast_options: coverage: expected 0.5 <= coverage < 1",
        ),
        (
            {"target_accuracy": 0.9, "forecast_options": {"patience": "x"}},
            "forecast_options: patience: expected",
        ),
        (
            {"target_accuracy": 0.9, "rank_by": "miles"},
            "rank_by: expected one of 'resque_dist', 'epochs', .*, found 'miles'",
        ),
        (
            {"adapt_normalization": "auto"},
            "adapt_normalization: expected True, False or 'match', found 'auto'",
        ),
    ],
)
def test_what_is_wrong_shows_before_anything_is_read(options, message):
    def never():
        raise AssertionError("built")

    with pytest.raises((TypeError, ValueError), match=message):
        screen({"m": never}, **options)


def test_embeddings_have_no_cost():
    for option in ({"target_accuracy": 0.9}, {"adapt_normalization": True}):
        with pytest.raises(
            ValueError, match="expected a model to run and inputs for it, found emb"
        ):
            screen({"m": None}, **option)
    mixed = {"e": Candidate(data(100, 1), kind="embeddings")}
    with pytest.raises(ValueError, match=r"target_accuracy: expected a model .* \(m, e\)"):
        screen({"m": network()}, mixed, target_accuracy=0.9)


# Cost models that need normalization adapted


def costs(predictors=("resque_dist_reestimated",)):
    levels = [0.02 * i for i in range(1, 13)]
    runs = [
        study_run(
            level, 40 * level, f"kind{i % 6}", level, predictors=dict.fromkeys(predictors, level)
        )
        for i, level in enumerate(levels)
    ]
    return CostModel.fit(runs, predictors, measures=("epochs",))


def test_a_cost_model_fitted_by_default_predicts(able):
    model = costs()
    assert model.predictors == ("resque_dist_reestimated",)
    found = screen({"m": able}, cost_model=model, rank_by="epochs", anytime=False, batch_size=50)
    for r in found.results:
        adapted = score(
            able, data(400, 1), CANDIDATES[r.candidate], adapt_normalization=True, progress=False
        )
        assert r.indices["resque_dist_reestimated"].value == pytest.approx(adapted.value, abs=1e-6)
        assert r.indices["resque_dist_reestimated"].noise_floor is not None
        plain = score(able, data(400, 1), CANDIDATES[r.candidate], progress=False)
        assert r.indices["resque_dist"].value == pytest.approx(plain.value, abs=1e-6)
        expected = model.predict(
            {"resque_dist_reestimated": adapted.value},
            extrapolate="flag",
            accuracy=accuracy(able, CANDIDATES[r.candidate]),
        )
        assert r.predicted["epochs"].value == pytest.approx(expected["epochs"].value, rel=1e-6)
    assert found[0].rank is not None


def test_other_predictors_and_adaptation_work(able):
    names = ("linear_residual_reestimated", "linear_probe_error")
    found = screen({"m": able}, cost_model=costs(names), anytime=False)
    for r in found.results:
        assert {"linear_residual_reestimated", "linear_probe"} <= set(r.indices)
        assert r.predicted["epochs"].value is not None
    found = screen(
        {"m": able}, indices=("linear_residual",), adapt_normalization="match", batch_size=50
    )
    expected = score(
        able,
        data(400, 1),
        CANDIDATES["turned 0.5"],
        "linear_residual",
        progress=False,
        adapt_normalization="match",
    )
    r = next(r for r in found.results if r.candidate == "turned 0.5")
    assert r.indices["linear_residual_reestimated"].value == pytest.approx(expected.value, rel=1e-5)


def test_a_predictor_that_no_index_is_shows_before_reading():
    def never():
        raise AssertionError("built")

    with pytest.raises(ValueError, match=r"cost_model: expected predictors that are indices .*'x'"):
        screen({"m": never}, cost_model=costs(("x",)))
    with pytest.raises(ValueError, match=r"adapt_normalization: .*resque_dist_reestimated needs"):
        screen({"m": None}, cost_model=costs())


def test_a_model_that_has_nothing_to_adapt_says_so():
    plain = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    found = screen({"m": plain}, cost_model=costs())
    assert all("expected a model with running statistics" in r.error for r in found.results)


def test_ranks_of_given_results():
    def pair(model, name, value):
        from resque_ext.screening.results import IndexValue

        return PairResult(model, name, {"arm": IndexValue(value)})

    found = Screening([pair("a", "x", 0.3), pair("b", "x", 0.1), pair("a", "y", 0.2)], "arm")
    assert [(r.result.model, r.result.candidate, r.rank) for r in found] == [
        ("a", "y", 1),
        ("a", "x", 2),
        ("b", "x", 1),
    ]

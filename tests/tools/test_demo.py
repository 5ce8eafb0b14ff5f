"""The demonstration on real digits: one run, and what must hold in it."""

import itertools
import json
import math

import pytest
import torch
from scipy import stats

from resque_ext import shifts
from resque_ext.tools import demo


# In the user's tier it runs in short, as a command (test_cli_demo.py).
@pytest.fixture(scope="module", params=[pytest.param(0, marks=pytest.mark.full)], ids=["seed"])
def result(request):
    return demo.run(request.param)


def by_kind(result):
    return {kind: [row for row in result["rows"] if row["kind"] == kind] for kind in demo.LEVELS}


def test_every_kind_has_its_levels(result):
    assert list(demo.LEVELS) == [name for name in shifts.names() if name != "none"]
    for kind, rows in by_kind(result).items():
        assert [row["level"] for row in rows] == list(demo.LEVELS[kind])
        assert len(rows) >= 3
        assert all(row["unit"] == shifts.SHIFTS[kind].unit for row in rows)


@pytest.mark.parametrize("kind", demo.LEVELS)
def test_index_rises_with_the_level(result, kind):
    values = [row["value"] for row in by_kind(result)[kind]]
    assert all(a < b for a, b in itertools.pairwise(values)), values


@pytest.mark.parametrize("kind", demo.LEVELS)
def test_strongest_level_is_detected_and_costs_accuracy(result, kind):
    row = by_kind(result)[kind][-1]
    assert row["value"] > row["noise_floor"] + 5 * row["std_error"]
    assert row["accuracy_drop"] > 0.3


def test_no_shift_is_near_the_noise_floor(result):
    none = result["rows"][0]
    assert none["kind"] == "none"
    assert none["value"] < 2 * none["noise_floor"]
    assert none["accuracy_drop"] < 0.05


def test_model_is_good(result):
    assert result["accuracy"]["old"] > 0.99
    assert result["accuracy"]["held_out"] > 0.95


def test_reestimating_undoes_most_of_a_contrast_change(result):
    row = by_kind(result)["contrast"][1]
    assert row["reestimated"]["value"] < row["value"] / 3
    assert row["reestimated_accuracy"] > row["new_accuracy"]


def test_result_is_strict_json(result):
    again = json.loads(json.dumps(result, allow_nan=False))
    assert again == result
    assert again["environment"]["versions"]["torch"] == torch.__version__
    assert again["environment"]["device"] == "cpu"
    assert again["seconds"]["total"] > 0


def test_split_is_stratified_and_shares_no_image():
    (images, labels), (others, other_labels) = demo.load_digits(3)
    assert images.shape == (1078, 1, 8, 8)
    assert others.shape == (719, 1, 8, 8)
    assert 0 <= images.min() <= images.max() <= 1
    share = other_labels.bincount() / (labels.bincount() + other_labels.bincount())
    assert (share - demo.HELD_OUT).abs().max() < 0.01
    distinct = torch.cat([images, others]).flatten(1).unique(dim=0)
    assert len(distinct) == 1797  # no digit is twice in the set, so none is on both sides


@pytest.mark.full
def test_process_state_is_left_alone(monkeypatch):
    monkeypatch.setattr(demo, "LEVELS", {"contrast": (0.5,), "brightness": (0.3,)})
    monkeypatch.setattr(demo, "EPOCHS", 1)
    monkeypatch.setattr(demo, "MOST_EPOCHS", 0.5)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    shares = []
    first = demo.run(1, lambda what, share: shares.append(share))
    again = demo.run(1)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads
    assert first["rows"] == again["rows"]
    assert first["retraining"] == again["retraining"]
    assert first["rows"] != demo.run(2)["rows"]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seed_out_of_range(seed):
    with pytest.raises(ValueError, match=rf"^seed: expected 0 <= seed < 2\^32, found {seed}$"):
        demo.run(seed)


def test_the_split_is_by_class_and_the_images_are_scikit_learns():
    from sklearn import datasets

    (images, labels), (others, more) = demo.load_digits(5)
    assert (len(labels), len(more)) == (1078, 719)
    for digit in range(10):
        held_out = (more == digit).sum() / ((labels == digit).sum() + (more == digit).sum())
        assert abs(held_out - demo.HELD_OUT) < 0.005
    digits = datasets.load_digits()
    found = torch.cat([images, others]).mul(16).flatten(1).int()
    found = sorted(zip(found.tolist(), torch.cat([labels, more]).tolist(), strict=True))
    rows = digits.images.reshape(-1, 64).astype(int).tolist()
    assert found == sorted(zip(rows, digits.target.tolist(), strict=True))


def test_every_shift_is_retrained_for(result):
    retraining = result["retraining"]
    rows = retraining["rows"]
    assert [(r["kind"], r["level"]) for r in rows] == [
        (kind, level) for kind, levels in demo.LEVELS.items() for level in levels
    ]
    for row in rows:
        assert row["censored"] == (row["best_accuracy"] < demo.TARGET)
        assert 0 <= row["epochs"] <= demo.MOST_EPOCHS
        assert not row["censored"] or row["epochs"] == demo.MOST_EPOCHS
        assert (row["stage"] == "free") == (row["start_accuracy"] >= demo.TARGET)
        assert (row["epochs"] == 0) == (row["stage"] in ("free", "adapt"))
        assert row["low"] <= row["forecast"]
        assert row["high"] is None or row["forecast"] <= row["high"]
        assert row["reliable"] == (not row["warnings"])
        # What is said to be known is what then happened.
        if row["stage"] in ("free", "adapt"):
            assert row["epochs"] == row["forecast"] == 0
    assert retraining["censored"] == sum(row["censored"] for row in rows)
    known = [r for r in rows if r["stage"] == "probe" and not r["censored"]]
    inside = sum(r["low"] <= r["epochs"] <= (r["high"] or math.inf) for r in known)
    assert inside == len(known) > 0
    assert found_rank(retraining) > 0.85
    # Levels differ: neither nearly all for nothing, nor nearly all in vain.
    kinds = [sum(r["stage"] == "free" for r in rows), retraining["censored"]]
    assert max(kinds) < len(rows) / 2


def found_rank(retraining):
    return retraining["rank_correlations"]["forecast"]["value"]


def test_rank_correlations_are_those_of_the_rows(result):
    rows = result["retraining"]["rows"]
    found = result["retraining"]["rank_correlations"]
    measured = [math.inf if row["censored"] else row["epochs"] for row in rows]
    ranks = stats.rankdata(measured)
    scored = {(row["kind"], row["level"]): row for row in result["rows"]}
    values = {
        "forecast": [row["forecast"] + demo.MOST_EPOCHS * bool(row["verdict"]) for row in rows],
        "resque_dist": [scored[row["kind"], row["level"]]["value"] for row in rows],
    }
    for name, each in values.items():
        expected = stats.spearmanr(each, ranks)[0]
        assert found[name]["value"] == pytest.approx(expected, abs=1e-12)
        assert found[name]["low"] < found[name]["value"] < found[name]["high"]
        assert found[name]["censored"] == result["retraining"]["censored"]
    assert found["forecast"]["value"] > found["resque_dist"]["value"]

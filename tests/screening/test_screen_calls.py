"""What a caller of `screen` may get wrong, and the places that its table and the report show."""

import csv
import io
import json
import random
import warnings

import numpy as np
import pytest
import torch
from helpers import screening_made as made

import resque_ext
from resque_ext.report.columns import rank
from resque_ext.report.page import make_report
from resque_ext.screening import Candidate, ShelfModel, StoreError, old_side, screener
from resque_ext.screening.results import IndexValue, PairResult, PredictedCost
from resque_ext.screening.table import Screening


def call(**options):
    given = {
        "models": {"m": None},
        "old": made.synthetic(60),
        "candidates": {"c": made.synthetic(60, 0.1, 1)},
        "looks": made.LOOKS,
    }
    return resque_ext.screen(**(given | options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"looks": 5}, "looks: expected samples of the first look and a growth .*, found 5"),
        ({"looks": (256,)}, r"looks: expected samples .*, found \(256,\)"),
        ({"looks": ("a", 2)}, "looks: expected samples of the first look"),
        ({"looks": (256, "x")}, "looks: expected samples of the first look"),
        ({"looks": (2.5, 2)}, "looks: expected an integer, found 2.5"),
        ({"looks": (0, 2)}, "looks: expected 1 <= looks < 2.31, found 0"),
        ({"looks": (256, 1.0)}, "looks: expected a growth above 1, found 1.0"),
        ({"looks": (256, float("inf"))}, "looks: expected a growth above 1, found inf"),
        ({"confidence": "a"}, "confidence: expected a number between 0 and 1, found 'a'"),
        ({"confidence": None}, "confidence: expected a number between 0 and 1, found None"),
        ({"width": "x"}, "width: expected a number above 0 or None, found 'x'"),
        ({"width": True}, "width: expected a number above 0 or None, found True"),
        ({"width": float("nan")}, "width: expected a number above 0 or None, found nan"),
        ({"budget": {"samples": 1.5}}, "budget: samples: expected an integer, found 1.5"),
        ({"cost_model": "costs.json"}, "cost_model: expected a CostModel .*, found str"),
        ({"cost_options": {"confidence": 0.9}}, "cost_options: expected a cost_model beside"),
        ({"cost_options": 3}, "cost_options: expected a mapping, found int"),
        ({"store": 5}, "store: expected a path or None, found int"),
        ({"candidates": {"\udcff": made.synthetic(60)}}, "candidates: expected names that UTF-8"),
        ({"models": {"\udcff": None}}, "models: expected names that UTF-8 can write"),
    ],
)
def test_a_wrong_argument_is_one_line_that_names_it(options, message):
    with pytest.raises((TypeError, ValueError), match=f"^{message}") as caught:
        call(**options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", ["sqlite", "jsonl"])
@pytest.mark.parametrize("name", ["a/b", "../a", "a\nb", "a\0b", "[bold]a", "a.b = 'c'", "\u00e9"])
def test_any_text_is_a_name(tmp_path, name, suffix):
    options = {"models": {name: None}, "candidates": {name: made.synthetic(60, 0.1, 1)}}
    store = tmp_path / f"store.{suffix}"
    first = call(**options, store=store)
    assert [(r.model, r.candidate) for r in first.results] == [(name, name)]
    assert call(**options, store=store).to_dict() == first.to_dict()
    assert [path.name for path in tmp_path.iterdir()] == [store.name]


@pytest.mark.parametrize("suffix", ["sqlite", "jsonl"])
def test_an_error_about_a_file_whose_name_is_no_text(tmp_path, suffix, caplog):
    class Bad:
        def __iter__(self):
            raise OSError("expected a file, found none: a\udcff.png")

    found = call(candidates={"c": Bad()}, store=tmp_path / f"store.{suffix}")
    assert found.results[0].error == "expected a file, found none: a\\udcff.png"
    assert caplog.messages == ["m, c: expected a file, found none: a\\udcff.png"]


def test_candidates_at_the_edges():
    """Every one is a result or one line of error, and none gives a warning. Positions are those of
    the data, whatever the order of reading, of the first wrong row that was read."""
    x, y = made.synthetic(60, 0.1, 1)
    nothing = (x[:0], y[:0])
    candidates = {
        "same": made.synthetic(60),
        "opposite": (-made.synthetic(60)[0], y),
        "one row": (x[:1], y[:1]),
        "one class": (x, y * 0),
        "labels beyond": (x, y + 5),
        "labels below": (x, y - 1),
        "narrow": (x[:, :5].copy(), y),
        "zeros": (x * 0, y),
        "nan": (np.where(np.arange(60)[:, None] == 7, np.nan, x).astype(np.float32), y),
        "no batches": [],
        "no rows": lambda: [nothing],
        "batches": [(x[:20], y[:20]), (x[20:], y[20:])],
        "lengths": [(x, y[:20])],
    }
    errors = {
        "one row": "expected every class to have an angle, found class 1 has no new rows",
        "one class": "expected every class to have an angle, found class 1 has no new rows",
        "labels beyond": "class 0 has no new rows",
        "labels below": "expected class indices 0..9, found -1 at position 10",
        "narrow": "expected width 64",
        "zeros": "class 0 has a zero new sum",
        "nan": "expected finite values, found 64 NaN or infinite in 1 rows, the first at row 7,",
        "lengths": "expected one label a row, found batch 0 of inputs (shape (60, 64)",
        "no batches": "expected at least one batch, found none",
        "no rows": "expected at least one batch, found none",
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = {r.candidate: r for r in call(candidates=candidates).results}
    assert {name for name, r in found.items() if r.error is not None} == set(errors)
    for name, message in errors.items():
        assert message in found[name].error
        assert not found[name].indices
    whole = call(candidates={"c": (x, y)}).results[0].indices["resque_dist"].value
    assert found["batches"].indices["resque_dist"].value == pytest.approx(whole, rel=1e-9)
    assert found["same"].indices["resque_dist"].value == 0
    assert found["opposite"].indices["resque_dist"].value == 1


@pytest.mark.parametrize("suffix", ["sqlite", "jsonl"])
def test_a_damaged_old_side_is_an_error_of_the_store_alone(tmp_path, monkeypatch, suffix):
    """Not one of the pairs, which would be written down as failed for good."""
    store = tmp_path / f"store.{suffix}"
    options = {"candidates": {"c": made.synthetic(60), "d": made.synthetic(60, 0.2)}}
    module = old_side.OldSide
    monkeypatch.setattr(module, "to_bytes", lambda self: b"damaged")
    monkeypatch.setattr(screener.Screener, "_in_rounds", interrupted)
    with pytest.raises(KeyboardInterrupt):
        call(**options, store=store)
    monkeypatch.undo()
    content = store.read_bytes()
    with pytest.raises(StoreError, match=r"store: .*: expected the old side of 'm', found it dam"):
        call(**options, store=store)
    found = resque_ext.screening.read_store(store)[1]
    assert found == []
    assert suffix == "sqlite" or store.read_bytes() == content


def interrupted(self, old, keys):
    raise KeyboardInterrupt


def test_the_table_and_the_report_show_the_same_places():
    draw = random.Random(3)
    pairs = []
    for number in range(60):
        values = {"resque_dist": draw.choice([None, 0.1, 0.2, draw.random()])}
        values["arm"] = draw.random() if number % 3 else None
        indices = {
            name: IndexValue(value, None, None, *bounds(draw, value))
            for name, value in values.items()
            if value is not None
        }
        low, high = bounds(draw, 5.0)
        cost = PredictedCost(5.0, 4.0 if low is None else low, high, "epochs")
        pairs.append(PairResult(f"m{number % 2}", f"c{number:02d}", indices, {"epochs": cost}))
    report = rank(pairs)
    for path, places in report.items():
        table = Screening(pairs, path.split(".")[1])
        shown = {(row.result.model, row.result.candidate): row for row in table}
        assert len(shown) == len(pairs)
        for pair, place in zip(pairs, places, strict=True):
            row = shown[pair.model, pair.candidate]
            assert (row.rank, row.worst) == (place or (None, None))
        assert any(place is not None and place[0] < place[1] for place in places)
    assert list(report) == ["indices.resque_dist", "indices.arm", "predicted.epochs"]


def bounds(draw, value):
    if draw.random() < 0.3:
        return None, None
    return value - draw.random() / 20, value + draw.random() / 20


class Tokens(torch.nn.Module):
    """A classifier of [N, T, 8] by the mean of its tokens."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.tokens, self.head = torch.nn.Linear(8, 6, False), torch.nn.Linear(6, 3, False)

    def forward(self, x):
        return self.head(self.tokens(x).mean(1))


def test_how_the_embedding_was_made_is_in_the_result(tmp_path):
    rng = np.random.default_rng(0)
    side = rng.normal(size=(60, 4, 8)).astype(np.float32), np.arange(60) % 3
    shelf = {
        "first": ShelfModel(Tokens, layer="tokens", pooling="first"),
        "predicted": ShelfModel(Tokens, layer="tokens", labels="predicted"),
    }
    candidates = {"c": Candidate((side[0] + np.float32(0.1), side[1]), paired=True)}
    store = tmp_path / "s.jsonl"
    options = {"progress": False, "store": store}
    plain = resque_ext.screen(shelf, side, candidates, on_error="raise", **options)
    expected = {"first": ("first", "given"), "predicted": ("mean", "predicted")}
    assert {r.model: (r.pooling, r.labels) for r in plain.results} == expected
    assert {r["model"]: (r["pooling"], r["labels"]) for r in plain.to_dict()["pairs"]} == expected
    names = ("resque_dist", "preindex")
    first = {"first": shelf["first"]}
    paired = resque_ext.screen(first, side, candidates, names, on_error="raise", progress=False)
    assert [(r.pooling, r.labels) for r in paired.results] == [("first", "given")]
    arm = resque_ext.screen(shelf, side, candidates, ("arm",), on_error="raise", progress=False)
    assert {(r.pooling, r.labels) for r in arm.results} == {(None, None)}
    for text in (plain.to_csv(), make_report(plain.results, kind=".csv")):
        rows = {row["model"]: row for row in csv.DictReader(io.StringIO(text))}
        assert {n: (row["pooling"], row["labels"]) for n, row in rows.items()} == expected


def test_a_pair_of_before_has_neither_pooling_nor_labels():
    pair = PairResult("m", "c", {"arm": IndexValue(0.5)}, pooling="mean", labels="given")
    values = json.loads(pair.to_json())
    assert PairResult.from_json(json.dumps(values)) == pair
    del values["pooling"], values["labels"]
    before = PairResult.from_json(json.dumps(values))
    assert before == PairResult("m", "c", {"arm": IndexValue(0.5)})
    assert PairResult.from_json(before.to_json()) == before
    for wrong in (values | {"x": 1}, {k: v for k, v in values.items() if k != "error"}):
        with pytest.raises(ValueError, match=r"pair: expected the keys .*, differs in \['(x|err)"):
            PairResult.from_json(json.dumps(wrong))

"""screen: the ranked table, restarts, budgets, ties, faults and memory."""

import logging
import signal
import sqlite3
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers import optional
from helpers import screening_made as made
from helpers.places import environment
from torch import nn

import resque_ext
from resque_ext import shifts
from resque_ext.screening import Candidate, Screening, read_store
from resque_ext.screening.results import IndexValue, PairResult, PredictedCost


def screen(candidates, old=None, model=None, **options):
    """A screening of embeddings (or of one model), quietly."""
    old = made.synthetic(900) if old is None else old
    options = {"progress": False} | options
    return resque_ext.screen({"m": model}, old, candidates, **options)


def values(screening):
    return {r.candidate: r.indices["resque_dist"].value for r in screening.results}


# Against score and the accumulator, which are tested by themselves


def test_whole_pairs_have_what_score_gives():
    model = made.Small(0)
    found = screen(made.candidates(6), made.old(), model, anytime=False, batch_size=128)
    batches = {n: [tuple(map(torch.from_numpy, c))] for n, c in made.candidates(6).items()}
    old = [tuple(map(torch.from_numpy, made.old()))]
    for row in found:
        r = row.result
        expected = resque_ext.score(model, old, batches[r.candidate], progress=False)
        index = r.indices["resque_dist"]
        assert index.value == pytest.approx(expected.value, abs=1e-7)
        assert index.std_error == pytest.approx(expected.std_error, rel=1e-4)
        assert index.noise_floor == pytest.approx(expected.noise_floor, rel=1e-4)
        assert (index.low, index.high) == (None, None)
        assert (r.old_samples, r.new_samples, r.available) == (1500, 300, 300)
        assert r.stopped == "end"
        assert r.classes["resque_dist"]["3"] == pytest.approx(expected.per_class[3], abs=1e-7)
    assert [row.rank for row in found] == [1, 2, 3, 4, 5, 6]


def test_several_indices_of_one_reading():
    found = screen(
        {"near": made.digits(200, 0.1, 1), "far": made.digits(200, 0.5, 1)},
        made.old(),
        lambda: made.Small(0),
        indices=("resque_dist", "resque_task", "arm"),
        rank_by="arm",
        options={"resque_task": {"baselines": False}},
    )
    assert [row.result.candidate for row in found] == ["near", "far"]
    for r in found.results:
        batches = [
            tuple(map(torch.from_numpy, made.digits(200, 0.1 if r.candidate == "near" else 0.5, 1)))
        ]
        old = [tuple(map(torch.from_numpy, made.old()))]
        expected = resque_ext.score(
            made.Small(0), old, batches, ("resque_task", "arm"), progress=False
        )
        for name in expected:
            assert r.indices[name].value == pytest.approx(expected[name].value, rel=1e-6)
        assert r.layers["arm"] == pytest.approx(dict(expected["arm"].layer_values))


def test_preindex_where_rows_are_paired():
    shift = shifts.make("brightness", 0.3)
    found = screen(
        {"shifted": Candidate(shift=shift, paired=True), "other": made.digits(100, 0.2, 1)},
        [(torch.rand(40, 1, 8, 8), torch.arange(40) % 10) for _ in range(3)],
        lambda: made.Small(0),
        indices=("resque_dist", "preindex"),
    )
    by_name = {r.candidate: r for r in found.results}
    assert set(by_name["shifted"].indices) == {"resque_dist", "preindex"}
    assert set(by_name["other"].indices) == {"resque_dist"}
    assert by_name["shifted"].layers["preindex"]


def test_each_side_is_read_once():
    reads = []

    class Counted(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = made.Small(0)

        def forward(self, x):
            reads.append(len(x))
            return self.inner(x)

    screen(made.candidates(4), made.old(), Counted, anytime=False)
    assert sum(reads) == 1500 + 4 * 300


def test_models_are_built_one_at_a_time():
    alive, most = [], []

    class Watched(made.Small):
        def __init__(self, seed):
            super().__init__(seed)
            alive.append(1)
            most.append(len(alive))

        def __del__(self):
            alive.pop()

    shelf = {str(seed): lambda seed=seed: Watched(seed) for seed in range(3)}
    resque_ext.screen(shelf, made.old(), made.candidates(2), progress=False)
    assert most == [1, 1, 1]


# Anytime


def test_pairs_stop_when_they_are_parted():
    far = {f"c{i}": made.synthetic(20_000, i * 0.8, i) for i in range(4)}
    found = screen(far)
    assert [row.result.candidate for row in found] == ["c0", "c1", "c2", "c3"]
    assert [(row.rank, row.worst) for row in found] == [(1, 1), (2, 2), (3, 3), (4, 4)]
    for row in found:
        assert row.result.stopped == "separated"
        assert row.result.new_samples < 4000
        index = row.result.indices["resque_dist"]
        assert index.low <= index.value <= index.high


def test_ties_are_read_to_the_end_and_reported():
    same = {f"c{i}": made.synthetic(2000, 0.5, i) for i in range(3)}
    found = screen(same | {"far": made.synthetic(2000, 3.0, 9)})
    assert [(row.rank, row.worst) for row in found] == [(1, 3)] * 3 + [(4, 4)]
    assert {row.result.stopped for row in found if row.tied} == {"end"}
    assert found[3].result.stopped == "separated"


def test_a_width_ends_ties():
    same = {f"c{i}": made.synthetic(20_000, 0.5, i) for i in range(3)}
    found = screen(same, width=0.05)
    for row in found:
        index = row.result.indices["resque_dist"]
        assert (row.result.stopped, index.high - index.low <= 0.05) == ("width", True)
        assert row.result.new_samples < 20_000


def test_a_table_of_given_intervals():
    def pair(name, value, low, high):
        return PairResult("m", name, {"resque_dist": IndexValue(value, None, None, low, high)})

    failed = PairResult("m", "failed", {}, stopped="error", error="a, reason")
    found = Screening(
        [failed, pair("a", 0.5, 0.4, 0.6), pair("c", 0.1, 0.0, 0.2), pair("b", 0.3, 0.15, 0.45)]
    )
    rows = [(row.result.candidate, row.rank, row.worst, row.tied) for row in found]
    assert rows == [
        ("c", 1, 2, True),
        ("b", 1, 3, True),
        ("a", 2, 3, True),
        ("failed", None, None, False),
    ]
    lines = found.to_csv().splitlines()
    assert lines[0].startswith("rank,worst,model,candidate,resque_dist.value,")
    assert lines[1].startswith("1,2,m,c,0.1,,,0.0,0.2,")
    assert lines[4].endswith('"a, reason"')


# Budgets


def test_a_budget_of_samples_is_kept_and_shared():
    shelf = {"one": None, "two": None}
    same = {f"c{i}": made.synthetic(4000, 0.5, i) for i in range(5)}
    found = resque_ext.screen(
        shelf, made.synthetic(900), same, budget={"samples": 8000}, progress=False
    )
    for model in shelf:
        read = [r.new_samples for r in found.of_model(model).results]
        assert len(set(read)) == 1  # all to the same place
        assert 0 < sum(read) <= 4000
    assert {r.stopped for r in found.results} == {"budget"}


def test_a_budget_of_samples_without_rounds():
    same = {f"c{i}": made.synthetic(1000, 0.5, i) for i in range(4)}
    found = screen(same, indices=("resque_task",), budget={"samples": 2500}, anytime=False)
    read = {r.candidate: (r.new_samples, r.stopped) for r in found.results}
    assert read == {
        "c0": (1000, "end"),
        "c1": (1000, "end"),
        "c2": (500, "budget"),
        "c3": (0, "budget"),
    }
    assert found[-1].rank is None


def test_no_time_at_all():
    found = screen(made.candidates(4), made.old(), budget={"seconds": 1e-9})
    assert {(r.stopped, r.new_samples, r.available) for r in found.results} == {("budget", 0, 300)}


# Restarts


def program(store, kill_after, count):
    """A screening in a process of its own, which is killed in the middle of a transaction."""
    # As many threads as here: how a model's products round depends on them.
    threads = str(torch.get_num_threads())
    arguments = [sys.executable, made.__file__, str(store), str(kill_after), str(count)]
    done = subprocess.run(
        arguments,
        env=environment(OMP_NUM_THREADS=threads),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.full
def test_killed_twice_and_resumed_is_as_undisturbed(tmp_path):
    expected = made.screening()
    assert len(expected) == 600
    assert len({r.stopped for r in expected.results}) > 1
    store = tmp_path / "screen.sqlite"
    program(store, 150, 200)
    first = {(r.model, r.candidate): r for r in read_store(store)[1]}
    assert len(first) == 149
    program(store, 230, 200)
    header, second = read_store(store)
    assert len(second) == 149 + 229
    assert header.identity["indices"] == {"resque_dist": {}}
    found = made.screening(store)
    assert found.to_dict(times=False) == expected.to_dict(times=False)
    after = {(r.model, r.candidate): r for r in read_store(store)[1]}
    assert len(after) == 600
    assert all(after[key] == first[key] for key in first)  # times too: never read again


def test_a_finished_screening_reads_nothing_again(tmp_path):
    store = tmp_path / "screen.jsonl"
    first = made.screening(store, 10)

    def unbuildable():
        raise AssertionError("built again")

    again = resque_ext.screen(
        {
            name: resque_ext.screening.ShelfModel(unbuildable, description=text)
            for name, text in read_store(store)[0].identity["models"].items()
        },
        made.old(),
        made.candidates(10),
        store=store,
        looks=made.LOOKS,
        width=0.01,
        progress=False,
    )
    assert again.to_dict() == first.to_dict()


@pytest.mark.parametrize("suffix", ["sqlite", "jsonl"])
def test_the_old_side_is_kept(tmp_path, monkeypatch, suffix):
    store = tmp_path / f"screen.{suffix}"
    expected = screen(made.candidates(6), made.old(), made.Small(0))

    def stop(self, pair, replace=False):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(resque_ext.screening.store.Store, "add", stop)
        with pytest.raises(KeyboardInterrupt):
            screen(made.candidates(6), made.old(), made.Small(0), store=store)
    with monkeypatch.context() as patched:
        patched.setattr(resque_ext.screening.old_side.OldSide, "read", None)  # not called
        found = screen(made.candidates(6), made.old(), made.Small(0), store=store)
    assert found.to_dict(times=False) == expected.to_dict(times=False)


def test_other_weights_than_the_kept_ones_are_refused(tmp_path):
    store = tmp_path / "screen.sqlite"
    screen(made.candidates(2), made.old(), made.Small(0), store=store)
    with sqlite3.connect(store) as db:
        db.execute("DELETE FROM pairs")
    with pytest.raises(OSError, match=r"expected the weights of 'm' that its results are of"):
        screen(made.candidates(2), made.old(), made.Small(1), store=store)


# Faults and errors


def test_a_pair_that_fails_is_recorded_and_the_rest_goes_on(tmp_path):
    x, y = made.synthetic(300)
    wrong = {"labels": (x, y + 10), "width": (x[:, :5], y), "good": (x, y)}
    found = screen(wrong, store=tmp_path / "s.sqlite")
    by_name = {r.candidate: r for r in found.results}
    assert by_name["good"].error is None
    assert by_name["good"].indices
    for name in ("labels", "width"):
        assert by_name[name].stopped == "error"
        assert by_name[name].indices == {}
        assert "expected" in by_name[name].error
        assert "\n" not in by_name[name].error
    assert [row.rank for row in found] == [1, None, None]
    with pytest.raises(ValueError, match="expected"):
        screen(wrong, on_error="raise")


def test_a_model_that_cannot_be_built_fails_its_pairs_alone():
    def broken():
        raise RuntimeError("no weights here")

    shelf = {"broken": broken, "good": made.models()["small0"]}
    found = resque_ext.screen(shelf, made.old(), made.candidates(2), progress=False)
    assert [r.error for r in found.of_model("broken").results] == ["no weights here"] * 2
    assert [r.error for r in found.of_model("good").results] == [None] * 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"indices": ("resque",)}, "indices: expected names among"),
        ({"rank_by": "arm"}, "rank_by: expected one of"),
        ({"budget": {"hours": 1}}, "budget: expected a Budget or a mapping of"),
        ({"budget": {"samples": 0}}, "budget: samples: expected a number above 0, found 0"),
        ({"on_fault": "ignore"}, "on_fault: expected one of"),
        ({"confidence": 1.0}, "confidence: expected a number between 0 and 1, found 1.0"),
        ({"width": -1}, "width: expected a number above 0 or None, found -1"),
        ({"batch_size": 0}, "batch_size: expected 1 <= batch_size"),
        ({"indices": ("arm",)}, "indices: expected inputs of a model for 'arm', found none"),
        ({"indices": ("preindex",)}, "indices: expected paired candidates for 'preindex'"),
        ({"old": None}, "old: expected data of 'm', found None"),
        ({"candidates": {}}, "candidates: expected at least one, found none"),
        ({"candidates": {"c": iter([])}}, "candidates.c: .*one-shot iterator"),
        ({"candidates": {"c": "none.npy"}}, "candidates.c: .*expected"),
        ({"models": {"m": 3}}, r"models\['m'\]: expected a torch.nn.Module"),
    ],
)
def test_wrong_arguments_are_refused_before_the_store_is_made(tmp_path, options, message):
    store = tmp_path / "screen.sqlite"
    given = {
        "models": {"m": None},
        "old": made.synthetic(50),
        "candidates": {"c": made.synthetic(50)},
    }
    with pytest.raises((TypeError, ValueError, OSError), match=message):
        resque_ext.screen(**(given | options), store=store)
    assert not store.exists()


# Memory


class Hungry(nn.Module):
    """Has room for so many rows, as a device would."""

    def __init__(self, rows, error):
        super().__init__()
        self.inner, self.rows, self.error, self.sizes = made.Small(0), rows, error, []

    def forward(self, x):
        self.sizes.append(len(x))
        hidden = torch.relu(self.inner.hidden(x))
        if len(x) > self.rows:
            raise self.error
        return self.inner.head(hidden)


OUT = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    MemoryError(),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
]


@pytest.mark.parametrize("error", OUT, ids=["cuda", "python", "cpu"])
def test_out_of_memory_halves_the_batch_and_changes_nothing(error):
    expected = screen(made.candidates(4), made.old(), made.Small(0), anytime=False, batch_size=200)
    hungry = Hungry(30, error)
    found = screen(made.candidates(4), made.old(), hungry, anytime=False, batch_size=200)
    assert values(found) == pytest.approx(values(expected), abs=1e-9)
    assert [r.new_samples for r in found.results] == [300] * 4
    assert max(hungry.sizes[-40:]) == 25


def test_out_of_memory_in_the_middle_of_a_pair():
    hungry = Hungry(100, MemoryError())
    expected = screen(made.candidates(4), made.old(), made.Small(0), looks=(64, 2.0), batch_size=64)

    forward = hungry.forward

    def shrinks(x):  # room for the old side and the first look, and for less later
        hungry.rows = 100 if len(hungry.sizes) < 28 else 20
        return forward(x)

    hungry.forward = shrinks
    found = screen(made.candidates(4), made.old(), hungry, looks=(64, 2.0), batch_size=64)
    assert values(found) == pytest.approx(values(expected), abs=1e-9)
    assert [r.new_samples for r in found.results] == [r.new_samples for r in expected.results]


def test_out_of_memory_at_one_sample_is_one_clear_error():
    found = screen(made.candidates(2), made.old(), Hungry(0, MemoryError("full")))
    for r in found.results:
        assert r.error == (
            "m, old side: expected a batch of one sample to fit in memory, found none left (full)"
        )


def test_other_runtime_errors_are_no_lack_of_memory():
    hungry = Hungry(0, RuntimeError("shapes cannot be multiplied"))
    found = screen(made.candidates(2), made.old(), hungry)
    assert {r.error for r in found.results} == {"shapes cannot be multiplied"}
    assert len(hungry.sizes) == 1


def test_progress_is_on_stderr_alone_and_off_by_default(capsys):
    screen({"c": made.synthetic(300)}, progress=None)
    assert capsys.readouterr() == ("", "")
    screen({"c": made.synthetic(300)}, progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "1/1 pairs" in err


def test_logs_are_quiet_until_somebody_listens(caplog):
    log = logging.getLogger("resque_ext")
    assert any(isinstance(handler, logging.NullHandler) for handler in log.handlers)
    x, y = made.synthetic(300)
    screen({"c": (x, y + 10), "d": (x, y)})
    (record,) = caplog.records
    assert record.name == "resque_ext.screening.screener"
    assert record.getMessage().startswith("m, c: ")


def test_rows_are_mixed_by_the_seed():
    x, y = made.synthetic(3000, 0.5)
    x[1500:] += 5.0  # whoever reads the rows as they lie sees only half of this
    found = screen({"c": (x, y), "d": (x, y)}, budget={"samples": 2 * 1500}, anytime=False)
    whole = screen({"c": (x, y)}, anytime=False)
    early = found[0].result
    assert early.new_samples < 1500
    assert np.isclose(early.indices["resque_dist"].value, values(whole)["c"], atol=0.03)
    other = screen({"c": (x, y), "d": (x, y)}, budget={"samples": 3000}, anytime=False, seed=1)
    assert values(other) != values(found)


def test_what_cannot_be_read_is_skipped_and_named_or_fails_the_pair(tmp_path):
    image = optional.module("PIL.Image")
    rng = np.random.default_rng(0)
    for i in range(60):
        folder = tmp_path / "new" / f"class{i % 10}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        image.fromarray(pixels).save(folder / f"{i:02}.png")
    broken = tmp_path / "new" / "class3" / "13.png"
    broken.write_bytes(broken.read_bytes()[:40])
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.ReLU(), nn.Linear(16, 10))
    old = [(torch.rand(100, 3, 8, 8), torch.arange(100) % 10)]
    (row,) = screen({"new": str(tmp_path / "new")}, old, model, on_fault="skip")
    assert row.result.error is None
    assert (row.result.new_samples, row.result.available) == (59, 60)
    assert [fault.source for fault in row.result.faults] == [str(broken)]
    (row,) = screen({"new": str(tmp_path / "new")}, old, model)
    assert row.result.stopped == "error"
    assert str(broken) in row.result.error
    assert [fault.source for fault in row.result.faults] == [str(broken)]


# Classes, costs, and going on


def test_no_pair_stops_before_every_class_was_seen():
    x, y = made.synthetic(4000, 1.0, 1)
    rare = np.concatenate([np.flatnonzero(y != 9), np.flatnonzero(y == 9)[:3]])
    found = screen(
        {"rare": (x[rare], y[rare]), "same": made.synthetic(4000, 0.0, 2)}, looks=(64, 1.5)
    )
    by_name = {r.candidate: r for r in found.results}
    assert set(by_name["rare"].classes["resque_dist"]) == set("0123456789")
    assert by_name["rare"].error is None


def test_a_class_that_is_missing_is_an_error_or_skipped():
    x, y = made.synthetic(1000, 0.5, 1)
    without = {"c": (x[y != 4], y[y != 4]), "d": made.synthetic(1000, 2.0, 2)}
    found = screen(without)
    assert "class 4 has no new rows" in found[-1].result.error
    found = screen(without, options={"resque_dist": {"missing": "skip"}})
    index = found[0].result.indices["resque_dist"]
    assert "4" not in found[0].result.classes["resque_dist"]
    assert index.low <= index.value <= index.high


class Costs:
    """A cost model: epochs are ten times the index."""

    predictors, measures = ("resque_dist",), ("epochs",)

    def __init__(self, factor=10):
        self.factor = factor

    def to_dict(self):
        return {"factor": self.factor}

    def predict(self, values, *, extrapolate):
        value = self.factor * values["resque_dist"]
        return {"epochs": PredictedCost(value, value - 0.1, None, "epochs", extrapolate == "flag")}


def test_costs_are_predicted_and_ranked_by(tmp_path):
    far = {f"c{i}": made.synthetic(2000, 0.8 * i, i) for i in range(3)}
    store = tmp_path / "s.sqlite"
    found = screen(far, cost_model=Costs(), rank_by="epochs", store=store)
    for r in found.results:
        assert r.predicted["epochs"].value == 10 * r.indices["resque_dist"].value
        assert r.predicted["epochs"].extrapolated
    assert [row.result.candidate for row in found] == ["c0", "c1", "c2"]
    assert [(row.rank, row.worst) for row in found] == [(1, 3), (1, 3), (1, 3)]  # no upper bound
    with pytest.raises(OSError, match="another one: cost_model was"):
        screen(far, cost_model=Costs(11), rank_by="epochs", store=store)


def test_a_larger_budget_goes_on_where_a_smaller_ended(tmp_path):
    store = tmp_path / "s.sqlite"
    same = {f"c{i}": made.synthetic(1000, 0.5, i) for i in range(3)}
    short = screen(same, budget={"samples": 1500}, store=store)
    assert {r.stopped for r in short.results} == {"budget"}
    assert screen(same, budget={"samples": 1500}, store=store).to_dict() == short.to_dict()
    whole = screen(same, store=store)
    assert {(r.stopped, r.new_samples) for r in whole.results} == {("end", 1000)}
    assert whole.to_dict(times=False) == screen(same).to_dict(times=False)
    assert len(read_store(store)[1]) == 3


def test_a_restart_behind_an_error_goes_the_same_way(tmp_path):
    x, y = made.synthetic(3000, 0.9, 1)
    late = x.copy()
    late[np.random.default_rng(0).integers(2000, 3000)] = np.nan
    given = {"late": (late, y)} | {
        f"c{i}": made.synthetic(3000, 0.8 + 0.1 * i, i) for i in range(4)
    }
    store = tmp_path / "s.sqlite"
    expected = screen(given, store=store)
    assert {r.stopped for r in expected.results} >= {"error"}
    rows = sqlite3.connect(store)
    kept = [r.candidate for r in read_store(store)[1]][:2]
    with rows as db:
        db.execute(f"DELETE FROM pairs WHERE candidate NOT IN ('{kept[0]}', '{kept[1]}')")
    rows.close()
    assert screen(given, store=store).to_dict(times=False) == expected.to_dict(times=False)

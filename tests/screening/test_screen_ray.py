"""screen with Ray as the scheduler: the same table, whatever happens to its workers."""

import os
import subprocess
import sys
import types

import numpy as np
import pytest
from helpers import optional

pytest.importorskip("ray", reason=optional.needs("ray"))

import ray
import torch
from helpers import ray_made, sources_made
from helpers import screening_made as made
from ray import cloudpickle

import resque_ext
from resque_ext.errors import ArgumentError
from resque_ext.screening import Candidate, ray_screener, read_store
from resque_ext.screening.candidates import Feed
from resque_ext.screening.store import Store

pytestmark = pytest.mark.full


def screen(candidates=None, models=None, **options):
    given = {"anytime": False, "progress": False, "scheduler": "ray", "batch_size": 128} | options
    candidates = made.candidates(4) if candidates is None else candidates
    return resque_ext.screen(models or made.models(2), made.old(), candidates, **given)


def everything():
    """Pairs of every kind: also under a shift, in pairs with the old data, and one that fails."""
    x, y = made.digits(100, 0.2, 1)
    return made.candidates(4) | {
        "wrong": (x[:, :5], y),
        "dim": Candidate(shift=ray_made.dim),
        "paired": Candidate(shift=ray_made.dim, paired=True),
    }


def keys(screening):
    return sorted((r.model, r.candidate) for r in screening.results)


def test_a_cluster_of_its_own_is_started_and_ended(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)
    assert not ray.is_initialized()
    given = {"indices": ("resque_dist", "resque_task", "arm", "preindex")}
    expected = screen(everything(), scheduler=None, **given)
    found = screen(everything(), workers=2, store=tmp_path / "s.sqlite", **given)
    assert not ray.is_initialized()
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    assert found.to_dict(times=False) == expected.to_dict(times=False)
    errors = {r.candidate: r.error for r in found.results}
    assert "shapes cannot be multiplied" in errors.pop("wrong")
    assert set(errors.values()) == {None}
    assert set(found.of_model("small0")[0].result.indices) <= {*given["indices"]}
    kept = read_store(tmp_path / "s.sqlite")[1]
    assert sorted((r.model, r.candidate) for r in kept) == keys(expected)
    # And then there is nothing to do, and so nothing to start.
    monkeypatch.setattr(ray, "init", None)
    again = screen(everything(), store=tmp_path / "s.sqlite", **given)
    assert again.to_dict() == found.to_dict()


@pytest.fixture(scope="module")
def cluster():
    ray_screener.start(2)
    yield
    ray.shutdown()


@pytest.mark.usefixtures("cluster")
def test_a_pair_whose_worker_is_killed_is_finished_once(tmp_path):
    def candidates(note):
        return made.candidates(4) | {"killing": Candidate(shift=ray_made.Killing(note))}

    done = tmp_path / "done"
    done.write_text("x")
    expected = screen(candidates(done), made.models(1), scheduler=None)
    note, store = tmp_path / "note", tmp_path / "s.jsonl"
    found = screen(candidates(note), made.models(1), store=store)
    assert found.to_dict(times=False) == expected.to_dict(times=False)
    assert {r.error for r in found.results} == {None}
    batches = -(-1500 // 128)
    assert len(note.read_text()) == 1 + batches  # the first worker's only batch, the second's all
    assert len(read_store(store)[1]) == 5
    assert ray.is_initialized()  # joined, and so not ended


@pytest.mark.usefixtures("cluster")
def test_workers_that_always_die_are_the_pair_s_error(monkeypatch):
    monkeypatch.setattr(ray_screener, "MAX_RETRIES", 0)
    killing = made.candidates(2) | {"killing": Candidate(shift=ray_made.Killing())}
    found = screen(killing, made.models(1))
    errors = {r.candidate: r.error for r in found.results}
    assert errors.pop("killing") == (
        "expected a worker that lives to read the pair, found 1 lost (WorkerCrashedError)"
    )
    assert set(errors.values()) == {None}
    with pytest.raises(RuntimeError, match=r"^expected a worker that lives"):
        screen(killing, made.models(1), on_error="raise")


@pytest.mark.usefixtures("cluster")
def test_an_interrupted_screening_goes_on(tmp_path, monkeypatch):
    store, added = tmp_path / "s.sqlite", []
    add = Store.add

    def interrupted(self, pair, replace=False):
        if len(added) == 3:
            raise KeyboardInterrupt
        added.append(pair.key)
        add(self, pair, replace)

    expected = screen(scheduler=None)
    with monkeypatch.context() as patched:
        patched.setattr(Store, "add", interrupted)
        with pytest.raises(KeyboardInterrupt):
            screen(store=store, workers=2)
    assert sorted((r.model, r.candidate) for r in read_store(store)[1]) == sorted(added)
    found = screen(store=store)
    assert found.to_dict(times=False) == expected.to_dict(times=False)
    assert len(read_store(store)[1]) == 8
    first = {r.candidate: r for r in found.results if (r.model, r.candidate) in added}
    assert all(first[r.candidate].seconds == r.seconds for r in read_store(store)[1][:3])


@pytest.mark.usefixtures("cluster")
def test_errors(monkeypatch):
    x, y = made.digits(100, 0.2, 1)
    with pytest.raises(ValueError, match=r"^new: features: expected width 64 .*") as raised:
        screen({"wrong": (x[:, :5], y)}, {"m": None}, on_error="raise")
    assert type(raised.value) is ArgumentError
    assert "\n" not in str(raised.value)

    module = types.ModuleType("nowhere_else")  # as of a file that the workers do not have
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec("def shift(x): return x", vars(module))
    found = screen({"c": Candidate(shift=module.shift)}, made.models(1))
    assert found[0].result.error == (
        "expected a pair that workers can unpack, found System error: No module named "
        "'nowhere_else'"
    )

    def broken():
        raise RuntimeError("no weights here")

    models = {"broken": broken, "changing": ray_made.changing, "good": made.models(1)["small0"]}
    for indices in ("resque_dist", "resque_task"):
        found = screen(made.candidates(2), models, indices=(indices,))
        errors = {r.model: r.error for r in found.results}
        assert errors == {
            "broken": "no weights here",
            "changing": "models['changing']: expected a function that makes the same weights each "
            "time, found others in a worker",
            "good": None,
        }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"anytime": True}, r"^scheduler: expected anytime=False with 'ray', .*anytime=True$"),
        ({"budget": {"samples": 9}}, r"^scheduler: expected no budget with 'ray', .*samples=9\)$"),
        ({"budget": {"seconds": 9}}, r"^scheduler: expected no budget with 'ray', "),
        ({"scheduler": "dask"}, r"^scheduler: expected one of 'ray', found 'dask'$"),
        ({"workers": 0}, r"^workers: expected 1 <= workers"),
        ({"scheduler": None, "workers": 2}, r"^workers: expected None without scheduler='ray', "),
    ],
)
def test_what_cannot_be_done_so_is_refused(tmp_path, options, message):
    store = tmp_path / "s.sqlite"
    with pytest.raises(ValueError, match=message):
        screen(store=store, **options)
    assert not store.exists()


def test_without_ray(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    store = tmp_path / "s.sqlite"
    with pytest.raises(ModuleNotFoundError, match=r"^scheduler: expected Ray to be installed"):
        screen(store=store)
    assert not store.exists()


@pytest.mark.parametrize("kind", sources_made.MAKERS)
def test_sources_are_sent_without_what_they_read(kind, tmp_path):
    source = sources_made.make(kind, tmp_path).source
    sent = cloudpickle.dumps(Feed(source))
    expected = [(x, y.tolist()) for x, y in source.batches(16)]
    found = [(x, y.tolist()) for x, y in cloudpickle.loads(sent).source.batches(16)]
    assert [y for _, y in found] == [y for _, y in expected]
    for (mine, _), (theirs, _) in zip(found, expected, strict=True):
        assert torch.equal(mine, theirs)
    if kind in ("npy", "npz", "safetensors", "parquet"):
        assert len(sent) < 5000


def test_nothing_of_ray_is_imported_without_it():
    code = "import sys, resque_ext; resque_ext.screen; print('ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.usefixtures("cluster")
def test_workers_read_from_the_cache_too(tmp_path):
    for name, (x, y) in (made.candidates(2) | {"old": made.old()}).items():
        np.savez(tmp_path / f"{name}.npz", inputs=x, labels=y)
    old, *news = (
        {"path": str(tmp_path / f"{name}.npz"), "kind": "inputs"}
        for name in ("old", *made.candidates(2))
    )
    options = {"anytime": False, "progress": False, "cache": tmp_path / "cache"}

    def screening(scheduler):
        return resque_ext.screen(
            made.models(1), old, {"a": news[0], "b": news[1]}, scheduler=scheduler, **options
        ).to_dict(times=False)

    def stamps():
        return sorted((path.name, path.stat().st_mtime_ns) for path in options["cache"].iterdir())

    expected = screening("ray")
    entries = stamps()
    assert len(entries) == 3
    assert screening("ray") == expected
    assert stamps() == entries

"""Several real processes over gloo: the same counts and values, and no rank left waiting."""

import sys

import pytest
import torch
from helpers.rank_processes import close, read, run, start, without
from hypothesis import given
from hypothesis import strategies as st

from resque_ext import ResqueDist, distributed


def test_any_number_of_processes_finds_the_same(tmp_path):
    results = {}
    for size in (1, 2, 4):
        found = run("agree", tmp_path / str(size), size)
        assert all("result" in each for each in found), found
        assert all(each["result"][0] == found[0]["result"][0] for each in found)
        rows = [row for each in found for row in each["result"][1]]
        assert rows == list(range(211))  # a share of a loader: every row once
        for each in found:  # a thread of gloo that outlives its group may abort the process
            before, after = each["threads"]
            assert after <= before
            assert (before > 1) == (size > 1) or sys.platform != "linux"
        results[size] = found[0]["result"][0]
        # How rows are dealt to halves goes by batches there, and these are not the same.
        results[size]["layers"] = without(results[size]["layers"], "std_error", "noise_floor")
    for size in (2, 4):
        # To the row: also which block each was dealt to, and so errors and intervals.
        assert results[size]["sums"]["state"] == results[1]["sums"]["state"]
        assert close(results[size], results[1]), (size, results)


@given(st.integers(0, 10_000), st.integers(1, 100))
def test_shares_are_the_whole(rows, size):
    shares = [distributed.share(rows, rank, size) for rank in range(size)]
    assert [row for each in shares for row in each] == list(range(rows))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_failure_is_one_on_all_ranks(tmp_path):
    found = run("failing", tmp_path / "f", 4)
    assert found[-1]["error"].startswith("ValueError: features: expected finite values, found NaN")
    for each in found[:-1]:
        expected = "RankError: rank 3 failed: ValueError: features: expected finite"
        assert each["error"].startswith(expected)
        assert each["seconds"] < 30


@pytest.mark.full
def test_a_killed_rank_is_found(tmp_path):
    found = run("killed", tmp_path / "k", 4)
    assert found[-1] is None
    for each in found[:-1]:
        assert each["error"].startswith("RankError: a rank was lost: ")
        assert each["seconds"] < 60


@pytest.mark.full
def test_a_rank_that_hangs_is_found(tmp_path):
    folder = tmp_path / "s"
    processes = start("stopped", folder, 2)
    try:
        processes[0].join(90)
    finally:
        for process in processes:
            process.kill()
            process.join()
    found = read(folder / "0.json")
    assert found["error"].startswith("RankError: a rank was lost: ")
    assert found["seconds"] < 60


@pytest.mark.full
def test_a_slow_rank_is_waited_for(tmp_path):
    """It is alive, and takes longer than the timeout of 4 seconds, twice."""
    expected = run("sums", tmp_path / "1", 1)[0]["result"]["value"]
    found = run("slow", tmp_path / "2", 2)
    for each in found:
        assert each.get("result") == pytest.approx([expected] * 2, abs=1e-12), found
        assert each["seconds"] > 9


def test_a_rank_that_leaves_early_is_an_error(tmp_path):
    first, last = run("leaving", tmp_path / "l", 2)
    assert first["error"] == "RankError: rank 1 left before all had reduced their data"
    assert last["error"].startswith("RankError: rank 0 failed: RankError: rank 1 left")


def test_no_call_takes_what_belongs_to_another(tmp_path):
    first, last = run("strays", tmp_path / "s", 2)
    for each in (first, last):
        assert each["error"].startswith("RankError: rank 0 is in a later call than others")


@pytest.mark.parametrize(
    ("scenario", "message"),
    [
        ("unlike", "ArgumentError: accumulators: expected the same on all ranks, found {"),
        ("widths", "ArgumentError: accumulators: expected one width on all ranks, found {2, 3}"),
    ],
)
def test_what_does_not_fit_together(scenario, message, tmp_path):
    for each in run(scenario, tmp_path / "u", 2):
        assert each["error"].startswith(message)


def test_entered_again(tmp_path):
    outside = "ranks: expected to be inside of `with Ranks() as ranks:`, found outside"
    inside = "ranks: expected to be entered once at a time, found inside already"
    for each in run("again", tmp_path / "a", 2):
        assert each["result"] == [[0, 1], *[outside, [0, 1]] * 5, inside]
        before, after = each["threads"]
        assert after <= before


def test_entered_again_after_an_error():
    ranks = distributed.Ranks()
    with pytest.raises(KeyError), ranks:
        raise KeyError
    with ranks, pytest.raises(ValueError, match=r"^ranks: expected to be entered once at a time"):
        ranks.__enter__()
    with ranks:
        assert ranks.gather(1) == [1]


def test_alone():
    with distributed.Ranks() as ranks:
        assert (ranks.rank, ranks.size) == (0, 1)
        assert list(ranks.watch([1, 2])) == [1, 2]
        acc = ResqueDist(2)
        ranks.all_reduce(acc)
        with pytest.raises(TypeError, match=r"^accumulators: expected ResqueDist, .* found"):
            ranks.all_reduce([acc])


@pytest.mark.parametrize("act", ["all_reduce", "gather", "total"])
def test_outside_of_the_block(act, monkeypatch):
    monkeypatch.setattr(distributed, "_here", lambda: (0, 2))
    argument = {"all_reduce": ResqueDist(2), "gather": 1, "total": torch.ones(2)}[act]
    with pytest.raises(ValueError, match=r"^ranks: expected to be inside of .*, found outside$"):
        getattr(distributed.Ranks(), act)(argument)


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"^timeout: expected seconds above 0, found 0"):
        distributed.Ranks(timeout=0)
    with pytest.raises(ValueError, match=r"^rank: expected 0 <= rank < size = 2, found 2"):
        distributed.share(10, 2, 2)
    with pytest.raises(ValueError, match=r"^rows: "):
        distributed.share(-1, 0, 2)
    with pytest.raises(ValueError, match=r"^size: "):
        distributed.Share([1, 2], 0, 0)


def test_long_failures_are_cut_to_fit():
    note = distributed._unpacked(distributed._packed({"state": 2, "failure": "é" * 10_000}))
    assert note["state"] == 2
    assert note["failure"].startswith("éééé")

"""The file of a study: killed at any moment it goes on, and no other study's is taken for it."""

import json
import os
import random
import subprocess
import sys

import pytest
import torch
from helpers import study_oracle
from helpers.places import environment
from helpers.study_oracle import Add, data, lasting, run, trained

from resque_ext.retraining import (
    CheckpointError,
    RecordError,
    StudyError,
    StudyRun,
    read_runs,
    study,
)
from resque_ext.studies import study_file

LEVELS = (0.1, 0.5, 1.0)
SMALL = {"add": {a: Add(a) for a in LEVELS}}


@pytest.fixture(scope="module")
def model():
    return trained()


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    """The bytes of a finished study's file, and its runs."""
    path = tmp_path_factory.mktemp("study") / "runs.jsonl"
    return path, path.read_bytes() if run(model, shifts=SMALL, path=path) else b""


def again(model, path, **options):
    return run(model, **{"shifts": SMALL, "path": path} | options)


@pytest.mark.full
def test_killed_ten_times_loses_nothing(tmp_path):
    seed = random.SystemRandom().randrange(2**32)
    command = [sys.executable, study_oracle.__file__, str(tmp_path), "10", str(seed)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment(OMP_NUM_THREADS="1")
    )
    assert done.returncode == 0, f"seed {seed}: {done.stderr}"
    found = json.loads(done.stdout)
    assert found["kills"] == 10
    assert found["lost"] == 0, f"seed {seed}"
    assert found["left"] == [], f"seed {seed}"
    header, *lines = found["undisturbed"].splitlines()
    assert len(lines) == sum(map(len, study_oracle.KINDS.values()))
    expected = [lasting(StudyRun.from_json(line)) for line in lines]
    for text in found["complete"]:
        first, *others = text.splitlines()
        assert first == header
        assert [lasting(StudyRun.from_json(line)) for line in others] == expected, f"seed {seed}"


def test_file_has_a_line_a_run_that_can_be_read(model, whole):
    path, content = whole
    header, *lines = content.decode().splitlines()
    assert json.loads(header)["format"] == "resque_ext.Study/1"
    runs = list(read_runs(path))
    assert [run.to_json() for run in runs] == lines
    assert [(run.kind, run.level) for run in runs] == [("add", a) for a in LEVELS]
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # no checkpoint is left


def test_runs_of_a_file_can_be_looped_over_again(whole):
    runs = read_runs(whole[0])
    first = list(runs)
    assert len(first) == len(LEVELS)
    assert list(runs) == first
    assert [next(runs), next(runs)] == first[:2]
    assert list(runs) == first
    assert repr(runs) == f"Runs({str(whole[0])!r})"
    with pytest.raises(FileNotFoundError, match="expected the runs of a study"):
        read_runs(whole[0].with_name("none"))


def test_finished_runs_are_not_done_again(model, whole, tmp_path, monkeypatch):
    path = tmp_path / "runs"
    path.write_bytes(whole[1])
    monkeypatch.setattr(study_file.StudyFile, "append", None)
    called = []
    found = again(model, path, on_run=called.append)
    assert list(found) == list(read_runs(whole[0]))
    assert not called
    assert path.read_bytes() == whole[1]


def test_grid_may_grow(model, whole, tmp_path):
    path = tmp_path / "runs"
    path.write_bytes(whole[1])
    more = {"add": {a: Add(a) for a in (0.3, *LEVELS)}}
    called = []
    found = again(model, path, shifts=more, on_run=called.append)
    assert [run.level for run in found] == [0.3, *LEVELS]
    assert [run.level for run in called] == [0.3]
    assert path.read_bytes().startswith(whole[1])
    assert [lasting(r) for r in found[1:]] == [lasting(r) for r in read_runs(whole[0])]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999, 1.0])
def test_torn_last_line_is_done_again(model, whole, tmp_path, share):
    """From nothing of it to all but the end of the line, which is whole without it."""
    path, content = tmp_path / "runs", whole[1]
    start = content[:-1].rindex(b"\n") + 1
    end = start + round(share * (len(content) - 1 - start))
    path.write_bytes(content[:end])
    assert len(list(read_runs(path))) == (3 if share == 1 else 2)
    called = []
    found = again(model, path, on_run=called.append)
    assert len(called) == (share < 1)
    assert [lasting(r) for r in found] == [lasting(r) for r in read_runs(whole[0])]
    assert path.read_bytes().count(b"\n") == 4
    assert [r.to_json() for r in read_runs(path)] == [r.to_json() for r in found]


@pytest.mark.parametrize("size", [0, 1, 40])
def test_torn_header_is_written_again(model, whole, tmp_path, size):
    path = tmp_path / "runs"
    path.write_bytes(whole[1][:size])
    again(model, path, shifts={"add": {0.1: Add(0.1)}})
    assert path.read_bytes().splitlines()[0] == whole[1].splitlines()[0]
    assert len(list(read_runs(path))) == 1


def test_other_torn_lines_are_errors(model, whole, tmp_path):
    path = tmp_path / "runs"
    lines = whole[1].splitlines(keepends=True)
    broken = [lines[0], lines[1][:100] + b"\n", *lines[2:]]
    path.write_bytes(b"".join(broken))
    for read in (lambda: list(read_runs(path)), lambda: again(model, path)):
        with pytest.raises(RecordError, match=r"runs, line 2: run: expected JSON, found "):
            read()
    assert path.read_bytes() == b"".join(broken)
    path.write_bytes(b"".join([lines[0], b"\xff\xfe\n", *lines[1:]]))
    with pytest.raises(RecordError, match=r"runs, line 2: "):
        again(model, path)
    path.write_bytes(b"".join([*lines, lines[1]]))
    with pytest.raises(StudyError, match=r"line 5: expected every run once, found 'add' at 0.1"):
        again(model, path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, r"seed \(1, found 0\)"),
        ({"target_accuracy": 0.5}, r"target_accuracy \(0.5, found 0.8\)"),
        ({"max_epochs": 3}, r"retraining.max_epochs \(3.0, found 5.0\)"),
        ({"model_name": "other"}, r"model \('other', found 'Sequential'\)"),
        ({"indices": ("arm",)}, r"indices \(\['arm'\], found \['resque_dist', 'arm'\]\)"),
        (
            {"base": data(test=[(x[1:], y[1:]) for x, y in data()["test"]])},
            r"data.test\[1\] \(\d+, found \d+\)",
        ),
        ({"base": data(test=data()["test"][:2])}, r"data.test\[0\] \(2, found 4\)"),
        (
            {"optimizer": lambda p: torch.optim.Adam(p, lr=0.5)},
            r"retraining.optimizer_groups\[0\].lr \(0.5, found 0.02\)",
        ),
        ({"index_options": {"arm": {"per": "filter"}}}, r"index_options.arm \(.*, found None\)"),
    ],
)
def test_file_of_another_study(model, whole, tmp_path, change, message):
    path = tmp_path / "runs"
    path.write_bytes(whole[1])
    with pytest.raises(StudyError, match=rf"^path: .*runs of another.* in .*{message}"):
        again(model, path, **change)
    assert path.read_bytes() == whole[1]


def test_file_of_another_model(whole, model, tmp_path):
    path = tmp_path / "runs"
    path.write_bytes(whole[1])
    other = trained()
    with torch.no_grad():
        other[1].running_mean[0] += 1e-6
    with pytest.raises(StudyError, match=r"^path: .* differs in weights \('"):
        again(other, path)


def test_run_that_is_not_in_the_grid(model, whole, tmp_path):
    path = tmp_path / "runs"
    path.write_bytes(whole[1])
    with pytest.raises(StudyError, match=r"line 3: expected a shift of this study, found 'add' a"):
        again(model, path, shifts={"add": {0.1: Add(0.1), 1.0: Add(1.0)}})
    with pytest.raises(StudyError, match=r"line 2: expected the unit 'm' for 'add' at 0.1, found"):
        again(model, path, units={"add": "m"})


@pytest.mark.parametrize("content", [b"something", b"something else\n", b'{"format": "x"}\n'])
def test_foreign_file_is_left_alone(model, tmp_path, content):
    path = tmp_path / "runs"
    path.write_bytes(content)
    with pytest.raises(StudyError, match=r"^path: expected a study's file, found .*runs "):
        again(model, path)
    assert path.read_bytes() == content


def test_places_that_are_no_file(model, tmp_path):
    with pytest.raises(ValueError, match=r"^path: expected a file in a folder, found no folder "):
        again(model, tmp_path / "none" / "runs")
    with pytest.raises(ValueError, match=r"^path: expected a file, found a folder"):
        again(model, tmp_path)
    with pytest.raises(TypeError, match=r"^path: expected a path, found int"):
        again(model, 3)


def test_two_studies_do_not_share_a_file(model, tmp_path):
    path = tmp_path / "runs"

    def second(_):
        with pytest.raises(StudyError, match=r"^path: .* no other study writes, found .*in use"):
            again(model, path)

    assert len(again(model, path, on_run=second)) == len(LEVELS)
    assert len(list(read_runs(path))) == len(LEVELS)


def test_unreadable_checkpoint_is_an_error(model, whole, tmp_path):
    path = tmp_path / "runs"
    seed = next(read_runs(whole[0])).seed
    checkpoint = path.with_name(f"runs.{seed:08x}.checkpoint")
    checkpoint.write_bytes(b"nothing of the kind")
    with pytest.raises(CheckpointError, match=r"^checkpoint: expected one that retrain wrote"):
        again(model, path)


def test_interrupt_leaves_a_usable_file(model, whole, tmp_path):
    path = tmp_path / "runs"
    left = [2]

    def interrupt(_):
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        again(model, path, on_run=interrupt)
    assert [r.level for r in caught.value.study] == [0.1, 0.5]
    assert list(read_runs(path)) == list(caught.value.study)
    found = again(model, path)
    assert [lasting(r) for r in found] == [lasting(r) for r in read_runs(whole[0])]


def test_interrupted_retraining_goes_on_from_its_checkpoint(model, whole, tmp_path):
    path, reads = tmp_path / "runs", [0]

    def count(batch):
        reads[0] += 1
        if reads[0] == stop:
            raise KeyboardInterrupt
        return batch

    stop, ends = 10**9, []
    options = {"batch_adapter": count, "checkpoint_seconds": 0}
    options |= {"target_accuracy": 1.0, "max_epochs": 2}
    expected = again(model, tmp_path / "other", on_run=lambda _: ends.append(reads[0]), **options)
    assert expected[0].cost.epochs > 0
    stop, reads[0] = ends[0] - 6, 0  # towards the end of the first run
    with pytest.raises(KeyboardInterrupt):
        again(model, path, **options)
    assert list(read_runs(path)) == []
    assert len(list(path.parent.glob("runs.*.checkpoint"))) == 1
    stop = 10**9
    found = again(model, path, **options)
    assert found[0].cost.resumed == 1
    assert [lasting(r) for r in found] == [lasting(r) for r in expected]


def test_written_before_the_next_run_begins(model, tmp_path):
    """What `on_run` finds on the disk, by another descriptor."""
    path, seen = tmp_path / "runs", []
    again(model, path, on_run=lambda r: seen.append(list(read_runs(path))[-1] == r))
    assert seen == [True] * len(LEVELS)


def test_full_disk_is_told_and_the_file_goes_on(model, whole, tmp_path, monkeypatch):
    path, write = tmp_path / "runs", os.write
    calls = []

    def full(descriptor, content):
        calls.append(content)
        if len(calls) == 3:  # the header, a run, and half of the next
            write(descriptor, content[: len(content) // 2])
            raise OSError(28, "No space left on device")
        return write(descriptor, content)

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left"):
        again(model, path)
    monkeypatch.undo()
    assert [r.level for r in read_runs(path)] == [0.1]
    found = again(model, path)
    assert [lasting(r) for r in found] == [lasting(r) for r in read_runs(whole[0])]


def test_kinds_of_the_file_are_those_of_the_registry(tmp_path):
    """Levels of shifts.py go through the file too."""

    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
    x = torch.rand(30, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    side = list(zip(x.split(10), (torch.arange(30) % 3).split(10), strict=True))
    base = dict.fromkeys(("old", "train", "test"), side)
    shifts = {"gaussian": [0.1, 0.4], "none": [0.0]}
    options = {"target_accuracy": 1.0, "max_epochs": 1, "meter": None, "progress": False}
    path = tmp_path / "runs"
    found = study(net, base, shifts, ("resque_dist",), path=path, **options)
    assert list(found) == list(study(net, base, shifts, ("resque_dist",), path=path, **options))
    assert [r.unit for r in found] == ["standard deviation of the noise"] * 2 + ["ignored"]
    assert len({r.seed for r in found}) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": 4}, "kind: expected a text, found 4"),
        ({"level": "a"}, "level: expected a finite number, found 'a'"),
        ({"level": True}, "level: expected a finite number, found True"),
        ({"seed": 0.5}, "seed: expected an integer, found 0.5"),
        ({"predictors": [1]}, r"predictors: expected an object, found \[1\]"),
        ({"predictors": {"arm": "x"}}, r"predictors\['arm'\]: expected a finite number or null"),
        ({"predictors": {"arm": float("nan")}}, r"predictors\['arm'\]: expected .* found nan"),
        ({"std_errors": {"arm": []}}, r"std_errors\['arm'\]: expected a finite number or null"),
        ({"reasons": {"arm": None}}, r"reasons\['arm'\]: expected a text, found None"),
        ({"index_seconds": "1"}, "index_seconds: expected a finite number or null, found '1'"),
    ],
)
def test_a_line_with_a_wrong_value_is_an_error(whole, tmp_path, change, message):
    path = tmp_path / "runs"
    header, line, *others = whole[1].decode().splitlines()
    path.write_text("\n".join([header, json.dumps({**json.loads(line), **change}), *others, ""]))
    with pytest.raises(RecordError, match=rf"runs, line 2: run: {message}"):
        list(read_runs(path))


def test_a_line_with_a_wrong_cost_is_an_error(whole):
    values = json.loads(whole[1].decode().splitlines()[1])
    values["cost"]["epochs"] = "many"
    with pytest.raises(RecordError, match=r"^(run|record): .*epochs: expected .*, found 'many'"):
        StudyRun.from_json(json.dumps(values))

"""One journal for screenings and studies: its two forms, exports, and files of before."""

import csv
import io
import json
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.places import environment
from helpers.stored_pairs import HEADER, finished
from helpers.study_runs import study_run

from resque_ext.retraining import StudyError, export_runs, read_runs
from resque_ext.screening import StoreError, export_store, read_store
from resque_ext.screening.store import open_store
from resque_ext.studies.grid import Case
from resque_ext.studies.study_file import StudyFile

RUNS = [study_run(0.1 * n, 10.0 * n, "fog", float(n)) for n in (1, 2, 3)]
GRID = [Case(r.kind, r.level, r.unit, r.seed, None) for r in RUNS]
IDENTITY = {"model": "m", "data": {"old": [2, 20]}}


@pytest.fixture(params=["study.sqlite", "study.db", "study.jsonl", "study"])
def path(request, tmp_path):
    return tmp_path / request.param


def test_a_study_goes_on_in_either_form(path):
    with StudyFile(path, IDENTITY, GRID) as file:
        file.append(RUNS[0])
        assert list(read_runs(path)) == RUNS[:1]  # while it is open
    with StudyFile(path, IDENTITY, GRID) as file:
        assert list(file.runs.values()) == RUNS[:1]
        file.append(RUNS[1])
        file.append(RUNS[2])
    assert list(read_runs(path)) == RUNS
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    sqlite = path.read_bytes().startswith(b"SQLite format 3")
    assert sqlite == (path.suffix in (".sqlite", ".db"))


def test_a_study_of_another_kind_is_refused_in_either_form(path):
    with StudyFile(path, IDENTITY, GRID) as file:
        file.append(RUNS[0])
    content = path.read_bytes()
    other = IDENTITY | {"data": {"old": [2, 30]}}
    expected = r"study.* of another, which differs in data.old\[1\] \(30, found 20\)"
    with pytest.raises(StudyError, match=expected), StudyFile(path, other, GRID):
        pass
    with pytest.raises(StudyError, match="expected a shift of this"), StudyFile(path, IDENTITY, []):
        pass
    assert path.read_bytes() == content


def test_screenings_and_studies_do_not_take_each_other_s(path):
    with StudyFile(path, IDENTITY, GRID):
        pass
    content = path.read_bytes()
    for use in (lambda: open_store(path, HEADER), lambda: read_store(path)):
        found = r"expected the store of a screening, found a file of format 'resque_ext.Study/1'"
        with pytest.raises(StoreError, match=found if path.suffix else "store: .*: expected"):
            use()
    assert path.read_bytes() == content
    path.unlink()
    open_store(path.with_suffix(".sqlite"), HEADER).close()
    with pytest.raises(
        StudyError, match=r"^path: expected a study's file, found at .* 'resque_ext.Scr"
    ):
        read_runs(path.with_suffix(".sqlite"))


CHILD = """
import sys
sys.path.insert(0, sys.argv[2])
from test_journal import GRID, IDENTITY, RUNS, StudyFile
file = StudyFile(sys.argv[1], IDENTITY, GRID).__enter__()
file.append(RUNS[0])
print("open", flush=True)
sys.stdin.read()
"""


def test_a_study_in_use_is_refused_and_free_after_a_kill(path):
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, path, Path(__file__).parent],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    try:
        assert process.stdout.readline() == "open\n"
        expected = "expected a file that no other study writes, found at .* in use by another study"
        with pytest.raises(StudyError, match=expected), StudyFile(path, IDENTITY, GRID):
            pass
        assert list(read_runs(path)) == RUNS[:1]  # who only looks may
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    with StudyFile(path, IDENTITY, GRID) as file:
        assert list(file.runs.values()) == RUNS[:1]


def test_a_file_that_exists_keeps_its_form(tmp_path):
    for first, later in (("a.jsonl", "a.db"), ("b.sqlite", "b.jsonl"), ("c.db", "c")):
        with StudyFile(tmp_path / first, IDENTITY, GRID) as file:
            file.append(RUNS[0])
        head = (tmp_path / first).read_bytes()[:16]
        (tmp_path / first).rename(tmp_path / later)
        with StudyFile(tmp_path / later, IDENTITY, GRID) as file:
            file.append(RUNS[1])
        assert (tmp_path / later).read_bytes()[:16] == head
        assert list(read_runs(tmp_path / later)) == RUNS[:2]


def test_a_database_that_was_replaced_is_not_written_to(tmp_path):
    """Nor a rollback journal put beside the one that is there now, which a kill would leave."""
    path = tmp_path / "store.sqlite"
    store = open_store(path, HEADER)
    other = tmp_path / "other"
    other.write_bytes(path.read_bytes())
    other.replace(path)
    begun = []
    store.form._db.set_trace_callback(begun.append)
    with pytest.raises(StoreError, match="found another file in its place"):
        store.add(finished(1))
    assert not begun
    store.close()


def test_an_exported_study_goes_on(path, tmp_path):
    with StudyFile(path, IDENTITY, GRID) as file:
        for run in RUNS[:2]:
            file.append(run)
        export_runs(path, tmp_path / "lines.jsonl")
    assert list(read_runs(tmp_path / "lines.jsonl")) == RUNS[:2]
    with StudyFile(tmp_path / "lines.jsonl", IDENTITY, GRID) as file:
        assert list(file.runs.values()) == RUNS[:2]
    if path.suffix != ".db":
        export_runs(path, tmp_path / "again.jsonl")
        assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "lines.jsonl").read_bytes()


def test_a_study_as_csv(path, tmp_path):
    with StudyFile(path, IDENTITY, GRID) as file:
        for run in RUNS:
            file.append(run)
    export_runs(path, tmp_path / "runs.csv")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "runs.csv").read_text())))
    assert [(r["kind"], float(r["level"])) for r in rows] == [(r.kind, r.level) for r in RUNS]
    assert [float(r["cost.epochs"]) for r in rows] == [r.cost.epochs for r in RUNS]
    for name, value in RUNS[0].predictors.items():
        assert float(rows[0][f"predictors.{name}"]) == value
    with pytest.raises(ValueError, match=r"output: expected the suffix .jsonl or .csv, found '.x'"):
        export_runs(path, tmp_path / "runs.x")
    with pytest.raises(FileNotFoundError, match="expected a study's file, found none at"):
        export_runs(tmp_path / "none", tmp_path / "runs.csv")


@pytest.mark.parametrize("suffix", ["sqlite", "jsonl"])
def test_an_exported_store_goes_on(tmp_path, suffix):
    path, lines = tmp_path / f"s.{suffix}", tmp_path / "lines.jsonl"
    with open_store(path, HEADER) as store:
        store.keep_old_side("m", "digest", b"state\x00")
        for number in range(3):
            store.add(finished(number))
        expected = store.finished()
        export_store(path, lines)
    with open_store(lines, HEADER) as store:
        assert store.finished() == expected
        assert store.old_side("m") == ("digest", b"state\x00")
    export_store(lines, tmp_path / "s.csv")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "s.csv").read_text())))
    assert [r["candidate"] for r in rows] == ["c0", "c1", "c2"]
    assert [float(r["indices.resque_dist.value"]) for r in rows] == [0.1 * n for n in range(3)]
    assert json.loads(rows[0]["faults"])[0]["source"] == "a.tar"
    assert rows[0]["available"] == ""


OLD_SCHEMA = (  # of stores before screenings and studies had one journal
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)",
    "CREATE TABLE old_sides (model TEXT PRIMARY KEY, digest TEXT NOT NULL, state BLOB NOT NULL)",
    """CREATE TABLE pairs (number INTEGER PRIMARY KEY, model TEXT NOT NULL, candidate TEXT NOT NULL,
        value REAL, std_error REAL, low REAL, high REAL, new_samples INTEGER NOT NULL,
        available INTEGER, seconds REAL NOT NULL, stopped TEXT NOT NULL, faults INTEGER NOT NULL,
        error TEXT, result TEXT NOT NULL, way TEXT NOT NULL, UNIQUE (model, candidate))""",
    "PRAGMA application_id = 1381192005",
)


def test_a_database_of_before_goes_on(tmp_path):
    path = tmp_path / "store.sqlite"
    row = finished(0).row()
    with sqlite3.connect(path) as db:
        for statement in OLD_SCHEMA:
            db.execute(statement)
        header = [(name, json.dumps(value)) for name, value in HEADER.to_dict().items()]
        db.executemany("INSERT INTO meta VALUES (?, ?)", header)
        db.execute("INSERT INTO old_sides VALUES ('m', 'digest', x'00ff')")
        names, marks = ", ".join(row), ", ".join("?" * len(row))
        db.execute(f"INSERT INTO pairs ({names}) VALUES ({marks})", tuple(row.values()))
    db.close()
    assert read_store(path) == (HEADER, [finished(0).result])
    with open_store(path, HEADER) as store:
        assert store.old_side("m") == ("digest", b"\x00\xff")
        store.keep_old_side("n", "other", b"")
        store.add(finished(1))
        store.add(finished(0, 20), replace=True)
        expected = store.finished()
    with open_store(path, HEADER) as store:
        assert store.finished() == expected
        assert list(store.old_side("n")) == ["other", b""]

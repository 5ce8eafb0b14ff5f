"""The stores of a screening: whole, foreign, locked, torn and full."""

import contextlib
import fcntl
import json
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.places import environment
from helpers.stored_pairs import HEADER, finished

from resque_ext.screening import StoreError, export_store, read_store
from resque_ext.screening.store import Header, open_store
from resque_ext.storage.journal import Form


@pytest.fixture(params=["sqlite", "jsonl"])
def path(request, tmp_path):
    return tmp_path / f"store.{request.param}"


def test_what_is_put_in_comes_out(path):
    pairs = {pair.key: pair for pair in map(finished, range(5))}
    with open_store(path, HEADER) as store:
        assert store.finished() == {}
        store.keep_old_side("m", "digest", b"state\x00")
        for pair in pairs.values():
            store.add(pair)
        assert store.finished() == pairs
    with open_store(path, HEADER) as store:
        assert store.finished() == pairs
        assert store.old_side("m") == ("digest", b"state\x00")
        assert store.old_side("n") is None
    header, results = read_store(path)
    assert header == HEADER
    assert results == [pair.result for pair in pairs.values()]
    assert sorted(p.name for p in path.parent.iterdir()) == [path.name]  # no file beside it


def test_a_pair_is_never_added_twice(path):
    with open_store(path, HEADER) as store:
        store.add(finished(1))
        with pytest.raises(StoreError):
            store.add(finished(1))
        store.add(finished(2))
        assert list(store.finished()) == [("m", "c1"), ("m", "c2")]
    assert len(read_store(path)[1]) == 2


def test_columns_are_for_queries(tmp_path):
    path = tmp_path / "store.sqlite"
    with open_store(path, HEADER) as store:
        for number in range(5):
            store.add(finished(number))
    with sqlite3.connect(path) as db:
        rows = db.execute(
            "SELECT candidate, high FROM pairs WHERE value > 0.25 ORDER BY value DESC"
        )
        assert list(rows) == [("c4", 0.5), ("c3", 0.5)]


def test_results_are_refused_where_none_are_expected(path):
    with open_store(path, HEADER, resume=False) as store:
        store.add(finished(1))
    content = path.read_bytes()
    other = Header(HEADER.identity, {}, {"budget": 5})
    with pytest.raises(
        StoreError, match="expected no results yet, found 1 pairs; give resume=True"
    ):
        open_store(path, other, resume=False)
    assert path.read_bytes() == content


def test_the_options_are_those_of_the_last_run(path):
    """By which a run knows whether pairs that a budget ended are finished for it."""
    for number, budget in enumerate((1, 2, 2, 1)):
        header = Header(HEADER.identity, {}, {"budget": budget})
        with open_store(path, header) as store:
            assert store.earlier_options == ({"budget": (0, 1, 2, 2)[number]} if number else {})
            store.add(finished(number))
        found, pairs = read_store(path)
        assert found.options == {"budget": budget}
        assert len(pairs) == number + 1


def test_another_screening_is_refused_with_what_differs(path):
    open_store(path, HEADER).close()
    content = path.read_bytes()
    other = Header({"models": {"m": "other"}, "seed": 0, "width": 0.1})
    expected = 'found another one: models.m was "made", is "other"; width is in this one alone'
    with pytest.raises(StoreError) as caught:
        open_store(path, other)
    assert expected in str(caught.value)
    assert path.read_bytes() == content


FOREIGN = [b"P6 an image\n", b'{"json": 1}\n', b'{"json": 1}', b"\x00" * 64]


@pytest.mark.parametrize("content", FOREIGN)
def test_a_foreign_file_is_refused_and_left_alone(path, content):
    path.write_bytes(content)
    for use in (lambda: open_store(path, HEADER), lambda: read_store(path)):
        with pytest.raises(StoreError, match=r"store: .*: expected") as caught:
            use()
        assert "\n" not in str(caught.value)
    assert path.read_bytes() == content


def test_a_database_of_something_else_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "other.sqlite"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE meta (key, value)")
    content = path.read_bytes()
    with pytest.raises(StoreError, match="found a SQLite file of something else"):
        open_store(path, HEADER)
    assert path.read_bytes() == content


def test_an_empty_file_is_no_report(tmp_path):
    path = tmp_path / "empty.sqlite"
    path.touch()
    with pytest.raises(StoreError, match="found an empty file"):
        read_store(path)


def test_a_folder_that_cannot_be_written_is_one_line(path):
    name = f"store{path.suffix}"
    for where in (path.parent / "none" / name, Path("/proc") / name):
        with pytest.raises(StoreError, match="expected a file that can be written"):
            open_store(where, HEADER)
    with pytest.raises(FileNotFoundError, match="expected the store of a screening, found none"):
        read_store(path)


CHILD = """
import sys
from helpers.stored_pairs import HEADER, finished
from resque_ext.screening.store import open_store
store = open_store(sys.argv[1], HEADER)
store.add(finished(1))
print("open", flush=True)
sys.stdin.read()
"""


def child(code, *arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
        **options,
    )


def test_a_store_in_use_is_refused_and_free_after_a_kill(path):
    process = child(CHILD, path)
    try:
        assert process.stdout.readline() == "open\n"
        with pytest.raises(StoreError, match="expected one that no other process uses"):
            open_store(path, HEADER)
        assert len(read_store(path)[1]) == 1  # who only looks may
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    with open_store(path, HEADER) as store:
        assert len(store.finished()) == 1


def test_a_torn_last_line_is_dropped(tmp_path):
    path = tmp_path / "store.jsonl"
    with open_store(path, HEADER) as store:
        store.add(finished(1))
        store.add(finished(2))
    whole = path.read_bytes()
    first = whole[: whole.rfind(b"\n", 0, -1) + 1]
    for size in range(len(first), len(whole), 37):
        path.write_bytes(whole[:size])
        assert len(read_store(path)[1]) == 1
        with open_store(path, HEADER) as store:
            assert list(store.finished()) == [("m", "c1")]
            store.add(finished(2))
        assert path.read_bytes() == whole


def test_a_torn_header_begins_anew(tmp_path):
    path = tmp_path / "store.jsonl"
    open_store(path, HEADER).close()
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        open_store(path, HEADER).close()
        assert path.read_bytes() == whole


def test_a_damaged_line_is_named(tmp_path):
    path = tmp_path / "store.jsonl"
    with open_store(path, HEADER) as store:
        store.add(finished(1))
    lines = path.read_text().splitlines(keepends=True)
    old = {"model": "m", "digest": "d", "state": "AAAA"}
    for damaged in (
        "{]",
        "[]",
        json.dumps({"pair": {}, "way": {}}),
        json.dumps({"pair": 3}),
        json.dumps({"options": 3}),
        json.dumps({"pair": {}, "way": 3}),
        json.dumps({"old_side": 5}),
        json.dumps({"old_side": {"model": "m"}}),
        json.dumps({"old_side": old | {"model": ["m"]}}),
        json.dumps({"old_side": old | {"state": "###"}}),
    ):
        content = "".join([lines[0], damaged, "\n", lines[1]])
        path.write_text(content)
        with pytest.raises(StoreError, match=r"store.jsonl:2: expected"):
            open_store(path, HEADER)
        assert path.read_text() == content


@pytest.mark.parametrize("damaged", [{"identity": None}, {"environment": 3}, {"options": []}])
def test_a_header_that_lacks_something_is_one_line(path, damaged):
    open_store(path, HEADER).close()
    values = HEADER.to_dict() | damaged
    if path.suffix == ".jsonl":
        path.write_text(json.dumps(values) + "\n")
    else:
        with contextlib.closing(sqlite3.connect(path)) as db, db:
            rows = [(json.dumps(value), key) for key, value in values.items()]
            db.executemany("UPDATE meta SET value = ? WHERE key = ?", rows)
    content = path.read_bytes()
    for use in (lambda: open_store(path, HEADER), lambda: read_store(path)):
        with pytest.raises(StoreError, match="expected identity, environment and options of a"):
            use()
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("UPDATE pairs SET result = '{'", "store.sqlite: row 1: expected a pair, found JSON"),
        ("UPDATE pairs SET way = '{}'", "store.sqlite: row 1: expected a pair, found KeyError"),
        ("UPDATE meta SET value = 'x'", "store.sqlite: expected a header in JSON, found"),
    ],
)
def test_a_damaged_row_is_named(tmp_path, change, message):
    path = tmp_path / "store.sqlite"
    with open_store(path, HEADER) as store:
        store.add(finished(1))
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute(change)
    content = path.read_bytes()
    other = Header(HEADER.identity, {}, {"rank_by": "arm"})
    for use in (lambda: open_store(path, other), lambda: read_store(path)):
        with pytest.raises(StoreError, match=message):
            use()
    assert path.read_bytes() == content


def test_half_a_transaction_is_undone_for_who_only_reads(tmp_path):
    """As a kill in the middle of a commit leaves it: pages of the new state, and the old in the
    journal."""
    path, later = tmp_path / "store.sqlite", tmp_path / "killed" / "store.sqlite"
    with open_store(path, HEADER) as store:
        store.add(finished(1))
    later.parent.mkdir()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA cache_size = 1")
        db.execute("BEGIN IMMEDIATE")
        db.execute("UPDATE pairs SET result = 'half'")
        rows = ((f"m{i}", "d", b"0" * 5000) for i in range(200))
        db.executemany("INSERT INTO old_sides VALUES (?, ?, ?)", rows)
        for file in tmp_path.glob("store.sqlite*"):
            shutil.copy(file, later.parent)
        db.execute("ROLLBACK")
    files = sorted(later.parent.iterdir())
    assert len(files) == 2  # the journal is one
    content = [file.read_bytes() for file in files]
    assert [r.candidate for r in read_store(later)[1]] == ["c1"]
    assert [file.read_bytes() for file in files] == content
    with open_store(later, HEADER) as store:
        assert list(store.finished()) == [("m", "c1")]
    assert len(list(later.parent.iterdir())) == 1


def test_what_is_no_file_is_refused_without_reading_it(path):
    os.mkfifo(path)
    with pytest.raises(StoreError, match="expected a file that can be written, found no regular"):
        open_store(path, HEADER)
    folder = path.with_name(f"folder{path.suffix}")
    folder.mkdir()
    with pytest.raises(StoreError, match="expected a file that can be written, found a folder"):
        open_store(folder, HEADER)


def test_who_was_quicker_keeps_the_store(path, monkeypatch):
    """Between one's look whether there is a store and one's lock, another makes and ends one."""

    def late(form):
        monkeypatch.undo()
        with open_store(path, HEADER) as store:
            store.add(finished(1))
        return form.lock()

    monkeypatch.setattr(Form, "lock", late)
    with pytest.raises(StoreError, match="expected no results yet, found 1 pairs"):
        open_store(path, HEADER, resume=False)
    assert len(read_store(path)[1]) == 1


def test_a_store_that_was_taken_away_is_not_written_to(path, monkeypatch):
    """Between one's opening and one's lock, another takes away what it could not begin."""

    def taken(file, how):
        path.unlink(missing_ok=True)
        return flock(file, how)

    flock = fcntl.flock
    monkeypatch.setattr(fcntl, "flock", taken)
    with pytest.raises(StoreError, match="expected one that no other process uses"):
        open_store(path, HEADER)


def test_a_full_database_rolls_back_and_stays_usable(tmp_path):
    path = tmp_path / "store.sqlite"
    with open_store(path, HEADER) as store:
        store.add(finished(0))
        pages = store.form._db.execute("PRAGMA page_count").fetchone()[0]
        store.form._db.execute(f"PRAGMA max_page_count = {pages + 1}")
        with pytest.raises(
            StoreError, match=r"expected room for the pair .*, found database or disk"
        ):
            store.add(finished(1, 50_000))
        assert list(store.finished()) == [("m", "c0")]
        store.add(finished(2))  # a small one still fits
    with open_store(path, HEADER) as store:
        store.add(finished(1, 50_000))
        assert [key[1] for key in store.finished()] == ["c0", "c2", "c1"]


FULL = """
import resource, signal, sys
from helpers.stored_pairs import HEADER, finished
from resque_ext.screening.store import open_store, StoreError
store = open_store(sys.argv[1], HEADER)
store.add(finished(0))
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
try:
    store.add(finished(1, 200_000))
except StoreError as error:
    print(error)
store.add(finished(2))
store.close()
"""


def test_a_file_that_cannot_grow_stays_usable(path):
    assert resource.RLIMIT_FSIZE >= 0
    out, _ = child(FULL, path).communicate()
    assert out.startswith(f"store: {path}: expected room for the pair ('m', 'c1'), found ")
    assert out.count("\n") == 1
    with open_store(path, HEADER) as store:
        assert [key[1] for key in store.finished()] == ["c0", "c2"]
        store.add(finished(1, 200_000))
    assert len(read_store(path)[1]) == 3


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_an_export_has_a_pair_that_was_replaced_once(path, suffix):
    with open_store(path, HEADER) as store:
        store.add(finished(0))
        store.add(finished(1))
        store.add(finished(1, 20), replace=True)
    output = path.with_name(f"export{suffix}")
    export_store(path, output)
    assert len(output.read_text().splitlines()) == 3
    assert "b" * 20 in output.read_text()

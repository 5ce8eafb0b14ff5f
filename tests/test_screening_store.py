"""The stores of a screening: whole, foreign, locked, torn and full."""

import json
import os
import resource
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

import resque_ext
from resque_ext.screening import StoreError, read_store
from resque_ext.screening.pair import Fault, IndexValue, PairResult, PredictedCost
from resque_ext.screening.store import Finished, Header, open_store

ROOT = Path(resque_ext.__file__).parents[1]
HEADER = Header({"models": {"m": "made"}, "seed": 0}, {"python": "3"}, {"rank_by": "resque_dist"})


def finished(number, size=10):
    result = PairResult(
        "m",
        f"c{number}",
        {"resque_dist": IndexValue(0.1 * number, 0.01, None, 0.0, 0.5)},
        {"epochs": PredictedCost(3.0, 1.0, None, "epochs", True)},
        100,
        50,
        None,
        1.5,
        "width",
        (Fault("a.tar", "b" * size, "damaged"),),
        {"resque_dist": {"0": 0.25}},
    )
    return Finished(result, ((256, 0.1, 0.0, 0.2), None), 2)


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
    with pytest.raises(StoreError, match="expected no results yet, found 1 pairs: resume goes on"):
        open_store(path, HEADER, resume=False)


def test_another_screening_is_refused_with_what_differs(path):
    open_store(path, HEADER).close()
    content = path.read_bytes()
    other = Header({"models": {"m": "other"}, "seed": 0, "width": 0.1})
    expected = 'found another one: models.m was "made", is "other"; width is in this one alone'
    with pytest.raises(StoreError) as caught:
        open_store(path, other)
    assert expected in str(caught.value)
    assert path.read_bytes() == content


@pytest.mark.parametrize("content", [b"P6 an image\n", b'{"json": 1}\n', b"\x00" * 64])
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


def test_a_folder_that_cannot_be_written_is_one_line(path):
    name = f"store{path.suffix}"
    for where in (path.parent / "none" / name, Path("/proc") / name):
        with pytest.raises(StoreError, match="expected a file that can be written"):
            open_store(where, HEADER)
    with pytest.raises(FileNotFoundError, match="expected the store of a screening, found none"):
        read_store(path)


CHILD = """
import sys
from test_screening_store import HEADER, finished
from resque_ext.screening.store import open_store
store = open_store(sys.argv[1], HEADER)
store.add(finished(1))
print("open", flush=True)
sys.stdin.read()
"""


def child(code, *arguments, **options):
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{Path(__file__).parent}"}
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
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
    path.write_bytes(whole[:20])
    open_store(path, HEADER).close()
    assert path.read_bytes() == whole


def test_a_damaged_line_is_named(tmp_path):
    path = tmp_path / "store.jsonl"
    with open_store(path, HEADER) as store:
        store.add(finished(1))
    lines = path.read_text().splitlines(keepends=True)
    for damaged in ("{]\n", "[]\n", json.dumps({"pair": {}, "way": {}}) + "\n"):
        path.write_text("".join([lines[0], damaged, lines[1]]))
        with pytest.raises(StoreError, match=r"store.jsonl:2: expected"):
            open_store(path, HEADER)


def test_a_full_database_rolls_back_and_stays_usable(tmp_path):
    path = tmp_path / "store.sqlite"
    with open_store(path, HEADER) as store:
        store.add(finished(0))
        pages = store._db.execute("PRAGMA page_count").fetchone()[0]
        store._db.execute(f"PRAGMA max_page_count = {pages + 1}")
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
from test_screening_store import HEADER, finished
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

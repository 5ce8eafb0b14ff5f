"""A file of results that somebody deletes, replaces or changes while it is written: an error."""

import contextlib
import os
import random
import sqlite3

import pytest
from helpers.stored_pairs import HEADER, finished

from resque_ext.retraining import StudyError
from resque_ext.screening import StoreError, read_store
from resque_ext.screening.store import open_store
from resque_ext.studies.study_file import StudyFile

DEEP = "[" * 100_000


def delete(path):
    path.unlink()


def replace(path):
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    other.replace(path)


def rename(path):
    path.rename(path.with_name("renamed"))


def remove_folder(path):
    path.unlink()
    path.parent.rmdir()


def truncate(path):
    os.truncate(path, 0)


def append(path):
    with path.open("ab") as file:
        file.write(b"{}\n")


TAKEN = [delete, replace, rename, remove_folder]


@pytest.fixture(params=["sqlite", "jsonl"])
def path(request, tmp_path):
    (tmp_path / "kept").mkdir()
    return tmp_path / "kept" / f"store.{request.param}"


@pytest.mark.parametrize("take", [*TAKEN, truncate])
@pytest.mark.parametrize("what", ["pair", "old side", "nothing"])
def test_a_store_that_is_taken_away_is_an_error(path, take, what):
    if (take, what, path.suffix) == (truncate, "nothing", ".sqlite"):
        what = "pair"  # nothing looks into a SQLite file that nothing is written to

    def use():
        with open_store(path, HEADER) as store:
            store.add(finished(1))
            take(path)
            if what == "pair":
                store.add(finished(2))
            elif what == "old side":
                store.keep_old_side("m", "digest", b"state")

    with pytest.raises(StoreError, match=r"store: .*: expected"):
        use()
    if take is replace:  # what stands there now is nobody's business
        assert len(read_store(path)[1]) == 1


def test_lines_that_another_program_wrote_are_an_error(tmp_path):
    path = tmp_path / "store.jsonl"
    store = open_store(path, HEADER)
    append(path)
    with pytest.raises(StoreError, match=r"found \d+: another program changed it"):
        store.add(finished(1))
    store.close()


def test_the_error_of_the_block_is_not_hidden(path):
    store = open_store(path, HEADER)
    delete(path)
    store.__exit__(ZeroDivisionError, ZeroDivisionError(), None)  # which goes on
    assert store.form.file < 0


@pytest.mark.parametrize("take", [*TAKEN, truncate, append])
def test_a_study_file_that_is_taken_away_is_an_error(tmp_path, take):
    (tmp_path / "kept").mkdir()
    path = tmp_path / "kept" / "study.jsonl"
    file = StudyFile(path, {"seed": 1}, [])
    file.__enter__()
    take(path)
    with pytest.raises(StudyError, match=r"path: expected .* as this study wrote it, found"):
        file.__exit__(None, None, None)


@pytest.mark.parametrize("line", [DEEP, '{"format": ' * 100_000, "\xff"])
def test_lines_that_are_nested_too_deep_are_an_error(tmp_path, line):
    path = tmp_path / "store.jsonl"
    open_store(path, HEADER).close()
    with path.open("a", encoding="latin-1") as file:
        file.write(line + "\n")
    for use in (lambda: open_store(path, HEADER), lambda: read_store(path)):
        with pytest.raises(StoreError, match=r"store\.jsonl:2: expected JSON"):
            use()


@pytest.mark.parametrize("column", ["result", "way"])
@pytest.mark.parametrize("value", [DEEP, "X'ff'", "X'00'", "NULL", "3", "CAST(X'ff41' AS TEXT)"])
def test_damaged_values_of_a_database_are_one_line(tmp_path, column, value):
    path = tmp_path / "store.sqlite"
    with open_store(path, HEADER) as store:
        store.add(finished(1))
    if value == "NULL":
        value = "''"
    with sqlite3.connect(path) as db:
        text = f"'{value}'" if value == DEEP else value
        db.execute(f"UPDATE pairs SET {column} = {text}")
    db.close()
    for use in (lambda: open_store(path, HEADER).finished(), lambda: read_store(path)):
        with pytest.raises(StoreError, match=r"store: .*store\.sqlite") as caught:
            use()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("seed", range(40))
def test_damaged_bytes_of_a_database_are_one_line(tmp_path, seed):
    path = tmp_path / "store.sqlite"
    with open_store(path, HEADER) as store:
        for number in range(3):
            store.add(finished(number))
    draw = random.Random(seed)
    content = bytearray(path.read_bytes())
    for _ in range(30):
        content[draw.randrange(16, len(content))] = draw.randrange(256)
    path.write_bytes(content)
    with contextlib.suppress(StoreError):  # anything else is a failure
        read_store(path)

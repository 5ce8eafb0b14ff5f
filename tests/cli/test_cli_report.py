"""`resque-ext report` on stores of both kinds: what it writes, prints and refuses."""

import csv
import io
import json
import sqlite3

import pytest
from helpers.report_pairs import AT, make_pairs

from resque_ext import cli
from resque_ext.report.page import make_report
from resque_ext.screening.results import PairResult
from resque_ext.screening.store import Finished, Header, open_store
from resque_ext.screening.table import Screening

PAIRS = make_pairs(2, 12)
OPTIONS = {"rank_by": "arm", "device": "cpu"}
META = {
    "environment": {"torch": "2.14.1"},
    "options": OPTIONS,
    "screening": {"indices": ["resque_dist", "arm"]},
}


def fill(path, pairs=PAIRS, options=OPTIONS):
    header = Header(META["screening"], META["environment"], options)
    with open_store(path, header) as store:
        for pair in pairs:
            store.add(Finished(pair))
    return path


@pytest.fixture(params=["s.sqlite", "s.jsonl"])
def store(request, tmp_path):
    return fill(tmp_path / request.param)


@pytest.fixture
def run(capsys):
    def call(*arguments):
        status = cli.main(["report", *map(str, arguments)])
        return status, *capsys.readouterr()

    return call


def test_page_of_a_store(store, tmp_path, run):
    before = store.read_bytes()
    output = tmp_path / "r.html"
    status, out, err = run(store, "-o", output, "--made-at", AT)
    assert (status, err) == (0, "")
    assert out == f"{output}: 24 pairs, {output.stat().st_size / 1e3:,.0f} kB\n"
    expected = make_report(PAIRS, META, AT, rank_by="arm")  # by what the screening ranked by
    assert output.read_text(encoding="utf-8") == expected
    assert store.read_bytes() == before
    other = tmp_path / "other.html"
    assert run(store, "-o", other, "--made-at", AT, "--rank-by", "epochs")[0] == 0
    expected = make_report(PAIRS, META, AT, rank_by="epochs")
    assert other.read_text(encoding="utf-8") == expected


def test_numbers_of_a_store(store, tmp_path, run):
    status, out, err = run(store, "--json", "--made-at", AT)
    assert (status, err) == (0, "")
    found = json.loads(out)
    assert found["meta"] == META
    parsed = [PairResult.from_json(json.dumps(pair)) for pair in found["pairs"]]
    assert sorted(parsed, key=lambda p: p.to_json()) == sorted(PAIRS, key=lambda p: p.to_json())
    status, text, err = run(store, "--csv")
    assert (status, err) == (0, "")
    assert len(list(csv.DictReader(io.StringIO(text)))) == len(PAIRS)
    for suffix, expected in ((".json", out), (".csv", text)):
        output = tmp_path / f"r{suffix}"
        assert run(store, "-o", output, "--made-at", AT)[0] == 0
        assert output.read_text(encoding="utf-8") == expected


def test_the_time_is_now_unless_given(store, run):
    now = json.loads(run(store, "--json")[1])["made_at"]
    assert now.startswith("2")
    assert now.endswith("+00:00")


def test_ties_are_those_of_the_screening(store, run):
    found = json.loads(run(store, "--json")[1])
    for by in ("resque_dist", "arm", "epochs"):
        rows = {(r.result.model, r.result.candidate): r for r in Screening(PAIRS, by)}
        group = "predicted" if by == "epochs" else "indices"
        for pair, rank in zip(found["pairs"], found["ranks"][f"{group}.{by}"], strict=True):
            row = rows[pair["model"], pair["candidate"]]
            assert (rank is None) == (row.rank is None)
            if rank is not None:
                assert row.tied == (rank[0] < rank[1])
                assert row.rank <= rank[0]


def test_one_kind_of_output(store, tmp_path, refused):
    message = "output: expected one of -o, --csv and --json, found none"
    assert message in refused(store)
    message = "output: expected one of -o, --csv and --json, found --csv and --json"
    assert message in refused(store, "--csv", "--json")
    assert "found -o and --csv" in refused(store, "-o", tmp_path / "r.csv", "--csv")


def test_bad_outputs_are_refused(store, tmp_path, refused):
    files = sorted(tmp_path.iterdir())
    assert "no, found none" in refused(store, "-o", tmp_path / "no" / "r.html")
    assert "found '.pdf'" in refused(store, "-o", tmp_path / "r.pdf")
    assert "expected another file than the store" in refused(store, "-o", store, "--force")
    assert sorted(tmp_path.iterdir()) == files
    mine = tmp_path / "mine.html"
    mine.write_text("<p>notes</p>")
    assert "--force replaces it" in refused(store, "-o", mine)
    assert mine.read_text() == "<p>notes</p>"
    assert "rank_by: expected one of" in refused(store, "-o", tmp_path / "r.html", "--rank-by", "x")


def test_force(store, tmp_path, run):
    mine = tmp_path / "mine.html"
    mine.write_text("<p>notes</p>")
    assert run(store, "-o", mine, "--force")[0] == 0
    assert mine.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert run(store, "-o", mine)[0] == 0  # a report is written over unasked


def test_bad_stores_are_refused(tmp_path, refused):
    output = tmp_path / "r.html"
    assert "expected the store of a screening, found none" in refused(tmp_path / "no", "-o", output)
    for name in ("empty.sqlite", "empty.jsonl"):
        empty = fill(tmp_path / name, [])
        message = f"store: {empty}: expected at least one finished pair, found none"
        assert message in refused(empty, "-o", output)
    for name in ("notes.txt", "notes.jsonl"):
        (tmp_path / name).write_text("what I wrote\n")
        assert f"store: {tmp_path / name}" in refused(tmp_path / name, "-o", output)
    sqlite3.connect(tmp_path / "foreign.sqlite").execute("CREATE TABLE t (a)").connection.close()
    found = refused(tmp_path / "foreign.sqlite", "-o", output)
    assert "found a SQLite file of something else" in found
    assert "store: " in refused(tmp_path, "-o", output)
    assert not output.exists()


def test_what_was_ranked_by_may_have_no_value(tmp_path, run):
    failed = [PairResult("m", "c", {}, stopped="error", error="no such file")]
    path = fill(tmp_path / "s.sqlite", failed)
    assert run(path, "-o", tmp_path / "r.html")[0] == 0

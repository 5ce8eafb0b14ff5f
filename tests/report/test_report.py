"""The report of a screening without a browser: what is in it, how large, and what it refuses."""

import base64
import csv
import dataclasses
import hashlib
import io
import json
import os
import random
import re

import pytest
from helpers.report_pairs import AT, HOSTILE, META, brute_force_ranks, hostile_pairs, make_pairs

from resque_ext.report import page as report
from resque_ext.report.page import ASSETS, make_report, write_report
from resque_ext.screening.results import IndexValue, PairResult


def test_a_thousand_pairs_stay_below_a_megabyte():
    pairs = make_pairs(5, 200)
    assert len(pairs) == 1000
    assert len(make_report(pairs, META, AT).encode()) < 1_000_000
    both = [  # values of layers for two indices, of classes for two
        dataclasses.replace(
            pair,
            layers={"arm": v, "preindex": {k: x * 1.37 for k, x in v.items()}},
            classes={"resque_dist": c, "again": {k: x * 0.73 for k, x in c.items()}},
        )
        for pair in pairs
        for v, c in [(pair.layers.get("arm", {}), pair.classes.get("resque_dist", {}))]
    ]
    assert len(make_report(both, META, AT).encode()) < 1_000_000


def test_equal_stores_give_equal_pages():
    pairs = make_pairs(2, 30)
    again = make_pairs(2, 30)
    random.Random(0).shuffle(again)
    for kind in report.HEADS:
        first = make_report(pairs, META, AT, kind)
        assert make_report(again, META, AT, kind) == first
        if kind != ".csv":
            assert AT in first
            later = make_report(again, META, "2027-01-01", kind)
            assert later != first
            if kind == ".json":
                assert later.replace("2027-01-01", AT) == first


def test_what_the_policy_allows_is_what_is_there():
    page = make_report(make_pairs(1, 30), META, AT)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    directives = dict(part.split(" ", 1) for part in policy.replace("&#x27;", "'").split("; "))
    assert directives["default-src"] == "'none'"
    for tag, directive in (("style", "style-src"), ("script", "script-src")):
        (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert directives[directive] == f"'sha256-{digest}'"
    assert "unsafe" not in policy
    assert not re.search(r"https?:|\bsrc=|\seval\(|new Function|innerHTML|style=", page)


def test_vendored_files_are_those_that_were_recorded():
    recorded = re.findall(r"^    ([0-9a-f]{64})  (\S+)$", report._asset("README.md"), re.MULTILINE)
    assert {name for _, name in recorded} == {"uPlot.iife.min.js", "uPlot.min.css"}
    for digest, name in recorded:
        assert hashlib.sha256((ASSETS / name).read_bytes()).hexdigest() == digest
    page = make_report(make_pairs(1, 1), META, AT)
    assert report._asset("uPlot.LICENSE").strip() in page


def test_names_never_reach_the_markup():
    page = make_report(hostile_pairs(), {"environment": {"host": HOSTILE[1]}}, HOSTILE[0])
    assert page.count("<script") == 2  # the data and the script itself
    assert page.count("</script") == 2
    assert "<img" not in page
    assert "&lt;script&gt;window.fired" in page  # the time stamp stands in the page, as text
    assert page.endswith("</html>\n")


def test_json_has_every_pair_with_all_digits():
    pairs = [*make_pairs(3, 30), *hostile_pairs()]
    found = json.loads(make_report(pairs, META, AT, ".json"))
    assert (found["meta"], found["made_at"]) == (META, AT)
    parsed = [PairResult.from_json(json.dumps(pair)) for pair in found["pairs"]]
    assert parsed == sorted(pairs, key=lambda p: (p.candidate, p.model))
    widths = set()
    for name, read in (
        ("indices.resque_dist", lambda p: p.indices.get("resque_dist")),
        ("indices.arm", lambda p: p.indices.get("arm")),
        ("predicted.epochs", lambda p: p.predicted.get("epochs")),
    ):
        expected = [r and list(r) for r in brute_force_ranks(parsed, read)]
        assert found["ranks"][name] == expected
        widths |= {r[1] - r[0] for r in expected if r}
    assert 0 in widths  # some stand alone
    assert max(widths) > 5  # others are tied


def test_csv_has_every_number_with_all_digits():
    pairs = sorted(make_pairs(2, 30), key=lambda p: (p.candidate, p.model))
    rows = list(csv.DictReader(io.StringIO(make_report(pairs, META, AT, ".csv"))))
    assert len(rows) == len(pairs)
    for row, pair in zip(rows, pairs, strict=True):
        expected = {"model": pair.model, "candidate": pair.candidate, "stopped": pair.stopped}
        for index in ("resque_dist", "arm"):
            found = pair.indices.get(index)
            for part in ("value", "std_error", "noise_floor", "low", "high"):
                value = None if found is None else getattr(found, part)
                expected[f"indices.{index}.{part}"] = "" if value is None else repr(value)
        cost = pair.predicted.get("epochs")
        expected["predicted.epochs.high"] = "" if not cost or cost.high is None else repr(cost.high)
        expected["predicted.epochs.unit"] = cost.unit if cost else ""
        flag = str(cost.extrapolated).lower() if cost else ""
        expected["predicted.epochs.extrapolated"] = flag
        for name, value in pair.classes.get("resque_dist", {}).items():
            expected[f"classes.resque_dist.{name}"] = repr(value)
        for name, value in pair.layers.get("arm", {}).items():
            expected[f"layers.arm.{name}"] = repr(value)
        expected["seconds"], expected["new_samples"] = repr(pair.seconds), str(pair.new_samples)
        expected["available"] = "" if pair.available is None else str(pair.available)
        expected["error"] = pair.error or ""
        assert {name: row[name] for name in expected} == expected
        assert json.loads(row["faults"] or "[]") == [dataclasses.asdict(f) for f in pair.faults]


def test_an_absent_value_is_no_number():
    pairs = [PairResult("m", "a", {"arm": IndexValue(0.0)}), PairResult("m", "b", {}, error="x")]
    first, second = csv.DictReader(io.StringIO(make_report(pairs, kind=".csv")))
    assert (first["indices.arm.value"], first["indices.arm.std_error"]) == ("0.0", "")
    assert (second["indices.arm.value"], second["ranks.indices.arm.best"]) == ("", "")


@pytest.mark.parametrize(
    ("pairs", "error", "message"),
    [
        ([], ValueError, "pairs: expected at least one, found none"),
        (["x"], TypeError, "pairs: expected PairResult, found str"),
        ([PairResult("m", "c", {})] * 2, ValueError, "'c' on 'm': expected once, found twice"),
        (
            [PairResult("m", "c", {"arm": IndexValue(float("nan"))})],
            ValueError,
            "arm.value: expected a finite number, found nan",
        ),
        (
            [PairResult("m", "c", {"arm": IndexValue(0.1, high=float("inf"))})],
            ValueError,
            "arm.high: expected a finite number, found inf",
        ),
        (
            [PairResult("m", "c", {}, layers={"arm": {"conv": "0.5"}})],
            ValueError,
            "arm.conv: expected a finite number, found '0.5'",
        ),
        ([PairResult("m", None, {})], ValueError, "None on 'm': expected text for both names"),
    ],
)
@pytest.mark.parametrize("kind", [".html", ".csv", ".json"])
def test_bad_pairs_are_refused(pairs, error, message, kind):
    with pytest.raises(error, match=re.escape(message)):
        make_report(pairs, kind=kind)


def test_bad_options_are_refused():
    pairs = make_pairs(1, 2)
    with pytest.raises(ValueError, match=r"kind: expected one of .html, .json, .csv, found '.pdf'"):
        make_report(pairs, kind=".pdf")
    message = r"rank_by: expected one of \['resque_dist', 'arm', 'epochs'\], found 'preindex'"
    with pytest.raises(ValueError, match=message):
        make_report(pairs, rank_by="preindex")


# Files


@pytest.mark.parametrize("suffix", report.HEADS)
def test_an_earlier_report_is_written_over_and_nothing_else(tmp_path, suffix):
    path = tmp_path / f"r{suffix}"
    for models in (1, 2):
        text = make_report(make_pairs(models, 3), META, AT, suffix)
        write_report(path, text)
        assert path.read_bytes() == text.encode()
    path.write_text("my notes")
    with pytest.raises(FileExistsError, match=r"expected none or an earlier report .*--force"):
        write_report(path, text)
    assert path.read_text() == "my notes"
    write_report(path, text, force=True)
    assert path.read_bytes() == text.encode()
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("no/r.html", FileNotFoundError, r"output: expected a folder at .*no, found none"),
        ("r.pdf", ValueError, r"expected the suffix .html, .json, .csv, found '.pdf'"),
        ("r", ValueError, r"found 'none'"),
        ("folder.html", ValueError, r"expected a file or none at .*, found no regular file"),
    ],
)
def test_bad_places_are_refused(tmp_path, name, error, message):
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(error, match=message):
        write_report(tmp_path / name, "x", force=True)
    assert [p.name for p in tmp_path.iterdir()] == ["folder.html"]


def test_a_write_that_fails_leaves_the_earlier_report(tmp_path, monkeypatch):
    path = tmp_path / "r.html"
    text = make_report(make_pairs(1, 3), META, AT)
    write_report(path, text)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_report(path, make_report(make_pairs(2, 3), META, AT))
    assert path.read_bytes() == text.encode()
    assert list(tmp_path.iterdir()) == [path]

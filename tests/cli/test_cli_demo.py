"""`resque-ext demo` and `resque-ext bench`: what they print, and where they go on."""

import io
import sys

import pytest
from helpers.cli_made import strict

import resque_ext
from resque_ext import cli
from resque_ext.tools import bench, demo


@pytest.fixture
def short_demo(monkeypatch):
    monkeypatch.setattr(demo, "LEVELS", {"contrast": (0.2, 0.5), "shot": (0.3,)})
    monkeypatch.setattr(demo, "EPOCHS", 1)
    monkeypatch.setattr(demo, "MOST_EPOCHS", 0.5)


def test_demo(run, short_demo):
    status, out, err = run("demo", "--json", "--seed", "3")
    found = strict(out)
    assert (status, err) == (0, "")
    assert found["seed"] == 3
    assert [(r["kind"], r["level"]) for r in found["rows"]] == [
        ("none", 0),
        ("contrast", 0.2),
        ("contrast", 0.5),
        ("shot", 0.3),
    ]
    status, out, err = run("demo", "--seed", "3")
    assert (status, err) == (0, "")
    for row in found["rows"]:
        assert f"{row['value']:.4f} ± {row['std_error']:.4f}" in out
        assert f"{row['reestimated']['value']:.4f}" in out
    assert "in units of pi" in out
    costs = found["retraining"]["rows"]
    assert [(r["kind"], r["level"]) for r in costs] == [
        (r["kind"], r["level"]) for r in found["rows"][1:]
    ]
    assert out.count("more than 0.5") == sum(r["censored"] for r in costs) > 0
    assert f"{found['retraining']['censored']} of 3 runs did not reach" in " ".join(out.split())
    assert max(map(len, out.splitlines())) <= cli.PLAIN_WIDTH


@pytest.mark.full
def test_demo_on_a_narrow_terminal(run, short_demo, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    status, out, _ = run("demo", "--seed", "3")
    assert status == 0
    assert max(map(len, out.splitlines())) <= 60
    assert out.count("±") >= 8


@pytest.mark.full
def test_output_to_a_stream_of_ascii(short_demo, monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    assert cli.main(["demo"]) == 0
    assert b"noise floor" in stream.buffer.getvalue()


def test_bench(run):
    status, out, err = run("bench", "--json", "--seconds", "0.5", "--rows", "3000")
    found = strict(out)
    assert (status, err) == (0, "")
    forms = [name for name, _, _ in bench.FORMS]
    assert [r["form"] for r in found["rows"]] == forms * (len(found["rows"]) // len(forms))
    assert {r["dtype"] for r in found["rows"]} == {"float32", "bfloat16"}
    for row in found["rows"]:
        assert row["skipped"] is None
        assert row["seconds"] > 0
        assert row["gb_per_s"] > 0
        assert row["ratio"] > 0
        assert row["error"] <= (bench.TOLERANCE if row["computes"] == "moments" else 0.1)


def test_bench_table(run):
    status, out, err = run("bench", "--seconds", "0.5", "--rows", "1000")
    assert (status, err) == (0, "")
    assert "index_add_" in out
    assert "bfloat16 [1000, 512], 100 classes" in out  # not taken for markup
    assert max(map(len, out.splitlines())) <= cli.PLAIN_WIDTH


def test_bench_finds_wrong_results(monkeypatch):
    right = bench.native

    def wrong(x, y):
        counts, sums, sumsq = right(x, y)
        return counts, sums * (1 + 1e-11), sumsq

    monkeypatch.setattr(bench, "FORMS", (("class_moments", "moments", wrong),))
    with pytest.raises(ArithmeticError, match="this is a bug"):
        bench.run(0.1, 500)


def test_bench_goes_on_without_kernels(run, monkeypatch):
    def missing(x, y):
        raise resque_ext.BackendError("it was never built")

    forms = (("class_moments", "moments", missing), *bench.FORMS[2:])
    monkeypatch.setattr(bench, "FORMS", forms)
    arguments = ("bench", "--seconds", "0.2", "--rows", "500")
    rows = strict(run(*arguments, "--json")[1])["rows"]
    assert rows[0]["skipped"] == "it was never built"
    assert rows[1]["seconds"] > 0
    assert rows[1]["ratio"] is None
    assert "it was never built" in run(*arguments)[1]

"""The command line: exit status, stdout and stderr, in this process and as a program of its own."""

import importlib
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import safetensors.torch
import torch
from helpers.cli_made import ENVIRONMENT, data, program, strict, write

import resque_ext
from resque_ext import cli
from resque_ext.tools import doctor


@pytest.fixture
def sides(tmp_path):
    return write(tmp_path / "old.npz", *data(0)), write(tmp_path / "new.npz", *data(1))


# The program itself


def test_program_prints_json_alone(sides):
    done = program("dist", *sides, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert strict(done.stdout)["index"] == "resque_dist"


def test_program_refuses_with_one_line(tmp_path):
    done = program("dist", tmp_path / "no.npz", tmp_path / "no.npz")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "no.npz: expected a .npz or .safetensors file, found none" in done.stderr


@pytest.mark.full
@pytest.mark.skipif(os.name == "nt", reason="SIGINT and closed pipes are POSIX matters")
def test_interrupt_exits_with_130():
    # As `python -m resque_ext`, but it says when torch is imported, which takes its time.
    code = (
        "import signal, sys\n"
        "from resque_ext import bench, cli\n"
        # What is started in the background of a shell ignores SIGINT.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "print('ready', flush=True)\n"
        "sys.exit(cli.main(['bench', '--seconds', '600', '--rows', '20000', '--json']))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    assert process.stdout.readline() == "ready\n"
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err.strip()) == (130, "", "")


@pytest.mark.full
@pytest.mark.skipif(os.name == "nt", reason="SIGINT and closed pipes are POSIX matters")
@pytest.mark.parametrize("arguments", [(), ("--json",)])
def test_closed_pipe_is_quiet(sides, arguments):
    reader, writer = os.pipe()
    os.close(reader)
    streams = {"capture_output": False, "stdout": writer, "stderr": subprocess.PIPE}
    try:
        done = program("dist", *sides, *arguments, **streams)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


def test_importing_the_package_imports_no_command_line():
    code = (
        "import sys, resque_ext\n"
        "print(sorted({'typer', 'rich', 'click', 'sklearn', 'resque_ext.cli'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=True)
    assert done.stdout == "[]\n"


def test_entry_point_is_main():
    module, _, name = "resque_ext.cli:main".partition(":")
    assert getattr(importlib.import_module(module), name) is cli.main


# Usage


@pytest.mark.parametrize("arguments", [[], ["--help"], ["dist", "--help"]])
def test_help(run, arguments):
    status, out, err = run(*arguments)
    assert (status, err) == (0, "")
    assert "Usage: resque-ext" in out


def test_version(run):
    assert run("--version") == (0, f"resque-ext {resque_ext.__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nope"], "nope"),
        (["dist"], "Missing argument"),
        (["dist", "a.npz"], "Missing argument"),
        (["dist", "a.npz", "b.npz", "c.npz"], "c.npz"),
        (["dist", "a.npz", "b.npz", "--what"], "--what"),
        (["dist", "a.npz", "b.npz", "--missing", "maybe"], "maybe"),
        (["dist", "a.npz", "b.npz", "--num-classes", "x"], "--num-classes"),
        (["demo", "--seed", "1.5"], "--seed"),
        (["demo", "--seed", "-1"], "seed: expected 0 <= seed < 2^32, found -1"),
        (["bench", "--seconds", "0"], "seconds: expected 0 < seconds <= 3600, found 0.0"),
        (["bench", "--seconds", "nan"], "seconds: expected 0 < seconds <= 3600, found nan"),
        (["bench", "--rows", "0"], "rows: expected 1 <= rows < 2^31, found 0"),
    ],
)
def test_usage_error_is_one_line(refused, arguments, words):
    assert words in refused(*arguments)


def test_traceback_on_request(sides):
    with pytest.raises(FileNotFoundError):
        cli.main(["--traceback", "dist", "no.npz", "no.npz"])


def test_other_exceptions_keep_their_traceback(monkeypatch):
    def broken():
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(doctor, "examine", broken)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        cli.main(["doctor"])


@pytest.mark.parametrize(
    "error",
    [ValueError, TypeError, IndexError, KeyError, OSError, resque_ext.BackendError],
)
def test_user_errors_are_one_line(refused, monkeypatch, error):
    def broken():
        raise error("first\n  second")

    monkeypatch.setattr(doctor, "examine", broken)
    where = f"({__file__}, line {broken.__code__.co_firstlineno + 1})"  # no code of the package
    expected = f"{error.__name__}: first second {where}"
    if error is OSError:  # it names a file of its own
        expected = "first second"
    assert refused("doctor") == f"resque-ext: error: {expected}\n"


def test_interrupt_in_process(run, monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "examine", interrupted)
    status, out, err = run("doctor")
    assert (status, out, err.strip()) == (130, "", "")


# dist


def test_dist_is_the_function(run, sides):
    status, out, err = run("dist", *sides, "--json")
    (x, y), (x_new, y_new) = data(0), data(1)
    expected = resque_ext.resque_dist(x, x_new, y, y_new)
    found = strict(out)
    assert (status, err) == (0, "")
    assert expected.to_dict().items() <= found.items()
    assert (found["old"], found["new"], found["paired"]) == (*map(str, sides), False)


def test_dist_table(run, sides):
    status, out, err = run("dist", *sides, "--per-class")
    result = strict(run("dist", *sides, "--json")[1])
    assert (status, err) == (0, "")
    for key in ("value", "std_error", "noise_floor"):
        assert f"{result[key]:.4f}" in out
    for angle in result["per_class"]:
        assert f"{angle:.4f}" in out
    assert re.search(r"old rows .* 60 ", out)
    assert max(map(len, out.splitlines())) <= cli.PLAIN_WIDTH


def test_dist_of_equal_sides(run, sides):
    status, out, _ = run("dist", sides[0], sides[0], "--paired", "--json")
    assert status == 0
    assert strict(out)["value"] == 0
    assert "no shift detected" in run("dist", sides[0], sides[0])[1]


def test_dist_reads_bfloat16(run, tmp_path, sides):
    (x, y), (x_new, y_new) = data(0), data(1)
    paths = []
    for name, features, labels in (("old", x, y), ("new", x_new, y_new)):
        arrays = {"features": torch.tensor(features).bfloat16(), "labels": torch.tensor(labels)}
        paths.append(tmp_path / f"{name}.safetensors")
        safetensors.torch.save_file(arrays, paths[-1])
    found, exact = (strict(run("dist", *p, "--json")[1])["value"] for p in (paths, sides))
    assert found == pytest.approx(exact, rel=0.02)
    assert found != exact


def test_dist_skips_when_asked(run, tmp_path, sides):
    x, y = data(1)
    x[4, 2] = np.nan
    y[y == 2] = 1
    new = write(tmp_path / "skip.npz", x, y)
    arguments = ("dist", sides[0], new, "--missing", "skip", "--nonfinite", "skip")
    status, out, err = run(*arguments, "--json")
    found = strict(out)
    assert (status, err) == (0, "")
    assert found["missing"] == [2]
    assert found["per_class"][2] is None
    assert found["nonfinite_rows"] == {"old": 0, "new": 1}
    table = run(*arguments, "--per-class")[1]
    assert "left out" in table
    assert "59 (1 non-finite left out)" in table


def test_dist_of_too_few_rows_has_nulls(run, tmp_path):
    path = write(tmp_path / "few.npz", np.eye(3), np.arange(3))
    found = strict(run("dist", path, path, "--json")[1])
    assert found["value"] == 0
    assert found["std_error"] is None
    assert found["noise_floor"] is None
    status, out, _ = run("dist", path, path)
    assert status == 0
    assert "unknown" in out
    assert "fewer than three rows" in out


def bad(case):
    """What is wrong with one side, and words of the message."""
    x, y = data(1)
    if case == "non-finite":
        x[7, 1] = np.inf
        return x, y, "new: expected finite values, found 1 NaN or infinite in 1 rows"
    if case == "bool features":
        return x > 0, y, "new: expected float32, float64, float16, bfloat16 or integers"
    if case == "complex features":
        return x.astype(np.complex64), y, "new: expected real numbers, found numpy dtype complex64"
    if case == "text labels":
        return x, y.astype(str), "old_labels, new_labels: expected names of classes on every side"
    if case == "float labels":
        return x, y.astype(float), "new_labels: expected int32 or int64 class indices"
    if case == "negative label":
        y[3] = -1
        return x, y, "new_labels: expected class indices 0..2, found -1 at position 3"
    if case == "one-hot labels":
        return x, np.eye(3, dtype=int)[y], "new_labels: expected shape [N]"
    if case == "lengths":
        return x[:-1], y, "new, new_labels: expected one label a row"
    if case == "width":
        return x[:, :-1], y, "old, new: expected one width on one device"
    if case == "rank":
        return x[0], y, "new: expected [N, D], [N, C, H, W] or [N, T, D]"
    if case == "class missing":
        return x, y % 2, "class 2 has no new rows"
    assert case == "zero sum"
    return x * (y != 1)[:, None], y, "class 1 has a zero new sum"


@pytest.mark.parametrize(
    "case",
    [
        "non-finite",
        "bool features",
        "complex features",
        "text labels",
        "float labels",
        "negative label",
        "one-hot labels",
        "lengths",
        "width",
        "rank",
        "class missing",
        "zero sum",
    ],
)
def test_dist_refuses_bad_arrays(refused, tmp_path, sides, case):
    x, y, message = bad(case)
    assert message in refused("dist", sides[0], write(tmp_path / "bad.npz", x, y))


def test_dist_refuses_labels_beyond_num_classes(refused, sides):
    message = refused("dist", *sides, "--num-classes", "2")
    assert "old_labels: expected class indices 0..1, found 2 at position 2" in message
    assert "num_classes: expected 1 <= num_classes" in refused("dist", *sides, "--num-classes", "0")


def test_dist_refuses_pairs_that_are_none(refused, tmp_path, sides):
    x, y = data(1)
    new = write(tmp_path / "turned.npz", x[::-1], y[::-1])
    assert "paired: expected" in refused("dist", sides[0], new, "--paired")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("no.npz", None, "expected a .npz or .safetensors file, found none"),
        ("a.pt", b"x", "expected the suffix .npz or .safetensors, found '.pt'"),
        ("a.npz", b"a,b\n", "expected an .npz archive, found another format"),
        ("a.npz", b"", "found an empty file"),
        ("a.safetensors", b"\x80\x04.", "found a pickle, which is never read"),
    ],
)
def test_dist_refuses_bad_files(refused, tmp_path, sides, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    line = refused("dist", sides[0], path)
    assert str(path) in line
    assert message in line


def test_dist_refuses_a_truncated_file_and_missing_arrays(refused, tmp_path, sides):
    path = tmp_path / "cut.npz"
    path.write_bytes(sides[0].read_bytes()[:-40])
    assert "found a truncated zip archive" in refused("dist", path, sides[1])
    np.savez(path, x=np.zeros(3))
    assert "found 'x' ('features', 'labels' missing)" in refused("dist", path, sides[1])


def test_a_path_with_line_breaks_stays_one_line(refused, tmp_path, sides):
    assert "found none" in refused("dist", sides[0], tmp_path / "a\nb.npz")


@pytest.mark.parametrize("width", [30, 60, 200])
def test_numbers_survive_any_width(run, sides, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    status, out, _ = run("dist", *sides, "--per-class")
    assert status == 0
    assert max(map(len, out.splitlines())) <= width
    value = strict(run("dist", *sides, "--json")[1])["value"]
    assert f"{value:.4f}" in out

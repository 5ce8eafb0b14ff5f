"""The command line among closed streams, FIFOs, odd widths and functions that misbehave."""

import io
import json
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
from helpers.cli_made import ENVIRONMENT, PROGRAM, data, write
from helpers.study_runs import random_runs

from resque_ext import cli
from resque_ext.retraining import CostModel

INDEX = "resque_dist_reestimated"
MODELS = """
import sys
from torch import nn

def leaves(): sys.exit(0)
def leaves_with_words(): sys.exit("done\\nhere")
def key(): return {}["k"]
def index(): return [][3]
def bad(): raise ValueError("my own")

class Leaving(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 3)
    def forward(self, x):
        sys.exit(0)
"""


@pytest.fixture(scope="module")
def runs():
    return random_runs(np.random.default_rng(0), kinds=4, levels=3, limit=3.0)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "odd_models.py").write_text(MODELS)
    (tmp_path / "odd_module.py").write_text("import sys; sys.exit(0)\n")
    x, y = data(width=4)
    np.savez(tmp_path / "x.npz", inputs=x, labels=y)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("odd_models", None)


# --- Input


def given(monkeypatch, content):
    stream = io.TextIOWrapper(io.BytesIO(content))
    monkeypatch.setattr(sys, "stdin", stream)


def test_standard_input(run, monkeypatch, tmp_path, runs):
    text = "".join(f"{r.to_json()}\n" for r in runs).encode()
    given(monkeypatch, text)
    assert run("fit", "-", "-o", tmp_path / "m.json", "--json")[0] == 0
    expected = CostModel.fit(runs)
    assert CostModel.load(tmp_path / "m.json").to_json() == expected.to_json()
    given(monkeypatch, (tmp_path / "m.json").read_bytes())
    status, out, _ = run("predict", "-", f"{INDEX}=0.1", "--json")
    assert status == 0
    costs = json.loads(out)["costs"]
    assert costs["epochs"]["value"] == expected.predict({INDEX: 0.1})["epochs"].value
    given(monkeypatch, b"")
    assert "found " in run("predict", "-", f"{INDEX}=0.1")[2]
    given(monkeypatch, b"[models]")
    assert "-:1: models" in run("screen", "-")[2]


@pytest.mark.parametrize("command", ["predict", "fit", "screen", "report", "dist"])
def test_a_fifo_is_refused_at_once(run, tmp_path, command):
    os.mkfifo(tmp_path / "pipe")
    more = {"predict": [f"{INDEX}=1"], "fit": ["-o", tmp_path / "o"], "report": ["--json"]}
    more["dist"] = [tmp_path / "pipe"]
    done = []
    thread = threading.Thread(
        target=lambda: done.append(run(command, tmp_path / "pipe", *more.get(command, [])))
    )
    thread.daemon = True
    thread.start()
    thread.join(60)
    assert done, "it waits"
    status, out, err = done[0]
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert "pipe: expected" in err


def test_a_pipe_that_the_shell_opened_is_read(run, runs):
    reading, writing = os.pipe()
    os.write(writing, CostModel.fit(runs).to_json().encode()[:60_000])
    os.close(writing)
    status, _, err = run("predict", f"/dev/fd/{reading}", f"{INDEX}=0.1")
    os.close(reading)
    assert status == 0, err


@pytest.mark.parametrize("target", ["pipe", "folder"])
def test_output_that_is_no_file_is_refused(run, tmp_path, runs, target):
    (tmp_path / "s.jsonl").write_text("".join(f"{r.to_json()}\n" for r in runs))
    (os.mkfifo if target == "pipe" else os.mkdir)(tmp_path / target)
    status, _, err = run("fit", tmp_path / "s.jsonl", "-o", tmp_path / target)
    assert status == 2
    assert "output: expected a file, found" in err


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000])
def test_json_and_toml_that_are_nested_too_deep(run, tmp_path, text):
    (tmp_path / "x").write_text(text)
    (tmp_path / "x.jsonl").write_text(text + "\n")
    (tmp_path / "x.toml").write_text("a = " + text.replace('"a":', "a="))
    for arguments in (
        ("predict", tmp_path / "x", f"{INDEX}=1"),
        ("fit", tmp_path / "x.jsonl", "-o", tmp_path / "o"),
        ("report", tmp_path / "x.jsonl", "--json"),
        ("screen", tmp_path / "x.toml"),
        ("score", "a:b", "--old", "x", "--shift", "blur=1", "--transform", f"resize={text}"),
    ):
        status, out, err = run(*arguments)
        assert (status, out) == (2, "")
        assert err.count("\n") == 1
        assert "nested too deep" in err


# --- Output


@pytest.mark.parametrize("columns", ["0", "-3", "x", "", "00"])
def test_a_width_of_nothing_is_no_width(run, monkeypatch, tmp_path, columns):
    path = write(tmp_path / "a.npz", *data())
    expected = run("dist", path, path)
    monkeypatch.setenv("COLUMNS", columns)
    assert run("dist", path, path) == expected
    monkeypatch.setenv("COLUMNS", columns)
    assert "Usage" in run("dist", "--help")[1]


@pytest.mark.parametrize("stream", ["stdout", "stderr", "stdin"])
def test_streams_that_are_not_there(monkeypatch, capsys, tmp_path, stream):
    path = write(tmp_path / "a.npz", *data())

    def call(*arguments):
        with monkeypatch.context() as patch:
            patch.setattr(sys, stream, None)
            return cli.main(["dist", *map(str, arguments), "--json"])

    good, bad = call(path, path), call("none", "none")
    out, err = capsys.readouterr()
    if stream == "stdout":
        assert (good, bad, out) == (1, 1, "")
        assert "stdout: expected it open for the results, found it closed" in err
        return
    assert (good, bad) == (0, 2)
    assert json.loads(out)["value"] == 0  # and no line of an error in it
    assert ("error" in err) == (stream == "stdin")


@pytest.mark.full
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_streams_that_the_shell_closed(tmp_path, closed):
    path = write(tmp_path / "a.npz", *data())
    out = tmp_path / "out"
    for arguments, status in ((f"dist {path} {path} --json", 0), ("dist none none --json", 2)):
        command = f"{' '.join(PROGRAM)} {arguments} > {out} {closed}"
        done = subprocess.run(
            ["sh", "-c", command], capture_output=True, text=True, env=ENVIRONMENT, check=False
        )
        stdout_closed = closed.startswith(">") or " >" in closed
        assert done.returncode == (1 if stdout_closed else status)
        assert "Traceback" not in done.stderr
        assert "resque-ext: error" not in out.read_text()


@pytest.mark.full
def test_a_full_disk_under_the_output(tmp_path):
    path = write(tmp_path / "a.npz", *data())
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = subprocess.run(
            [*PROGRAM, "dist", path, path, "--json"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


# --- Functions of the caller's


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("leaves", "model: expected 'odd_models:leaves' to return, found that it ended the progr"),
        ("leaves_with_words", "ended the program (SystemExit: done here)"),
        ("Leaving", "a function it called ended the program (SystemExit: 0)"),
        ("key", "KeyError: k (/"),
        ("index", "IndexError: list index out of range (/"),
        ("bad", "ValueError: my own (/"),
    ],
)
def test_functions_that_misbehave_are_named(run, folder, model, message):
    status, out, err = run("score", f"odd_models:{model}", "--old", "x.npz", "--new", "x.npz")
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert message in err


def test_a_module_that_ends_the_program_is_named(run, folder):
    status, _, err = run("score", "odd_module:x", "--old", "x.npz", "--new", "x.npz")
    assert status == 2
    assert "model: expected 'odd_module' to return, found that it ended the program" in err
    (folder / "s.toml").write_text(
        '[models.a]\nfactory = "odd_models:leaves"\n[old]\npath = "x.npz"\nkind = "inputs"\n'
        '[candidates.b]\ndataset = "odd_models:leaves"\n'
    )
    status, _, err = run("screen", "s.toml")
    assert status == 2
    assert "'odd_models:leaves' to return, found that it ended the program" in err


# --- Large configurations


def test_a_configuration_of_many_keys_ends_soon(run, tmp_path):
    path = tmp_path / "many.toml"
    path.write_text("".join(f"k{i} = 1\n" for i in range(3_000)))
    status, _, err = run("screen", path)
    assert status == 2
    lines = err.splitlines()
    assert len(lines) == 23
    assert f"{path}:3: k2: expected one of the keys" in lines[4]
    assert "and more, which are not listed" in lines[-1]
    path.write_bytes(b"k = 1\n" * 700_000)
    assert (
        "expected a TOML file of at most 4,000,000 bytes, found 4,200,000" in run("screen", path)[2]
    )


def test_the_lines_of_every_kind_of_statement(tmp_path):
    from resque_ext.screening.toml_lines import Document

    path = tmp_path / "a.toml"
    path.write_text(
        '# [c\n"a.b".c = """x ["" "]\n y""" # [\nd = [ # (\n 1, "]",\n \'\'\'x\n]\'\'\',\n]\n'
        '[t]\nu = {v = 1, w = ["{"]}\n[[l]]\nz = \'it ]\'\n[t."q.r"]\ns = "\\"["\nlast = 1'
    )
    document = Document(path)
    expected = {
        ("a.b", "c"): 2,
        ("d",): 4,
        ("t",): 9,
        ("t", "u", "w"): 10,
        ("l", "z"): 12,
        ("t", "q.r", "s"): 14,
        ("t", "q.r", "last"): 15,
    }
    assert {key: document.line(key) for key in expected} == expected

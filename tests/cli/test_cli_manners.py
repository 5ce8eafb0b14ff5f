"""Manners of the command line: examples that can be typed, quiet, no colours where not wanted."""

import os
import pty
import shlex
import subprocess
import sys
import warnings

import pytest
from helpers.cli_made import ENVIRONMENT, PROGRAM, data, write

from resque_ext.cli import COMMANDS, app
from resque_ext.cli import score as score_command
from resque_ext.cli.examples import EXAMPLES
from resque_ext.cli.output import print_line, progress_bar, quietly

NAMES = [command.name for command in app.registered_commands]


def test_every_command_has_examples():
    assert len(NAMES) == len(COMMANDS)
    assert set(NAMES) <= set(EXAMPLES)


@pytest.mark.parametrize("name", NAMES)
def test_help_shows_examples_as_they_can_be_typed(run, name):
    status, out, err = run(name, "--help")
    assert (status, err) == (0, "")
    assert "Examples:" in out
    shown = out[out.index("Examples:") :].replace("\\\n", " ")
    lines = [" ".join(line.split()) for line in shown.splitlines()[1:] if line.strip()]
    assert lines == list(EXAMPLES[name])
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize("name", NAMES)
def test_the_examples_are_of_this_program(name):
    """Every option exists and every argument is given: the parser takes the line."""
    import typer

    group = typer.main.get_command(app)
    command = group.commands[name]
    for line in EXAMPLES[name]:
        words = shlex.split(line.partition(" > ")[0])
        assert words[:2] == ["resque-ext", name]
        with command.make_context(name, words[2:]) as context:
            assert not context.args


@pytest.fixture
def sides(tmp_path):
    return write(tmp_path / "old.npz", *data(0)), write(tmp_path / "new.npz", *data(1))


def warned(*_, **__):
    warnings.warn("be careful", stacklevel=1)
    print_line("warning", "be careful")
    raise ValueError("argument: expected x, found y")


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("option", ["--quiet", "-q"])
def test_quiet_leaves_results_and_errors(run, sides, monkeypatch, option, place):
    arguments = ["dist", *sides]
    quiet = [option, *arguments] if place == "before" else [*arguments, option]
    assert run(*quiet) == run(*arguments)
    monkeypatch.setattr("resque_ext.resque_dist", warned, raising=False)
    loud = run(*arguments)
    assert loud[2].count("be careful") == 2
    status, out, err = run(*quiet)
    assert (status, out, err.count("\n"), "be careful" in err) == (2, "", 1, False)
    assert "argument: expected x, found y" in err


@pytest.mark.full
def test_what_follows_two_dashes_is_not_ours(run):
    status, _, err = run("energy", "--", sys.executable, "-c", "import sys; print(sys.argv)", "-q")
    assert status == 0
    assert "source" in err  # the table of what was metered: it was no --quiet


def test_quiet_draws_no_progress(monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert score_command.sys.stderr.isatty()
    with quietly():
        assert not score_command.sys.stderr.isatty()
        with progress_bar() as tell:
            tell("work", 0.5)
    assert score_command.sys.stderr.isatty()


@pytest.mark.full
@pytest.mark.parametrize("wanted", [True, False])
def test_colours_are_off_where_asked(sides, wanted):
    """In a terminal: NO_COLOR leaves no escape sequence, whatever its value."""
    mine, theirs = pty.openpty()
    environment = ENVIRONMENT | {"TERM": "xterm-256color"} | ({} if wanted else {"NO_COLOR": "1"})
    done = subprocess.run(
        [*PROGRAM, "dist", *map(str, sides)], stdout=theirs, stderr=subprocess.PIPE, env=environment
    )
    os.close(theirs)
    text = b""
    while True:
        try:
            part = os.read(mine, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        text += part
    os.close(mine)
    assert done.returncode == 0
    assert (b"\x1b[" in text) is wanted
    assert b"RESQUE_dist" in text or b"resque_dist" in text.lower()

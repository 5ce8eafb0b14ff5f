"""The house: what may import what, and how large files are."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import optional
from helpers.places import environment

import resque_ext

PACKAGE = Path(resque_ext.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
MOST_LINES = 450
# Longer for a reason: one class or one table that would not be clearer in two files.
LONGER = {
    "indices/resque_dist.py",
    "indices/representation_distance.py",
    "scoring/forward_pass.py",
    "data/sources/parquet.py",
    "screening/screen.py",
    "storage/journal.py",
}


def name_of(file):
    parts = ("resque_ext", *file.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts).removesuffix(".__init__")


NAMES = {name_of(file) for file in FILES}


def room(name):
    return name.split(".")[1] if "." in name else ""


def imports(file):
    """Pairs (module of the package, name taken from it or None), also of functions' own imports."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if (
            isinstance(node, ast.ImportFrom)
            and node.module
            and node.module.startswith("resque_ext")
        ):
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield (whole, None) if whole in NAMES else (node.module, alias.name)
        elif isinstance(node, ast.Import):
            yield from ((a.name, None) for a in node.names if a.name.startswith("resque_ext"))


def private(name):
    return name.startswith("_") and not name.startswith("__")


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_no_room_takes_what_is_private_to_another(file):
    for module, name in imports(file):
        if room(module) != room(name_of(file)):
            assert not any(map(private, [*module.split("."), name or ""])), (module, name)


def test_few_modules_stand_outside_of_rooms():
    outside = {file.stem for file in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    assert len(outside) <= 5, outside


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_files_are_short(file):
    lines = file.read_text(encoding="utf-8").count("\n")
    assert all((PACKAGE / name).exists() for name in LONGER)
    assert (lines > MOST_LINES) == (file.relative_to(PACKAGE).as_posix() in LONGER), lines


def test_floors():
    """As pyproject.toml has them: no arrow up, no circle, in rooms neither."""
    optional.module("importlinter")
    file = str(Path(__file__).parents[2] / "pyproject.toml")
    # In a process of its own: it silences the loggers that there are.
    code = "import sys; from importlinter.cli import lint_imports as lint; "
    code += "sys.exit(lint(config_filename=sys.argv[1], no_cache=True))"
    done = subprocess.run(
        [sys.executable, "-c", code, file], capture_output=True, text=True, env=environment()
    )
    assert done.returncode == 0, done.stdout + done.stderr

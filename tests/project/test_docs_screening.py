"""The tutorial of screening: what its first block prints is shown, its configuration runs.

That every block runs, one after the other, is a test of all pages.
"""

import re
from pathlib import Path

from resque_ext import cli
from resque_ext.screening import read_store

TEXT = (Path(__file__).parents[2] / "docs" / "screening.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def test_the_table_is_the_shown_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(PYTHON[0], "docs/screening.md, block 0", "exec"), {})
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines() if "│ encoder" in line]
    assert len(lines) == 4
    shown = [line.split()[:7] for line in TEXT.splitlines() if "│ encoder" in line]
    assert [line.split()[:7] for line in lines] == shown


def test_the_configuration_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (config,) = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)
    Path("screen.toml").write_text(config)
    exec(PYTHON[-1], {})
    assert cli.main(["screen", "screen.toml", "--dry-run"]) == 0
    assert not Path("screen.sqlite").exists()
    assert cli.main(["screen", "screen.toml"]) == 0
    assert capsys.readouterr().err == ""
    _, results = read_store("screen.sqlite")
    assert len(results) == 6
    assert [r.error for r in results] == [None] * 6

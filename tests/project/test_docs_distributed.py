"""The documentation of several processes: every block runs, the first also under torchrun."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import optional

TEXT = (Path(__file__).parents[2] / "docs" / "distributed.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.parametrize("number", [0, 1, pytest.param(2, marks=pytest.mark.full)])
def test_a_block_runs_by_itself(number, capsys):
    assert len(PYTHON) == 3
    if number == 2:
        optional.module("ray")
    exec(compile(PYTHON[number], f"docs/distributed.md, block {number}", "exec"), {})
    if number == 0:
        assert "resque_dist=0." in capsys.readouterr().out


def torchrun(script, tmp_path):
    (tmp_path / "script.py").write_text(script)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return subprocess.run(
        [*command, str(tmp_path / "script.py")],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


SCREEN = """
import numpy as np, resque_ext
rows = np.ones((4, 3), np.float32), np.arange(4)
try:
    resque_ext.screen({"m": None}, rows, {"c": rows})
except ValueError as error:
    print(error)
"""


@pytest.mark.full
def test_under_torchrun(tmp_path):
    begin = "import torch\nimport torch.distributed\n"  # before there is a group, and then with one
    group = 'torch.distributed.init_process_group("gloo")\ntorch.manual_seed(0)\n'
    end = "torch.distributed.destroy_process_group()\n"
    done = torchrun(begin + SCREEN + group + PYTHON[0] + end, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Scores(") == 1  # of one rank
    refused = "screen: expected one process, found 2 ranks of torch.distributed, of which each"
    assert done.stdout.count(refused) == 2
    torch.manual_seed(0)
    alone: dict = {}
    exec(PYTHON[0], alone)
    assert repr(alone["found"]) in done.stdout

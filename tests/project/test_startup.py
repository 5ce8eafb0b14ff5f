"""What is loaded when: help without torch, a first `score` without torch's compiler."""

import subprocess
import sys

import pytest
from helpers.cli_made import ENVIRONMENT

import resque_ext
from resque_ext.cli import app
from resque_ext.cost_model import model, regression
from resque_ext.data.transforms import TRANSFORMS
from resque_ext.indices import registry
from resque_ext.indices.resque_task import INITS
from resque_ext.retraining import record

HEAVY = "print(sorted({name.partition('.')[0] for name in sys.modules} & {'torch', 'numpy'}))"


def python(code):
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=True)
    return done.stdout


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["-h"], ["score", "-h"]])
def test_help_loads_no_torch(arguments):
    code = f"import sys\nfrom resque_ext import cli\nprint(cli.main({arguments}))\n{HEAVY}"
    assert python(code).splitlines()[-2:] == ["0", "[]"]


def test_all_names_are_there_and_listed():
    assert set(resque_ext.__all__) <= set(dir(resque_ext))
    for name in resque_ext.__all__:
        assert getattr(resque_ext, name) is not None
    with pytest.raises(AttributeError, match="module 'resque_ext' has no attribute 'nothing'"):
        resque_ext.nothing  # noqa: B018


def test_a_name_loads_what_it_needs_and_a_first_score_no_compiler():
    code = f"""
import sys, resque_ext
{HEAVY}
from resque_ext import score, shifts, ResqueDist
from resque_ext.indices.registry import OWN
print(score.__name__, shifts.__name__, ResqueDist.__name__, resque_ext.arm.__name__)
import torch
model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten(),
                            torch.nn.Linear(16, 3))
old = [(torch.rand(30, 1, 4, 4), torch.arange(30) % 3)]
shift = shifts.make("gaussian", 0.2)
resque_ext.score(model, old, shift=shift, adapt_normalization=True, progress=False,
                 indices=OWN)
print(sorted(n for n in ("torch._dynamo", "torch._inductor", "sympy") if n in sys.modules))
print(resque_ext.retraining.__name__, resque_ext.screening.__name__)
"""
    assert python(code).splitlines() == [
        "[]",
        "score resque_ext.shifts ResqueDist arm",
        "[]",
        "resque_ext.retraining resque_ext.screening",
    ]


HELPS = {
    "score": (*registry.OWN, *TRANSFORMS),
    "fit": (*regression.METHODS, *model.PREDICTORS, *record.MEASURES),
    "predict": model.EXTRAPOLATE,
    "task": INITS,
}


@pytest.mark.parametrize("command", HELPS)
def test_help_names_what_there_is(run, monkeypatch, command):
    """Help texts are written out; this is what keeps them true."""
    monkeypatch.setenv("COLUMNS", "300")
    words = run(command, "--help")[1].replace(",", " ").replace(";", " ").replace(".", " ").split()
    assert not set(HELPS[command]) - set(words)


def test_defaults_of_the_command_line_are_those_of_the_package(run):
    assert model.EXTRAPOLATE[0] == "error"
    assert regression.METHODS[0] == "monotone"
    assert "[default: error]" in run("predict", "-h")[1]
    assert "[default: monotone]" in run("fit", "-h")[1]


# Help and completion


def test_brackets_in_help_are_shown(run):
    assert "[models.NAME], [old], [candidates.NAME], [screen]" in " ".join(
        run("screen", "--help")[1].split()
    )


@pytest.mark.parametrize("command", [[], *([c] for c in ("score", "screen", "fit", "energy"))])
def test_short_help(run, command):
    assert run(*command, "-h") == run(*command, "--help")
    assert run(*command, "-h")[0] == 0


@pytest.mark.parametrize("command", [c.name for c in app.registered_commands])
def test_summaries_are_whole(run, command):
    line = next(x for x in run("-h")[1].splitlines() if x.startswith(f"  {command} "))
    assert line.endswith(".")
    assert not line.endswith("...")


def test_completion():
    environment = ENVIRONMENT | {
        "_RESQUE_EXT_COMPLETE": "complete_bash",
        "COMP_WORDS": "resque-ext sc",
        "COMP_CWORD": "1",
    }
    code = "import sys\nfrom resque_ext import cli\nsys.exit(cli.main([]))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    assert done.stdout.split() == ["score", "screen"]

"""What tests of the command line share: the program as a process, strict JSON, features."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

import resque_ext

ROOT = Path(resque_ext.__file__).parents[1]
UNSET = ("COLUMNS", "FORCE_COLOR", "PYTHONUNBUFFERED")
ENVIRONMENT = {
    **{k: v for k, v in os.environ.items() if k not in UNSET},
    "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    "PYTHONIOENCODING": "utf-8",
}
PROGRAM = (sys.executable, "-m", "resque_ext")


def refuse_constant(name):
    raise AssertionError(f"{name} is no JSON")


def strict(text):
    return json.loads(text, parse_constant=refuse_constant)


def data(seed=0, rows=60, width=5, classes=3):
    rng = np.random.default_rng(seed)
    return rng.normal(1, 1, (rows, width)).astype(np.float32), np.arange(rows) % classes


def write(path, features, labels):
    np.savez(path, features=features, labels=labels)
    return path


def program(*arguments, **options):
    options = {"capture_output": True, "text": True, "env": ENVIRONMENT} | options
    return subprocess.run([*PROGRAM, *map(str, arguments)], check=False, timeout=300, **options)

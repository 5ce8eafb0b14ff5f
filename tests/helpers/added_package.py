"""Installs the index of `added_index` as another package would: by an entry point."""

from __future__ import annotations

import os
from pathlib import Path

NAME = "mean_cosine"
HOME = Path(__file__).parents[1]  # where `helpers` is imported from


def install(folder, value="helpers.added_index:MeanCosine", name=NAME):
    """Writes what pip would write beside the package; returns the folder."""
    about = folder / f"{name}-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[resque_ext.indices]\n{name} = {value}\n")
    return folder


def environment(folder, given):
    """For a process that finds the package in that folder."""
    path = os.pathsep.join([str(folder), str(HOME), given.get("PYTHONPATH", "")])
    return {**given, "PYTHONPATH": path}

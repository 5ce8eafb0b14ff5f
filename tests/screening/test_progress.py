"""The bar of a screening: what it says, and where it is shown."""

import sys

import numpy as np
import pytest

import resque_ext
from resque_ext.screening import progress


def rows(shift):
    rng = np.random.default_rng(0)
    labels = np.arange(400) % 4
    return rng.normal(1, 1, (4, 8))[labels] + shift + rng.normal(0, 1, (400, 8)), labels


def screened(**options):
    return resque_ext.screen(
        {"m": None}, rows(0.0), {"a": rows(0.1), "b": rows(0.5)}, anytime=False, **options
    )


def test_a_bar_counts_pairs_and_samples(capfd):
    screened(progress=True)
    told = capfd.readouterr().err
    last = told.rstrip().split("\r")[-1]
    assert "2/2 pairs" in last
    assert "samples/s" in last
    assert "█" * 20 in last or "#" * 20 in last


@pytest.mark.parametrize(
    ("terminal", "module", "shown"),
    [
        (False, "io", False),
        (True, "io", True),
        (False, "ipykernel.iostream", True),
    ],
)
def test_by_default_it_is_shown_in_a_terminal_and_in_a_notebook(
    monkeypatch, terminal, module, shown
):
    stream = type("Stream", (), {"__module__": module, "isatty": lambda self: terminal})
    stream.write = lambda self, text: len(text)
    stream.flush = lambda self: None
    monkeypatch.setattr(sys, "stderr", stream())
    with progress.make_progress(None, 3) as bar:
        assert isinstance(bar, progress.ProgressBar) is shown
    with progress.make_progress(False, 3) as bar:
        assert not isinstance(bar, progress.ProgressBar)

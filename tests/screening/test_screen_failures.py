"""What an error of a pair says of the row that it is of; a failed pair leaves no thread."""

import threading

import numpy as np
import pytest
import torch
from helpers import screening_made as made
from torch import nn

import resque_ext
from resque_ext import shifts
from resque_ext.data.sources import ArraySource, BatchSource
from resque_ext.screening import Candidate

BAD = 1234


def rows(count=2000, bad=BAD):
    x, y = made.synthetic(count, 0.9, 1)
    x[bad, 5] = np.nan
    return x, y


def screen(candidates, old=None, model=None, **options):
    options = {"progress": False, "looks": made.LOOKS} | options
    return resque_ext.screen(
        {"m": model}, made.synthetic(900) if old is None else old, candidates, **options
    )


def error(data, **options):
    (row,) = screen({"c": data}, **options)
    return row.result.error


def npy(folder, x, y):
    np.save(folder / "features.npy", x)
    np.save(folder / "labels.npy", y)
    return str(folder)


@pytest.mark.parametrize("options", [{}, {"anytime": False}], ids=["mixed", "as they lie"])
@pytest.mark.parametrize("seed", [0, 3])
def test_a_row_with_wrong_values_is_named_by_its_place_in_the_source(tmp_path, seed, options):
    x, y = rows()
    place = f"the first at row {BAD}, column 5"
    assert place in error((x, y), seed=seed, **options)
    assert place in error(npy(tmp_path, x, y), seed=seed, **options)
    y = y.copy()
    y[777] = -3
    found = error((made.synthetic(2000)[0], y), seed=seed, **options)
    assert found.endswith("expected class indices 0..9, found -3 at position 777")


def test_blocks_of_rows_too(tmp_path, monkeypatch):
    monkeypatch.setattr("resque_ext.data.sources.raw.SINGLE_ROWS_BYTES", 0)
    monkeypatch.setattr("resque_ext.data.sources.raw.BLOCK_BYTES", 64 * 4 * 7)
    assert f"the first at row {BAD}, column 5" in error(npy(tmp_path, *rows()))


def test_rows_of_the_old_data():
    (row,) = screen({"c": made.synthetic(300)}, rows())
    assert (
        f"old: features: expected finite values, found 1 NaN or infinite in 1 rows, the first at \
row {BAD}, column 5"
        in row.result.error
    )


def test_rows_that_come_in_batches():
    x, y = map(torch.from_numpy, rows())
    batches = [(x[i : i + 90], y[i : i + 90]) for i in range(0, 2000, 90)]
    assert f"the first at row {BAD}, column 5" in error(batches)


def test_rows_whose_number_is_not_known_are_counted_as_they_are_read():
    """Behind rows that were left out, the count is that of those that came."""

    class Items(torch.utils.data.Dataset):
        def __len__(self):
            return 400

        def __getitem__(self, i):
            if i < 20:
                raise OSError("broken")
            return np.full(64, np.nan if i == 300 else 1 + i % 7, np.float32), i % 10

    found = error(Items(), anytime=False, on_fault="skip")
    assert "the first at row 280 in reading order, column 0" in found


def test_the_hint_names_what_can_be_said_to_screen_and_score():
    x, y = made.synthetic(1000, 0.5, 1)
    without = x[y != 4], y[y != 4]
    message = error(without)
    hint = "(options={'resque_dist': {'missing': 'skip'}} leaves such classes out)"
    assert message.endswith(f"class 4 has no new rows {hint}")
    assert error(without, options={"resque_dist": {"missing": "skip"}}) is None
    assert "by hand" in error(rows())


class Failing(nn.Module):
    """Works for the old data, and fails in a candidate's second batch."""

    def __init__(self):
        super().__init__()
        self.inner, self.seen = made.Small(0), 0

    def forward(self, x):
        self.seen += 1
        if self.seen > 20:
            raise RuntimeError("broken")
        return self.inner(x)


def readers():
    return [t for t in threading.enumerate() if t.name == "resque_ext.prefetch" and t.is_alive()]


@pytest.mark.parametrize("kind", ["rows", "shifted", "batches", "rounds", "old", "paired"])
def test_a_failed_pair_leaves_no_thread(kind, caplog):
    """Also while somebody keeps the error, as a handler of logs does here."""
    x, y = made.digits(1500, 0.3, 5)
    images = torch.from_numpy(x.reshape(-1, 1, 8, 8)), torch.from_numpy(y)
    source = ArraySource(*images, kind="inputs")
    batches = [(images[0][i : i + 16], images[1][i : i + 16]) for i in range(0, 1500, 16)]
    candidates = {
        "rows": source,
        "shifted": Candidate(source, shifts.make("brightness", 0.1)),
        "batches": BatchSource(batches),
        "rounds": BatchSource(batches, rows=1500),
        "old": source,
        "paired": Candidate(shift=shifts.make("brightness", 0.1), paired=True),
    }
    old = ArraySource(images[0][:300], images[1][:300], kind="inputs")
    options = {"anytime": kind == "rounds", "batch_size": 16}
    if kind == "paired":
        options["indices"] = ("preindex",)
    found = screen(
        {"c": candidates[kind]}, source if kind in ("old", "paired") else old, Failing(), **options
    )
    assert found[0].result.error == "broken"
    assert caplog.messages[-1].endswith(": broken")
    assert readers() == []

"""Statuses of batches that nobody waited for: what is wrong shows later, and stays."""

import functools

import pytest
import torch

from resque_ext import Arm, RepresentationDistance, ResqueDist
from resque_ext.indices.base import DeferredFaults


def check(name, status):
    if status.any():
        raise ValueError(f"{name}: {status.tolist()}")


def add(faults, name, *status, key=""):
    faults.add(torch.tensor(status), functools.partial(check, name), key)


def test_the_first_wrong_batch_is_an_error_again_and_again():
    faults = DeferredFaults(10)
    faults.read()
    add(faults, "a", 0)
    add(faults, "b", 0, 1)  # of another shape: they are read one shape at a time
    add(faults, "c", 2)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"^b: \[0, 1\]$"):
            faults.read()
        add(faults, "d", 3)  # later ones change nothing


def test_they_are_read_by_themselves_once_there_are_many():
    faults = DeferredFaults(3)
    for name in "ab":
        add(faults, name, 1)
        faults.read_if_many()
    add(faults, "c", 0)
    with pytest.raises(ValueError, match=r"^a: \[1\]$"):
        faults.read_if_many()


def test_what_is_forgotten_is_no_error():
    faults = DeferredFaults(10)
    add(faults, "a", 1, key="layer")
    add(faults, "b", 0, key="other")
    faults.discard("layer")
    faults.read()


@pytest.mark.parametrize("make", [lambda: ResqueDist(2), Arm, RepresentationDistance])
def test_every_use_of_an_accumulator_reads_them(make):
    def wrong():
        acc = make()
        add(acc._faults, "wrong", 1)
        return acc

    uses = (
        lambda acc: acc.compute(),
        lambda acc: acc.state_dict(),
        lambda acc: acc.merge(make()),
        lambda acc: make().merge(acc),
    )
    for use in uses:
        acc = wrong()
        for _ in range(2):
            with pytest.raises(ValueError, match=r"^wrong: \[1\]$"):
                use(acc)
        acc.reset()
        acc.state_dict()

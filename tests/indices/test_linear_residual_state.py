"""linear_residual's state: kept, loaded, merged on, and what is refused."""

import numpy as np
import pytest
import safetensors.torch
import torch
from helpers.oracles_folds import folds_by_row, unexplained
from helpers.state_made import snapshot, unchanged

from resque_ext import LinearResidual, linear_residual

CLASSES, WIDTH = 3, 4
SIDES = ("old", "new", "adapted")


def sample(rows=40, seed=0, width=WIDTH, classes=CLASSES):
    rng = np.random.default_rng(seed)
    y = np.arange(rows) % classes
    means = np.random.default_rng(9).standard_normal((classes, width))
    return torch.from_numpy(means[y] + rng.standard_normal((rows, width))), torch.from_numpy(y)


def filled(adapted=False, rows=40, classes=CLASSES, **options):
    acc = LinearResidual(classes, adapted=adapted, **options)
    for seed, side in enumerate(SIDES[: 2 + adapted]):
        acc.update(*sample(rows, seed, classes=classes), side)
    return acc


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("empty", [False, True])
def test_round_trip_through_safetensors(adapted, empty):
    acc = LinearResidual(CLASSES, adapted=adapted) if empty else filled(adapted)
    state = safetensors.torch.load(safetensors.torch.save(acc.state_dict()))
    loaded = LinearResidual(CLASSES, adapted=adapted)
    loaded.update(*sample(9, 7, 2), "old")  # replaced, its width too
    loaded.load_state_dict(state)
    unchanged(loaded, snapshot(acc))
    for each in (acc, loaded):  # both go on: blocks are dealt on in turn
        for seed, side in enumerate(SIDES[: 2 + adapted], start=5):
            each.update(*sample(23, seed), side)
    assert loaded.compute().to_dict() == acc.compute().to_dict()


def test_a_stopped_stream_is_the_whole_one():
    """Against the features at once: what was kept is all that there was to keep."""
    (x, y), (x2, y2) = sample(50), sample(60, 1)
    acc = LinearResidual(CLASSES)
    for part in range(0, 60, 20):
        rows = slice(part, part + 20)
        for side, features, labels in (("old", x, y), ("new", x2, y2)):
            acc.update(features[rows], labels[rows], side)
        again = LinearResidual(CLASSES)
        again.load_state_dict(acc.state_dict())
        acc = again
    found, whole = acc.compute(), linear_residual(x, x2, y, y2, CLASSES)
    assert found.value == pytest.approx(whole.value, rel=1e-12)
    assert found.std_error == pytest.approx(whole.std_error, rel=1e-9)


def test_loaded_states_merge_as_their_accumulators_do():
    parts = [filled(rows=30), filled(rows=41)]
    merged, loaded = LinearResidual(CLASSES), LinearResidual(CLASSES)
    for part in parts:
        merged.merge(part)
        copied = LinearResidual(CLASSES)
        copied.load_state_dict(part.state_dict())
        loaded.merge(copied)
    unchanged(loaded, snapshot(merged))


def test_the_state_is_a_copy_both_ways():
    acc = filled()
    before, state = acc.compute().to_dict(), acc.state_dict()
    other = LinearResidual(CLASSES)
    other.load_state_dict(state)
    for x in state.values():
        x.zero_()
    assert acc.compute().to_dict() == other.compute().to_dict() == before


def test_one_that_grew_keeps_its_blocks():
    acc = filled(classes=200, rows=400)
    acc.grow(400)
    acc.update(*sample(800, 3, classes=400), "old")
    acc.update(*sample(800, 4, classes=400), "new")
    assert acc.distance.blocks != LinearResidual(400).distance.blocks
    loaded = LinearResidual(400)
    loaded.load_state_dict(acc.state_dict())
    assert loaded.compute().to_dict() == acc.compute().to_dict()


def test_options_are_those_of_the_one_that_loads():
    acc = filled(paired=True, missing="skip")
    loaded = LinearResidual(CLASSES, paired=True, missing="skip")
    loaded.load_state_dict(acc.state_dict())
    assert (loaded.distance.paired, loaded.distance.missing) == (True, "skip")
    assert loaded.compute().to_dict() == acc.compute().to_dict()


def test_a_state_loaded_in_inference_mode_goes_on_outside():
    state, acc = filled().state_dict(), LinearResidual(CLASSES)
    with torch.inference_mode():
        acc.load_state_dict(state)
    acc.update(*sample(), "new")
    assert int(acc.state_dict()["readout.counts"].sum()) == 80


def of_an_earlier_version(x, y, x2, y2):
    """A state whose rows went to the folds in turn, class c from fold c on."""
    acc = LinearResidual(CLASSES)
    acc.update(x, y, "old")
    acc.update(x2, y2, "new")
    state = acc.state_dict()
    fold = torch.empty_like(y2)
    for c in range(CLASSES):
        rows = (y2 == c).nonzero()[:, 0]
        fold[rows] = (c + torch.arange(len(rows))) % 5
    near = x2 - state["readout.origin"]
    for f in range(5):
        own = fold == f
        state["readout.products"][f] = near[own].T @ near[own]
        for c in range(CLASSES):
            state["readout.sums"][c, f] = near[own & (y2 == c)].sum(0)
            state["readout.counts"][c, f] = (own & (y2 == c)).sum()
    return state, fold.numpy()


def test_a_state_of_an_earlier_version_loads_and_merges():
    (x, y), (x2, y2) = sample(50), sample(60, 1)
    state, fold = of_an_earlier_version(x, y, x2, y2)
    acc = LinearResidual(CLASSES)
    acc.load_state_dict(state)
    share, _ = unexplained(x2, y2, fold)
    assert acc.compute().unexplained == pytest.approx(share, rel=1e-6)
    more = LinearResidual(CLASSES)
    x3, y3 = sample(70, 2)
    more.update(x3, y3, "new")
    acc.merge(more)
    folds = np.concatenate([fold, folds_by_row(x3.numpy())])
    share, _ = unexplained(torch.cat([x2, x3]), torch.cat([y2, y3]), folds)
    assert acc.compute().unexplained == pytest.approx(share, rel=1e-6)


def without(key):
    return lambda state: state.pop(key)


def changed(key, change):
    return lambda state: state.update({key: change(state[key])})


BAD = {
    "missing": (without("readout.seen"), KeyError, "expected the keys .*'readout.seen'"),
    "unknown": (lambda s: s.update(more=torch.zeros(1)), KeyError, "found .*'more'"),
    "no config": (without("config"), KeyError, "expected the key 'config', found none"),
    "classes": (
        lambda s: s.update(filled(classes=2).state_dict()),
        ValueError,
        r"\['config'\]: expected \[3, 0\] of \(num_classes, adapted\), found \[2, 0\]",
    ),
    "adapted": (
        lambda s: s.update(filled(adapted=True).state_dict()),
        ValueError,
        r"\['config'\]: expected \[3, 0\] of .*, found \[3, 1\]",
    ),
    "dtype": (
        changed("readout.sums", torch.Tensor.float),
        ValueError,
        r"\['readout.sums'\]: expected shape \(3, 5, 4\), torch.float64, cpu, found",
    ),
    "shape": (
        changed("readout.products", lambda t: t[:, :3]),
        ValueError,
        r"\['readout.products'\]: expected shape \(5, 4, 4\)",
    ),
    "origin": (
        changed("readout.origin", lambda t: t[None]),
        ValueError,
        r"\['readout.origin'\]: expected shape \(0,\)",
    ),
    "wide": (
        changed("readout.origin", lambda t: t.new_zeros(5000)),
        ValueError,
        r"\['readout.origin'\]: expected at most 4096 columns, found 5000",
    ),
    "negative": (
        changed("readout.counts", lambda t: t + torch.tensor([9, -9, 0, 0, 0])),
        ValueError,
        r"\['readout.counts'\]: expected the rows of each class and fold",
    ),
    "seen": (
        changed("readout.seen", lambda t: t + 1),
        ValueError,
        r"\['readout.counts'\]: expected .* as in 'readout.seen'",
    ),
    "rows": (
        lambda s: s.update(
            {k: v for k, v in filled(rows=50).state_dict().items() if k.startswith("readout.")}
        ),
        ValueError,
        r"\['readout.counts'\]: expected the rows \[14, 13, 13\], as in 'distance.new.counts', f",
    ),
    "distance": (
        changed("distance.old.seen", lambda t: t - 99),
        ValueError,
        r"\['distance.old.seen'\]: expected values of at least 0",
    ),
    "blocks": (
        changed("distance.blocks", lambda t: t * 2**40),
        ValueError,
        r"\['distance.blocks'\]: expected as many blocks a class",
    ),
    "no tensor": (
        changed("readout.seen", lambda t: "seen"),
        TypeError,
        r"\['readout.seen'\]: expected a torch.Tensor",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_refused_and_changes_nothing(case):
    spoil, error, message = BAD[case]
    acc = filled(rows=30)
    before, state = snapshot(acc), filled().state_dict()
    spoil(state)
    with pytest.raises(error, match=f"^['\"]?state.*{message}"):
        acc.load_state_dict(state)
    unchanged(acc, before)
    with pytest.raises(TypeError, match=r"^state: expected a mapping of tensors, found list"):
        acc.load_state_dict([])


def test_sides_of_two_widths():
    """The readout's side knows no width of the distance, nor the other way round."""
    acc = LinearResidual(CLASSES, adapted=True)
    acc.update(*sample(), "adapted")
    with pytest.raises(ValueError, match=r"^features: expected width 4 on cpu"):
        acc.update(*sample(width=3), "old")
    other = LinearResidual(CLASSES, adapted=True)
    other.update(*sample(width=3), "old")
    before = snapshot(acc)
    with pytest.raises(ValueError, match=r"^other: expected width 4, found 3"):
        acc.merge(other)
    unchanged(acc, before)
    mixed = {k: v for k, v in other.state_dict().items() if not k.startswith("readout.")}
    with pytest.raises(ValueError, match=r"^state\['readout.origin'\]: expected width 3, as in"):
        acc.load_state_dict(acc.state_dict() | mixed)
    unchanged(acc, before)

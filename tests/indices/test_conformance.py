"""Every index keeps the contract of `resque_ext.indices.base`: one suite over the registry."""

import itertools
import json
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from helpers import added_package
from helpers.added_index import MeanCosine
from helpers.rank_processes import run
from helpers.state_made import snapshot, unchanged

from resque_ext.indices import registry
from resque_ext.indices.base import (
    SIDES,
    EmbeddingBatch,
    Facts,
    Index,
    IndexReads,
    LayerBatch,
    PairBatch,
)

INDICES = (*registry.OWN, added_package.NAME)
ROWS, CLASSES, WIDTH = 60, 3, 5
FACTS = Facts(layer="a", layers=("a", "b"), old_accuracy=0.75, new_accuracy=0.5, labels="given")
OPTIONS = {"resque_task": {"chance": 0}, "preindex": {"chance": 0}}
OLD_STATES = Path(__file__).parents[1] / "golden" / "index_states.safetensors"
READS = {name: registry.find(name).reads for name in registry.OWN}
READS[added_package.NAME] = MeanCosine.reads
BATCHES = [name for name, reads in READS.items() if reads.embeddings or reads.layers]
ALONE = [name for name, reads in READS.items() if reads.layers != "paired"]  # a side at a time


@pytest.fixture(autouse=True)
def added(tmp_path_factory, monkeypatch):
    """The registry has an index of another package too."""
    folder = tmp_path_factory.mktemp("installed")
    monkeypatch.syspath_prepend(str(added_package.install(folder)))
    return folder


def sides(rows=ROWS, seed=0):
    """{side: [rows, WIDTH] float64}, and labels [rows]."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(rows) % CLASSES
    means = 2 * torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(9))
    noise = {side: torch.randn(rows, WIDTH, generator=generator) for side in SIDES}
    return {side: (means[labels] + x + (side == "new")).double() for side, x in noise.items()}, (
        labels
    )


def make(name, paired=True, **options):
    given = {name: OPTIONS.get(name, {}) | options}
    return registry.make_indices([name], given, paired)[name]


def feed(index, rows=slice(None), only=SIDES, data=None, side_rows=ROWS):
    """A batch of every kind that the index reads, of these rows."""
    x, labels = data or sides(side_rows)
    reads, y = index.reads, labels[rows]
    for side in only:
        layers = {"a": x[side][rows], "b": x[side][rows, :4]}
        if side in reads.embeddings:
            index.update(EmbeddingBatch(x[side][rows], y, side, CLASSES))
        if reads.layers == "pooled":
            index.update(LayerBatch(layers, side))
        if reads.layers == "raw":
            for name, values in layers.items():
                index.update(LayerBatch({name: values}, side))
    if reads.layers == "paired":
        index.update(PairBatch(*({"a": x[side][rows]} for side in SIDES)))
    return index


def value(index):
    return index.compute(FACTS).value


def in_parts(name, *cuts):
    """One index for each run of rows between cuts."""
    ends = (0, *cuts, ROWS)
    return [feed(make(name), slice(a, b)) for a, b in itertools.pairwise(ends)]


@pytest.mark.parametrize("name", INDICES)
def test_it_declares_what_it_is(name):
    kind = registry.find(name)
    assert issubclass(kind, Index)
    for reads in (kind.reads, make(name).reads):
        assert isinstance(reads, IndexReads)
        assert set(reads.embeddings) <= set(reads.sides) <= set(SIDES)
        assert "new" in reads.sides
        assert reads.layers in (None, "pooled", "raw", "paired")
    assert isinstance(kind.lower_is_cheaper, bool)
    assert set(kind.predictor_options) <= set(kind.options())
    made = kind(**kind.options())  # its defaults are taken
    assert made.fresh().reads == made.reads


@pytest.mark.parametrize("name", INDICES)
def test_its_result_has_what_is_shown_of_it(name):
    result = feed(make(name)).compute(FACTS)
    assert float(result) == result.value
    assert result.std_error is None or result.std_error >= 0
    assert result.noise_floor is None or result.noise_floor >= 0
    assert isinstance(result.reliable, bool)
    assert all(isinstance(line, str) for line in result.warnings)
    for values in (result.layer_values, result.class_values):
        assert all(isinstance(k, str) and float(v) == v for k, v in values.items())
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False))["value"] == result.value


@pytest.mark.parametrize("cuts", [(20,), (1, 2, 50), tuple(range(7, ROWS, 7))])
@pytest.mark.parametrize("name", INDICES)
def test_batches_are_the_whole(name, cuts):
    index, ends = make(name), (0, *cuts, ROWS)
    for a, b in itertools.pairwise(ends):
        feed(index, slice(a, b))
    assert value(index) == pytest.approx(value(feed(make(name))), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("cuts", [(30,), (6, 6, 45)])
@pytest.mark.parametrize("name", INDICES)
def test_parts_merge_to_the_whole_in_any_order(name, cuts):
    whole = value(feed(make(name)))
    parts = in_parts(name, *cuts)
    for order in (parts, parts[::-1]):
        merged = make(name)
        for part in order:
            before = snapshot(part)
            merged.merge(part)
            unchanged(part, before)
        assert value(merged) == pytest.approx(whole, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", INDICES)
def test_states_survive_a_file_and_go_on(name):
    whole = feed(feed(make(name), slice(0, 25)), slice(25, ROWS))
    half = feed(make(name), slice(0, 25))
    state = safetensors.torch.load(safetensors.torch.save(half.state_dict()))
    again = feed(make(name), slice(3, 17))  # is replaced
    again.load_state_dict(state)
    unchanged(again, snapshot(half))
    for x in state.values():  # it has copies
        x.zero_()
    feed(again, slice(25, ROWS))
    assert again.compute(FACTS).to_dict() == whole.compute(FACTS).to_dict()


@pytest.mark.parametrize("name", INDICES)
def test_the_state_is_a_copy(name):
    index = feed(make(name))
    before = value(index)
    for x in index.state_dict().values():
        x.zero_()
    assert value(index) == before


@pytest.mark.parametrize(
    "name", ["resque_dist", "linear_residual", "arm", "representation_distance"]
)
def test_states_of_before_the_contract_load(name):
    with safetensors.safe_open(OLD_STATES, "pt") as file:
        expected = json.loads(file.metadata()[name])
        keys = [key for key in file.keys() if key.startswith(f"{name}/")]  # noqa: SIM118
        state = {key.removeprefix(f"{name}/"): file.get_tensor(key) for key in keys}
    index = make(name, **({"exact": True} if name == "arm" else {}))
    index.load_state_dict(state)
    assert index.state_dict().keys() == state.keys()
    assert value(index) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", BATCHES)
def test_no_data_is_an_error_and_an_empty_part_is_nothing(name):
    with pytest.raises(ValueError, match=r"^[\w, ]+: expected [^\n]*, found [^\n]*$"):
        make(name).compute(FACTS)
    whole = feed(make(name))
    before = whole.compute(FACTS).to_dict()
    whole.merge(make(name))
    feed(whole, slice(0, 0))
    assert whole.compute(FACTS).to_dict() == before
    other = make(name)
    other.load_state_dict(make(name).state_dict())
    other.merge(feed(make(name)))
    assert value(other) == pytest.approx(before["value"], rel=1e-12)


@pytest.mark.parametrize("name", [n for n in BATCHES if n in ALONE and READS[n].sides == SIDES])
def test_one_side_alone_is_an_error(name):
    for side in SIDES:
        with pytest.raises(ValueError, match=r"^[\w\[\]', ]+: expected [^\n]*, found "):
            feed(make(name), only=(side,)).compute(FACTS)


@pytest.mark.parametrize("name", ALONE)
def test_forks_share_the_old_side_alone(name):
    old = feed(make(name, paired=False), only=("old",))
    before = snapshot(old)
    first, second = old.fork(), old.fork()
    feed(first, slice(0, 20), only=("new",))
    feed(second, only=("new",))
    feed(first, slice(20, ROWS), only=("new",))
    unchanged(old, before)
    whole = feed(make(name, paired=False))
    for each in (first, second):
        assert value(each) == pytest.approx(value(whole), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", [n for n in ALONE if READS[n].sides == SIDES])
def test_forks_of_a_new_side_that_has_begun_go_on_apart(name):
    begun = feed(make(name, paired=False), slice(0, 30))
    before = snapshot(begun)
    feed(begun.fork(), slice(30, ROWS), only=("new",))
    unchanged(begun, before)


@pytest.mark.parametrize("name", BATCHES)
def test_bad_values_are_an_error_of_their_side(name):
    x, labels = sides()
    x["new"][7, 2] = torch.nan
    index = make(name)
    before = None
    try:
        feed(index, slice(0, 5))
        before = snapshot(index)
        feed(index, slice(5, ROWS), only=("new",), data=(x, labels))
    except ValueError as error:
        message, stops = str(error), True
    else:
        with pytest.raises(ValueError, match="expected finite values, found") as caught:
            index.compute(FACTS)
        message, stops = str(caught.value), False
    assert "\n" not in message
    assert "finite" in message
    if stops and name in ALONE:
        assert message.startswith("new: ")
        unchanged(index, before)  # all or nothing


@pytest.mark.parametrize("name", INDICES)
def test_states_that_do_not_fit_change_nothing(name):
    index = feed(make(name))
    before, state = snapshot(index), index.state_dict()
    wrong = [state | {"unknown": torch.zeros(1)}]
    if name in registry.OWN:
        wrong += [state | {key: "text"} for key in list(state)[:1]]
        wrong += [{k: x for k, x in state.items() if k != list(state)[-1]}] * (len(state) > 0)
    for each in wrong:
        with pytest.raises((KeyError, TypeError, ValueError)):
            index.load_state_dict(each)
        unchanged(index, before)


@pytest.mark.parametrize("name", INDICES)
def test_bad_arguments(name):
    with pytest.raises(TypeError, match=rf"^options: expected for '{name}' .*, found 'unknown'$"):
        registry.make_indices([name], {name: {"unknown": 1}}, True)
    with pytest.raises(TypeError, match=r"^other: expected an? \w+, found int$"):
        make(name).merge(1)


def test_over_ranks(tmp_path):
    """Two real processes find what one finds, or all say why they do not."""
    alone, one, two = (
        each["result"]
        for size in (1, 2)
        for each in run("indices", tmp_path / str(size), size, "score_ranks_worker.py")
    )
    assert one == two
    assert set(alone) == set(one) == set(INDICES)
    for name in INDICES:
        if registry.find(name).in_one_place:
            assert one[name].endswith(f"found {name!r}, which needs all rows in one place")
            continue
        whole, found = alone[name], one[name]
        assert found["value"] == pytest.approx(whole["value"], rel=0, abs=1e-12)

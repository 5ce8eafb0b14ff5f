"""The registry, and an index of another package: in score, screen, ranks, studies and commands."""

import importlib.metadata
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import added_index, added_package, cli_made, places, screening_made, study_oracle
from helpers.rank_processes import run as run_ranks
from helpers.study_runs import study_run

from resque_ext import score, screen
from resque_ext.distributed import Ranks
from resque_ext.indices import registry
from resque_ext.indices.adapters.arm import ArmIndex
from resque_ext.indices.base import Index
from resque_ext.retraining import CostModel, study
from resque_ext.screening.old_side import OldSide
from resque_ext.screening.pair_reading import PairReading
from resque_ext.screening.table import Screening
from resque_ext.studies.correlations import correlate
from resque_ext.studies.study import INDICES

NAME = added_package.NAME


@pytest.fixture
def added(tmp_path, monkeypatch):
    """The folder of an installed package that adds an index."""
    folder = added_package.install(tmp_path / "installed")
    monkeypatch.syspath_prepend(str(folder))
    return folder


@pytest.fixture
def claim(monkeypatch):
    """Sets the entry points of the group: name -> value."""

    def entry_points(given):
        found = [importlib.metadata.EntryPoint(*each, registry.GROUP) for each in given.items()]

        def fake(*, group):
            assert group == registry.GROUP
            return importlib.metadata.EntryPoints(found)

        monkeypatch.setattr(importlib.metadata, "entry_points", fake)

    return entry_points


def cosine(old, new, power=1):
    """Of the means of features [N, D]."""
    a, b = (np.asarray(x, dtype=np.float64).mean(0) for x in (old, new))
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) ** power


def sides(model, *data):
    """What the model's head reads of each."""
    return [torch.relu(model.hidden(torch.from_numpy(x))).detach() for x, _ in data]


# The registry


def test_those_of_the_package_come_first(claim):
    claim({})
    assert registry.names() == tuple(registry.OWN)
    claim({"zeta": "nowhere:Z", "alpha": "nowhere:A"})
    assert registry.names() == (*registry.OWN, "alpha", "zeta")


def test_nothing_is_loaded_before_it_is_asked_for(claim):
    claim({"broken": "no_such_module:Broken"})
    assert "broken" in registry.names()
    assert registry.check_names(["broken", "arm"]) == ("broken", "arm")
    assert registry.find("arm") is ArmIndex
    with pytest.raises(
        ValueError, match=r"^indices: expected 'broken' at no_such_module:Broken to "
    ):
        registry.find("broken")
    assert registry.lower_is_cheaper("none of these")  # and a broken one is in nobody's way


def test_a_name_of_the_package_stays_its_own(claim):
    claim({"arm": "helpers.added_index:MeanCosine"})
    assert registry.find("arm") is ArmIndex
    assert registry.names().count("arm") == 1


@pytest.mark.parametrize("value", ["json:dumps", "helpers.added_index:SIDES", "builtins:dict"])
def test_what_is_no_index(claim, value):
    claim({"other": value})
    expected = rf"^indices: expected a subclass of .*Index at {value} for 'other', found "
    with pytest.raises(ValueError, match=expected):
        registry.find("other")


def test_unknown_names_list_all(claim):
    claim({NAME: "helpers.added_index:MeanCosine"})
    with pytest.raises(ValueError, match=rf"^indices: expected names among .*{NAME}.*, found "):
        registry.check_names(["mean_sine"])
    with pytest.raises(ValueError, match=r"^indices: expected names among .*, found \[3\]$"):
        registry.check_names([3])
    assert registry.check_names([NAME]) == (NAME,)


def test_every_predictor_has_its_direction(added):
    for name in registry.OWN:
        assert registry.lower_is_cheaper(name)
    assert registry.lower_is_cheaper("linear_probe_error")
    assert not registry.lower_is_cheaper(NAME)


def test_it_is_an_index_by_declaration_alone():
    assert issubclass(added_index.MeanCosine, Index)
    assert added_index.MeanCosine.options() == {"power": 1}


def test_the_documentation_has_this_index():
    page = (places.ROOT / "docs" / "adding_an_index.md").read_text(encoding="utf-8")
    code = Path(added_index.__file__).read_text(encoding="utf-8")
    assert f"```python\n{code}```\n" in page
    line = f'{NAME} = "{added_index.MeanCosine.__module__}:MeanCosine"'
    assert f'[project.entry-points."{registry.GROUP}"]\n   {line}\n' in page


# An index of another package


def test_score(added):
    model, old, new = screening_made.Small(3), screening_made.old(), screening_made.digits(200, 0.4)
    data = [[tuple(map(torch.as_tensor, each))] for each in (old, new)]
    both = score(model, *data, indices=(NAME, "arm"), options={NAME: {"power": 2}}, progress=False)
    expected = cosine(*sides(model, old, new), power=2)
    assert both[NAME].value == pytest.approx(expected, rel=1e-6)
    assert both[NAME].layer == "head:input"
    unlabelled = [[x for x, _ in each] for each in data]
    alone = score(model, *unlabelled, indices=NAME, progress=False)
    assert alone.value == pytest.approx(cosine(*sides(model, old, new)), rel=1e-6)
    with pytest.raises(ValueError, match=r"^power: expected at least 1, found 0$"):
        score(model, *data, indices=NAME, options={NAME: {"power": 0}}, progress=False)


LEVELS = {"near": 0.05, "far": 0.8, "between": 0.4}
SCREENED = (NAME, "linear_residual", "accuracy_drop")


def files(folder):
    """Old data and candidates as files, which a cache tells apart."""
    screening_made.write_digits(folder, old=(300,), **{k: (200, v, 5) for k, v in LEVELS.items()})
    made = {k: {"path": str(folder / f"{k}.npz"), "kind": "inputs"} for k in ("old", *LEVELS)}
    return made.pop("old"), made


def test_screen_ranks_it_the_right_way_round(added, tmp_path):
    """The cheapest is the most alike."""
    old, given = files(tmp_path)
    model, old_data = screening_made.Small(0), screening_made.digits(300)
    options = {"cache": tmp_path / "cache", "progress": False}
    first, cached = (
        screen(screening_made.models(1), old, given, SCREENED, **options) for _ in range(2)
    )
    assert cached.to_dict(times=False) == first.to_dict(times=False)
    assert len(list((tmp_path / "cache").rglob("*.*"))) >= 4  # of the old side and three new ones
    assert [row.result.candidate for row in first] == ["near", "between", "far"]
    assert [row.rank for row in first] == [1, 2, 3]
    for row in first:
        of = sides(model, old_data, screening_made.digits(200, LEVELS[row.result.candidate], 5))
        assert row.result.indices[NAME].value == pytest.approx(cosine(*of), rel=1e-6)
        assert -1 <= row.result.indices["accuracy_drop"].value <= 1
        assert row.result.indices["linear_residual"].std_error > 0
    again = Screening(first.results[::-1], NAME)
    assert [row.result.candidate for row in again] == ["near", "between", "far"]
    unalike = Screening(first.results, "linear_residual")
    values = [row.result.indices["linear_residual"].value for row in unalike]
    assert values == sorted(values)


@pytest.fixture
def interrupted(added, tmp_path, monkeypatch):
    """A screening that was ended before its last pair, and what it finds in the end."""
    old, given = files(tmp_path)
    arguments = (screening_made.models(1), old, given, SCREENED)
    store, result = tmp_path / "kept.sqlite", PairReading.result

    def until_between(self, *arguments):
        if self.name == "between":
            raise KeyboardInterrupt
        return result(self, *arguments)

    def go_on():
        monkeypatch.setattr(PairReading, "result", result)
        return screen(*arguments, store=store, progress=False).to_dict(times=False)

    def begin():
        whole = screen(*arguments, progress=False).to_dict(times=False)
        monkeypatch.setattr(PairReading, "result", until_between)
        with pytest.raises(KeyboardInterrupt):
            screen(*arguments, store=store, progress=False)
        return whole

    return begin, go_on


def test_an_interrupted_screening_goes_on_from_the_stored_old_side(interrupted, monkeypatch):
    begin, go_on = interrupted
    whole = begin()

    def read_again(self, feed):
        raise AssertionError("the old side was read again")

    monkeypatch.setattr(OldSide, "read", read_again)
    assert go_on() == whole


def test_an_index_that_keeps_no_state_reads_the_old_side_again(interrupted, monkeypatch):
    begin, go_on = interrupted
    for name in ("state_dict", "load_state_dict"):
        monkeypatch.delattr(registry.find(NAME), name)
    whole = begin()
    assert go_on() == whole


def test_an_index_that_does_not_merge_is_refused_over_ranks(added, monkeypatch):
    kind = registry.find(NAME)
    assert kind().is_joinable
    monkeypatch.delattr(kind, "merge")
    data, options = [(torch.rand(8, 4), torch.arange(8) % 2)], {"indices": NAME, "progress": False}
    refused = pytest.raises(ValueError, match=rf"^indices: .* found '{NAME}', which")
    with Ranks() as ranks, refused:
        score(torch.nn.Linear(4, 2), data, data, ranks=ranks, **options)
    with pytest.raises(TypeError, match=r"^MeanCosine: expected a method merge for ranks"):
        kind().merge(kind())


def test_a_class_that_lacks_methods_is_refused(claim):
    claim({"half": "resque_ext.indices.base:Index"})
    with pytest.raises(ValueError, match=r"none called compute, update$"):
        registry.find("half")


def test_two_ranks(added, tmp_path):
    alone, one, two = (
        each["result"]
        for size in (1, 2)
        for each in run_ranks("indices", tmp_path / f"r{size}", size, "score_ranks_worker.py")
    )
    assert one[NAME] == two[NAME]
    assert one[NAME]["value"] == pytest.approx(alone[NAME]["value"], rel=1e-12)


def test_study(added):
    (run,) = study_oracle.run(shifts=study_oracle.grid({"add": (0.5,)}), indices=(NAME, "arm"))
    assert list(run.predictors) == [
        f"{name}{suffix}"
        for suffix in ("", "_reestimated")
        for name in (NAME, "arm", "accuracy_drop", "linear_probe_error", "nearest_class_mean_error")
    ]
    assert 0 < run.predictors[NAME] <= 1
    assert run.predictors["accuracy_drop"] is not None


def test_files_of_studies_from_before_go_on(tmp_path, monkeypatch):
    """The default grid stays: an index that comes later refuses no file."""
    path, model = tmp_path / "runs.jsonl", study_oracle.trained()
    options = study_oracle.OPTIONS | {"path": path, "index_options": {"preindex": {"chance": 0}}}
    grids = [study_oracle.grid({"add": levels}) for levels in ((0.5,), (0.5, 1.0))]
    (before,) = study(model, study_oracle.data(), grids[0], **options)
    assert set(INDICES) < set(before.predictors)
    monkeypatch.syspath_prepend(str(added_package.install(tmp_path / "installed")))
    assert NAME in registry.names()
    first, second = study(model, study_oracle.data(), grids[1], **options)
    assert first == before
    assert first.predictors.keys() == second.predictors.keys()


def test_costs_fall_where_more_is_cheaper(added):
    values = np.linspace(0.1, 0.9, 9)
    runs = [
        study_run(x, 1 + 10 * (1 - x), f"kind{i}", i, predictors={NAME: x, "arm": 1 - x})
        for i, x in enumerate(values)
    ]
    for method in ("monotone", "log-linear"):
        falling, rising = (
            CostModel.fit(runs, (name,), ("epochs",), method, 0.5) for name in (NAME, "arm")
        )
        for x in values:
            mine = falling.predict_one("epochs", {NAME: x})
            other = rising.predict_one("epochs", {"arm": 1 - x})
            assert mine.value == pytest.approx(1 + 10 * (1 - x), rel=0.2)
            for end in ("value", "low", "high"):
                assert getattr(mine, end) == pytest.approx(getattr(other, end), rel=1e-9)
        text = falling.to_json()
        assert json.loads(text)["falling"] == [NAME]
        assert "falling" not in json.loads(rising.to_json())
        assert CostModel.from_json(text).predict_one("epochs", {NAME: 0.5}) == falling.predict_one(
            "epochs", {NAME: 0.5}
        )
    table = correlate(runs, measures=("epochs",))
    for method in ("spearman", "pearson"):
        assert table.get(NAME, "epochs", method).across.value == pytest.approx(1)
        assert table.get("arm", "epochs", method).across.value == pytest.approx(1)


def test_a_cost_model_goes_where_its_index_is_not(added, monkeypatch):
    runs = [
        study_run(x, 1 + 10 * (1 - x), f"kind{i % 3}", i, predictors={NAME: x})
        for i, x in enumerate(np.linspace(0.1, 0.9, 6))
    ]
    model = CostModel.fit(runs, (NAME,), ("epochs",))
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **_: [])
    assert registry.lower_is_cheaper(NAME)  # not known here
    again = CostModel.from_json(model.to_json())
    assert again.falling == (NAME,)
    assert again.predict_one("epochs", {NAME: 0.3}) == model.predict_one("epochs", {NAME: 0.3})


SCREEN = f"""\
[screen]
indices = ["{NAME}", "linear_residual"]
store = "kept.jsonl"

[options.{NAME}]
power = 2

[old]
path = "old.npz"
kind = "inputs"

[models.small]
factory = "added_models:small"

[candidates.near]
path = "near.npz"
kind = "inputs"

[candidates.far]
path = "far.npz"
kind = "inputs"
"""


def test_the_command_line(added, tmp_path):
    screening_made.write_digits(tmp_path, old=(300,), near=(200, 0.1, 5), far=(200, 0.8, 5))
    code = "from helpers.screening_made import Small\ndef small():\n    return Small(3)\n"
    (tmp_path / "added_models.py").write_text(code)
    environment = added_package.environment(added, cli_made.ENVIRONMENT)
    settings = {"capture_output": True, "text": True, "env": environment, "cwd": tmp_path}

    def call(*arguments):
        done = subprocess.run([*cli_made.PROGRAM, *arguments], check=False, timeout=300, **settings)
        assert done.returncode == 0, done.stderr
        return done.stdout

    data = ("--old", "old.npz", "--new", "near.npz")
    names = ("--index", NAME, "--index", "accuracy_drop", "--index", "linear_probe")
    found = json.loads(call("score", "added_models:small", *data, *names, "--json"))["indices"]
    old, near = screening_made.digits(300), screening_made.digits(200, 0.1, 5)
    expected = cosine(*sides(screening_made.Small(3), old, near))
    assert found[NAME]["value"] == pytest.approx(expected, rel=1e-6)
    assert NAME in call("score", "added_models:small", *data, "--index", NAME)
    (tmp_path / "screen.toml").write_text(SCREEN)
    pairs = json.loads(call("screen", "screen.toml", "--json"))["pairs"]
    assert [pair["candidate"] for pair in pairs] == ["near", "far"]
    assert pairs[0]["indices"][NAME]["value"] == pytest.approx(expected**2, rel=1e-6)
    (tmp_path / "screen.toml").write_text(SCREEN.replace("power", "force"))
    done = subprocess.run(
        [*cli_made.PROGRAM, "screen", "screen.toml"], check=False, timeout=300, **settings
    )
    assert done.returncode == 2
    assert f"options.{NAME}.force: expected one of power, found 'force'" in done.stderr

"""`resque-ext screen`: wrong values by their place, failures at work, cache and scheduler."""

import json
import sys

import pytest
from helpers import screening_made as made

from resque_ext import cli
from resque_ext.indices import registry
from resque_ext.screening import read_store
from resque_ext.screening import screen as screen_module

WHOLE = """\
[screen]
store = "kept.sqlite"
width = 0.02

[old]
path = "old.npz"
kind = "inputs"

[models.good]
factory = "command_models:good"

[models.other]
factory = "command_models:good"

[candidates.near]
path = "near.npz"
kind = "inputs"

[candidates.far]
path = "far.npz"
kind = "inputs"
"""
MODELS = """\
from helpers.screening_made import Small

def good():
    return Small(9)

def broken():
    raise RuntimeError("no weights\\nhere")

def data():
    raise RuntimeError("no disk")

def nothing():
    raise AssertionError

def wrong():
    return 3

class Sizeless(list):
    pass

def runs_out():
    import torch
    class Odd(torch.utils.data.Dataset):
        def __len__(self):
            raise RuntimeError("no length")
        def __getitem__(self, i):
            return i
    return Odd()
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    made.write_digits(tmp_path, old=(600,), near=(300, 0.05, 1), far=(300, 0.9, 2))
    (tmp_path / "command_models.py").write_text(MODELS)
    (tmp_path / "fails_on_import.py").write_text("import nowhere_to_be_found\n")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in ("command_models", "fails_on_import"):
        sys.modules.pop(name, None)


@pytest.fixture
def run(folder, capsys):
    def call(text, *arguments):
        (folder / "screen.toml").write_text(text)
        status = cli.main(["screen", "screen.toml", *arguments])
        return status, *capsys.readouterr()

    return call


def with_line(line, behind="[screen]"):
    """The configuration with a line more, and where that stands."""
    text = WHOLE.replace(behind, f"{behind}\n{line}", 1)
    return text, text.splitlines().index(line.splitlines()[-1]) + 1


WRONG = [
    ("rank_by = 'arm'", "screen.rank_by: expected one of 'resque_dist', found 'arm'"),
    ("rank_by = 3", "screen.rank_by: expected a text, found 3"),
    ("seed = -1", "screen.seed: expected an integer from 0 to 2147483647, found -1"),
    (
        "seed = 2147483648",
        "screen.seed: expected an integer from 0 to 2147483647, found 2147483648",
    ),
    ("seed = 1.5", "screen.seed: expected an integer from 0 to 2147483647, found 1.5"),
    ("batch_size = 0", "screen.batch_size: expected an integer from 1 to 2147483647, found 0"),
    ("batch_size = 9_000_000_000", "screen.batch_size: expected an integer from 1 to 2147483647, "),
    ("batch_size = 'x'", "screen.batch_size: expected an integer from 1 to 2147483647, found 'x'"),
    (
        "top = 9_000_000_000",
        "screen.top: expected an integer from 1 to 2147483647, found 9000000000",
    ),
    ("looks = [9_000_000_000, 2]", "screen.looks: expected samples of the first look and a growth"),
    ("device = 'gpu'", "screen.device: expected a cpu or cuda device, found 'gpu'"),
    ("device = 'cuda:99'", "screen.device: expected one of this machine's "),
    ("device = 1", "screen.device: expected a text, found 1"),
    ("indices = ['linear']", "screen.indices: expected a list of some of resque_dist, "),
    ("indices = ['preindex']", "screen.indices: expected paired candidates for 'preindex', found "),
    ("[budget]\nsamples = -5", "budget.samples: expected an integer of at least 1, found -5"),
    ("[budget]\nseconds = 'x'", "budget.seconds: expected a number above 0, found 'x'"),
    (
        "[budget]\nhours = 1",
        "budget.hours: expected one of the keys seconds, samples, found 'hours'",
    ),
    ("budget = 3", "screen.budget: expected one of the keys "),
    ("[options]\nresque_dist = 3", "options: expected a table with at least one table by name, "),
    (
        "[options.arm]\npool = true",
        "options.arm: expected one of the indices resque_dist, found 'arm'",
    ),
    (
        "[options.resque_dist]\nmisssing = 1",
        "options.resque_dist.misssing: expected one of missing, ",
    ),
    (
        "[options.resque_dist]\nmissing = 'x'",
        "options.resque_dist.missing: expected one of 'error', 'skip', found 'x'",
    ),
    ("scheduler = 'dask'", "screen.scheduler: expected one of ray, found 'dask'"),
    ("scheduler = 'ray'", "screen.scheduler: expected anytime = false beside it, because "),
    ("workers = 2", "screen.workers: expected scheduler = 'ray' beside it, found none"),
    (
        "anytime = false\nscheduler = 'ray'\nworkers = 0",
        "screen.workers: expected an integer from 1",
    ),
    ("cache = 3", "screen.cache: expected a text, found 3"),
]


@pytest.mark.parametrize(("line", "message"), WRONG, ids=[w[0].splitlines()[-1] for w in WRONG])
def test_a_wrong_value_is_one_line_with_its_place(folder, run, line, message):
    store = folder / "kept.sqlite"
    store.write_bytes(b"as it was")
    text, number = with_line(line, "width = 0.02")
    number -= message.startswith(("options: ", "options.arm: "))  # of the table, not of its key
    status, out, err = run(text)
    assert (status, out) == (2, "")
    assert err.startswith(f"resque-ext: error: screen.toml:{number}: {message}"), err
    assert err.count("\n") == 1
    assert store.read_bytes() == b"as it was"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("command_models:data", "to return a dataset, found RuntimeError: no disk"),
        ("command_models:nothing", "to return a dataset, found AssertionError"),
        ("fails_on_import:data", "ModuleNotFoundError: No module named 'nowhere_to_be_found'"),
        ("command_models:absent", "expected command_models to have 'absent', found no 'absent'"),
        (
            "command_models:runs_out",
            "to return a dataset, found RuntimeError: no length",
        ),
    ],
)
def test_a_dataset_that_cannot_be_made_is_one_line(folder, run, name, message):
    text = WHOLE.replace('path = "near.npz"\nkind = "inputs"', f'dataset = "{name}"')
    number = text.splitlines().index(f'dataset = "{name}"') + 1
    status, out, err = run(text)
    assert (status, out) == (2, "")
    assert err.startswith(f"resque-ext: error: screen.toml:{number}: candidates.near.dataset: ")
    assert message in err
    assert err.count("\n") == 1
    assert not (folder / "kept.sqlite").exists()


def test_some_pairs_that_failed_are_counted(folder, run):
    text = WHOLE.replace("command_models:good", "command_models:broken", 1)
    status, out, err = run(text, "--json")
    assert status == 0
    assert err == (
        "resque-ext: warning: 2 of 4 pairs failed, the first (good, far) with: no weights here\n"
    )
    assert [p["error"] for p in json.loads(out)["pairs"]] == [None] * 2 + ["no weights here"] * 2
    assert len(read_store(folder / "kept.sqlite")[1]) == 4


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("command_models:broken", "no weights here"),
        ("command_models:wrong", "model: expected 'command_models:wrong' to return a torch.nn.Mod"),
        ("nowhere_at_all:make", "model: expected a module, found none called 'nowhere_at_all'"),
    ],
)
def test_when_no_pair_is_left_the_status_says_so(run, factory, message):
    text = WHOLE.replace("command_models:good", factory)
    for options in ((), ("--json", "--resume")):
        status, out, err = run(text, *options)
        assert status == 1
        assert err.startswith(
            "resque-ext: error: 4 of 4 pairs failed, the first (good, far) with: "
        )
        assert message in err
        assert err.count("\n") == 1
        assert out
    assert len(json.loads(out)["pairs"]) == 4


def test_the_first_failure_ends_it_where_asked(run):
    text, _ = with_line('on_error = "raise"')
    status, out, err = run(text.replace("command_models:good", "command_models:broken"))
    assert (status, out, err) == (1, "", "resque-ext: error: no weights here\n")


def test_a_cache_is_passed_on(folder, run, monkeypatch):
    text, _ = with_line('cache = "features"')
    first = run(text, "--json", "--store", "1.sqlite")
    assert first[0] == 0
    kept = sorted(path.name for path in (folder / "features").iterdir())
    assert kept
    with monkeypatch.context() as patched:
        for module in ("old_side", "pair_reading"):  # no model is run
            patched.setattr(f"resque_ext.screening.{module}.run", None)
        again = run(text, "--json", "--store", "2.sqlite")
    assert again[0] == 0
    assert values(again) == values(first)
    assert sorted(path.name for path in (folder / "features").iterdir()) == kept
    other = run(WHOLE, "--json", "--store", "4.sqlite", "--cache", "others")
    assert values(other) == values(first)
    assert sorted(path.name for path in (folder / "others").iterdir()) == kept
    assert run(text, "--dry-run", "--cache", "never")[0] == 0
    assert not (folder / "never").exists()


def values(done):
    pairs = json.loads(done[1])["pairs"]
    return {(p["model"], p["candidate"]): p["indices"] for p in pairs}


def test_what_is_not_kept_is_one_line(folder, run):
    text = WHOLE + '\n[candidates.list]\ndataset = "command_list:data"\n'
    (folder / "command_list.py").write_text(
        "import torch\ndef data():\n    x = torch.rand(50, 1, 8, 8)\n"
        "    return [(x, torch.arange(50) % 10)]\n"
    )
    status, _, err = run(text, "--cache", "features")
    assert status == 0
    assert err == (
        "resque-ext: warning: cache: expected data that a fingerprint tells from others, found "
        "none for list: models run on them each time\n"
    )
    sys.modules.pop("command_list")


@pytest.mark.parametrize("flags", [(), ("--scheduler", "ray", "--workers", "3")])
def test_the_scheduler_is_passed_on(run, monkeypatch, flags):
    """What it does then, test_screen_ray shows."""
    seen = []

    def screener(plan, scheduler, workers):
        seen.append((scheduler, workers))
        return screen_module.Screener

    monkeypatch.setattr(screen_module, "_screener", screener)
    text, _ = with_line("anytime = false" + ("" if flags else "\nscheduler = 'ray'\nworkers = 3"))
    assert run(text, *flags)[0] == 0
    assert seen == [("ray", 3)]
    assert run(text, *flags, "--dry-run")[0] == 0


def test_the_command_line_refuses_what_cannot_be_done_so(run):
    status, _, err = run(WHOLE, "--scheduler", "ray")
    assert (status, err.count("\n")) == (2, 1)
    assert err.startswith("resque-ext: error: scheduler: expected anytime=False with 'ray', ")


def test_every_index_has_the_options_that_are_checked():
    for index in ("resque_dist", "resque_task", "arm", "preindex", "representation_distance"):
        assert registry.find(index).options()
    for index in registry.OWN:
        assert registry.make_indices([index], {index: registry.find(index).options()}, True)

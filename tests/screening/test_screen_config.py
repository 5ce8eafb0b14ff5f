"""`resque-ext screen`: configurations, each mistake with its line, and the command line."""

import json
import sys

import pytest
import safetensors.torch
from helpers import screening_made as made

from resque_ext import cli, shifts
from resque_ext.screening import read_store
from resque_ext.screening.config import read_config
from resque_ext.screening.toml_lines import ConfigError, Document

WHOLE = """\
# Two models of the digits
[screen]
indices = ["resque_dist"]
store = "kept.sqlite"
width = 0.02
looks = [
    64,
    1.5,
]

[budget]
samples = 100_000

[old]
path = "old.npz"
kind = "inputs"
features = "inputs"

[models.small0]
factory = "screening_made_model:make"
weights = "small0.safetensors"

[models."small 1"]
factory = "screening_made_model:make"
weights = "small1.safetensors"

[candidates.near]
path = "near.npz"
kind = "inputs"
features = "inputs"

[candidates.far]
path = "far.npz"
kind = "inputs"
features = "inputs"

[candidates.dark]
shift = { kind = "brightness", level = 0.5 }
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    made.write_digits(tmp_path, old=(900,), near=(300, 0.05, 1), far=(300, 0.9, 2))
    for seed in range(2):
        weights = made.Small(seed).state_dict()
        safetensors.torch.save_file(weights, tmp_path / f"small{seed}.safetensors")
    module = "from helpers.screening_made import Small\n\n\ndef make():\n    return Small(9)\n"
    (tmp_path / "screening_made_model.py").write_text(module)
    (tmp_path / "screen.toml").write_text(WHOLE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)
    yield tmp_path
    sys.modules.pop("screening_made_model", None)


@pytest.fixture
def run(capsys):
    def call(*arguments):
        status = cli.main(["screen", *map(str, arguments)])
        return status, *capsys.readouterr()

    return call


# The command


def test_screen_json_has_every_pair_ranked(folder, run):
    status, out, err = run("screen.toml", "--json")
    assert (status, err) == (0, "")
    found = json.loads(out)
    assert found["rank_by"] == "resque_dist"
    pairs = {(p["model"], p["candidate"]) for p in found["pairs"]}
    assert pairs == {(m, c) for m in ("small0", "small 1") for c in ("near", "far", "dark")}
    assert found["pairs"][0]["candidate"] == "near"
    assert all(p["error"] is None for p in found["pairs"])
    assert len(read_store(folder / "kept.sqlite")[1]) == 6


def test_an_interrupted_screen_says_where_its_pairs_are(folder, run, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("resque_ext.screening.screen.screen", interrupted)
    status, out, err = run("screen.toml")
    assert (status, out) == (130, "")
    assert "resque-ext: stopped: finished pairs are in " in err
    assert "kept.sqlite; the same command resumes there" in err


def test_screen_goes_on_unless_asked_not_to(folder, run):
    assert run("screen.toml", "--json")[0] == 0
    status, out, err = run("screen.toml", "--json", "--no-resume")
    assert (status, out) == (2, "")
    assert err.endswith("found 6 pairs; give resume=True (--resume) or another store\n")
    first = read_store("kept.sqlite")[1]
    assert run("screen.toml", "--json", "--resume")[0] == 0
    order = {name: i for i, name in enumerate(dict.fromkeys(r.model for r in first))}
    status, out, err = run("screen.toml", "--json")  # as `resque_ext.screen` by default
    assert (status, err) == (0, "")
    assert [p["seconds"] for p in json.loads(out)["pairs"]] == [
        r.seconds
        for r in sorted(first, key=lambda r: (order[r.model], r.indices["resque_dist"].value))
    ]


def test_screen_prints_a_table(folder, run):
    status, out, err = run("screen.toml", "--store", "other.jsonl")
    assert (status, err) == (0, "")
    for text in ("small0", "small 1", "near", "far", "dark", "resque_dist", "rank"):
        assert text in out
    assert (folder / "other.jsonl").exists()
    assert not (folder / "kept.sqlite").exists()


def test_dry_run_writes_nothing(folder, run):
    before = sorted(folder.rglob("*"))
    status, out, err = run("screen.toml", "--dry-run", "--json")
    assert (status, err) == (0, "")
    assert [p for p in sorted(folder.rglob("*")) if "__pycache__" not in str(p)] == before
    found = json.loads(out)
    assert len(found["readings"]) == 2 * 4
    rows = {(r["model"], r["data"]): r["rows"] for r in found["readings"]}
    assert (rows["small0", "old"], rows["small0", "near"], rows["small 1", "dark"]) == (
        900,
        300,
        900,
    )
    assert {r["row_bytes"] for r in found["readings"]} == {64 * 4 + 8}
    assert all(r["rows_per_second"] > 0 and r["problem"] is None for r in found["readings"])
    assert found["seconds"] == pytest.approx(sum(r["seconds"] for r in found["readings"]))
    sums = 8 * 10 * 16 * 17 * 4  # float64, classes, blocks, width and a count; old and 3 pairs
    assert found["memory_bytes"] >= sums
    status, out, err = run("screen.toml", "--dry-run")
    assert (status, err) == (0, "")
    assert "of memory beside" in " ".join(out.split())


def test_dry_run_names_a_model_that_does_not_work(folder, run):
    (folder / "screening_made_model.py").write_text(
        "def make():\n    raise RuntimeError('no disk')\n"
    )
    status, out, _ = run("screen.toml", "--dry-run", "--json")
    assert status == 0
    assert {r["problem"] for r in json.loads(out)["readings"]} == {"no disk"}


# The configuration


def test_a_configuration_means_what_it_says(folder):
    config = read_config(folder / "screen.toml")
    given = config.arguments
    assert config.store == folder / "kept.sqlite"
    assert (given["width"], given["looks"], given["budget"].samples) == (0.02, (64, 1.5), 100_000)
    assert list(given["models"]) == ["small0", "small 1"]
    assert given["old"]["small 1"].rows == 900
    assert given["candidates"]["far"].data.rows == 300
    assert isinstance(given["candidates"]["dark"].shift, shifts.Shift)
    model = given["models"]["small 1"].build("small 1")
    assert model.head.weight.equal(made.Small(1).head.weight)


WRONG = [
    # (what is replaced, by what, line, the message after the place)
    ("width = 0.02", "width = -1", 5, "screen.width: expected a number above 0, found -1"),
    (
        "width = 0.02",
        "widht = 1.0",
        5,
        "screen.widht: expected one of the keys * (did you mean 'width'?), found 'widht'",
    ),
    (
        '["resque_dist"]',
        '["resque"]',
        3,
        "screen.indices: expected a list of some of resque_dist, *, found ['resque']",
    ),
    (
        "    1.5,",
        "    0.5,",
        6,
        "screen.looks: expected samples of the first look and a growth above 1, *",
    ),
    (
        "samples = 100_000",
        "samples = 1.5",
        12,
        "budget.samples: expected an integer of at least 1, found 1.5",
    ),
    ("[budget]", "[budgets]", 11, "budgets: expected one of the keys screen, budget, *"),
    (
        'path = "near.npz"',
        'path = "near.npz"\nformat = "zip"',
        29,
        "candidates.near.format: expected one of npy, npz, *, found 'zip'",
    ),
    (
        'path = "near.npz"',
        'path = "none.npz"',
        27,
        "candidates.near: none.npz: expected *, found none",
    ),
    (
        'kind = "inputs"\nfeatures = "inputs"\n\n[candidates.far]',
        "\n[candidates.far]",
        27,
        "candidates.near: *expected *",
    ),
    (
        'path = "far.npz"',
        "",
        32,
        "candidates.far: expected one of the keys path, dataset, shift, found none of them",
    ),
    ("level = 0.5", 'level = "x"', 38, "candidates.dark.shift.level: expected a number, found 'x'"),
    ("level = 0.5", "level = 50.0", 38, "candidates.dark.shift: level: expected *"),
    (
        "level = 0.5",
        "severity = 6",
        38,
        "candidates.dark.shift.severity: expected an integer from 1 to 5, found 6",
    ),
    (
        '"brightness"',
        '"fog"',
        38,
        "candidates.dark.shift.kind: expected one of gaussian, *, found 'fog'",
    ),
    (
        'weights = "small0',
        'weights = "none',
        21,
        "models.small0.weights: expected a file of weights, found *",
    ),
    (
        '[models.small0]\nfactory = "screening_made_model:make"',
        "[models.small0]",
        20,
        "models.small0.weights: expected a factory beside it, found none",
    ),
    (
        '"screening_made_model:make"\nweights = "small1',
        '"no_colon"\nweights = "small1',
        24,
        "models.small 1.factory: expected module:callable, found 'no_colon'",
    ),
    ('path = "old.npz"', "path = 3", 15, "old.path: expected a text or a list of texts, found 3"),
    ("[screen]", "screen = 3\n[screening]", 2, "screen: expected a table, found 3"),
    ("[old]", "[old", 14, "expected TOML, found *"),
    ("width = 0.02", "width = 0.02\nwidth = 0.03", 6, "expected TOML, found *"),
]


def matches(line, pattern):
    parts = pattern.split("*")
    at = 0
    for part in parts:
        at = line.find(part, at)
        if at < 0:
            return False
        at += len(part)
    return line.startswith(parts[0])


def test_a_shift_by_severity(folder):
    text = WHOLE.replace('kind = "brightness", level = 0.5', 'kind = "fog", severity = 2')
    (folder / "screen.toml").write_text(text)
    given = read_config(folder / "screen.toml").arguments
    assert repr(given["candidates"]["dark"].shift) == "Shift('fog', severity=2, seed=0)"


@pytest.mark.parametrize(("old", "new", "number", "message"), WRONG, ids=[w[3][:40] for w in WRONG])
def test_a_mistake_is_one_line_with_its_place(folder, run, old, new, number, message):
    assert WHOLE.count(old) >= 1
    (folder / "screen.toml").write_text(WHOLE.replace(old, new, 1))
    status, out, err = run("screen.toml")
    assert (status, out) == (2, "")
    lines = [line.removeprefix("resque-ext: error: ") for line in err.splitlines()]
    expected = f"screen.toml:{number}: "
    assert any(
        line.startswith(expected) and matches(line.removeprefix(expected), message)
        for line in lines
    ), err
    assert not (folder / "kept.sqlite").exists()


def test_all_mistakes_are_said_at_once_in_their_order(folder, run):
    text = WHOLE.replace("width = 0.02", "width = 0").replace('"brightness"', '"fog"')
    (folder / "screen.toml").write_text(text.replace("samples = 100_000", "samples = 0"))
    status, _, err = run("screen.toml")
    assert status == 2
    places = [line.split(": ")[2] for line in err.splitlines()]
    assert places == ["screen.toml:5", "screen.toml:12", "screen.toml:38"]


def test_a_file_that_is_missing_or_no_text(folder, run):
    status, _, err = run("none.toml")
    assert (status, err) == (
        2,
        "resque-ext: error: none.toml: expected a TOML file, found no such file\n",
    )
    (folder / "screen.toml").write_bytes(b"\xff\xfe")
    status, _, err = run("screen.toml")
    assert status == 2
    assert err.startswith("resque-ext: error: screen.toml: expected text in UTF-8, found ")


def test_an_empty_file_says_what_is_needed(folder, run):
    (folder / "screen.toml").write_text("")
    assert run("screen.toml")[2].splitlines() == [
        f"resque-ext: error: screen.toml: expected a table [{name}.NAME], found none"
        for name in ("models", "candidates")
    ]


def test_lines_of_every_way_to_write_a_key(tmp_path):
    path = tmp_path / "lines.toml"
    path.write_text(
        'a = """\n[no.header]\nb = 1\n"""\n'  # 1
        "# [comment]\n"
        "c . 'd e' = [\n  1, # ]\n  2,\n]\n"  # 6
        "['t.u'.v]\n"  # 10
        "w = { x = 1, y = { z = 2 } }\n"  # 11
        "[[list]]\nk = 1\n[[list]]\nk = 2\n"  # 12
    )
    document = Document(path)
    lines = {
        ("a",): 1,
        ("c", "d e"): 6,
        ("t.u",): 10,
        ("t.u", "v", "w"): 11,
        ("t.u", "v", "w", "y", "z"): 11,
        ("list", "k"): 13,
        ("t.u", "v", "missing"): 10,
        ("b",): 1,
    }
    assert {key: document.line(key) for key in lines} == lines


def test_a_missing_table_is_a_config_error(tmp_path):
    (tmp_path / "s.toml").write_text("[models]\n[candidates.c]\npath = 'x'\n")
    with pytest.raises(ConfigError) as caught:
        read_config(tmp_path / "s.toml")
    assert len(caught.value.lines) == 1
    assert caught.value.lines[0].endswith(
        "models: expected a table with at least one table by name, found {}"
    )


def test_a_target_in_the_file_and_on_the_command_line(folder, run):
    path = folder / "screen.toml"
    lines = path.read_text() + "\n[forecast]\nbatch_size = 16\nmax_epochs = 20\n"
    path.write_text(lines.replace("[screen]", "[screen]\ntarget_accuracy = 0.05"))
    status, out, err = run("screen.toml", "--json", "--store", "target.jsonl")
    assert (status, err) == (0, "")
    found = json.loads(out)
    assert (found["rank_by"], found["across_models"]) == ("epochs", True)
    assert {pair["forecast"]["target_accuracy"] for pair in found["pairs"]} == {0.05}
    status, out, _ = run(
        "screen.toml", "--json", "--store", "t.jsonl", "--target", "0.9", "--probe", "1"
    )
    pairs = json.loads(out)["pairs"]
    assert {pair["forecast"]["target_accuracy"] for pair in pairs} == {0.9}
    assert sum(pair["forecast"]["probe_steps"] > 0 for pair in pairs) == 1
    path.write_text(path.read_text().replace("= 16", "= 0"))
    status, out, err = run("screen.toml")
    assert (status, out) == (2, "")
    assert "forecast.batch_size: expected an integer from 1" in err

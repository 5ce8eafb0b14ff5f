"""The tables of docs/ that were measured are those of the results kept beside them."""

import json
import re
import runpy
import sys
from pathlib import Path

import pytest
from helpers.study_runs import study_run

ROOT = Path(__file__).parents[2]


def page(name):
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def digits():
    return json.loads(page("study_digits.json"))


@pytest.mark.full
def test_the_digits_table_is_that_of_its_runs(digits):
    """Fitted anew on the costs and predictors that the study measured."""
    made = runpy.run_path(str(ROOT / "benchmarks" / "study_digits.py"))
    assert digits["columns"] == list(made["COLUMNS"])
    names = digits["columns"][2]
    runs = [
        study_run(
            0, epochs, kind, level, not reached, predictors=dict(zip(names, values, strict=True))
        )
        for kind, level, values, epochs, reached in digits["rows"]
    ]
    assert made["rows"](runs) == digits["rows"]
    table = made["markdown"](made["left_out"](runs))
    assert table in page("cost_model.md")
    assert table == made["markdown"](digits["left_out"])
    censored = sum(not row[-1] for row in digits["rows"])
    kinds = {row[0] for row in digits["rows"]}
    text = page("cost_model.md")
    assert f"{len(runs)} shifts of {len(kinds)} kinds" in text
    assert f"{digits['target_accuracy']:.0%} of the shifted" in text
    assert f"{censored} did not get there" in text


@pytest.mark.full
def test_what_is_said_of_the_forecasts_is_in_their_rows():
    """Figures of docs/forecast.md and the README, from every forecast and cost that was kept."""
    made = runpy.run_path(str(ROOT / "benchmarks" / "forecast_figure.py"))
    kept = json.loads(page("forecast_digits.json"))
    found = made["summary"](kept["rows"])
    assert kept["columns"] == list(made["COLUMNS"])
    assert kept["summary"] == found
    stages, text = found["stages"], page("forecast.md")
    assert f"{stages['free']} / {stages['adapt']} / {stages['reached']} / {stages['probe']}" in text
    assert ", ".join(f"{x:.3f}" for x in found["spearman"].values()) in text
    assert f"batch norm to {found['spearman_adapt_as_0']['batchnorm']:.3f}" in " ".join(
        text.split()
    )
    assert f"{found['known']} that reached the target | {found['median_log2']:.2f} |" in text
    assert f"{found['inside']} of {found['probed']}" in text
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert f"of {found['retrainings']} retrainings {stages['free'] + stages['adapt']} " in readme
    assert f"{stages['reached']} were over within the probe. For the other {found['probed']}" in (
        readme
    )
    assert f"is {2 ** found['median_log2']:.1f} (for the {found['known']} that reached" in readme
    assert f"other {found['probed']}, of which {found['inside']} are inside" in readme
    assert f"epochs of {stages['probe'] + stages['reached']} retrainings" in readme


@pytest.mark.full
def test_the_tables_of_the_better_index_are_those_of_its_results(monkeypatch, capsys):
    """Correlations anew from every cost and predictor; the intervals as they were drawn."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    made = runpy.run_path(str(ROOT / "benchmarks" / "better_index.py"))
    for name in ("shifted_settings",):  # found beside the benchmark, and not wanted by other tests
        sys.modules.pop(name, None)
    kept, text = json.loads(page("better_index.json")), page("better_index.md")
    made["show"](kept["groups"])
    printed = {line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")}
    tables = re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE)
    tables = [t for t in tables if t.split("\n", 1)[0] in printed]  # there is another one
    rows = [row for table in tables for row in re.findall(r"^\| .* \|$", table, re.MULTILINE)]
    assert len(rows) == 4 * (1 + len(made["PREDICTORS"]))
    assert set(rows) <= printed
    for group, parts in by_group(kept["settings"], made).items():
        x_y = [made["matrices"](part) for part in parts]
        found = sum(made["correlations"](*pair) for pair in x_y) / len(x_y)
        for name, row in zip(made["PREDICTORS"], found, strict=True):
            cells = kept["groups"][group]["predictors"][name]
            shown = [cells[measure]["spearman"] for measure in made["MEASURES"]]
            assert shown == pytest.approx(row, abs=2e-3), (group, name)  # of four digits each


def by_group(settings, made):
    """The rows of the kept settings as `matrices` takes them."""
    groups = {}
    for name, found in settings.items():
        if name.startswith("cifar"):
            continue
        rows = [
            {
                "predictors": dict(zip(made["PREDICTORS"], values, strict=True)),
                "runs": [dict(zip(made["MEASURES"], run[1:], strict=True)) for run in runs],
            }
            for _, _, values, runs in found["rows"]
        ]
        groups.setdefault(f"digits, {found['role']}", []).append(rows)
    assert len(groups) == 2
    return groups

"""The ledger of measured retrainings: what was known before each, its probe, what it cost.

    python benchmarks/ledger.py add digits-vit --recipe adam-1e-3      a setting: minutes
    python benchmarks/ledger.py add all --data cifar10_jpeg.npz        all that is not there yet
    python benchmarks/ledger.py board                                  predictors, the best first
    python benchmarks/ledger.py fit                                    constants of the forecast

One JSON object a line; docs/forecast.md says what each field is. A retraining that is in the file
already is not done again.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from ledger_settings import RECIPES, SETTINGS

FILE = Path(__file__).parent / "ledger.jsonl"
PAGE = Path(__file__).parents[1] / "docs" / "forecast.md"
Row = dict[str, Any]


def read(file: Path = FILE) -> list[Row]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def key(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("setting", "kind", "level", "recipe", "seed"))


def add(
    names: list[str], recipe: str, data: Path | None, file: Path, every: int, first: int, seed: int
) -> None:
    """Measures what is not there yet."""
    from ledger_measure import Shelf

    there = {key(row) for row in read(file)}
    for name in names:
        setting = SETTINGS[name]
        cases = setting.cases[first::every]
        missing = [case for case in cases if (name, *case, recipe, seed) not in there]
        if not missing:
            continue
        shelf = Shelf(name, setting, data)
        print(f"{name}: accuracy {shelf.accuracy:.3f}, {len(missing)} retrainings", file=sys.stderr)
        for case in missing:
            row = shelf.row(case, recipe, seed)
            with file.open("a", encoding="utf-8") as out:
                out.write(json.dumps(row, allow_nan=False) + "\n")
            found = row["hits"][-1] / row["test_samples"]
            print(f"  {case[0]} {case[1]:g}: {found:.3f} after {row['steps']}", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--file", type=Path, default=FILE)
    commands = parser.add_subparsers(dest="command", required=True)
    adding = commands.add_parser("add", help="measure a setting")
    adding.add_argument("settings", nargs="+", choices=(*SETTINGS, "all"), metavar="SETTING")
    adding.add_argument("--recipe", choices=RECIPES, default="adam-1e-3")
    adding.add_argument("--data", type=Path, help="cifar10_jpeg.npz, for the settings of CIFAR-10")
    adding.add_argument("--every", type=int, default=1, help="of the shifts take each n-th alone")
    adding.add_argument("--first", type=int, default=0, help="the first of these")
    adding.add_argument("--seed", type=int, default=0)
    boarding = commands.add_parser("board", help="print the leaderboard")
    boarding.add_argument("--write", action="store_true", help="and put it into docs/forecast.md")
    fitting = commands.add_parser("fit", help="fit the constants of the forecast to all of it")
    fitting.add_argument("--write", action="store_true", help="and put them into the package")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if given.command == "add":
        names = list(SETTINGS) if "all" in given.settings else given.settings
        if given.data is None:
            names = [name for name in names if not name.startswith("cifar")]
        how = (given.recipe, given.data, given.file, given.every, given.first, given.seed)
        add(names, *how)
        return
    if given.command == "fit":
        from ledger_fit import fit

        fit(read(given.file), given.write)
        return
    from ledger_board import board, formulas

    from resque_ext.retraining.calibration import shipped

    tables = {"ledger": board(read(given.file)), "formulas": formulas(shipped())}
    print("\n".join(tables.values()))
    if given.write:
        write(tables)


def write(tables: dict[str, str]) -> None:
    """Puts tables into the page, each between the comments that name it."""
    text = PAGE.read_text(encoding="utf-8")
    for name, table in tables.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        text = text[: text.index(begin) + len(begin)] + table + text[text.index(end) :]
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

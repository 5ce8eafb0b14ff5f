"""The README's picture: forecast against measured epochs, and the figures that are said of it.

python benchmarks/forecast_digits.py --quick --work DIR
python benchmarks/forecast_figure.py DIR      keeps the results in docs/forecast_digits.json
python benchmarks/forecast_figure.py          draws docs/figures/forecast.svg of what is kept
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1] / "docs"
COLUMNS = ("setting", "kind", "level", "stage", "forecast", "low", "high", "measured", "reached")
MODELS = {"batchnorm": "batch norm", "groupnorm": "group norm", "vit": "vision transformer"}
COLORS, MARKERS = ("#0072B2", "#D55E00", "#009E73"), ("o", "s", "^")
TRAINED = ("indices", "probe", "reached")  # the stages that say how many steps it takes
FLOOR = 0.4  # of the logarithmic axes, in epochs

Row = Sequence[Any]


def rows(folder: Path) -> list[list[Any]]:
    """What the files of forecast_digits.py hold, in the order of COLUMNS; costs in epochs."""
    found = []
    for file in sorted(folder.glob("digits-*.forecasts.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            epochs = row["forecast"]["costs"]["epochs"]
            costs = (epochs["value"], epochs["low"], epochs["high"], row["epochs"])
            cells = [None if each is None else round(each, 4) for each in costs]
            setting = file.name.split("-")[1]
            found.append([setting, *row["case"], row["forecast"]["stage"], *cells, row["reached"]])
    return found


def summary(found: Sequence[Row]) -> dict[str, Any]:
    """Counts by stage, and how near the forecasts of stage "probe" came."""
    from scipy.stats import spearmanr

    each = [dict(zip(COLUMNS, row, strict=True)) for row in found]
    probed = [row for row in each if row["stage"] == "probe"]
    known = [row for row in probed if row["reached"]]
    ordered = [row for row in each if row["stage"] != "adapt"]
    inside = [
        (row["low"] <= row["measured"] or not row["reached"])
        and (row["high"] is None or row["measured"] <= row["high"])
        for row in probed
    ]

    def correlations(rows: list[dict[str, Any]]) -> dict[str, float]:
        names = dict.fromkeys(row["setting"] for row in rows)
        parts = {name: [row for row in rows if row["setting"] == name] for name in names}
        return {
            name: round(
                float(spearmanr([r["forecast"] for r in p], [r["measured"] for r in p])[0]), 3
            )
            for name, p in parts.items()
        }

    return {
        "retrainings": len(each),
        "stages": {s: sum(row["stage"] == s for row in each) for s in ("free", "adapt", *TRAINED)},
        "not_reached": sum(not row["reached"] for row in each),
        "spearman": correlations(ordered),
        "spearman_adapt_as_0": correlations(each),
        "median_log2": round(
            statistics.median(abs(math.log2(r["forecast"] / r["measured"])) for r in known), 2
        ),
        "known": len(known),
        "probed": len(probed),
        "inside": sum(inside),
    }


def draw(found: Sequence[Row], path: Path) -> None:
    """Every retraining that took steps: measured along, forecast with its interval upwards."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    from resque_ext.plots.canvas import styled

    each = [dict(zip(COLUMNS, row, strict=True)) for row in found]
    each = [row for row in each if row["stage"] in TRAINED]
    with styled():
        figure = Figure(figsize=(7.6, 4.2), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots()
        top = 1.6 * max(row["measured"] for row in each)
        axes.plot([FLOOR, top], [FLOOR, top], color="0.4", lw=1, ls="--", label="as forecast")
        for setting, color, marker in zip(MODELS, COLORS, MARKERS, strict=True):
            mine = [row for row in each if row["setting"] == setting]
            for row in mine:
                x, y = row["measured"], row["forecast"]
                high = top if row["high"] is None else row["high"]
                axes.plot([x, x], [row["low"], high], color=color, lw=1, alpha=0.45)
                face = color if row["reached"] else "white"
                axes.plot([x], [y], marker, color=color, markerfacecolor=face, markersize=5.5)
            axes.plot([], [], marker, color=color, label=MODELS[setting])
        axes.plot([], [], "o", color="0.4", markerfacecolor="white", label="stopped short")
        for name in ("x", "y"):
            axes.set(**{f"{name}scale": "log", f"{name}lim": (FLOOR, top)})
            getattr(axes, f"{name}axis").set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        axes.set_xlabel("measured epochs of retraining")
        axes.set_ylabel("forecast after 16 or 32 steps")
        figure.legend(loc="outside right upper", fontsize=9)
        figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path, nargs="?", help="the folder of forecast_digits.py")
    given = parser.parse_args()
    kept = DOCS / "forecast_digits.json"
    if given.work is not None:
        from resque_ext.environment import environment as environment_of

        environment = environment_of("scikit-learn")
        about = {key: environment[key] for key in ("versions", "backend", "devices")}
        made = rows(given.work)
        result = {"environment": about, "columns": COLUMNS, "rows": made, "summary": summary(made)}
        kept.write_text(json.dumps(result, allow_nan=False) + "\n", encoding="utf-8")
    read = json.loads(kept.read_text(encoding="utf-8"))
    draw(read["rows"], DOCS / "figures" / "forecast.svg")
    print(json.dumps(read["summary"], indent=2))


if __name__ == "__main__":
    main()

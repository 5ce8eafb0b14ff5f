"""`resque-ext fit`: a cost model of a study's measured runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from resque_ext.cli.app import app
from resque_ext.cli.output import Json, escape, make_console, make_table, print_json
from resque_ext.errors import ArgumentError

if TYPE_CHECKING:
    from resque_ext.cost_model.model import CostModel

# typer evaluates annotations from their text, so what is put together stands here. Names of the
# package are written out: to import them takes seconds (the tests compare them).
PREDICTOR_HELP = "A predictor of the runs; repeatable. Default: resque_dist_reestimated."
MEASURE_HELP = (
    "epochs, gradient_norm_mean, gradient_norm_last, gradient_norm_sum, parameter_change, seconds, "
    "joules, joules_estimated, kg_co2, kg_co2_estimated; repeatable. Default: epochs, "
    "gradient_norm_sum, parameter_change, seconds and those of energy and emissions."
)
ONLY_HELP = (
    "Take the runs with this value of model, target_accuracy, steps_per_epoch or an option of "
    "their training, as NAME=VALUE; repeatable."
)
STUDY_HELP = "Runs of a study, one JSON object a line; - for standard input."
METHOD_HELP = "monotone or log-linear."


@app.command("fit", short_help="Fit a cost model to the runs of a study.")
def _fit(
    study: Annotated[Path, typer.Argument(help=STUDY_HELP)],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the model goes, JSON.")],
    predictor: Annotated[list[str] | None, typer.Option(help=PREDICTOR_HELP)] = None,
    measure: Annotated[list[str] | None, typer.Option(help=MEASURE_HELP)] = None,
    method: Annotated[str, typer.Option(help=METHOD_HELP)] = "monotone",
    coverage: Annotated[float, typer.Option(help="Of the intervals, 0.5 to below 1.")] = 0.9,
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="Leave runs out that lack a predictor.")
    ] = False,
    only: Annotated[list[str] | None, typer.Option(help=ONLY_HELP)] = None,
    mixed: Annotated[
        bool, typer.Option("--mixed", help="Fit runs as one that differ in any of these.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Fit a cost model to measured runs, and say how it does on kinds of shift left out."""
    from resque_ext.cost_model.model import PREDICTED, PREDICTORS
    from resque_ext.retraining import CostModel, leave_one_kind_out, read_runs

    if output.exists() and not output.is_file():
        found = "the directory" if output.is_dir() else "no regular file at"
        raise ArgumentError("output", "a file", f"{found} {output}")
    runs = list(read_runs(study))
    how = (tuple(predictor or PREDICTORS), tuple(measure or PREDICTED), method, coverage)
    which: dict[str, Any] = {
        "missing": "skip" if skip_missing else "error",
        "only": _read(only) if only else None,
        "mixed": mixed,
    }
    model = CostModel.fit(runs, *how, **which)
    transfer = leave_one_kind_out(runs, *how, **which) if len(model.kinds) > 1 else {}
    model.save(output)
    if as_json:
        print_json(
            {
                "model": str(output),
                "runs": len(model.runs),
                "censored": sum(run.censored for run in model.runs),
                "kinds": list(model.kinds),
                "ranges": model.ranges,
                "unknown": model.unknown,
                "left_out": {name: found.to_dict() for name, found in transfer.items()},
            }
        )
        return
    _print(output, model, transfer)


def _read(texts: list[str]) -> dict[str, str]:
    values: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name or name in values:
            raise ArgumentError("only", "NAME=VALUE, each name once", f"{text!r}")
        values[name] = value
    return values


def _print(output: Path, model: CostModel, transfer: dict[str, Any]) -> None:
    console = make_console()
    table = make_table(
        "Each kind of shift predicted from all others",
        "measure",
        "rank correlation",
        "concordance",
        "mean error",
        "inside the interval",
    )
    for name, found in transfer.items():
        overall = found.overall
        table.add_row(
            name,
            _number(overall.rank_correlation, ".2f"),
            _number(overall.concordance, ".2f"),
            f"{_number(overall.mean_absolute_error, '.3g')} {found.unit}".rstrip(),
            _inside(overall),
        )
    if transfer:
        console.print(table)
        if any(found.overall.unbounded for found in transfer.values()):
            console.print("open: an interval without an upper end, which says little.")
    censored = sum(run.censored for run in model.runs)
    console.print(
        f"{escape(str(output))}: {model.method} in {escape(', '.join(model.predictors))}, of "
        f"{len(model.runs)} runs of {len(model.kinds)} kinds of shift; {censored} did not reach "
        "their target and count as lower bounds."
    )
    for name, (low, high) in model.ranges.items():
        console.print(f"{escape(name)}: {low:.4g} to {high:.4g}")
    for name, reason in model.unknown.items():
        console.print(f"{name}: unknown: {escape(reason)}")


def _inside(overall: Any) -> str:
    """Of runs whose place is known. An interval without an upper end contains nearly every cost."""
    if overall.unbounded == overall.runs:
        return "all open"
    inside = f"{overall.covered} of {overall.covered + overall.missed}"
    return f"{inside}, {overall.unbounded} open" if overall.unbounded else inside


def _number(value: float | None, form: str) -> str:
    return "unknown" if value is None else format(value, form)

"""`resque-ext demo`: the indices on real images, from training to table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from resque_ext.cli.app import app
from resque_ext.cli.output import (
    Json,
    escape,
    make_console,
    make_table,
    print_json,
    progress_bar,
    show_angle,
    show_with_error,
)

MAY_NEVER = "may never reach the target"  # as in resque_ext.forecasting, which takes seconds

if TYPE_CHECKING:
    from rich.console import Console


@app.command("demo", short_help="Score, forecast and retrain on real digits, in a minute.")
def _demo(
    as_json: Json = False,
    seed: Annotated[int, typer.Option(help="Of the split, training and shifts.")] = 0,
) -> None:
    """Train a classifier of real digits, score shifts of its images, forecast and retrain."""
    from resque_ext.tools import demo

    with progress_bar() as progress:
        result = demo.run(seed, progress)
    if as_json:
        print_json(result)
        return
    console = make_console()
    images, accuracy = result["images"], result["accuracy"]
    table = make_table(
        f"Shifts: {images['old']} images of training, {images['new']} others shifted",
        "shift",
        "level",
        "RESQUE_dist",
        "re-estimated",
        "PreIndex",
        "ARM",
        "accuracy drop",
    )
    units = {}
    for row in result["rows"]:
        first = row["kind"] not in units
        if first:
            table.add_section()
            units[row["kind"]] = row["unit"]
        again = row["reestimated"]
        table.add_row(
            row["kind"] if first else "",
            f"{row['level']:g}",
            show_with_error(row["value"], row["std_error"]),
            show_with_error(again["value"], again["std_error"]),
            show_angle(row["preindex"]["value"]),
            show_angle(row["arm"]["value"]),
            f"{100 * row['accuracy_drop']:.1f} %",
        )
    console.print(table)
    floor = show_angle(result["rows"][0]["noise_floor"])
    console.print(
        "RESQUE_dist: the mean angle between old and new class means inside the model, in units of "
        f"pi, ± its standard error. 0: no change; at or below the noise floor of {floor}: nothing "
        "detected.\n"
        "re-estimated: the same with batch-norm statistics taken from the new images first, "
        "without any training. What is left is what retraining would have to pay for.\n"
        "PreIndex: how far the layers' histograms move, plus 1 - ARI of the embeddings' clusters. "
        "ARM: the Wasserstein distance of the layers' activations, in their own unit.\n"
    )
    table = make_table(
        "New tasks for the same model: RESQUE_task, 1 - ARI of classes and clusters",
        "task",
        "classes",
        "RESQUE_task",
        "linear-probe error",
        "class-mean error",
    )
    for row in result["tasks"]:
        table.add_row(
            row["task"],
            str(row["classes"]),
            show_with_error(row["value"], row["std_error"]),
            f"{row['linear_probe_error']:.1%}",
            f"{row['nearest_class_mean_error']:.1%}",
        )
    console.print(table)
    console.print(
        "RESQUE_task: 0 where the embeddings' clusters are the task's classes, about 1 where they "
        "have nothing to do with them. Errors: of simple classifiers of the embeddings, on images "
        "left out in turn."
    )
    _print_retraining(console, result["retraining"])
    del units["none"]
    seconds = result["seconds"]["total"]
    console.print(
        f"\nOld side: the images that the model was trained on (accuracy {accuracy['old']:.1%}). "
        f"New side: held-out images (accuracy {accuracy['held_out']:.1%} without a shift), which "
        "it has never seen, shifted; so the sides are not paired. PreIndex and ARM compare the "
        "held-out images with themselves, before and after. Accuracy drop: old minus new. On "
        "grey images impulse and salt_and_pepper are one law, drawn twice.\n"
        f"Levels: {'; '.join(f'{kind}: {unit}' for kind, unit in units.items())}.\n"
        f"Read at layer {escape(result['layer'])}; seed {seed}; {seconds:.1f} s.",
        style="dim",
    )


def _print_retraining(console: Console, retraining: dict[str, Any]) -> None:
    most, target = retraining["max_epochs"], retraining["target_accuracy"]
    table = make_table(
        f"\nRetraining until {target:.0%} of the held-out images, shifted, are right, in epochs",
        "shift",
        "level",
        "before",
        "forecast",
        f"{retraining['coverage']:.0%} interval",
        "measured",
        "stage, verdict",
    )
    seen = None
    for row in retraining["rows"]:
        first = row["kind"] != seen
        if first:
            table.add_section()
            seen = row["kind"]
        table.add_row(
            row["kind"] if first else "",
            f"{row['level']:g}",
            f"{row['start_accuracy']:.1%}",
            *_show_forecast(row),
            f"more than {row['epochs']:g}" if row["censored"] else f"{row['epochs']:.2f}",
            "may never reach it" if row["verdict"] == MAY_NEVER else row["verdict"] or row["stage"],
        )
    console.print(table)
    names = {
        "forecast": "forecast epochs",
        "resque_dist_reestimated": "RESQUE_dist, re-estimated",
        "resque_dist": "RESQUE_dist",
        "accuracy_drop": "accuracy drop",
        "accuracy_drop_reestimated": "accuracy drop, re-estimated",
    }
    table = make_table(
        "Rank correlation with the measured epochs",
        "across kinds of shift",
        "Spearman",
        "95% interval",
    )
    for name, found in retraining["rank_correlations"].items():
        known = found["value"] is not None
        interval = "none" if found["low"] is None else f"{found['low']:.2f} to {found['high']:.2f}"
        table.add_row(names[name], f"{found['value']:.2f}" if known else "none", interval)
    console.print(table)
    console.print(
        "Before: the accuracy before any training. Forecast: epochs, from forward passes and the "
        "first steps of the retraining, without any earlier run. Free: the target is met already; "
        "adapt: it is by re-estimated batch-norm statistics; reached: within these steps. "
        "Measured: epochs of the retraining, which went on from there; "
        f"{retraining['censored']} of {len(retraining['rows'])} runs did not reach the target in "
        f"{most:g}. What they cost is not known: in the rank correlations they are tied above all "
        "others."
    )


def _show_forecast(row: dict[str, Any]) -> tuple[str, str]:
    """The value, and its interval."""
    if row["forecast"] is None:
        return "unknown", "none"
    if row["low"] == row["high"]:
        return f"{row['forecast']:.2f}", ""
    end = "or more" if row["high"] is None else f"to {row['high']:.2f}"
    return f"{row['forecast']:.2f}", f"{row['low']:.2f} {end}"

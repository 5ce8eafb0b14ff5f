"""The command line `resque-ext`: tables for people, `--json` for machines.

Exit status: 0; 1 when something does not work (a problem found by doctor, a closed pipe); 2 for bad
input, with one line on stderr; 130 for Ctrl-C. With `--json` stdout is one JSON object and nothing
else, without NaN. Progress and messages go to stderr.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from resque_ext import BackendError, __version__, bench, demo, doctor, resque_dist
from resque_ext.files import load_arrays

USER_ERRORS = (ValueError, TypeError, IndexError, KeyError, OSError, BackendError)
# typer's own usage errors; their base class lives in click or, for newer typers, inside typer.
UsageError = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
PLAIN_WIDTH = 100  # of tables that no terminal shows

app = typer.Typer(
    help="What reusing a trained model on new data will cost, before any retraining.",
    add_completion=False,
    pretty_exceptions_enable=False,  # a traceback of a bug is Python's own, without locals
)
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]


class Policy(str, Enum):
    """What to do with classes or rows that cannot be used."""

    error = "error"
    skip = "skip"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line (by default that of the process) and returns its exit status."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    traceback = "--traceback" in arguments
    with contextlib.suppress(AttributeError):  # a stream put in its place may lack it
        sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    try:
        status = app(arguments or ["--help"], prog_name="resque-ext", standalone_mode=False)
        sys.stdout.flush()  # a closed pipe shows here, not when the interpreter ends
        return status if isinstance(status, int) else 0
    except UsageError as error:
        return _refuse(error.format_message() + _hint(error))
    except (KeyboardInterrupt, typer.Abort):
        print(file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read the output has left, which is no mistake: nothing more to say, or to flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except USER_ERRORS as error:
        if traceback:
            raise
        return _refuse(str(error.args[0]) if isinstance(error, KeyError) else str(error))


def _refuse(message: str) -> int:
    print(f"resque-ext: error: {' '.join(message.split())}", file=sys.stderr)
    return 2


def _hint(error: Any) -> str:
    context = getattr(error, "ctx", None)
    return f" (see {context.command_path} --help)" if context is not None else ""


def _version(wanted: bool) -> None:
    if wanted:
        print(f"resque-ext {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    traceback: Annotated[
        bool, typer.Option("--traceback", help="Show where an error came from.")
    ] = False,
) -> None:
    pass


@app.command("demo")
def _demo(
    as_json: Json = False,
    seed: Annotated[int, typer.Option(help="Of the split, training and shifts.")] = 0,
) -> None:
    """Train a small classifier of real digits and score shifts of its images, in under a minute."""
    with _progress() as progress:
        result = demo.run(seed, progress)
    if as_json:
        _print_json(result)
        return
    console = _console()
    images, accuracy = result["images"], result["accuracy"]
    table = _table(
        f"RESQUE_dist: {images['old']} images of training against {images['new']} shifted ones",
        "shift",
        "level",
        "index",
        "re-estimated",
        "noise floor",
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
            _plus_minus(row["value"], row["std_error"]),
            _plus_minus(again["value"], again["std_error"]),
            _angle(row["noise_floor"]),
            f"{100 * row['accuracy_drop']:.1f} %",
        )
    console.print(table)
    console.print(
        "index: the mean angle between old and new class means inside the model, in units of pi, "
        "± its standard error. 0: no change; at or below the noise floor: nothing detected.\n"
        "re-estimated: the same with batch-norm statistics taken from the new images first, "
        "without any training. What is left is what retraining would have to pay for."
    )
    del units["none"]
    seconds = result["seconds"]["total"]
    console.print(
        f"\nOld side: the images that the model was trained on (accuracy {accuracy['old']:.1%}). "
        f"New side: held-out images (accuracy {accuracy['held_out']:.1%} without a shift), which "
        "it has never seen, shifted; so the sides are not paired. Accuracy drop: old minus new. On "
        "grey images impulse and salt_and_pepper are one law, drawn twice.\n"
        f"Levels: {'; '.join(f'{kind}: {unit}' for kind, unit in units.items())}.\n"
        f"Read at layer {escape(result['layer'])}; seed {seed}; {seconds:.1f} s.",
        style="dim",
    )


@app.command("dist")
def _dist(
    old: Annotated[Path, typer.Argument(help="Old side: .npz or .safetensors.")],
    new: Annotated[Path, typer.Argument(help="New side, likewise.")],
    num_classes: Annotated[
        int | None, typer.Option(help="Number of classes; by default those that appear.")
    ] = None,
    missing: Annotated[Policy, typer.Option(help="Classes without an angle.")] = Policy.error,
    nonfinite: Annotated[Policy, typer.Option(help="Rows with NaN or infinity.")] = Policy.error,
    paired: Annotated[
        bool, typer.Option("--paired", help="Row i of NEW is row i of OLD after the shift.")
    ] = False,
    per_class: Annotated[bool, typer.Option("--per-class", help="List every class.")] = False,
    as_json: Json = False,
) -> None:
    """RESQUE_dist of two files, each with the arrays `features` [N, D] and `labels` [N]."""
    (x, y), (x_new, y_new) = load_arrays(old), load_arrays(new)
    result = resque_dist(
        x,
        x_new,
        y,
        y_new,
        num_classes,
        missing=missing.value,
        nonfinite=nonfinite.value,
        paired=paired,
    )
    if as_json:
        sides = {"index": "resque_dist", "old": str(old), "new": str(new), "paired": paired}
        _print_json(sides | result.to_dict())
        return
    console = _console()
    table = _table("RESQUE_dist, in units of pi", "", "value")
    table.add_row("index", _angle(result.value))
    table.add_row("standard error", _angle(result.std_error))
    table.add_row("noise floor", _angle(result.noise_floor))
    for side, counts in result.counts.items():
        skipped = result.nonfinite_rows[side]
        left_out = f" ({skipped} non-finite left out)" if skipped else ""
        table.add_row(f"{side} rows", f"{counts.sum()}{left_out}")
    table.add_row("classes", f"{len(result.per_class) - len(result.missing)}")
    if result.missing:
        table.add_row("classes left out", ", ".join(map(str, result.missing)))
    console.print(table)
    if per_class:
        table = _table("By class", "class", "angle / pi", "old rows", "new rows")
        for c, angle in enumerate(result.per_class):
            counts = (str(result.counts[side][c]) for side in ("old", "new"))
            table.add_row(str(c), "left out" if math.isnan(angle) else _angle(angle), *counts)
        console.print(table)
    if result.noise_floor is None:
        console.print("A class has too few rows for a standard error and a noise floor.")
    elif result.value <= result.noise_floor:
        console.print("Not above the noise floor: no shift detected at these sample sizes.")


@app.command("doctor")
def _doctor(as_json: Json = False) -> None:
    """What works on this machine, what is missing, and how to get it."""
    result = doctor.examine()
    if as_json:
        _print_json(result)
    else:
        _print_doctor(_console(), result)
    if result["problems"]:
        raise typer.Exit(1)


def _print_doctor(console: Console, result: dict[str, Any]) -> None:
    build = result["build"]
    cuda = build.get("cuda")
    table = _table("resque-ext doctor", "", "found")
    table.columns[1].justify = "left"
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    table.add_row("versions", escape(versions))
    table.add_row("platform", escape(result["platform"]))
    if build["missing"]:
        table.add_row("extension", "[red]none[/]")
    else:
        built = f"{build['compiler']}, {build['instruction_set']} on this CPU"
        table.add_row("extension", escape(f"{build['extension']} (compiler {built})"))
        kernels = (
            f"CUDA {cuda['toolkit']} for {', '.join(cuda['architectures'])}" if cuda else "none"
        )
        table.add_row("CUDA kernels", escape(kernels))
    table.add_row("CUDA of torch", result["torch_cuda"] or "none")
    for device in result["devices"]:
        more = f", {device['capability']}" if "capability" in device else ""
        threads = f", {device['threads']} threads" if "threads" in device else ""
        about = f"{device['name']}{more}{threads}; kernels: {device['kernels']}"
        table.add_row(device["device"], escape(about))
    for extra, found in result["extras"].items():
        listed = ", ".join(f"{name} {version or '(none)'}" for name, version in found.items())
        table.add_row(f"extra {extra}", escape(listed))
    console.print(table)
    for title, key, style in (("Problems", "problems", "red"), ("Not here", "missing", "")):
        if result[key]:
            console.print(f"{title}:", style=style or None)
        for entry in result[key]:
            console.print(f"  {escape(entry['what'])}\n    {escape(entry['how'])}", soft_wrap=True)
    if not result["problems"]:
        console.print("No problems.", style="green")


@app.command("bench")
def _bench(
    as_json: Json = False,
    seconds: Annotated[float, typer.Option(help="Time for everything together.")] = 40.0,
    rows: Annotated[int | None, typer.Option(help="Rows; by default by free memory.")] = None,
) -> None:
    """Time the kernels against plain PyTorch, on random data that is checked first."""
    with _progress() as progress:
        result = bench.run(seconds, rows, progress)
    if as_json:
        _print_json(result)
        return
    console = _console()
    for case in dict.fromkeys((row["device"], row["dtype"], row["rows"]) for row in result["rows"]):
        device, dtype, n = case
        names = {d["device"]: escape(d["name"]) for d in result["environment"]["devices"]}
        table = _table(
            f"{names[device]}: {dtype} [{n}, {result['width']}], {result['classes']} classes",
            "form",
            "computes",
            "median",
            "GB/s",
            "ratio",
            "error",
            "calls",
        )
        for row in result["rows"]:
            if (row["device"], row["dtype"], row["rows"]) != case:
                continue
            if row["skipped"]:
                table.add_row(row["form"], row["computes"], "not run")
                console.print(f"{row['form']} did not run: {escape(row['skipped'])}")
                continue
            table.add_row(
                row["form"],
                row["computes"],
                _time(row["seconds"]),
                f"{row['gb_per_s']:.3g}",
                "" if row["ratio"] is None else f"{row['ratio']:.2f}",
                f"{row['error']:.0e}",
                str(row["calls"]),
            )
        console.print(table)
    console.print(
        "moments: count, sum and sum of squares of every class; sums: the sums alone; total: one "
        "sum of everything, the time to read the memory once. ratio: time over class_moments' own, "
        "above 1 is slower. error: the largest, against float64, over the sum of absolute values."
    )
    console.print(f"{result['seconds']:.1f} s.")


def _console() -> Console:
    # rich takes 80 columns where no terminal is; COLUMNS, where it is set, still decides.
    width = None if sys.stdout.isatty() or os.environ.get("COLUMNS") else PLAIN_WIDTH
    return Console(width=width, highlight=False)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", header_style="bold")
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", overflow="fold")
    return table


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str, float], None]]:
    """A bar on stderr while the block runs; nothing where stderr is no terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda what, share: bar.update(task, description=escape(what), completed=share)


def _print_json(result: dict[str, Any]) -> None:
    print(json.dumps(_strict(result), allow_nan=False))


def _strict(value: Any) -> Any:
    """The value with null for NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _strict(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _angle(value: float | None) -> str:
    """Four decimals, or three digits where that is more: small angles are resolved."""
    if value is None:
        return "unknown"
    return f"{value:.4f}" if value == 0 or value >= 0.001 else f"{value:.3g}"


def _plus_minus(value: float, error: float | None) -> str:
    if error is None:
        return _angle(value)
    return f"{_angle(value)} ± {error:.4f}" if error >= 0.0001 else f"{_angle(value)} ± {error:.1g}"


def _time(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"

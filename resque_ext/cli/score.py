"""`resque-ext score`: indices of a model and two sides of labelled inputs."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from resque_ext.cli.app import app
from resque_ext.cli.output import (
    Json,
    escape,
    make_console,
    make_table,
    print_json,
    print_warnings,
    show_angle,
)
from resque_ext.errors import ArgumentError

# typer evaluates annotations from their text, so what is put together stands here. Names of the
# package are written out: to import them takes seconds (the tests compare them).
INDEX_HELP = (
    "resque_dist, resque_task, preindex, arm, linear_residual, representation_distance, "
    "accuracy_drop, linear_probe, nearest_class_mean, or one that an installed package adds; may "
    "be repeated. Default: resque_dist."
)
TRANSFORM_HELP = (
    'In turn: resize, center_crop, grayscale, normalize, as NAME={"size": 224}; repeatable.'
)


ADAPT_HELP = (
    "Without a value: re-estimate batch-norm on NEW first. match: also match to OLD what other "
    "normalization layers read."
)


class Adaptation(str, Enum):
    """What is done to the normalization of the model on the new side."""

    reestimate = "reestimate"
    match = "match"


class _Score(TyperCommand):
    """Takes --adapt-normalization alone for `reestimate`; `match` may follow it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        option, values = "--adapt-normalization", [each.value for each in Adaptation]
        for i, word in enumerate(args):
            if word == option and args[i + 1 : i + 2] not in [[value] for value in values]:
                args[i] = f"{option}={values[0]}"
        return super().parse_args(ctx, args)


@app.command("score", cls=_Score, short_help="Indices of a model on old and new data.")
def _score(
    model: Annotated[str, typer.Argument(help="module:callable that returns the model.")],
    old: Annotated[
        Path | None,
        typer.Option(
            help="Old side: .npz or .safetensors with `inputs` and `labels`, or a folder "
            "with one subfolder of images a class."
        ),
    ] = None,
    new: Annotated[Path | None, typer.Option(help="New side, likewise.")] = None,
    weights: Annotated[Path | None, typer.Option(help="state_dict, .safetensors or .pt.")] = None,
    index: Annotated[
        list[str] | None,
        typer.Option(help=INDEX_HELP),
    ] = None,
    shift: Annotated[
        str | None,
        typer.Option(
            help="Makes the new side of the old: KIND=LEVEL, gaussian=0.2; or KIND, fog, with "
            "--severity."
        ),
    ] = None,
    severity: Annotated[
        int | None, typer.Option(help="Of a corruption of ImageNet-C, 1 to 5, instead of a level.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the shift.")] = 0,
    paired: Annotated[
        bool, typer.Option("--paired", help="NEW holds OLD's samples in order, shifted.")
    ] = False,
    adapt_normalization: Annotated[Adaptation | None, typer.Option(help=ADAPT_HELP)] = None,
    layer: Annotated[str | None, typer.Option(help="The embedding's layer.")] = None,
    layers: Annotated[
        list[str] | None,
        typer.Option(help="Layers that preindex and arm read: auto, published, names."),
    ] = None,
    transform: Annotated[
        list[str] | None,
        typer.Option(help=TRANSFORM_HELP),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Samples of a batch.")] = 64,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    per_layer: Annotated[bool, typer.Option("--per-layer", help="List every layer.")] = False,
    as_json: Json = False,
) -> None:
    """Indices of a model on old and new data: labelled arrays or folders of images."""
    from resque_ext import score
    from resque_ext.data.labelled import open_batches
    from resque_ext.data.transforms import Normalize, make_transform
    from resque_ext.indices.registry import check_names, find
    from resque_ext.model.load_model import load_model
    from resque_ext.shifts import shifted_before

    names = tuple(index or ("resque_dist",))
    transforms = [make_transform(text) for text in transform or ()]
    if any(isinstance(t, Normalize) for t in transforms[:-1]):
        raise ArgumentError("transform", "normalize as the last one", "it before others")
    kinds = [find(name) for name in check_names(names)]
    if per_layer and not any(kind.reads.layers for kind in kinds):
        raise ArgumentError(
            "per-layer",
            "preindex, representation_distance or arm among the indices",
            ", ".join(names),
        )
    if severity is not None and shift is None:
        raise ArgumentError("severity", "a kind, --shift fog", "none")
    if new is None and shift is None:
        raise ArgumentError("new", "--new or --shift", "neither")
    shifting = None if shift is None else shifted_before(_shift(shift, seed, severity), transforms)
    loaded = load_model(model, weights)
    olds = open_batches(old, transforms, batch_size) if old is not None else None
    compares = any("old" in kind.reads.sides for kind in kinds)
    like = olds if compares else None
    news = open_batches(new, transforms, batch_size, like) if new is not None else None
    results = score(
        loaded,
        olds,
        news,
        names,
        layer,
        layers[0] if layers in (["auto"], ["published"]) else layers or "auto",
        paired,
        shifting,
        "match" if adapt_normalization is Adaptation.match else bool(adapt_normalization),
        device=device,
        progress=sys.stderr.isatty(),
        mapping=True,
    )
    if as_json:
        _print_as_json(model, results)
        return
    console = make_console()
    heads = ("index", "value", "± se", "noise floor", "reliable")
    table = make_table(f"{escape(model)}: old against new", *heads)
    for name, result in results.items():
        known = (show_angle(x) for x in (result.value, result.std_error, result.noise_floor))
        table.add_row(name, *known, "yes" if result.reliable else "no")
    console.print(table)
    for name, result in results.items():
        print_warnings(console, name, result)
    _print_facts(console, results)
    if per_layer:
        _print_layers(console, results)


def _shift(text: str, seed: int, severity: int | None) -> Any:
    from resque_ext import shifts

    if severity is not None:
        return shifts.make(text, seed=seed, severity=severity)
    kind, _, level = text.partition("=")
    try:
        number = float(level)
    except ValueError:
        raise ArgumentError("shift", "KIND=LEVEL", f"{text!r}") from None
    return shifts.make(kind, number, seed)


def _print_as_json(model: str, results: Mapping[str, Any]) -> None:
    print_json({"model": model, "indices": {k: r.to_dict() for k, r in results.items()}})


def _print_facts(console: Any, results: Mapping[str, Any]) -> None:
    for side in ("old", "new"):
        known = (getattr(r, f"{side}_accuracy", None) for r in results.values())
        accuracy = next((each for each in known if each is not None), None)
        if accuracy is not None:
            console.print(f"accuracy on the {side} side: {accuracy:.1%}")
    layer = next((r.layer for r in results.values() if getattr(r, "layer", None)), None)
    if layer is not None:
        console.print(f"embedding read at {escape(layer)}")
    skipped = next((r.skipped for r in results.values() if getattr(r, "skipped", None)), {})
    for name, reason in skipped.items():
        console.print(f"not read: {escape(name)}: {escape(reason)}")


def _print_layers(console: Any, results: Mapping[str, Any]) -> None:
    tables = {k: r.layer_values for k, r in results.items() if r.layer_values}
    table = make_table("By layer", "layer", *tables)
    names = dict.fromkeys(name for values in tables.values() for name in values)
    for name in names:
        shown = (values.get(name) for values in tables.values())
        table.add_row(escape(name), *("" if v is None else show_angle(v) for v in shown))
    if names:
        console.print(table)

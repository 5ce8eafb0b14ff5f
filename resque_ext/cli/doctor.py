"""`resque-ext doctor`: what works on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from resque_ext.cli.app import app
from resque_ext.cli.output import (
    Json,
    escape,
    make_console,
    make_table,
    print_json,
)

if TYPE_CHECKING:
    from rich.console import Console


@app.command("doctor")
def _doctor(as_json: Json = False) -> None:
    """What works on this machine, what is missing, and how to get it."""
    from resque_ext.tools import doctor

    result = doctor.examine()
    if as_json:
        print_json(result)
    else:
        _print_doctor(make_console(), result)
    if result["problems"]:
        raise typer.Exit(1)


def _print_doctor(console: Console, result: dict[str, Any]) -> None:
    build = result["build"]
    cuda = build.get("cuda")
    table = make_table("resque-ext doctor", "", "found")
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

"""What stands at the end of every `--help`: commands that can be typed as they are."""

from __future__ import annotations

import typer

EXAMPLES = {
    "demo": ("resque-ext demo", "resque-ext demo --seed 1 --json > demo.json"),
    "score": (
        "resque-ext score mine:make_model --old A.npz --new B.npz",
        "resque-ext score mine:make_model --weights w.safetensors --old photos/ --shift fog "
        "--severity 3 --index arm --per-layer",
    ),
    "dist": (
        "resque-ext dist old.npz new.safetensors",
        "resque-ext dist old.npz new.npz --paired --per-class",
    ),
    "task": (
        "resque-ext task embeddings.npz",
        "resque-ext task x.npy --labels y.npy --start held-out",
    ),
    "screen": (
        "resque-ext screen screen.toml --dry-run",
        "resque-ext screen screen.toml --store screen.sqlite",
    ),
    "report": (
        "resque-ext report screen.sqlite -o report.html",
        "resque-ext report screen.sqlite --csv > pairs.csv",
    ),
    "study": (
        "resque-ext study mine:make_model --old A.npz --train B.npz --test C.npz --target 0.9 "
        "--shift gaussian=0.1,0.3 --shift contrast=0.5 -o s.jsonl",
    ),
    "fit": (
        "resque-ext fit study.jsonl -o model.json",
        "resque-ext fit study.jsonl -o model.json --only model=vit --coverage 0.8",
    ),
    "forecast": (
        "resque-ext forecast mine:make_model --train B.npz --test C.npz --target 0.9",
        "resque-ext forecast mine:make_model --weights w.safetensors --old A.npz --train B.npz "
        "--test C.npz --target 0.9 --json",
    ),
    "predict": (
        "resque-ext predict model.json resque_dist_reestimated=0.12",
        "resque-ext predict model.json resque_dist_reestimated=0.12 --kind gaussian",
    ),
    "energy": ("resque-ext energy -- python train.py", "resque-ext energy --json -- make"),
    "doctor": ("resque-ext doctor", "resque-ext doctor --json"),
    "bench": ("resque-ext bench", "resque-ext bench --seconds 10"),
}


def add_examples(app: typer.Typer) -> None:
    """Puts them below the help of each of the commands."""
    for command in app.registered_commands:
        lines = EXAMPLES.get(command.name or "", ())
        # \b: not to be wrapped as prose is; a long command is broken as a shell reads it.
        shown = "".join(f"  {_broken(line)}\n" for line in lines)
        command.epilog = f"\b\nExamples:\n{shown}" if lines else None


def _broken(line: str, width: int = 72) -> str:
    rows = [""]
    for word in line.split(" "):
        if rows[-1] and len(rows[-1]) + len(word) > width:
            rows.append("")
        rows[-1] += f" {word}" if rows[-1] else word
    return " \\\n      ".join(rows)

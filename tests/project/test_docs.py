"""Every Python example of the README and of docs/ runs; every link between them leads somewhere."""

import re
from pathlib import Path

import pytest
import torch
from helpers import optional

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]
# What a page's examples need besides the package itself.
NEEDS = {
    "callbacks.md": ["lightning"],
    "distributed.md": ["ray"],
    "pictures.md": ["matplotlib"],
    "sources.md": ["pyarrow", "torchvision"],
}
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page):
    text = page.read_text(encoding="utf-8")
    return [(text.count("\n", 0, m.start()) + 2, m.group(1)) for m in BLOCK.finditer(text)]


# Slow; and the blocks of the first run one by one too: see test_docs_distributed.py.
SLOW = ("distributed.md", "callbacks.md")


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(p, marks=[pytest.mark.full] * (p.parent.name == "docs" and p.name in SLOW))
        for p in PAGES[1:]
    ],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_examples_run(page, tmp_path, monkeypatch, capsys):
    """One after the other in one namespace, as a reader would, in an empty folder."""
    for name in NEEDS.get(page.name if page.parent.name == "docs" else "", ()):
        optional.module(name)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names = {"__name__": "example"}
    for line, code in blocks(page):
        source = "\n" * (line - 1) + code  # so that an error gives the page's own line
        exec(compile(source, str(page), "exec"), names)


@pytest.mark.full
def test_the_readme_shows_what_its_example_prints(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    text = README.read_text(encoding="utf-8")
    ((_, code),) = blocks(README)
    exec(compile(code, "README.md", "exec"), {})
    assert re.findall(r"^```text\n(.*?)^```$", text, re.M | re.S) == [capsys.readouterr().out]


def test_the_readme_fits_a_screen():
    lines = README.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 160
    assert [line for line in lines if line.startswith("|") and len(line) > 100] == []
    assert len(blocks(ROOT / "docs" / "usage.md")) >= 7


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        if path.startswith(("http:", "https:")):
            continue
        file = (page.parent / path) if path else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            titles = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in titles}
            assert anchor in slugs, f"{page.name}: {target}"

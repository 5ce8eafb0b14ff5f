"""The site: built without a warning, it needs no network and has every public name."""

import importlib
import inspect
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from helpers import optional

ROOT = Path(__file__).parents[2]
REFERENCE = sorted((ROOT / "docs" / "api").glob("*.md"))
MODULES = [page.stem for page in REFERENCE if page.stem != "README"]
# A role, or a call in backticks; plain backticks may name formats, as those of files.
NAMES = re.compile(r":\w+:`~?(resque_ext\.[\w.]+)`|(?<=`)resque_ext\.[\w.]+(?=\()")


def module_of(stem):
    return importlib.import_module("resque_ext" if stem == "resque_ext" else f"resque_ext.{stem}")


def public(module):
    """What is neither private nor a module, nor (without `__all__`) from elsewhere."""
    names = getattr(module, "__all__", None) or [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]
    found = {n: getattr(module, n) for n in names if not n.startswith("__")}
    return {n: value for n, value in found.items() if not inspect.ismodule(value)}


def exists(path):
    """Whether a dotted name of the package leads to something."""
    found = importlib.import_module("resque_ext")
    for part in path.split(".")[1:]:
        if not hasattr(found, part) and inspect.ismodule(found):
            try:
                importlib.import_module(f"{found.__name__}.{part}")
            except ModuleNotFoundError:
                return False
        if not hasattr(found, part):
            return False
        found = getattr(found, part)
    return True


def docstrings(module):
    yield module.__name__, module.__doc__
    for name, value in public(module).items():
        if not callable(value):
            continue
        yield f"{module.__name__}.{name}", value.__doc__
        for member, function in vars(value).items() if inspect.isclass(value) else ():
            function = getattr(function, "__func__", function)
            if inspect.isfunction(function) and not member.startswith("_"):
                yield f"{module.__name__}.{name}.{member}", inspect.getdoc(getattr(value, member))


@pytest.mark.parametrize("stem", MODULES)
def test_every_public_name_says_what_it_is(stem):
    module = module_of(stem)
    assert f"::: {module.__name__}\n" in (ROOT / "docs" / "api" / f"{stem}.md").read_text()
    missing = [name for name, text in docstrings(module) if not text]
    assert missing == []


@pytest.mark.parametrize("stem", MODULES)
def test_docstrings_name_what_exists(stem):
    text = "\n".join(text or "" for _, text in docstrings(module_of(stem)))
    named = [found.group(1) or found.group() for found in NAMES.finditer(text)]
    assert [name for name in named if not exists(name)] == []


def test_a_name_that_does_not_exist_is_found():
    found = NAMES.search("see :class:`resque_ext.CostModel`").group(1)
    assert not exists(found)
    assert exists("resque_ext.retraining.CostModel")


def test_every_page_is_in_the_navigation():
    docs = ROOT / "docs"
    text = (docs / "site" / "mkdocs.yml").read_text(encoding="utf-8")
    named = set(re.findall(r"[\w/]+\.md$", text[text.index("\nnav:") :], re.MULTILINE))
    assert named == {str(page.relative_to(docs)) for page in docs.rglob("*.md")}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    optional.module("mkdocstrings")
    optional.module("material")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet"]
    done = subprocess.run(
        [*command, "-f", str(ROOT / "docs" / "site" / "mkdocs.yml"), "-d", str(folder)],
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


class Page(HTMLParser):
    """The identifiers of a page, its links, and what a browser would load with it."""

    def __init__(self, file):
        super().__init__()
        self.ids, self.links, self.loaded = set(), set(), set()
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.ids |= {given[key] for key in ("id", "name") if given.get(key)}
        if tag == "a" and given.get("href"):
            self.links.add(given["href"])
        if tag in ("script", "img", "iframe") and given.get("src"):
            self.loaded.add(given["src"])
        if tag == "link" and given.get("rel") in ("stylesheet", "preconnect", "icon"):
            self.loaded.add(given["href"])


@pytest.mark.full
def test_the_site_loads_nothing_from_a_network(site):
    pages = {file: Page(file) for file in site.rglob("*.html") if file.name != "404.html"}
    assert len(pages) >= 30
    for file, page in pages.items():
        away = [each for each in page.loaded if re.match(r"(https?:)?//", each)]
        assert away == [], file
        assert [each for each in page.loaded if not (file.parent / each).exists()] == [], file
    for style in site.rglob("*.css"):
        assert "url(http" not in style.read_text(encoding="utf-8"), style
    assert (site / "search" / "search_index.js").exists()  # so that a page of a disk can search


@pytest.mark.full
def test_every_link_of_the_site_leads_somewhere(site):
    pages = {file: Page(file) for file in site.rglob("*.html") if file.name != "404.html"}
    for file, page in pages.items():
        for link in page.links:
            path, _, anchor = link.partition("#")
            if re.match(r"(https?|mailto):", path):
                continue
            target = (file.parent / path).resolve() if path else file
            assert target.exists(), f"{file}: {link}"
            if anchor and target.suffix == ".html" and not anchor.startswith("__"):
                assert anchor in pages[target].ids, f"{file}: {link}"


@pytest.mark.full
@pytest.mark.parametrize("stem", MODULES)
def test_the_reference_has_every_public_name(site, stem):
    module = module_of(stem)
    ids = Page(site / "api" / f"{stem}.html").ids
    missing = [name for name in public(module) if f"{module.__name__}.{name}" not in ids]
    assert missing == []

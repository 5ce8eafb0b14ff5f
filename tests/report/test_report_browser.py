"""The page of a report in a real browser. RESQUE_BROWSER=1: a missing browser is a failure."""

import csv
import dataclasses
import io
import json
import math
import os
import time

import pytest
from helpers.report_browser import Page, start_browser
from helpers.report_pairs import AT, HOSTILE, META, brute_force_ranks, hostile_pairs, make_pairs

from resque_ext.report.page import make_report
from resque_ext.screening.results import PairForecast, PairResult

pytestmark = pytest.mark.full

COLUMNS = ("resque_dist", "± s.e.", "Interval", "Noise floor", "epochs", "Samples", "Faults")
NONE = "\N{EN DASH}"
NUMBERS = ("value", "std_error", "interval", "noise_floor", "indices.arm", "predicted.epochs")
NUMBERS += ("samples", "seconds", "faults")
PAIRS = make_pairs(3, 50)  # 150: more than the table lays out at once


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    driver, missing = start_browser(tmp_path_factory.mktemp("profile"))
    if missing:
        if os.environ.get("RESQUE_BROWSER") == "1":
            pytest.fail(f"RESQUE_BROWSER=1, but {missing}")
        pytest.skip(missing)
    try:
        page = Page(driver, tmp_path_factory.mktemp("page"))
        page.usual = page.write(PAIRS, name="usual.html")
        yield page
    finally:
        driver.quit()


@pytest.fixture
def page(browser):
    """A report of PAIRS; nothing that a test does may make the browser complain."""
    browser.open(browser.usual)
    yield browser
    assert browser.complaints() == []


@pytest.fixture
def other(browser):
    """Opens a report of other pairs, under the same conditions."""
    yield browser
    assert browser.complaints() == []


def key(pair):
    return pair.model, pair.candidate


def number_of(pair, column):
    index = pair.indices.get("resque_dist")
    return {
        "value": index and index.value,
        "std_error": index and index.std_error,
        "interval": index and index.low,
        "noise_floor": index and index.noise_floor,
        "indices.arm": index and pair.indices["arm"].value,
        "predicted.epochs": pair.predicted["epochs"].value if pair.predicted else None,
        "samples": pair.new_samples,
        "seconds": pair.seconds,
        "faults": len(pair.faults),
    }[column]


# The table


def test_sort_by_numbers_both_ways(page):
    for column in NUMBERS:
        expected = {key(p): number_of(p, column) for p in PAIRS}
        unknown = sum(v is None for v in expected.values())
        for state in ("ascending", "descending"):
            page.sort_by(column)
            assert page.find(f'[data-column="{column}"]').get_attribute("aria-sort") == state
            page.all_rows()
            values = [expected[k] for k in page.shown()]
            assert len(values) == len(PAIRS)
            known = sorted((v for v in values if v is not None), reverse=state == "descending")
            assert values == known + [None] * unknown  # what is unknown comes last both ways


def test_sort_by_text(page):
    page.sort_by("candidate")
    page.all_rows()
    numbers = [int(c.removeprefix("shift=")) for _, c in page.shown()]
    assert numbers == sorted(numbers)  # 9 before 10, as people count
    page.sort_by("stopped")
    page.all_rows()
    reasons = page.column("Stopped")
    assert reasons == sorted(reasons)
    assert len(set(reasons)) == 5


def test_rows_follow_as_the_table_is_scrolled(page):
    assert len(page.shown()) == 100
    page.js("const b = document.getElementById('ranking-box'); b.scrollTop = b.scrollHeight")
    page.until("document.querySelectorAll('#ranking tbody tr').length === 150")
    assert len(set(page.shown())) == len(PAIRS)
    assert not page.find("#more").is_displayed()


@pytest.mark.parametrize("by", ["indices.resque_dist", "indices.arm", "predicted.epochs"])
def test_ranks_and_ties(page, by):
    group, name = by.split(".")
    ranks = brute_force_ranks(PAIRS, lambda p: getattr(p, group).get(name))
    shown = {}
    for pair, rank in zip(PAIRS, ranks, strict=True):
        shown[key(pair)] = NONE if rank is None else NONE.join(map(str, dict.fromkeys(rank)))
    page.set("by", by)
    page.all_rows()
    assert dict(zip(page.shown(), page.column("Rank"), strict=True)) == shown


def test_cells_say_what_the_data_say(page):
    page.all_rows()
    rows = dict(
        zip(page.shown(), zip(*map(page.column, (*COLUMNS, "Error")), strict=True), strict=True)
    )
    for pair in PAIRS:
        value, error, ends, floor, cost, samples, faults, failed = rows[key(pair)]
        index = pair.indices.get("resque_dist")
        assert failed == (pair.error or "")
        assert faults == str(len(pair.faults))
        assert samples.startswith(f"{pair.new_samples:,}")
        if index is None:
            assert (value, error, ends, floor, cost) == (NONE,) * 5
            continue
        assert value.startswith(f"{index.value:.4f}")
        assert value.endswith("≤ floor") == (index.value <= index.noise_floor)
        assert float(error) == pytest.approx(index.std_error, rel=0.01, abs=6e-5)
        assert floor == f"{index.noise_floor:.4f}"
        if index.low is None:
            assert ends == NONE
        else:
            low, high = map(float, ends.split(" to "))
            assert (low, high) == pytest.approx((index.low, index.high), rel=0.01, abs=6e-5)
        if not pair.predicted:
            assert cost == NONE
        else:
            found = pair.predicted["epochs"]
            assert ("extrap." in cost) == found.extrapolated
            assert cost.endswith("to ∞") == (found.high is None)


@pytest.mark.parametrize(
    ("filters", "passes"),
    [
        ({"model": "model1"}, lambda p: p.model == "model1"),
        ({"candidate": "shift=7"}, lambda p: p.candidate == "shift=7"),
        ({"stopped": "budget"}, lambda p: p.stopped == "budget"),
        ({"search": "SHIFT=1 model2"}, lambda p: "shift=1" in p.candidate and p.model == "model2"),
        ({"search": "shard-3.tar"}, lambda p: bool(p.faults)),
        ({"search": "truncated"}, lambda p: p.error is not None),
        ({"from": "0.05"}, lambda p: bool(p.indices) and p.indices["resque_dist"].value >= 0.05),
        (
            {"from": "0.02", "to": "0.04", "model": "model0"},
            lambda p: (
                p.model == "model0"
                and bool(p.indices)
                and 0.02 <= p.indices["resque_dist"].value <= 0.04
            ),
        ),
        ({"search": "nothing has this"}, lambda p: False),
    ],
)
def test_filters(page, filters, passes):
    for field, value in filters.items():
        page.set(field, value)
    expected = {key(p) for p in PAIRS if passes(p)}
    assert len(expected) < len(PAIRS)
    page.all_rows()
    assert set(page.shown()) == expected
    assert page.text("#count").startswith(f"{len(expected)} of 150 pairs")
    page.find("#filters [type=reset]").click()
    page.until("document.getElementById('count').textContent === '150 of 150 pairs'")


def test_the_ranking_by_keyboard(page):
    from selenium.webdriver.common.keys import Keys

    page.js("document.getElementById('save-json').focus()")
    page.press(Keys.TAB)
    assert page.js("return document.activeElement.id") == "ranking-box"  # scrolls by arrow keys
    page.press(Keys.TAB, Keys.TAB)  # Rank, Candidate
    page.press(Keys.ENTER)
    assert page.find('[data-column="candidate"]').get_attribute("aria-sort") == "ascending"
    page.press(Keys.SPACE)
    assert page.find('[data-column="candidate"]').get_attribute("aria-sort") == "descending"


# A pair


def open_first(page, search):
    page.set("search", search)
    page.find("#ranking tbody .open").click()
    page.until("document.getElementById('pair').open")


def test_details_by_mouse(page):
    page.set("search", "shift=14 model1")
    page.find("#ranking tbody tr td:nth-child(4)").click()  # anywhere on the row
    assert page.find("#pair").is_displayed()
    (pair,) = (p for p in PAIRS if key(p) == ("model1", "shift=14"))
    assert page.text("#pair-title") == "shift=14 on model1"
    facts = page.text(".facts")
    assert f"{pair.new_samples:,}" in facts
    assert "5,000" in facts
    rows = page.texts("#pair-content section:nth-of-type(1) tbody tr")
    assert [r.startswith(n) for r, n in zip(rows, pair.indices, strict=True)] == [True, True]
    assert f"{pair.indices['resque_dist'].noise_floor:.4f}" in rows[0]
    faults = page.texts("#pair-content .long tbody tr")
    assert faults == [f"{f.source}{f.member}{f.message}" for f in pair.faults]
    assert len(faults) == 11
    page.find("#pair-close").click()
    assert not page.find("#pair").is_displayed()


def test_details_by_keyboard(page):
    from selenium.webdriver.common.keys import Keys

    page.js("document.querySelectorAll('#ranking tbody .open')[2].focus()")
    page.press(Keys.ENTER)
    first, second = page.shown()[2:4]
    assert page.text("#pair-title") == f"{first[1]} on {first[0]}"
    page.press(Keys.TAB, with_shift=True)  # from Close back to Next
    page.press(Keys.ENTER)
    assert page.text("#pair-title") == f"{second[1]} on {second[0]}"
    page.press(Keys.ESCAPE)
    assert not page.find("#pair").is_displayed()
    assert page.js("return document.activeElement.className") == "open"
    assert page.js("return document.activeElement.textContent") == first[1]


def test_a_failed_pair_says_why(page):
    open_first(page, "truncated")
    assert page.text("#pair-content .error").startswith("Failed: shard-7.tar: expected a whole")


def channels(color):
    return tuple(int(float(c)) for c in color[color.index("(") + 1 : -1].split(",")[:3])


@pytest.mark.parametrize(("kind", "index"), [("classes", "resque_dist"), ("layers", "arm")])
def test_heat_of_a_pair(page, kind, index):
    open_first(page, "shift=14 model1")
    (pair,) = (p for p in PAIRS if key(p) == ("model1", "shift=14"))
    values = getattr(pair, kind)[index]
    tiles = page.js(
        "return [...document.querySelectorAll(`[data-map='${arguments[0]}'] li`)].map((t) =>"
        " [t.querySelector('bdi').textContent, t.dataset.value,"
        "  getComputedStyle(t).backgroundColor, getComputedStyle(t).color])",
        f"{kind}:{index}",
    )
    assert {name: float(value) for name, value, *_ in tiles} == values
    assert [name for name, *_ in tiles] == list(values)
    colors = {float(value): channels(color) for _, value, color, _ in tiles}
    assert colors[min(values.values())] == (68, 1, 84)  # the ends of viridis
    assert colors[max(values.values())] == (253, 231, 37)
    bright = [sum(colors[v]) for v in sorted(colors)]
    assert bright == sorted(bright)
    assert min(contrast(channels(ink), channels(back)) for *_, back, ink in tiles) > 4.5


@pytest.mark.parametrize(("kind", "index"), [("classes", "resque_dist"), ("layers", "arm")])
def test_heat_map_of_a_model(page, kind, index):
    assert page.texts("#map tr") == []  # on demand
    page.find("#maps summary").click()
    page.set("map-kind", {"classes": "0", "layers": "1"}[kind])
    page.set("map-model", "model2")
    page.frames()
    pairs = {
        p.candidate: getattr(p, kind)[index] for p in PAIRS if p.model == "model2" and p.indices
    }
    rows = page.js(
        "return [...document.querySelectorAll('#map tbody tr')].map((r) => [...r.cells].map("
        " (c) => [c.textContent, c.title, getComputedStyle(c).backgroundColor]))"
    )
    names = page.texts("#map thead th")[1:]
    found = {
        row[0][0]: {c[1].rsplit(": ")[0]: float(c[1].rsplit(": ")[1]) for c in row[1:]}
        for row in rows
    }
    assert found == pairs
    assert all(list(values) == names for values in found.values())
    order = [c for m, c in page.shown() if m == "model2"]
    assert [row[0][0] for row in rows][: len(order)] == [c for c in order if c in pairs]
    low, high = (f(v for values in pairs.values() for v in values.values()) for f in (min, max))
    cells = {float(c[1].rsplit(": ")[1]): channels(c[2]) for row in rows for c in row[1:]}
    assert (cells[low], cells[high]) == ((68, 1, 84), (253, 231, 37))
    page.find("#map tbody .open").click()
    assert page.text("#pair-title").endswith("on model2")


# The chart


COUNT_PIXELS = """
const canvas = document.querySelector("#plot canvas");
// Of a copy that is meant to be read: Chromium warns of reading others again and again.
const copy = new OffscreenCanvas(canvas.width, canvas.height);
const context = copy.getContext("2d", { willReadFrequently: true });
context.drawImage(canvas, 0, 0);
const pixels = context.getImageData(0, 0, canvas.width, canvas.height).data;
const probe = document.body.appendChild(document.createElement("span"));
const found = {};
for (let s = 0; s < 3; s++) {
  probe.style.color = `var(--series-${s})`;
  const [r, g, b] = getComputedStyle(probe).color.match(/\\d+/g).map(Number);
  let [count, x, y] = [0, 0, 0];
  for (let i = 0; i < pixels.length; i += 4)
    if (pixels[i] === r && pixels[i + 1] === g && pixels[i + 2] === b && pixels[i + 3] === 255) {
      count++;
      x += (i / 4) % canvas.width;
      y += Math.floor(i / 4 / canvas.width);
    }
  found[`model${s}`] = [count, x / count, y / count];
}
probe.remove();
const area = canvas.getBoundingClientRect();
return [found, area.width / canvas.width];
"""


def test_chart_draws_the_pairs_that_pass(page):
    page.frames()
    counts, _ = page.js(COUNT_PIXELS)
    assert min(count for count, *_ in counts.values()) > 300
    assert page.texts("#legend li") == ["model0", "model1", "model2"]
    label = page.find("#plot").get_attribute("aria-label")
    with_cost = sum(bool(p.predicted) for p in PAIRS)
    assert label.startswith(f"{with_cost} pairs: resque_dist against predicted epochs")
    page.set("model", "model1")
    page.frames()
    counts, _ = page.js(COUNT_PIXELS)
    assert [count > 300 for count, *_ in counts.values()] == [False, True, False]
    assert page.texts("#legend li") == ["model1"]


def test_chart_places_points_by_their_values(page):
    page.set("search", "shift=29")
    page.set("y-axis", "seconds")  # 121, 31 and 0.017: no two axes can be mistaken for each other
    pairs = sorted((p for p in PAIRS if p.candidate == "shift=29"), key=lambda p: p.model)
    across = [p.indices["resque_dist"].value for p in pairs]
    up = [p.seconds for p in pairs]

    def share(values):  # where the second is between the others; the same in pixels and in values
        return (values[1] - values[0]) / (values[2] - values[0])

    for scale in (lambda v: v, math.log):
        page.frames()
        counts, _ = page.js(COUNT_PIXELS)
        x, y = ([counts[p.model][axis] for p in pairs] for axis in (1, 2))
        assert share(x) == pytest.approx(share(across), abs=0.02)
        assert share(y) == pytest.approx(share([scale(v) for v in up]), abs=0.02)
        page.find("#log-scale").click()


def test_chart_point_leads_to_its_pair(page):
    from selenium.webdriver.common.action_chains import ActionChains

    page.set("search", "shift=14 model1")
    page.frames()
    counts, scale = page.js(COUNT_PIXELS)
    canvas = page.find("#plot canvas")
    page.js("arguments[0].scrollIntoView({ block: 'center' })", canvas)
    count, x, y = counts["model1"]
    assert count > 20
    offset = (x * scale - canvas.size["width"] / 2, y * scale - canvas.size["height"] / 2)
    ActionChains(page.driver).move_to_element_with_offset(canvas, *map(round, offset)).perform()
    assert page.find("#tip").is_displayed()
    assert page.text("#tip").startswith("shift=14on model1")
    ActionChains(page.driver).click().perform()
    assert page.text("#pair-title") == "shift=14 on model1"


# Exports


def saved(page, button, name):
    path = page.folder / name
    path.unlink(missing_ok=True)
    page.find(button).click()
    for _ in range(200):
        if path.exists() and path.stat().st_size:
            return path.read_text(encoding="utf-8")
        time.sleep(0.05)
    return pytest.fail(f"{name} was not saved within 10 s")


def number(text):
    try:
        return float(text)
    except ValueError:
        return text


def forecasts():
    """Half of the pairs with a forecast, some with warnings."""
    told = ("may never reach the target", 'no "linear" probe; too few')
    about = PairForecast(0.9, "probe", told[0], 0.7, 0.4, None, 0.2, "R32", 0.9, 32, False, told)
    return [
        dataclasses.replace(p, forecast=about if i % 2 else None, new_accuracy=0.1 * (i % 3))
        for i, p in enumerate(PAIRS[:12])
    ]


@pytest.mark.parametrize(
    "pairs", [PAIRS, hostile_pairs(), forecasts()], ids=["numbers", "names", "forecasts"]
)
def test_exports_are_those_of_the_command(other, pairs):
    other.open(other.write(pairs))
    found = json.loads(saved(other, "#save-json", "screening.json"))
    assert found == json.loads(make_report(pairs, META, AT, ".json"))
    parsed = [PairResult.from_json(json.dumps(p)) for p in found["pairs"]]
    assert sorted(parsed, key=key) == sorted(pairs, key=key)
    ours = list(csv.reader(io.StringIO(saved(other, "#save-csv", "screening.csv"))))
    theirs = list(csv.reader(io.StringIO(make_report(pairs, META, AT, ".csv"))))
    faults = theirs[0].index("faults")
    for mine, other_row in zip(ours, theirs, strict=True):
        assert [number(c) for i, c in enumerate(mine) if i != faults] == [
            number(c) for i, c in enumerate(other_row) if i != faults
        ]
        if mine[faults].startswith("["):
            assert json.loads(mine[faults]) == json.loads(other_row[faults])


def test_a_forecast_stands_in_its_dialog(other):
    other.open(other.write(forecasts()))
    open_first(other, "shift=1 model0")
    facts = other.text("#pair-content .facts").lower()
    for text in ("target, of rows held out", "90.0%", "probe", "may never reach the target"):
        assert text in facts
    assert 'no "linear" probe; too few' in facts


def test_export_of_the_rows_shown(page):
    page.set("model", "model2")
    page.sort_by("seconds")
    page.find("#only-shown").click()
    rows = list(csv.DictReader(io.StringIO(saved(page, "#save-csv", "screening.csv"))))
    seconds = sorted(p.seconds for p in PAIRS if p.model == "model2")
    assert [float(r["seconds"]) for r in rows] == seconds
    found = json.loads(saved(page, "#save-json", "screening.json"))
    assert [p["seconds"] for p in found["pairs"]] == seconds


# Colours, small screens, names


def contrast(one, two):
    """WCAG's contrast ratio of two colours."""

    def luminance(color):
        parts = [c / 255 for c in color]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    high, low = sorted((luminance(one), luminance(two)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def colors_of(page, selector):
    script = (
        "const s = getComputedStyle(document.querySelector(arguments[0]));"
        "return [s.color, s.backgroundColor]"
    )
    return [channels(c) for c in page.js(script, selector)]


def test_light_and_dark(page):
    papers = {}
    for scheme in ("light", "dark"):
        page.media(scheme)
        page.frames()
        ink, papers[scheme] = colors_of(page, "body")
        assert contrast(ink, papers[scheme]) > 10
        for selector in (".note", "#ranking .open", "#ranking small", ".stop", "header p"):
            assert contrast(colors_of(page, selector)[0], papers[scheme]) > 4.5
        counts, _ = page.js(COUNT_PIXELS)  # in the colours of this scheme
        assert min(count for count, *_ in counts.values()) > 300
    assert sum(papers["light"]) > 700
    assert sum(papers["dark"]) < 100
    for scheme, system in (("light", "dark"), ("dark", "light")):  # the switch overrules
        page.media(system)
        page.frames()
        page.set("theme", scheme)
        assert colors_of(page, "body")[1] == papers[scheme]
        page.frames()
        counts, _ = page.js(COUNT_PIXELS)
        assert min(count for count, *_ in counts.values()) > 300
    page.set("theme", "auto")
    assert colors_of(page, "body")[1] == papers["light"]


def test_on_a_phone(page):
    page.size(360, 740, mobile=True)
    page.find("#maps summary").click()
    page.frames()
    wide = "return [document.documentElement.scrollWidth, innerWidth]"
    assert page.js(wide) == [360, 360]
    box = page.js(
        "const b = document.getElementById('ranking-box');"
        "return [b.scrollWidth > b.clientWidth, getComputedStyle(b).overflowX, b.clientWidth < 361]"
    )
    assert box == [True, "auto", True]
    assert 200 <= page.js("return document.querySelector('#plot canvas').clientWidth") <= 360
    open_first(page, "shift=14 model1")
    assert page.js(wide) == [360, 360]
    inside = "const d = document.getElementById('pair'); return [d.scrollWidth, d.clientWidth]"
    assert len(set(page.js(inside))) == 1


def test_names_are_inert_and_shown_as_they_are(other):
    other.open(other.write(hostile_pairs(), {HOSTILE[0]: {HOSTILE[1]: list(HOSTILE)}}))
    assert set(other.column("Candidate")) == set(HOSTILE)
    assert set(other.column("Error")) == set(HOSTILE)
    assert HOSTILE[1] in other.text("#environment")
    other.find("#maps summary").click()
    other.frames()
    for opener in range(len(HOSTILE)):
        other.js("document.querySelectorAll('#ranking tbody .open')[arguments[0]].click()", opener)
        assert other.text("#pair-title") in {f"{name} on {name}" for name in HOSTILE}
        tiles = other.texts("#pair .tile-name")
        assert tiles == list(HOSTILE)
        other.find("#pair-close").click()
    assert other.js("return window.fired === undefined")
    assert other.js("return document.querySelectorAll('img, iframe, main svg').length") == 0
    assert other.js("return document.scripts.length") == 2
    assert other.js("return performance.getEntriesByType('resource').length") == 0


def test_without_costs_and_without_values(other):
    pairs = [p for p in PAIRS if not p.predicted]
    assert any(p.indices for p in pairs)
    other.open(other.write(pairs))
    assert other.find("#no-costs").is_displayed()
    assert other.find("#y-axis").get_attribute("value") == "indices.arm"
    other.open(other.write([p for p in PAIRS if p.error]))
    assert set(other.column("Rank")) == {NONE}
    assert not other.find("#maps").is_displayed()


def test_an_old_browser_is_told(other):
    script = {"source": "delete globalThis.DecompressionStream"}
    added = other.driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", script)
    try:
        other.driver.get(other.usual.as_uri())
        other.until("document.getElementById('count').textContent.includes('browser of 2023')")
    finally:
        other.driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)
    (error,) = other.complaints()
    assert "DecompressionStream" in error

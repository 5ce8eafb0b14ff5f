// Puts the parts together: filters choose pairs, the ranking orders them, the others follow.

const LONG = 12; // entries of a list beyond which it is folded

function start(data) {
  const pair = new PairDialog(data);
  const open = (chosen) => pair.open(chosen, ranking.order);
  const ranking = new Ranking(data, open);
  const chart = new CostChart(data, open);
  const map = new HeatMap(data, open);
  let frame = 0;

  const update = () => {
    const chosen = ranking.sort(data.pairs.filter(makeFilter(readFilters())));
    ranking.show(chosen);
    const counts = `${showCount(chosen.length)} of ${showCount(data.count)} pairs`;
    byId("count").textContent = chosen.length ? counts : `${counts}: no pair passes the filters`;
    cancelAnimationFrame(frame);
    frame = requestAnimationFrame(() => {
      chart.draw(chosen);
      map.draw(chosen);
    });
  };
  ranking.changed = update;

  for (const by of Object.keys(data.ranks)) {
    const label = `${by.startsWith("predicted.") ? "predicted " : ""}${labelOf(data, by)}`;
    byId("by").append(make("option", { value: by, selected: by === data.rank_by }, label));
  }
  fillSelect("model", data.models);
  fillSelect("candidate", data.candidates);
  fillSelect("stopped", [...new Set(data.pairs.map((p) => p.stopped))].sort());
  byId("by").addEventListener("change", () => {
    ranking.rankBy(byId("by").value);
    update();
  });
  byId("filters").addEventListener("input", (event) => {
    if (event.target.id !== "by") update();
  });
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  byId("filters").addEventListener("reset", () => {
    setTimeout(() => { // after the fields have their first values again
      ranking.rankBy(byId("by").value);
      update();
    });
  });

  const shown = () => (byId("only-shown").checked ? ranking.order : data.pairs);
  byId("save-csv").addEventListener("click", () =>
    download("screening.csv", "text/csv;charset=utf-8", exportCsv(data, shown())),
  );
  byId("save-json").addEventListener("click", () =>
    download("screening.json", "application/json", exportJson(data, shown())),
  );

  const theme = byId("theme");
  const redraw = () => chart.draw(ranking.order);
  theme.addEventListener("change", () => {
    if (theme.value === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme.value;
    redraw();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);

  byId("environment").replaceChildren(describe(data.meta));
  ranking.rankBy(byId("by").value);
  update();
  document.documentElement.dataset.ready = "true";
}

function fillSelect(id, values) {
  for (const value of values) byId(id).append(make("option", { value }, value));
}

function readFilters() {
  const number = (id) => (byId(id).value === "" ? null : Number(byId(id).value));
  return {
    words: byId("search").value.toLowerCase().split(/\s+/).filter(Boolean),
    by: byId("by").value,
    // By place, not by value: a name may be empty, and so is the value of "all".
    model: byId("model").selectedIndex > 0 ? byId("model").value : null,
    candidate: byId("candidate").selectedIndex > 0 ? byId("candidate").value : null,
    stopped: byId("stopped").selectedIndex > 0 ? byId("stopped").value : null,
    low: number("from"),
    high: number("to"),
  };
}

function makeFilter(f) {
  return (p) => {
    if (f.model !== null && p.model !== f.model) return false;
    if (f.candidate !== null && p.candidate !== f.candidate) return false;
    if (f.stopped !== null && p.stopped !== f.stopped) return false;
    const value = partOf(p, f.by, "value");
    if (f.low !== null && !(value !== null && value >= f.low)) return false;
    if (f.high !== null && !(value !== null && value <= f.high)) return false;
    return f.words.every((word) => p.view.found.includes(word));
  };
}

// Whatever the store says of its environment and options, as nested lists.
function describe(value) {
  if (value === null || typeof value !== "object") return named(value === null ? "none" : String(value));
  const entries = Object.entries(value);
  if (!entries.length) return document.createTextNode("nothing recorded");
  if (Array.isArray(value) && value.every((v) => v === null || typeof v !== "object"))
    return named(value.join(", "));
  const items = entries.map(([key, entry]) =>
    make("div", {}, make("dt", {}, named(key)), make("dd", {}, describe(entry))),
  );
  const list = make("dl", { class: "described" }, ...items);
  if (items.length <= LONG) return list;
  return make("details", {}, make("summary", {}, `${showCount(items.length)} entries`), list);
}

function fail(error) {
  const old = typeof DecompressionStream === "undefined";
  byId("count").textContent = old
    ? "This page needs a browser of 2023 or later (Chrome 80, Firefox 113, Safari 16.4)."
    : `This page could not be shown: ${error}`;
  throw error;
}

readData().then(start).catch(fail);

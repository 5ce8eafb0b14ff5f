// Heat maps of classes and layers, each coloured on the scale of what it shows.

const MAP_ROWS = 50; // that are shown before "show more"
// Viridis at equal steps.
const VIRIDIS = [
  [68, 1, 84],
  [71, 45, 123],
  [59, 82, 139],
  [44, 114, 142],
  [33, 145, 140],
  [40, 174, 128],
  [94, 201, 98],
  [173, 220, 48],
  [253, 231, 37],
];

function heatColor(share) {
  const place = Math.min(Math.max(share, 0), 1) * (VIRIDIS.length - 1);
  const step = Math.min(Math.floor(place), VIRIDIS.length - 2);
  return VIRIDIS[step].map((v, i) => Math.round(v + (place - step) * (VIRIDIS[step + 1][i] - v)));
}

function paintCell(cell, value, [low, high]) {
  const [r, g, b] = heatColor(high > low ? (value - low) / (high - low) : 0);
  cell.style.backgroundColor = `rgb(${r}, ${g}, ${b})`;
  // Black and white have the same contrast, 4.6, to a relative luminance (WCAG) of 0.179.
  const [x, y, z] = [r, g, b].map((v) => (v > 10 ? ((v / 255 + 0.055) / 1.055) ** 2.4 : v / 3295));
  cell.style.color = 0.2126 * x + 0.7152 * y + 0.0722 * z > 0.179 ? "#000" : "#fff";
}

// {kind: "classes" or "layers", index} of all that the data has.
function heatKinds(data) {
  return ["classes", "layers"].flatMap((kind) => {
    const indices = new Set(data.pairs.flatMap((p) => Object.keys(p[kind])));
    return [...indices].map((index) => ({ kind, index }));
  });
}

function scaleLegend([low, high]) {
  const bar = make("span", { class: "scale", "aria-hidden": "true" });
  bar.style.background = `linear-gradient(90deg, ${VIRIDIS.map((c) => `rgb(${c})`).join(", ")})`;
  return make("span", { class: "scale-legend" }, show(low), bar, show(high));
}

// All values of one pair: a tile each.
function heatTiles(pair, which) {
  const scale = extent(Object.values(pair[which.kind][which.index])) ?? [0, 0];
  const tiles = Object.entries(pair[which.kind][which.index]).map(([name, value]) => {
    const tile = make(
      "li",
      { title: `${name}: ${value}`, "data-value": String(value) },
      make("bdi", { class: "tile-name" }, name),
      make("span", {}, show(value)),
    );
    paintCell(tile, value, scale);
    return tile;
  });
  const list = make("ul", { class: "tiles", "data-map": `${which.kind}:${which.index}` }, ...tiles);
  const title = make("h3", {}, `${which.index} by ${which.kind === "classes" ? "class" : "layer"}`);
  return make("section", { class: "heat" }, make("div", { class: "row" }, title, scaleLegend(scale)), list);
}

// A row a pair of one model, in the order of the ranking.
class HeatMap {
  constructor(data, open) {
    this.data = data;
    this.open = open;
    this.kinds = heatKinds(data);
    this.limit = MAP_ROWS;
    byId("maps").hidden = this.kinds.length === 0;
    this.kinds.forEach(({ kind, index }, i) => {
      byId("map-kind").append(make("option", { value: String(i) }, `${kind} of ${index}`));
    });
    for (const model of data.models) byId("map-model").append(make("option", { value: model }, model));
    for (const select of [byId("map-kind"), byId("map-model")])
      select.addEventListener("change", () => this.draw(this.pairs));
    byId("maps").addEventListener("toggle", () => this.draw(this.pairs));
    byId("map").addEventListener("click", (event) => {
      const row = event.target.closest("tr[data-pair]");
      if (row) open(data.pairs[row.dataset.pair]);
    });
    byId("map-more").addEventListener("click", () => {
      this.limit = Infinity;
      this.draw(this.pairs);
    });
  }

  draw(pairs) {
    this.pairs = pairs;
    if (!byId("maps").open) return; // on demand
    const which = this.kinds[byId("map-kind").value];
    const model = byId("map-model").value;
    const rows = pairs.filter((p) => p.model === model && p[which.kind][which.index]);
    const columns = [...new Set(rows.flatMap((p) => Object.keys(p[which.kind][which.index])))];
    const values = rows.flatMap((p) => Object.values(p[which.kind][which.index]));
    const scale = extent(values) ?? [0, 0];
    const shown = rows.slice(0, this.limit);
    byId("map-note").replaceChildren(
      rows.length ? scaleLegend(scale) : "No pair that is shown has such values.",
    );
    const head = make("tr", {}, make("th", { scope: "col" }, "Candidate"));
    for (const name of columns)
      head.append(make("th", { scope: "col", title: name }, make("span", {}, named(name))));
    byId("map").tHead.replaceChildren(...(rows.length ? [head] : []));
    byId("map").tBodies[0].replaceChildren(...shown.map((p) => this.row(p, which, columns, scale)));
    byId("map-more").hidden = shown.length === rows.length;
    byId("map-more").textContent = `Show all ${showCount(rows.length)} rows`;
  }

  row(pair, which, columns, scale) {
    const opener = make("button", { type: "button", class: "open" }, named(pair.candidate));
    const row = make("tr", { "data-pair": String(pair.view.place) });
    row.append(make("th", { scope: "row" }, opener));
    const values = pair[which.kind][which.index];
    for (const name of columns) {
      const value = values[name];
      const cell = make("td");
      if (value !== undefined) {
        cell.append(show(value));
        cell.title = `${name}: ${value}`;
        paintCell(cell, value, scale);
      }
      row.append(cell);
    }
    return row;
  }
}

// The embedded data: the length of a JSON header in four bytes, the header, then the numbers of all
// its columns as float64 in byte planes (report_data.py packs them). NaN stands for null.

const EMPTY = "–";

async function readData() {
  const text = document.getElementById("data").textContent.trim();
  const packed = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
  const length = new DataView(bytes.buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(4, 4 + length)));
  const numbers = joinPlanes(bytes.subarray(4 + length));
  return { ...header, pairs: buildPairs(header, numbers) };
}

function joinPlanes(planes) {
  const count = planes.length / 8;
  const joined = new DataView(new ArrayBuffer(planes.length));
  for (let byte = 0; byte < 8; byte++)
    for (let i = 0; i < count; i++) joined.setUint8(8 * i + byte, planes[byte * count + i]);
  return Float64Array.from({ length: count }, (_, i) => joined.getFloat64(8 * i, true));
}

// The pairs as PairResult.to_json writes them. Maps by name have no prototype: a class may be
// called "__proto__".
function buildPairs(header, numbers) {
  const map = () => Object.create(null);
  const pairs = Array.from({ length: header.count }, () => ({
    format: header.pair_format,
    indices: map(),
    predicted: map(),
    classes: map(),
    layers: map(),
  }));
  let next = 0;
  const number = () => {
    const value = numbers[next++];
    return Number.isNaN(value) ? null : value;
  };
  for (const column of header.columns) {
    const [group, name, field] = column.path;
    pairs.forEach((pair, i) => {
      if (column.kind === "named") {
        const names = column.names[column.which[i]];
        if (!names) return;
        pair[group][name] = map();
        for (const entry of names) pair[group][name][entry] = number();
        return;
      }
      const value = column.kind === "float" ? number() : column.values[i];
      if (name === undefined) pair[group] = value;
      else if (field === "value" && value !== null) pair[group][name] = { value };
      else if (pair[group][name]) pair[group][name][field] = value;
    });
  }
  pairs.forEach((pair, i) => {
    // Not a part of the pair as it is exported: its place, its ranks, and what a search looks at.
    const ranks = map();
    for (const by of Object.keys(header.ranks)) ranks[by] = header.ranks[by][i];
    const faults = pair.faults.map((f) => [f.source, f.member, f.message].join(" "));
    const words = [pair.model, pair.candidate, pair.stopped, pair.error, ...faults];
    const found = words.join("\n").toLowerCase();
    Object.defineProperty(pair, "view", { value: { place: i, ranks, found }, enumerable: false });
  });
  return pairs;
}

// What is read of a pair by many parts

// What pairs are ranked by is named as in the CSV: "indices.arm", "predicted.epochs".
function foundOf(pair, by) {
  const group = by.split(".", 1)[0];
  return pair[group]?.[by.slice(group.length + 1)] ?? null;
}

const partOf = (pair, by, part) => foundOf(pair, by)?.[part] ?? null;

function unitOf(data, measure) {
  const units = new Set(data.pairs.map((p) => p.predicted[measure]?.unit).filter(Boolean));
  return units.size === 1 ? [...units][0] : null;
}

function labelOf(data, by) {
  const name = by.slice(by.indexOf(".") + 1);
  if (!by.startsWith("predicted.")) return name;
  const unit = unitOf(data, name);
  return unit && unit !== name ? `${name} (${unit})` : name;
}

function atFloor(pair, by) {
  const floor = partOf(pair, by, "noise_floor");
  return floor !== null && foundOf(pair, by).value <= floor;
}

function showRank(pair, by) {
  const rank = pair.view.ranks[by];
  if (!rank) return EMPTY;
  return rank[0] === rank[1] ? String(rank[0]) : `${rank[0]}–${rank[1]}`;
}

function extent(values) {
  let low = Infinity;
  let high = -Infinity;
  for (const value of values) {
    if (value === null || value === undefined) continue;
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return low <= high ? [low, high] : null;
}

// Numbers for people; the exports have every digit.

const whole = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });

function show(value) {
  if (value === null || value === undefined) return EMPTY;
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size < 0.001 || size >= 1e9) return value.toExponential(2);
  if (size < 1) return value.toFixed(4);
  return size < 1000 ? value.toPrecision(4) : whole.format(value);
}

const showCount = (value) => (value === null ? EMPTY : whole.format(value));

function showInterval(low, high) {
  if (low === null || low === undefined) return EMPTY;
  return `${show(low)} to ${high === null ? "∞" : show(high)}`;
}

// Elements: text is always set as text, never as markup.

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "class") element.className = value;
    else if (value !== null && value !== false) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

// A name of the user's: its own direction must not turn the text around it.
const named = (text) => make("bdi", {}, text);

const byId = (id) => document.getElementById(id);

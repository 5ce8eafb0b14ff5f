// An index against a predicted cost: uPlot draws axes and scales, this file the points.

const SHAPES = 4;
const COLORS = 6;

const probe = make("span", { hidden: "" });

// A colour of the style sheet in the theme that is on, for a canvas.
function themeColor(name) {
  probe.style.color = `var(${name})`;
  return getComputedStyle(probe).color;
}

function modelStyle(data, model) {
  const place = data.models.indexOf(model);
  const shape = Math.floor(place / COLORS + place) % SHAPES;
  return { color: themeColor(`--series-${place % COLORS}`), shape };
}

// What can stand on an axis: {label, read(pair) -> {value, low, high} or null}.
function axisChoices(data) {
  const choices = Object.create(null);
  for (const by of Object.keys(data.ranks)) {
    const label = `${by.startsWith("predicted.") ? "predicted " : ""}${labelOf(data, by)}`;
    choices[by] = { label, read: (p) => foundOf(p, by) };
  }
  choices.samples = {
    label: "samples read",
    read: (p) => ({ value: p.new_samples, low: null, high: null }),
  };
  choices.seconds = {
    label: "seconds",
    read: (p) => ({ value: p.seconds, low: null, high: null }),
  };
  return choices;
}

class CostChart {
  constructor(data, open) {
    this.data = data;
    this.open = open;
    this.box = byId("plot");
    this.tip = byId("tip");
    this.choices = axisChoices(data);
    document.body.append(probe);
    const axes = [byId("x-axis"), byId("y-axis")];
    for (const select of axes)
      for (const [value, { label }] of Object.entries(this.choices))
        select.append(make("option", { value }, label));
    const indices = Object.keys(data.ranks).filter((by) => by.startsWith("indices."));
    const costs = Object.keys(data.ranks).filter((by) => by.startsWith("predicted."));
    byId("x-axis").value = indices[0] ?? "seconds";
    byId("y-axis").value = costs[0] ?? indices[1] ?? "samples";
    byId("no-costs").hidden = costs.length > 0;
    for (const input of [...axes, byId("log-scale")])
      input.addEventListener("change", () => this.draw(this.pairs));
    new ResizeObserver(() => this.resize()).observe(this.box);
  }

  draw(pairs) {
    this.pairs = pairs;
    const x = this.choices[byId("x-axis").value];
    const y = this.choices[byId("y-axis").value];
    const log = byId("log-scale").checked;
    this.points = [];
    for (const pair of pairs) {
      const point = { pair, x: x.read(pair), y: y.read(pair) };
      if (point.x && point.y && !(log && point.y.value <= 0)) this.points.push(point);
    }
    this.plot?.destroy();
    this.plot = null;
    this.tip.hidden = true;
    byId("plot-empty").hidden = this.points.length > 0;
    this.legend();
    const text = `${showCount(this.points.length)} pairs: ${x.label} against ${y.label}`;
    this.box.setAttribute("aria-label", `${text}. The table has the same numbers.`);
    if (!this.points.length) return;
    this.plot = new uPlot(this.options(x, y, log), this.columns(), this.box);
    this.listen(this.plot.over);
  }

  columns() {
    const x = this.points.map((p) => p.x.value);
    return [null, [x, this.points.map((p) => p.y.value)]];
  }

  options(x, y, log) {
    const ink = themeColor("--ink-soft");
    const grid = { stroke: themeColor("--line"), width: 1 };
    const axis = { stroke: ink, grid, ticks: grid, font: "12px system-ui, sans-serif" };
    const bold = { ...axis, labelFont: "600 12px system-ui, sans-serif", labelSize: 22 };
    const values = (_, splits) => splits.map((v) => (v === null ? "" : showTick(v)));
    const ranges = { x: padded(this.points, "x", false), y: padded(this.points, "y", log) };
    return {
      mode: 2,
      ...this.size(),
      legend: { show: false },
      cursor: { show: false },
      scales: {
        x: { time: false, auto: false, range: () => ranges.x },
        y: { auto: false, distr: log ? 3 : 1, range: () => ranges.y },
      },
      axes: [
        { ...bold, scale: "x", label: x.label, values },
        { ...bold, scale: "y", label: y.label, size: 64, values },
      ],
      series: [
        {},
        {
          facets: [
            { scale: "x", auto: false },
            { scale: "y", auto: false },
          ],
          paths: (plot) => this.paint(plot),
        },
      ],
    };
  }

  size() {
    const width = Math.max(200, this.box.clientWidth);
    return { width, height: Math.round(Math.min(460, Math.max(280, width * 0.5))) };
  }

  resize() {
    if (this.plot && this.plot.width !== this.size().width) this.plot.setSize(this.size());
  }

  // Error bars first, so that no point hides under a neighbour's.
  paint(plot) {
    const c = plot.ctx;
    const ratio = devicePixelRatio;
    const { left, top, width, height } = plot.bbox;
    const at = (value, scale) => plot.valToPos(value, scale, true);
    const across = byId("x-axis").value;
    const styles = new Map(this.data.models.map((m) => [m, modelStyle(this.data, m)]));
    c.save();
    c.beginPath();
    c.rect(left, top, width, height);
    c.clip();
    c.lineWidth = ratio;
    c.globalAlpha = 0.28;
    for (const { pair, x, y } of this.points) {
      const [px, py] = [at(x.value, "x"), at(y.value, "y")];
      c.strokeStyle = styles.get(pair.model).color;
      c.beginPath();
      if (isNumber(x.low) && isNumber(x.high)) {
        c.moveTo(at(x.low, "x"), py);
        c.lineTo(at(x.high, "x"), py);
      }
      if (isNumber(y.low)) {
        const bottom = plot.scales.y.distr === 3 && y.low <= 0 ? top + height : at(y.low, "y");
        c.moveTo(px, bottom);
        c.lineTo(px, y.high === null ? top : at(y.high, "y")); // no upper end: to the edge
      }
      c.stroke();
    }
    c.globalAlpha = 1;
    c.lineWidth = 1.5 * ratio;
    const paper = themeColor("--paper");
    for (const { pair, x, y } of this.points) {
      const { color, shape } = styles.get(pair.model);
      c.strokeStyle = color;
      c.fillStyle = atFloor(pair, across) ? paper : color;
      markPath(c, shape, at(x.value, "x"), at(y.value, "y"), 3.6 * ratio);
      c.fill();
      c.stroke();
    }
    c.restore();
    return null;
  }

  legend() {
    const models = new Set(this.points.map((p) => p.pair.model));
    const items = this.data.models
      .filter((m) => models.has(m))
      .map((model) => {
        const { color, shape } = modelStyle(this.data, model);
        const mark = make("canvas", { width: "28", height: "28", "aria-hidden": "true" });
        const c = mark.getContext("2d");
        c.fillStyle = color;
        markPath(c, shape, 14, 14, 9);
        c.fill();
        return make("li", {}, mark, named(model));
      });
    byId("legend").replaceChildren(...items);
  }

  nearest(event) {
    const area = this.plot.over.getBoundingClientRect();
    const [mx, my] = [event.clientX - area.left, event.clientY - area.top];
    let best = null;
    let reach = 18; // CSS pixels
    for (const point of this.points) {
      const px = this.plot.valToPos(point.x.value, "x");
      const py = this.plot.valToPos(point.y.value, "y");
      const distance = Math.hypot(px - mx, py - my);
      if (distance < reach) [best, reach] = [{ ...point, px, py }, distance];
    }
    return best;
  }

  listen(over) {
    over.addEventListener("mousemove", (event) => this.point(this.nearest(event), over));
    over.addEventListener("mouseleave", () => this.point(null, over));
    over.addEventListener("click", (event) => {
      const found = this.nearest(event);
      if (found) this.open(found.pair);
    });
  }

  point(found, over) {
    this.tip.hidden = !found;
    over.style.cursor = found ? "pointer" : "default";
    if (!found) return;
    const { pair, x, y, px, py } = found;
    this.tip.replaceChildren(
      make("strong", {}, named(pair.candidate)),
      make("span", {}, "on ", named(pair.model)),
      make("span", {}, `${show(x.value)} against ${show(y.value)}`),
    );
    const width = over.clientWidth;
    this.tip.style.left = `${over.offsetLeft + Math.min(px + 14, width - this.tip.offsetWidth)}px`;
    this.tip.style.top = `${over.offsetTop + Math.max(0, py - this.tip.offsetHeight - 10)}px`;
  }
}

const isNumber = (value) => value !== null && value !== undefined;

// The range of all points and their intervals and a little more; of zero, where that is near.
function padded(points, axis, log) {
  const ends = points.flatMap(({ [axis]: p }) => [p.value, p.low, p.high]);
  let [low, high] = extent(log ? ends.filter((v) => v > 0) : ends);
  if (log) return [low / 1.3, high * 1.3];
  const margin = 0.05 * (high - low) || 0.05 * Math.abs(high) || 1;
  if (low >= 0 && low < 0.3 * high) return [0, high + margin];
  return [low - margin, high + margin];
}

function showTick(value) {
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-4 || size >= 1e6)) return value.toExponential();
  return String(Number(value.toPrecision(6)));
}

function markPath(c, shape, x, y, r) {
  c.beginPath();
  if (shape === 0) c.arc(x, y, r, 0, 2 * Math.PI);
  else if (shape === 1) c.rect(x - 0.9 * r, y - 0.9 * r, 1.8 * r, 1.8 * r);
  else if (shape === 2) polygon(c, [[x, y - 1.2 * r], [x + 1.1 * r, y + 0.8 * r], [x - 1.1 * r, y + 0.8 * r]]);
  else polygon(c, [[x, y - 1.3 * r], [x + 1.3 * r, y], [x, y + 1.3 * r], [x - 1.3 * r, y]]);
}

function polygon(c, corners) {
  corners.forEach(([x, y], i) => (i ? c.lineTo(x, y) : c.moveTo(x, y)));
  c.closePath();
}

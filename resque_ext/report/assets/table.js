// The ranking: a row a pair, made when it is first shown, then only moved about.

const AT_ONCE = 100; // rows that a sort lays out; scrolling to the end brings as many again
const collator = new Intl.Collator("en", { numeric: true });

const STOPS = {
  end: "all samples were read",
  separated: "its interval parted from its neighbours'",
  width: "its interval was as narrow as asked",
  budget: "the budget was spent",
  error: "it failed",
};

function makeColumns(data, by) {
  const columns = [
    {
      id: "rank",
      label: "Rank",
      hint: "A range: its interval overlaps those of the pairs at these ranks, so they are tied",
      key: (p) => p.view.ranks[by]?.[0] ?? null,
      fill: (cell, p) => cell.append(showRank(p, by)),
    },
    { id: "candidate", label: "Candidate", text: true, key: (p) => p.candidate, fill: fillOpener },
    {
      id: "model",
      label: "Model",
      text: true,
      key: (p) => p.model,
      fill: (cell, p) => cell.append(named(p.model)),
    },
    {
      id: "value",
      label: labelOf(data, by) || "Value",
      hint: "What the pairs are ranked by; rank 1 is the cheapest",
      key: (p) => partOf(p, by, "value"),
      fill: (cell, p) => fillValue(cell, p, by),
    },
    {
      id: "std_error",
      label: "± s.e.",
      hint: "Standard error",
      key: (p) => partOf(p, by, "std_error"),
      fill: (cell, p) => cell.append(show(partOf(p, by, "std_error"))),
    },
    {
      id: "interval",
      label: "Interval",
      hint: "Of an index: valid however often it was looked at. Sorted by its lower end",
      key: (p) => partOf(p, by, "low"),
      fill: makeRangeFiller(data, by),
    },
    {
      id: "noise_floor",
      label: "Noise floor",
      hint: "What the index shows for no shift at all at these sample sizes",
      key: (p) => partOf(p, by, "noise_floor"),
      fill: (cell, p) => cell.append(show(partOf(p, by, "noise_floor"))),
    },
  ];
  const isCost = (name) => name.startsWith("predicted.");
  const others = Object.keys(data.ranks).filter((name) => name !== by);
  for (const other of [...others.filter(isCost), ...others.filter((name) => !isCost(name))]) {
    const cost = isCost(other);
    const oneUnit = cost && unitOf(data, other.slice("predicted.".length)) !== null;
    columns.push({
      id: other,
      label: labelOf(data, other),
      hint: cost ? "Predicted cost and its interval" : "Another index; rank by it for its interval",
      key: (p) => partOf(p, other, "value"),
      fill: cost
        ? (cell, p) => fillCost(cell, p, other, oneUnit)
        : (cell, p) => {
            cell.append(show(partOf(p, other, "value")));
            const error = partOf(p, other, "std_error");
            if (error !== null) cell.append(make("small", { class: "below" }, `± ${show(error)}`));
          },
    });
  }
  columns.push(
    {
      id: "samples",
      label: "Samples read",
      hint: "Of the candidate, and the share of what it has",
      key: (p) => p.new_samples,
      fill: (cell, p) => {
        cell.append(showCount(p.new_samples));
        const share = p.available ? (100 * p.new_samples) / p.available : null;
        if (share !== null) cell.append(make("small", { class: "below" }, `${share.toFixed(0)} %`));
      },
    },
    {
      id: "seconds",
      label: "Seconds",
      key: (p) => p.seconds,
      fill: (cell, p) => cell.append(p.seconds.toFixed(2)),
    },
    {
      id: "stopped",
      label: "Stopped",
      text: true,
      hint: "Why reading ended",
      key: (p) => p.stopped,
      fill: (cell, p) =>
        cell.append(
          make("span", { class: `stop ${p.stopped}`, title: STOPS[p.stopped] ?? "" }, p.stopped),
        ),
    },
    {
      id: "faults",
      label: "Faults",
      hint: "Files or members that could not be read",
      key: (p) => p.faults.length,
      fill: (cell, p) => cell.append(showCount(p.faults.length)),
    },
  );
  if (data.pairs.some((p) => p.error !== null))
    columns.push({
      id: "error",
      label: "Error",
      text: true,
      key: (p) => p.error,
      fill: (cell, p) => cell.append(make("bdi", { class: "error" }, p.error ?? "")),
    });
  return columns;
}

function fillValue(cell, pair, by) {
  cell.append(show(partOf(pair, by, "value")));
  if (atFloor(pair, by))
    cell.append(make("span", { class: "tag", title: "Nothing was detected" }, "≤ floor"));
  addExtrapolated(cell, pair, by);
}

function fillCost(cell, pair, by, oneUnit) {
  const cost = foundOf(pair, by);
  cell.append(show(cost?.value));
  if (!cost) return;
  if (!oneUnit) cell.append(` ${cost.unit}`); // else the head says it
  addExtrapolated(cell, pair, by);
  cell.append(make("small", { class: "below" }, showInterval(cost.low, cost.high)));
}

function addExtrapolated(cell, pair, by) {
  if (partOf(pair, by, "extrapolated"))
    cell.append(make("span", { class: "tag", title: "Outside what was measured" }, "extrap."));
}

function fillOpener(cell, pair) {
  const hint = `Details of ${pair.candidate} on ${pair.model}`;
  cell.append(
    make("button", { type: "button", class: "open", title: hint }, named(pair.candidate)),
  );
}

// The interval as numbers and as a bar on one scale for all pairs.
function makeRangeFiller(data, by) {
  const ends = data.pairs.flatMap((p) => {
    const found = foundOf(p, by);
    return found ? [found.value, found.low, found.high] : [];
  });
  const [low, high] = extent([0, ...ends]);
  const percent = (value) => (high > low ? (100 * (value - low)) / (high - low) : 0);
  return (cell, pair) => {
    const found = foundOf(pair, by);
    if (!found) return cell.append(EMPTY);
    const bar = make("span", { class: "range", "aria-hidden": "true" });
    if (found.low !== null) {
      const span = make("i");
      const end = found.high === null ? 100 : percent(found.high);
      span.style.left = `${percent(found.low)}%`;
      span.style.width = `${end - percent(found.low)}%`;
      bar.append(span);
    }
    const dot = make("b");
    dot.style.left = `${percent(found.value)}%`;
    bar.append(dot);
    cell.append(make("small", {}, showInterval(found.low, found.high)), bar);
  };
}

class Ranking {
  constructor(data, open) {
    this.data = data;
    this.head = byId("ranking").tHead;
    this.body = byId("ranking").tBodies[0];
    this.more = byId("more");
    this.box = byId("ranking-box");
    this.body.addEventListener("click", (event) => {
      const row = event.target.closest("tr");
      const marking = String(getSelection()) !== "" && !event.target.closest("button");
      if (row && !marking) open(data.pairs[row.dataset.pair]);
    });
    this.more.addEventListener("click", () => this.extend(Infinity));
    this.box.addEventListener("scroll", () => {
      const left = this.box.scrollHeight - this.box.scrollTop - this.box.clientHeight;
      if (left < this.box.clientHeight) this.extend(AT_ONCE);
    });
  }

  // Columns for an index or a predicted cost; sorted by its rank.
  rankBy(by) {
    this.columns = makeColumns(this.data, by);
    this.sorting = { id: "rank", down: false };
    this.rows = [];
    const cells = this.columns.map((column) => {
      const button = make("button", { type: "button", title: column.hint ?? null }, column.label);
      button.addEventListener("click", () => this.sortBy(column.id));
      const kind = column.text ? "text" : "number";
      return make("th", { scope: "col", class: kind, "data-column": column.id }, button);
    });
    this.head.replaceChildren(make("tr", {}, ...cells));
  }

  sortBy(id) {
    this.sorting = { id, down: this.sorting.id === id && !this.sorting.down };
    this.changed();
  }

  // The pairs in the order that was asked for; what has no value comes last both ways. Equal keys,
  // tied ranks among them, go by the value that the ranking is by.
  sort(pairs) {
    const column = this.columns.find((c) => c.id === this.sorting.id);
    const value = this.columns.find((c) => c.id === "value");
    const sign = this.sorting.down ? -1 : 1;
    return [...pairs].sort(
      (a, b) =>
        compareBy(column, sign, a, b) || compareBy(value, sign, a, b) || a.view.place - b.view.place,
    );
  }

  show(pairs) {
    this.order = pairs;
    for (const cell of this.head.rows[0].cells) {
      const active = cell.dataset.column === this.sorting.id;
      const order = this.sorting.down ? "descending" : "ascending";
      cell.setAttribute("aria-sort", active ? order : "none");
    }
    this.body.replaceChildren();
    this.box.scrollTop = 0;
    this.extend(AT_ONCE);
  }

  extend(count) {
    const shown = this.body.rows.length;
    this.body.append(...this.order.slice(shown, shown + count).map((pair) => this.row(pair)));
    this.more.hidden = this.body.rows.length === this.order.length;
    this.more.textContent = `Show all ${showCount(this.order.length)} rows at once`;
  }

  row(pair) {
    const place = pair.view.place;
    if (!this.rows[place]) {
      const row = make("tr", { "data-pair": String(place) });
      for (const column of this.columns) {
        const cell = make("td", { class: column.text ? "text" : "number" });
        column.fill(cell, pair);
        row.append(cell);
      }
      this.rows[place] = row;
    }
    return this.rows[place];
  }
}

function compareBy(column, sign, a, b) {
  const [x, y] = [column.key(a), column.key(b)];
  if (x === null || y === null) return (x === null) - (y === null);
  return sign * (column.text ? collator.compare(x, y) : x - y);
}

// What is known of one pair, in a dialog: Esc closes it and the focus goes back (the browser's own).

class PairDialog {
  constructor(data) {
    this.dialog = byId("pair");
    this.order = [];
    this.kinds = heatKinds(data);
    byId("pair-close").addEventListener("click", () => this.dialog.close());
    byId("pair-previous").addEventListener("click", () => this.step(-1));
    byId("pair-next").addEventListener("click", () => this.step(1));
    this.dialog.addEventListener("click", (event) => {
      if (event.target === this.dialog) this.dialog.close(); // beside it
    });
  }

  open(pair, order) {
    this.order = order;
    this.show(pair);
    if (!this.dialog.open) this.dialog.showModal();
    byId("pair-close").focus();
  }

  step(by) {
    this.show(this.order[this.order.indexOf(this.pair) + by]);
  }

  show(pair) {
    this.pair = pair;
    const place = this.order.indexOf(pair);
    byId("pair-previous").disabled = place <= 0;
    byId("pair-next").disabled = place < 0 || place === this.order.length - 1;
    byId("pair-title").replaceChildren(
      named(pair.candidate),
      make("small", {}, " on ", named(pair.model)),
    );
    const parts = [this.facts(pair)];
    if (pair.error !== null)
      parts.unshift(make("p", { class: "error box" }, "Failed: ", named(pair.error)));
    if (Object.keys(pair.indices).length) parts.push(this.indices(pair));
    if (Object.keys(pair.predicted).length) parts.push(this.costs(pair));
    for (const which of this.kinds)
      if (pair[which.kind][which.index]) parts.push(heatTiles(pair, which));
    if (pair.faults.length) parts.push(this.faults(pair));
    byId("pair-content").replaceChildren(...parts);
    byId("pair-content").scrollTop = 0;
  }

  facts(pair) {
    const of = pair.available === null ? "" : ` of ${showCount(pair.available)}`;
    const facts = [
      ["New samples read", `${showCount(pair.new_samples)}${of}`],
      ["Old samples", showCount(pair.old_samples)],
      ["Seconds", show(pair.seconds)],
      ["Stopped", `${pair.stopped}: ${STOPS[pair.stopped] ?? ""}`],
      ["Pooling", pair.pooling],
      ["Labels", pair.labels],
      ["Accuracy, old side", percent(pair.old_accuracy)],
      ["Accuracy, new side", percent(pair.new_accuracy)],
      ...this.forecast(pair),
    ].filter(([, value]) => value !== null);
    return make("dl", { class: "facts" }, ...facts.map(([k, v]) => make("div", {}, make("dt", {}, k), make("dd", {}, v))));
  }

  forecast(pair) {
    const found = pair.forecast;
    if (!found) return [];
    return [
      ["Target, of rows held out", percent(found.target_accuracy)],
      ["Accuracy of these", percent(found.accuracy)],
      ["The same, adapted", percent(found.adapted_accuracy)],
      ["Stage of the forecast", found.stage],
      ["Verdict", found.verdict],
      ["Chance to miss the target", percent(found.never_probability)],
      ["Not reliable", found.warnings.length ? found.warnings.join("; ") : null],
    ];
  }

  indices(pair) {
    const rows = Object.entries(pair.indices).map(([name, found]) => [
      name,
      showRank(pair, `indices.${name}`),
      show(found.value),
      show(found.std_error),
      showInterval(found.low, found.high),
      show(found.noise_floor) + (atFloor(pair, `indices.${name}`) ? " (value is below)" : ""),
      found.reliable ? "" : found.warnings.join("; "),
    ]);
    const heads = ["Index", "Rank", "Value", "± s.e.", "Interval", "Noise floor", "Not reliable"];
    return smallTable("Indices", heads, rows, "short");
  }

  costs(pair) {
    const rows = Object.entries(pair.predicted).map(([name, cost]) => [
      name,
      showRank(pair, `predicted.${name}`),
      show(cost.value),
      showInterval(cost.low, cost.high),
      cost.unit,
      cost.extrapolated ? "extrapolated: outside what was measured" : "",
    ]);
    const heads = ["Measure", "Rank", "Value", "Interval", "Unit", ""];
    return smallTable("Predicted cost", heads, rows, "short");
  }

  faults(pair) {
    const rows = pair.faults.map((f) => [f.source, f.member ?? "", f.message]);
    return smallTable(`Left out (${rows.length})`, ["Source", "Member", "What happened"], rows);
  }
}

const percent = (value) =>
  value === null || value === undefined ? null : `${(100 * value).toFixed(1)}%`;

function smallTable(title, heads, rows, kind = "long") {
  const head = make("tr", {}, ...heads.map((text) => make("th", { scope: "col" }, text)));
  const body = rows.map((row) =>
    make("tr", {}, ...row.map((text, i) => make(i ? "td" : "th", i ? {} : { scope: "row" }, named(text)))),
  );
  const table = make("table", { class: kind }, make("thead", {}, head), make("tbody", {}, ...body));
  const box = make("div", { class: "box-x", tabindex: "0", role: "region", "aria-label": title }, table);
  return make("section", {}, make("h3", {}, title), box);
}

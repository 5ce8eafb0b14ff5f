// Every number with all its digits: the same columns and keys as `resque-ext report` writes itself.

function exportJson(data, pairs) {
  const { format, resque_ext, made_at, meta } = data;
  const ranks = Object.create(null);
  for (const by of Object.keys(data.ranks)) ranks[by] = pairs.map((p) => p.view.ranks[by]);
  return JSON.stringify({ format, resque_ext, made_at, meta, ranks, pairs });
}

function exportCsv(data, pairs) {
  const columns = [];
  const add = (name, read) => columns.push({ name, read });
  for (const { path, kind, names } of data.columns) {
    const [group, name, field] = path;
    if (kind === "named") {
      for (const entry of new Set(names.flat()))
        add(`${group}.${name}.${entry}`, (p) => p[group][name]?.[entry]);
    } else if (group === "faults") {
      add("faults", (p) => (p.faults.length ? JSON.stringify(p.faults) : null));
    } else if (group === "forecast") {
      const parts = Object.keys(data.pairs.find((p) => p.forecast)?.forecast ?? {});
      for (const part of parts) add(`forecast.${part}`, (p) => p.forecast?.[part]);
    } else {
      add(path.join("."), (p) => (name === undefined ? p[group] : p[group][name]?.[field]));
    }
  }
  for (const by of Object.keys(data.ranks))
    ["best", "worst"].forEach((end, i) => {
      add(`ranks.${by}.${end}`, (p) => p.view.ranks[by]?.[i]);
    });
  const lines = [columns.map((c) => csvCell(c.name))];
  for (const pair of pairs) lines.push(columns.map((c) => csvCell(c.read(pair))));
  return lines.map((cells) => `${cells.join(",")}\n`).join("");
}

function csvCell(value) {
  const text = String((Array.isArray(value) ? value.join("; ") : value) ?? "");
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

function download(name, type, text) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  const link = make("a", { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 10_000); // the browser has taken it by then
}

"""Prints the figures that `pytest benchmarks --results=FILE` appended, as a table: FILE."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def rows(path: Path) -> list[dict[str, object]]:
    """The results in their order; a last line that an interruption cut short is left out."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def table(results: list[dict[str, object]]) -> list[str]:
    lines = [f"{'benchmark':66s} {'ms':>9s} {'cold ms':>9s} {'GB/s':>8s}  share of the copy bound"]
    for result in results:
        known = {k: result.get(k) for k in ("milliseconds", "cold_milliseconds", "gb_per_s")}
        cells = [f"{v:9.3f}" if v is not None else f"{'-':>9s}" for v in known.values()]
        share = result.get("share_of_copy")
        more = f"{share:.0%}" if share is not None else ratios(result)
        lines.append(f"{result['name']!s:66s} {' '.join(cells)}  {more}")
    devices = sorted({str(result["device"]) for result in results if "device" in result})
    return [*lines, f"{len(results)} results on {', '.join(devices)}"]


def ratios(result: dict[str, object]) -> str:
    """What a benchmark without a bound compares itself with."""
    names = [key for key in result if "ratio" in key or key.startswith("times_")]
    return ", ".join(f"{name} {result[name]}" for name in names)


if __name__ == "__main__":
    print("\n".join(table(rows(Path(sys.argv[1])))))

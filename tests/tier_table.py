"""Makes the table of tests/README.md: python tests/tier_table.py USER.xml FULL.xml (--junitxml)."""

import sys
from collections import Counter
from xml.etree import ElementTree


def read(path: str) -> tuple[Counter[str], Counter[str]]:
    """How many cases each file has that ran or were skipped, and their seconds."""
    cases, seconds = Counter(), Counter()
    for case in ElementTree.parse(path).iter("testcase"):
        name = case.get("classname", "").replace(".", "/").removeprefix("tests/")
        cases[name] += 1
        seconds[name] += float(case.get("time", 0))
    return cases, seconds


def main(user: str, full: str) -> str:
    tiers = [read(user), read(full)]
    names = sorted(tiers[1][0])
    rows = [
        (f"`{name}`", *(f"{cases[name]:,} | {seconds[name]:.1f}" for cases, seconds in tiers))
        for name in names
    ]
    rows.append(
        ("all", *(f"{sum(c.values()):,} | {sum(s.values()):,.0f}" for c, s in tiers)),
    )
    head = ["| file | user's tier: cases | seconds | full tier: cases | seconds |"]
    return "\n".join([*head, "|---|--:|--:|--:|--:|", *(f"| {' | '.join(row)} |" for row in rows)])


if __name__ == "__main__":
    sys.stdout.write(main(*sys.argv[1:]) + "\n")

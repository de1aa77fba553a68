"""The card of figures: every goal beside what was measured. ``python bench/card.py`` writes ``bench/results/CARD.md``.

It is made of ``bench/goals.yaml`` and what the benches left in ``bench/results/NAME.json``; nothing is measured here.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from record import RESULTS, goals, table

SAYS = {"at_least": "at least", "at_most": "at most", "more_than": "more than"}
HOLDS = {
    "at_least": lambda value, goal: value >= goal,
    "at_most": lambda value, goal: value <= goal,
    "more_than": lambda value, goal: value > goal,
}


def verdict(figure: dict[str, Any], value: float | None) -> str:
    """``met``, ``NOT MET``, ``not measured``, or nothing for a figure that is only told."""
    bound = next((bound for bound in SAYS if bound in figure), None)
    if value is None:
        return "not measured"
    if bound is None:
        return ""
    return "met" if HOLDS[bound](value, figure[bound]) else "**NOT MET**"


def goal(figure: dict[str, Any]) -> str:
    """The goal in words."""
    return next((f"{SAYS[bound]} {figure[bound]:g}" for bound in SAYS if bound in figure), "")


def needed(bench: dict[str, Any]) -> str:
    """What a bench needs that not every machine has."""
    variables = [word[1:] for word in bench["command"].split() if word.startswith("$")]
    gpu = ["an NVIDIA GPU"] if bench.get("needs") == "cuda" else []
    return ", ".join([*gpu, *(f"{name} in the environment (the script says what that is)" for name in variables)])


def section(name: str, bench: dict[str, Any], found: dict[str, Any] | None) -> tuple[list[str], Counter[str]]:
    """A bench's part of the card, and how many of its goals ended how."""
    measured = found["measured"] if found else {}
    rows, ends = [], Counter[str]()
    for key, figure in bench["figures"].items():
        value = measured.get(key)
        end = verdict(figure, value)
        rows.append((figure["what"], goal(figure), "–" if value is None else f"{value:.3g}", end))
        if goal(figure):
            ends[end] += 1
    return [f"## {bench['title']}", "", _origin(bench, found), "", *table(COLUMNS, rows), ""], ends


COLUMNS = ("what", "goal", "measured", "")


def _origin(bench: dict[str, Any], found: dict[str, Any] | None) -> str:
    """Whence the figures come, or why there are none."""
    if not found:
        need = needed(bench)
        return f"Not measured yet{f'; needs {need}' if need else ''}: `python {bench['command']}`."
    packages = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    threads = "" if found["threads"] == "all" else f", OMP_NUM_THREADS {found['threads']}"
    facts = (found["date"], found["machine"] + threads, packages, f"load {found['load']}")
    return f"`{found['command']}`, {'; '.join(fact for fact in facts if fact)}."


def compose(known: dict[str, dict[str, Any]], results: Path) -> str:
    """The card as Markdown."""
    lines, ends = [], Counter[str]()
    for name, bench in known.items():
        path = results / f"{name}.json"
        part, counts = section(name, bench, json.loads(path.read_text("utf-8")) if path.exists() else None)
        lines += part
        ends += counts
    total = sum(ends.values())
    head = [
        "# The card",
        "",
        f"{total} goals: {ends['met']} met, {ends['**NOT MET**']} not met, {ends['not measured']} not measured.",
        "`make bench` measures what fits the machine and writes this page; `python bench/card.py` writes it anew from",
        "the last measurements. Figures without a goal are told because they say what a goal does not.",
        "",
    ]
    return "\n".join([*head, *lines])


def main() -> None:
    """Write the card."""
    from gonggam.files import write_text

    text = compose(goals(), RESULTS)
    write_text(RESULTS / "CARD.md", text)
    print(text.splitlines()[2])


if __name__ == "__main__":
    main()

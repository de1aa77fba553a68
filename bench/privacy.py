"""Precision and recall of the personal-data patterns on the hand-labelled file ``tests/data/privacy.tsv``.

Run: ``python bench/privacy.py [--errors]``. Where presidio-analyzer is installed, its Korean recognisers (patterns
only, no language model) are measured on the same lines.
"""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

Spans = set[tuple[int, int, str]]
MARK = re.compile(r"\{(\w+):([^}]*)\}")


def labelled() -> Iterator[tuple[int, str, str, Spans]]:
    """(line number, group, text, labelled spans) of every line."""
    with (ROOT / "tests/data/privacy.tsv").open(encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE), 2):
            text, spans, position = "", set(), 0
            for mark in MARK.finditer(row["marked"]):
                text += row["marked"][position : mark.start()]
                spans.add((len(text), len(text) + len(mark[2]), mark[1]))
                text, position = text + mark[2], mark.end()
            yield number, row["group"], text + row["marked"][position:], spans


def measure(find: Callable[[str], Spans], *, typed: bool = True, only: str = "all") -> dict[str, tuple[int, int, int]]:
    """For each kind and in total: (found and right, found, labelled). A find is right if it overlaps a label of its
    kind (of any kind unless ``typed``). ``only`` takes odd lines, even lines or all."""
    counts: dict[str, list[int]] = {}
    for number, _, text, spans in labelled():
        if only != "all" and (number % 2 == 1) != (only == "odd"):
            continue
        found = find(text)
        for kind in {kind for *_, kind in spans | found}:
            counts.setdefault(kind, [0, 0, 0])
        for *_, kind in found:
            counts[kind][1] += 1
        for start, end, kind in spans:
            counts[kind][2] += 1
            counts[kind][0] += any(s < end and start < e and (k == kind or not typed) for s, e, k in found)
    total = [sum(column) for column in zip(*counts.values(), strict=True)]
    return {kind: tuple(count) for kind, count in [*sorted(counts.items()), ("total", total)]}


def ours(text: str) -> Spans:
    """What `data_prep.privacy.find` finds."""
    from data_prep.privacy import find

    return {(f.start, f.end, f.kind) for f in find(text)}


def presidio() -> Callable[[str], Spans] | None:
    """Presidio's pattern recognisers for Korean, without its language models; None where it is not installed."""
    try:
        from presidio_analyzer import predefined_recognizers as known
    except ImportError:
        return None
    kinds = {
        "KrRrnRecognizer": "resident_number",
        "KrFrnRecognizer": "foreigner_number",
        "KrPassportRecognizer": "passport",
        "KrDriverLicenseRecognizer": "driver_licence",
        "CreditCardRecognizer": "card",
        "EmailRecognizer": "email",
        "UrlRecognizer": "url",
        "PhoneRecognizer": "phone",
    }
    engines = []
    for name, kind in kinds.items():
        recognizer = getattr(known, name, None)
        if recognizer is not None:
            extra = {"supported_regions": ["KR"]} if name == "PhoneRecognizer" else {}
            engines.append((recognizer(supported_language="ko", **extra), kind))

    def find(text: str) -> Spans:
        return {
            (result.start, result.end, kind)
            for engine, kind in engines
            for result in engine.analyze(text, engine.supported_entities, None) or []
        }

    return find


def table(name: str, counts: dict[str, tuple[int, int, int]]) -> str:
    """A Markdown table of precision and recall by kind."""
    lines = [f"### {name}", "", "| kind | labelled | found | precision | recall |", "| --- | --- | --- | --- | --- |"]
    for kind, (right, found, wanted) in counts.items():
        precision, recall = (f"{right / n:.3f}" if n else "–" for n in (found, wanted))
        lines.append(f"| {kind} | {wanted} | {found} | {precision} | {recall} |")
    return "\n".join(lines)


def main() -> None:
    """Print the tables; with ``--errors [odd|even]`` the lines on which ours errs."""
    if "--errors" in sys.argv:
        only = sys.argv[-1]
        for number, group, text, spans in labelled():
            if only in ("odd", "even") and (number % 2 == 1) != (only == "odd"):
                continue
            told = ours(text)
            if told != spans:
                show = [[(text[s:e], k) for s, e, k in sorted(side)] for side in (spans - told, told - spans)]
                print(f"{number} {group}: {text}\n   missed {show[0]}\n   wrong  {show[1]}")
        return
    lines = list(labelled())
    print(f"{len(lines)} lines, {sum(not spans for *_, spans in lines)} of them without personal data\n")
    for only in ("all", "even"):
        found = measure(ours, only=only)
        print(table(f"patterns, {only} lines", found), "\n")
    other = presidio()
    if other:
        print(table("presidio, all lines", measure(other)))
    from record import record

    right, named, wanted = found["total"]
    record("privacy", {"lines": len(lines), "precision": right / named, "recall": right / wanted})


if __name__ == "__main__":
    main()

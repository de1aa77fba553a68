"""The whole of an evaluation: let the systems answer, measure, judge the judge, judge, sum up, report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

from eval.collect import Inputs, Item, Judges, Systems, collect
from eval.geval import Progress
from eval.options import EvalOptions
from eval.raw import Raw
from eval.report import write_report
from eval.summary import summarise
from gonggam.files import read_json, write_json
from gonggam.page import Section


def evaluate(
    items: Sequence[Item],
    systems: Systems,
    options: EvalOptions | None = None,
    judge: Judges = None,
    out: str | Path = "eval",
    progress: Progress | None = None,
    *,
    extra_sections: Sequence[Section] = (),
    **given: Unpack[Inputs],
) -> dict[str, Any]:
    """Evaluate several systems on the same items and write the report into ``out``.

    Args:
        items: ``id``, ``category``, ``messages`` (up to and with a user turn), ``reference`` (the human's reply).
        systems: name → one reply per item, or a function from messages to a reply.
        options: the recipe's ``eval:`` section.
        judge: who judges; judges, specs of http judges, or several (a jury); if absent, those named in
            ``options``. `LocalJudge` must be handed in.
        out: folder of the report; what is there already (verdicts, replies) is not asked for again.
        progress: called as (steps done, steps in all).
        extra_sections: further sections for the report.
        given: what else there is to judge and measure with, see `eval.collect.Inputs`.

    Returns:
        The results, as in ``results.json`` (see `eval.summary.summarise`).

    Raises:
        UserError: no items, a reply too few, an unknown judge or rubric, a folder that cannot be written.
    """
    raw = collect(items, systems, options, judge, out, progress, **given)
    write_json(Path(out) / "raw" / "sections.json", [section.to_json() for section in extra_sections])
    return report_from(raw, out, extra_sections)


def report_from(raw: Raw, out: str | Path, extra_sections: Sequence[Section] = ()) -> dict[str, Any]:
    """Sum up raw judgements and write results and reports into ``out``."""
    results = summarise(raw)
    write_json(Path(out) / "results.json", results)
    write_report(results, out, extra_sections)
    return results


def add_section(out: str | Path, section: Section) -> None:
    """Put a section into the report of a finished evaluation, in place of one of the same title, and rebuild it."""
    kept = Path(out) / "raw" / "sections.json"
    others = [data for data in (read_json(kept) if kept.exists() else []) if data["title"] != section.title]
    write_json(kept, [*others, section.to_json()])
    rebuild(out)


def rebuild(out: str | Path) -> dict[str, Any]:
    """Write the reports of an evaluation anew from its raw judgements; no judge is asked.

    Raises:
        UserError: there is no finished evaluation in ``out``.
    """
    raw = Raw.load(Path(out) / "raw")
    kept = Path(out) / "raw" / "sections.json"
    sections = [Section.from_json(data) for data in read_json(kept)] if kept.exists() else []
    return report_from(raw, out, sections)

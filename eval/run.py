"""The whole of an evaluation: let the systems answer, measure, judge the judge, judge, sum up, report."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.collect import Item, Reply, collect
from eval.geval import Progress
from eval.judges import Judge, JudgeSpec
from eval.options import EvalOptions
from eval.raw import Raw
from eval.reference import Check, Embed, EmbedWords
from eval.report import write_report
from eval.summary import summarise
from gonggam.files import read_json, write_json
from gonggam.page import Section


def evaluate(
    items: Sequence[Item],
    systems: Mapping[str, Sequence[str] | Reply],
    options: EvalOptions | None = None,
    judge: Judge | JudgeSpec | Sequence[Judge | JudgeSpec] | None = None,
    out: str | Path = "eval",
    progress: Progress | None = None,
    *,
    pairs: Sequence[Item] = (),
    ratings: Sequence[Item] = (),
    pair_judge: str | Collection[str] | None = None,
    checks: Mapping[str, Check] | None = None,
    embed: Embed | None = None,
    embed_words: EmbedWords | None = None,
    extra_sections: Sequence[Section] = (),
    fingerprint: str = "",
    cache: str | Path | None = None,
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
        pairs: for the calibration of the judge: ``id``, ``messages``, ``chosen``, ``rejected``.
        ratings: further calibration, by people's scores: ``id``, ``messages``, ``reply``, ``human_KEY`` per criterion.
        pair_judge: model or models that made the DPO pairs, if any; refused as judge unless the options allow it.
        checks: further measures of a reply (emotion match, safety): name → function of (item, reply).
        embed: texts → unit vectors, for the similarity to the reference.
        embed_words: texts → the vectors of each one's words, for the same word by word.
        extra_sections: further sections for the report.
        fingerprint: of what the systems are (hashes of their weights, decoding settings). Replies found in ``out``
            are used again only under the same fingerprint.
        cache: folder of the verdicts, if they are to outlive ``out``.

    Returns:
        The results, as in ``results.json`` (see `eval.summary.summarise`).

    Raises:
        UserError: no items, a reply too few, an unknown judge or rubric, a folder that cannot be written.
    """
    raw = collect(
        items,
        systems,
        options,
        judge,
        out,
        progress,
        pairs=pairs,
        ratings=ratings,
        pair_judge=pair_judge,
        checks=checks,
        embed=embed,
        embed_words=embed_words,
        fingerprint=fingerprint,
        cache=cache,
    )
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

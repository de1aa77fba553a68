"""The report: one page a manager understands, then what it rests on; also as Markdown, CSV, JSON lines and Excel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.plots import distributions, means
from eval.report_details import (
    agreement_rows,
    duel_rows,
    extremes_section,
    groups_section,
    measures_section,
    noise_rows,
    pairwise_section,
    percent,
    rows_by_item,
    show_answers,
    spread,
)
from eval.sheets import write_sheets
from eval.summary import NOTICE, TOTAL
from gonggam.blocks import Kind
from gonggam.page import Page, Section

Results = Mapping[str, Any]

OFF_SCALE = (
    "The judge gives most of its probability to something other than a score. The scores rest on the little "
    "that is left: it hardly understands the form."
)

HOW_TO_READ = (
    "Brackets hold the interval in which the true value lies with the confidence chosen (95 % as shipped). p is the "
    "probability of seeing so large a difference between systems that are equally good, corrected for the number of "
    "comparisons."
)
NO_VERDICT = (
    "No verdict: a judge that fails its own test cannot tell which system is better. Its figures are kept here for "
    "completeness; look at the measures without a judge and at the answers side by side instead."
)


def write_report(
    results: Results, out: str | Path, extra_sections: Sequence[Section] = (), title: str = "Evaluation report"
) -> None:
    """Write ``report.html``, ``report.md``, ``scores.csv``, ``scores.jsonl`` and ``report.xlsx`` into ``out``.

    Args:
        results: as returned by `eval.evaluate`.
        out: the folder.
        extra_sections: sections of the caller's own, put between the summary and the scores. Build them with
            `gonggam.page.Section`: ``Section("Training").facts({...}).table(rows).figure(fig).text("...")``.
        title: of the page.

    Raises:
        UserError: the folder cannot be written.
    """
    out = Path(out)
    page = report_page(results, extra_sections, title)
    page.write(out / "report.html")
    page.write_markdown(out / "report.md")
    write_sheets(results, out)


def report_page(results: Results, extra_sections: Sequence[Section] = (), title: str = "Evaluation report") -> Page:
    """The report as a page, not yet written."""
    subtitle = (
        f"{results['items']} held-out conversations · {', '.join(results['systems'])} · "
        f"rubric {results['rubric']['name']} ({results['rubric']['hash']})"
    )
    judged = bool(results["judges"])
    sections = [_summary(results), *extra_sections]
    sections += [_scores(results), pairwise_section(results), groups_section(results)] if judged else []
    sections += [_samples(results), extremes_section(results), measures_section(results)]
    sections += [_reliability(results), _counts(results)] if judged else []
    return Page(title, subtitle, sections=[section for section in sections if section.blocks])


def trust_note(results: Results) -> tuple[str, Kind] | None:
    """What must be said above every score: (text, kind of note), or None where no judge was used."""
    if not results["judges"]:
        return None
    if results["judge_trusted"]:
        best = [f"{c['judge']} prefers the better answer in {percent(c['accuracy'])}" for c in results["calibration"]]
        best += [f"{a['criterion']}: rank correlation {spread(a['spearman'])}" for a in results["agreement"]]
        return f"The judge was tested and knows good answers from bad ({'; '.join(best)}).", "good"
    if results["judge_trusted"] is None:
        return "The judge was not tested on answers of known quality. Do not rely on its scores.", "error"
    bad = [c for c in results["calibration"] if not c["trusted"]]
    told = [f"{c['judge']} prefers the better answer in {percent(c['accuracy'])}, p = {c['p_value']:.2f}" for c in bad]
    told += [
        f"{a['judge']}: {a['criterion']} rank correlation with people {spread(a['spearman'])}"
        for a in results["agreement"]
        if not a["trusted"]
    ]
    return (
        f"The judge could not be told from chance: it does not know good answers from bad ({'; '.join(told)}). "
        "Its scores below say nothing about the models.",
        "error",
    )


def _banner(section: Section, results: Results) -> Section:
    note = trust_note(results)
    return section.note(*note) if note else section


def _summary(results: Results) -> Section:
    section = _banner(Section("Summary"), results)
    totals = {name: scores[TOTAL] for name, scores in results["scores"].items()}
    judged = {name: total for name, total in totals.items() if total["value"] is not None}
    for sentence in gaps(results):
        section.note(sentence, "warning")
    if judged:
        section.facts({f"{name} (of 100)": f"{total['value']:.1f}" for name, total in judged.items()})
        if results["judge_trusted"] is False:
            return section.text(NO_VERDICT)
        for sentence in verdicts(results):
            section.text(sentence)
        section.text(HOW_TO_READ)
    return section


def gaps(results: Results) -> list[str]:
    """What the means do not tell: items left out, fixed words in place of answers, conversations without a score."""
    sentences = [f"Left out: {count} items, each {fault}." for fault, count in results["left_out"].items()]
    sentences += [
        f"{name} gave no answer in {told[NOTICE]} of {results['items']} conversations, only fixed words: it asked back "
        "or said that it cannot tell. Such words can be polite and near to human replies, and help nobody."
        for name, told in results["sources"].items()
        if told.get(NOTICE)
    ]
    if not results["judges"]:
        return sentences
    for name, scores in results["scores"].items():
        missing = scores[TOTAL]["missing"]
        empty = sum(row["system"] == name and not row["reply"].strip() for row in results["rows"])
        if missing:
            sentences.append(
                f"{name} has no score for {missing} of {results['items']} conversations: {empty} without a reply, "
                f"{missing - empty} without a judgement. The mean is over the others."
            )
    return sentences


def verdicts(results: Results) -> list[str]:
    """One sentence per two systems that answered anything: which scores higher, by how much, how sure."""
    silent = {name for name, told in results["sources"].items() if set(told) <= {NOTICE}}
    sentences = []
    for test in results["tests"]:
        if test["criterion"] != TOTAL or silent & {test["a"], test["b"]}:
            continue
        low, high = sorted((test["a"], test["b"]), key=lambda name: results["scores"][name][TOTAL]["value"])
        sign = 1 if high == test["b"] else -1
        bounds = sorted(sign * (test[key] or 0.0) for key in ("low", "high"))
        gap = f"{abs(test['value']):.1f} points of 100 [{bounds[0]:.1f}, {bounds[1]:.1f}], p = {test['p_holm']:.3f}"
        if test["p_holm"] < 0.05:
            sentences.append(f"{high} scores higher than {low} by {gap} on {test['n']} conversations.")
        elif 2.0 ** (1 - test["n"]) * len(results["tests"]) > 0.05:  # the least p that so few can reach
            sentences.append(f"Too few conversations to tell {high} from {low}: {gap} on {test['n']} conversations.")
        else:
            sentences.append(f"No difference shown between {high} and {low}: {gap} on {test['n']} conversations.")
    return sentences


def _scores(results: Results) -> Section:
    section = _banner(Section("Scores by criterion"), results)
    keys = {
        TOTAL: "Total (0-100)",
        **{c["key"]: f"{c['name']} ({c['scale'][0]}-{c['scale'][1]})" for c in results["criteria"]},
    }
    rows = [
        {"criterion": name, **{s: spread(results["scores"][s][key]) for s in results["systems"]}}
        for key, name in keys.items()
        if key in results["scores"][results["systems"][0]]
    ]
    section.table(rows, caption="Mean and confidence interval over conversations")
    section.figure(means(results), "Mean score per criterion, on 0-1, with confidence intervals")
    section.figure(distributions(results), "Distribution of scores per criterion, on 0-1")
    if results["tests"]:
        tests = [
            {
                "systems": f"{test['b']} − {test['a']}",
                "criterion": keys[test["criterion"]],
                "difference": spread(test),
                "p (Holm)": test["p_holm"],
                "n": test["n"],
            }
            for test in results["tests"]
        ]
        section.table(
            tests, caption="Paired differences on the same conversations; p from a sign-flip permutation test"
        )
    return section


def _samples(results: Results) -> Section:
    section = Section("Answers side by side")
    items = list(rows_by_item(results).values())
    wanted = min(results["samples"], len(items))
    for rows in (items[i * len(items) // wanted] for i in range(wanted)):
        show_answers(section, rows, " · ".join(filter(None, (rows[0]["item"], rows[0]["category"]))))
    return section


def _reliability(results: Results) -> Section:
    section = _banner(Section("Can the judge judge?"), results)
    names = {c["key"]: c["name"] for c in results["criteria"]}
    for found in results["calibration"]:
        section.heading(found["judge"])
        section.facts(
            {
                "better answer preferred": percent(found["accuracy"]),
                "p against chance": f"{found['p_value']:.3g}",
                "kappa": spread(found["kappa"]),
                "points per 100 characters": spread(found["length_slope"]),
            }
        )
        rows = [
            {"criterion": names[key], "better answer preferred": percent(a)} for key, a in found["by_criterion"].items()
        ]
        section.table(rows, caption=f"By criterion; {found['missing']} pairs without a score")
    if results["pair_duels"]:
        section.table(duel_rows(results["pair_duels"]), caption="The better against the worse answer, in duels")
        for tally in results["pair_duels"]:
            section.text(f"{tally['judge']} gives {percent(tally['first_preferred'])} to the reply that stands first.")
    if results["agreement"]:
        section.table(agreement_rows(results), caption="Against people's scores of the same answers")
    if results["noise"]:
        section.table(
            noise_rows(results), caption="Judge noise against differences between answers (standard deviations)"
        )
    return section


def _counts(results: Results) -> Section:
    counts = results["counts"]
    section = Section("Judgements and cost")
    section.facts(
        {
            "judgements": counts["judgements"],
            "missing": counts["missing"],
            "probability off the scale": counts["outside_mean"],
            "tokens": counts["prompt_tokens"] + counts["completion_tokens"],
            "cost (USD)": counts["cost"],
        }
    )
    if (counts["outside_mean"] or 0) > 0.5:
        section.note(OFF_SCALE, "warning")
    section.table(results["judges"], caption="Judges and where their scores come from")
    if counts["problems"]:
        rows = [{"problem": name, "judgements": count} for name, count in counts["problems"].items()]
        section.table(rows, caption="Missing judgements; they count as missing, never as 0")
    return section

"""The report's further sections: duels, groups of conversations, the widest gaps, the judge's noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from eval.plots import Groups, grouped, metric_name
from eval.stats import Interval
from eval.summary import NOTICE, TOTAL
from gonggam.page import Section

Results = Mapping[str, Any]

EXTREMES = 3
"""How many of the biggest wins, and of the biggest losses, are shown."""


def percent(interval: Mapping[str, Any]) -> str:
    """An interval of shares as per cent."""
    if interval["value"] is None:
        return "–"
    bounds = "" if interval["low"] is None else f" [{interval['low']:.0%}, {interval['high']:.0%}]"
    return f"{interval['value']:.0%}{bounds}, n\u00a0=\u00a0{interval['n']}"


def spread(interval: Mapping[str, Any]) -> str:
    """An interval as `value [low, high]`."""
    return str(Interval(**{key: interval[key] for key in ("value", "low", "high", "n")}))


def duel_rows(tallies: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Tallies of duels as table rows."""
    return [
        {
            "judge": t["judge"],
            "systems": f"{t['a']} against {t['b']}",
            "won / tied / lost": f"{t['wins']} / {t['ties']} / {t['losses']}",
            "win rate": percent(t["win_rate"]),
            "at equal length": percent(t["length_controlled"]),
            "both orders agree": percent(t["consistency"]),
            "missing": t["missing"],
        }
        for t in tallies
    ]


def pairwise_section(results: Results) -> Section:
    """Duels between the systems."""
    section = Section("One against another")
    if results["duels"]:
        section.text("Each duel is judged in both orders; it is won only if both agree, else it is a tie.")
        section.table(duel_rows(results["duels"]))
    return section


def groups_section(results: Results) -> Section:
    """Total score by kind and length of conversation."""
    section = Section("By kind and length of conversation")
    judged = [row for row in results["rows"] if row["scores"].get(TOTAL) is not None]
    if not judged:
        return section
    for title, order, name in (
        ("Mean total (0-100) by category", _category, _category),
        ("Mean total (0-100) by length of the conversation", lambda row: row["turns"], _turns),
    ):
        groups: Groups = {}
        for row in sorted(judged, key=order):
            groups.setdefault(name(row), {}).setdefault(row["system"], []).append(row["scores"][TOTAL])
        if len(groups) > 1:
            section.figure(grouped(groups, results["systems"]), caption=f"{title}, with 95 % intervals")
        section.table(_rows(groups, results["systems"]))
    return section


def _category(row: Mapping[str, Any]) -> str:
    return row["category"].split("/")[0] or "–"


def _turns(row: Mapping[str, Any]) -> str:
    count = (row["turns"] + 1) // 2
    return f"{count} user turn{'s' * (count > 1)}"


def _rows(groups: Groups, systems: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {
            "group": name,
            **{s: f"{fmean(scores[s]):.1f} (n\u00a0=\u00a0{len(scores[s])})" if s in scores else None for s in systems},
        }
        for name, scores in groups.items()
    ]


def extremes_section(results: Results) -> Section:
    """The conversations on which the last system gains and loses most against the first."""
    section = Section("Biggest wins and losses")
    if len(results["systems"]) < 2:
        return section
    first, last = results["systems"][0], results["systems"][-1]
    gaps = []
    for rows in rows_by_item(results).values():
        scores = {row["system"]: row["scores"].get(TOTAL) for row in rows}
        if scores[first] is not None and scores[last] is not None and scores[last] != scores[first]:
            gaps.append((scores[last] - scores[first], rows))
    gaps.sort(key=lambda gap: gap[0])
    wins, losses = [g for g in gaps[::-1] if g[0] > 0][:EXTREMES], [g for g in gaps if g[0] < 0][:EXTREMES]
    for title, shown in ((f"{last} gains most on {first}", wins), (f"{last} loses most to {first}", losses)):
        if shown:
            section.heading(title)
        for gap, rows in shown:
            pair = [row for row in rows if row["system"] in (first, last)]
            show_answers(section, pair, f"{rows[0]['item']} ({gap:+.1f})", with_reference=False)
    return section


def rows_by_item(results: Results) -> dict[str, list[Mapping[str, Any]]]:
    """The rows of each item, in the order of the systems."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in results["rows"]:
        found.setdefault(row["item"], []).append(row)
    return found


def show_answers(section: Section, rows: Sequence[Mapping[str, Any]], title: str, with_reference: bool = True) -> None:
    """Add one dialogue with the systems' answers, and the human's, side by side."""
    answers = {row["system"]: row["reply"] for row in rows}
    totals = {row["system"]: row["scores"].get(TOTAL) for row in rows}
    notes = {row["system"]: "no answer" for row in rows if row["source"] == NOTICE}
    notes |= {name: f"{total:.0f}/100" for name, total in totals.items() if total is not None}
    if with_reference and rows[0]["reference"]:
        answers["human"] = rows[0]["reference"]
    section.chat(rows[0]["messages"], answers, title, notes)


def agreement_rows(results: Results) -> list[dict[str, Any]]:
    """Agreement with people's scores as table rows."""
    names = {c["key"]: c["name"] for c in results["criteria"]}
    return [
        {
            "judge": row["judge"],
            "criterion": names[row["criterion"]],
            "Spearman": spread(row["spearman"]),
            "Kendall": spread(row["kendall"]),
            "weighted kappa": spread(row["kappa"]),
            "leniency (points)": spread(row["leniency"]),
            "points per 100 characters": spread(row["length_slope"]),
        }
        for row in results["agreement"]
    ]


def noise_rows(results: Results) -> list[dict[str, Any]]:
    """How much of a score is the judge's own noise, where judgements were repeated."""
    names = {c["key"]: c["name"] for c in results["criteria"]}
    return [
        {
            "criterion": names[key],
            "spread of one answer's judgements": n["judge"],
            "spread between answers": n["answers"],
        }
        for key, n in results["noise"].items()
    ]


def measure_rows(results: Results, *, bounds: bool = True) -> list[dict[str, Any]]:
    """Where the replies come from, where that was told, and the mean of every measure: a row each, a column a system.

    The last column is the human replies', where there are any. Without ``bounds`` the intervals are left away.
    """

    def row(name: str, cells: Mapping[str, str], human: str = "–") -> dict[str, Any]:
        return {"measure": metric_name(name), **cells, **({"human": human} if results["human"] else {})}

    def figure(measures: Mapping[str, Any], name: str) -> str:
        found = measures.get(name)
        return "–" if found is None else spread(found if bounds else {**found, "low": None})

    told, systems = results["sources"], results["systems"]
    sources = sorted({source for counts in told.values() for source in counts}, key=lambda name: (name == NOTICE, name))
    share = {s: {source: f"{n / results['items']:.0%}" for source, n in counts.items()} for s, counts in told.items()}
    names = dict.fromkeys(name for measures in results["metrics"].values() for name in measures)
    return [
        *(
            row(f"from_{source}", {s: share[s].get(source, "0%") if s in share else "–" for s in systems})
            for source in sources
        ),
        *(
            row(name, {s: figure(results["metrics"][s], name) for s in systems}, figure(results["human"], name))
            for name in names
        ),
    ]


def measures_section(results: Results) -> Section:
    """What can be told without a judge, reply by reply and over all replies."""
    section = Section("Measures without a judge")
    human = "; human: the replies that people wrote to the same messages" if results["human"] else ""
    section.table(measure_rows(results), caption=f"Mean over replies and confidence interval{human}")
    corpus = dict.fromkeys(name for measures in results["corpus"].values() for name in measures)
    rows = [
        {"measure": metric_name(name), **{s: results["corpus"][s].get(name) for s in results["systems"]}}
        for name in corpus
    ]
    if results["embedder"]:
        section.text(f"Likeness to the human reply is told by: {results['embedder']}.")
    return section.table(rows, caption="Over all replies of a system together")

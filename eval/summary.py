"""From raw judgements to the figures of the report."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, pstdev, pvariance
from typing import Any

from eval.agreement import agreement
from eval.calibration import Calibration, calibrate
from eval.pairwise import tally
from eval.raw import Raw
from eval.rubric import Rubric
from eval.stats import bootstrap, holm, mean, paired_p_value

TOTAL = "total"
"""Key of the total score: the rubric's overall criterion, or the mean of all its criteria, on 0-100."""

NOTICE = "notice"
"""Source of fixed words in place of an answer: asked back, unsure, nothing to read."""

Scores = dict[tuple[str, str], float | None]
"""(item id, system) → score, None if missing."""


def summarise(raw: Raw) -> dict[str, Any]:
    """Everything the report shows, as one JSON-able dict (laid out in ``docs/evaluation.md``)."""
    wanted = raw.options
    how: dict[str, Any] = {"reps": wanted.bootstrap, "confidence": wanted.confidence, "seed": wanted.seed}
    table = score_table(raw.judgements, raw.rubric)
    calibrations, agreements = calibrations_of(raw, how), agreements_of(raw, how)
    systems = list(raw.replies)
    ids = [str(item["id"]) for item in raw.items]
    names = sorted({name for rows in raw.metrics.values() for row in rows for name in row})
    return {
        "items": len(raw.items),
        "systems": systems,
        "rubric": {"name": raw.rubric.name, "hash": raw.rubric.hash, "source": raw.rubric.source},
        "criteria": [
            {"key": c.key, "name": c.name, "definition": c.definition, "scale": list(c.scale)}
            for c in raw.rubric.criteria
        ],
        "judges": [
            {"name": judge.name, "kind": judge.kind, "model": judge.model, "method": judge.method}
            for judge in raw.judges
        ],
        "judge_trusted": _trusted([c.trusted for c in calibrations], agreements),
        "calibration": [c.row() for c in calibrations],
        "agreement": agreements,
        "scores": {
            system: {key: _column(scores, ids, system, how) for key, scores in table.items()} for system in systems
        },
        "tests": _tests(table, ids, systems, how),
        "noise": _noise(raw) if raw.options.repeats > 1 else {},
        "duels": _duels(raw.duels, how),
        "pair_duels": _duels(raw.pair_duels, how),
        "metrics": {system: _measures(rows, names, how) for system, rows in raw.metrics.items()},
        "human": _measures(raw.human, (raw.human or [{}])[0], how),
        "sources": {system: _sources(raw, system) for system in raw.sources},
        "corpus": raw.corpus,
        "left_out": raw.left_out,
        "embedder": raw.embedder,
        "counts": counts(
            [*raw.judgements, *raw.pair_judgements, *raw.duels, *raw.pair_duels, *raw.rating_judgements], raw
        ),
        "rows": list(_rows(raw, table)),
        "samples": raw.options.samples,
    }


def _sources(raw: Raw, system: str) -> dict[str, int]:
    """How many replies come from where; empty ones come from nowhere."""
    replied = [str(item["id"]) for item, reply in zip(raw.items, raw.replies[system], strict=True) if reply.strip()]
    return dict(Counter(raw.sources[system][key] for key in replied))


def _measures(rows: Sequence[Mapping[str, Any]], names: Iterable[str], how: Mapping[str, Any]) -> dict[str, Any]:
    """The mean of every measure, with its interval."""
    return {name: bootstrap(mean, [row.get(name) for row in rows], **how).row() for name in names}


def score_table(judgements: Iterable[Mapping[str, Any]], rubric: Rubric) -> dict[str, Scores]:
    """Criterion key (and `TOTAL`) → scores, averaged over the jury and repetitions; missing ones are None."""
    heard: dict[str, dict[tuple[str, str], list[float]]] = {c.key: defaultdict(list) for c in rubric.criteria}
    for row in judgements:
        scores = heard[row["criterion"]][row["item"], row["system"]]
        if row["score"] is not None:
            scores.append(row["score"])
    table: dict[str, Scores] = {
        key: {place: fmean(scores) if scores else None for place, scores in found.items()}
        for key, found in heard.items()
    }
    places = dict.fromkeys(place for scores in table.values() for place in scores)
    return {TOTAL: {place: _total(table, place, rubric) for place in places}, **table}


def _total(table: Mapping[str, Scores], place: tuple[str, str], rubric: Rubric) -> float | None:
    counted = [c for c in rubric.criteria if rubric.overall in (None, c.key)]
    scores = [(criterion, table[criterion.key].get(place)) for criterion in counted]
    if any(score is None for _, score in scores):
        return None
    return 100 * fmean(criterion.normalised(score) for criterion, score in scores if score is not None)


def calibrations_of(raw: Raw, how: Mapping[str, Any]) -> list[Calibration]:
    """One calibration per judge that was asked about the pairs."""
    found = []
    for judge in dict.fromkeys(row["judge"] for row in raw.pair_judgements):
        table = score_table((row for row in raw.pair_judgements if row["judge"] == judge), raw.rubric)
        found.append(calibrate(judge, raw.pairs, table.pop(TOTAL), table, **how))
    return found


def agreements_of(raw: Raw, how: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Agreement with people's scores, per judge and criterion."""
    found = []
    for judge in dict.fromkeys(row["judge"] for row in raw.rating_judgements):
        table = score_table((row for row in raw.rating_judgements if row["judge"] == judge), raw.rubric)
        found += agreement(judge, raw.ratings, table, raw.rubric, how)
    return found


def _trusted(by_pairs: Sequence[bool], by_people: Sequence[Mapping[str, Any]]) -> bool | None:
    """Whether every judge passed every test it was put to; None if there was none."""
    verdicts = [*by_pairs, *(row["trusted"] for row in by_people)]
    return all(verdicts) if verdicts else None


def counts(judgements: Sequence[Mapping[str, Any]], raw: Raw) -> dict[str, Any]:
    """How many judgements there are, which are missing and why, tokens and cost."""
    cost = {judge.name: judge.cost for judge in raw.judges}
    outside = [row["outside"] for row in judgements if row["problem"] is None]
    return {
        "judgements": len(judgements),
        "missing": sum(row["score"] is None for row in judgements),
        "problems": dict(Counter(row["problem"] for row in judgements if row["problem"])),
        "methods": dict(Counter(row["method"] for row in judgements)),
        "outside_mean": fmean(outside) if outside else None,
        "prompt_tokens": sum(row["prompt_tokens"] for row in judgements),
        "completion_tokens": sum(row["completion_tokens"] for row in judgements),
        "cost": sum(cost[row["judge"]](row["prompt_tokens"], row["completion_tokens"]) for row in judgements),
    }


def _column(scores: Scores, ids: Sequence[str], system: str, how: Mapping[str, Any]) -> dict[str, Any]:
    values = [scores.get((item, system)) for item in ids]
    return {**bootstrap(mean, values, **how).row(), "missing": values.count(None)}


def _tests(
    table: Mapping[str, Scores], ids: Sequence[str], systems: Sequence[str], how: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Every two systems under every criterion, on the items that both have a score for; Holm over all of them."""
    tests = []
    for (a, b), (key, scores) in itertools.product(itertools.combinations(systems, 2), table.items()):
        pairs = [(scores.get((item, a)), scores.get((item, b))) for item in ids]
        differences = [y - x for x, y in pairs if x is not None and y is not None]
        if differences:
            p = paired_p_value(differences, seed=how["seed"])
            tests.append({"a": a, "b": b, "criterion": key, "p": p, **bootstrap(mean, differences, **how).row()})
    for test, adjusted in zip(tests, holm([test["p"] for test in tests]), strict=True):
        test["p_holm"] = adjusted
    return tests


def _noise(raw: Raw) -> dict[str, dict[str, float]]:
    """Per criterion: spread (standard deviation) of the judgements of one answer, and of the answers' means."""
    heard: dict[str, dict[tuple[str, ...], list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in raw.judgements:
        if row["score"] is not None:
            heard[row["criterion"]][row["judge"], row["item"], row["system"]].append(row["score"])
    found = {}
    for key, answers in heard.items():
        repeated = [
            pvariance(scores) * len(scores) / (len(scores) - 1) for scores in answers.values() if len(scores) > 1
        ]
        if repeated:
            means = [fmean(scores) for scores in answers.values()]
            found[key] = {"judge": fmean(repeated) ** 0.5, "answers": pstdev(means)}
    return found


def _duels(rows: Sequence[Mapping[str, Any]], how: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One tally per judge and two systems."""
    groups: dict[tuple[str, str, str], list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[row["judge"], row["a"], row["b"]].append(row)
    return [{"judge": judge, **tally(group, how)} for (judge, _, _), group in groups.items()]


def _rows(raw: Raw, table: Mapping[str, Scores]) -> Iterable[dict[str, Any]]:
    for index, item in enumerate(raw.items):
        for system, replies in raw.replies.items():
            place = (str(item["id"]), system)
            yield {
                "item": str(item["id"]),
                "category": item.get("category") or "",
                "turns": len(item["messages"]),
                "messages": item["messages"],
                "reference": item.get("reference") or "",
                "system": system,
                "reply": replies[index],
                "source": raw.sources.get(system, {}).get(str(item["id"])),
                "scores": {key: scores.get(place) for key, scores in table.items()},
                "metrics": raw.metrics[system][index] if raw.metrics.get(system) else {},
            }

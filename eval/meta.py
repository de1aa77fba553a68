"""Meta-evaluation: how well judgements, and plain measures, agree with human scores.

Summary level (Liu et al. 2023, section 3, after SummEval): within each document, correlate over systems, then average
over documents. Turn level (as for dialogue, Topical-Chat): correlate over all replies at once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from eval.data import load_rows
from eval.reference import ends_in_question, repetition
from eval.stats import kendall, pearson, spearman
from gonggam.errors import UserError

if TYPE_CHECKING:
    import numpy as np

CORRELATIONS: Mapping[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "pearson": pearson,
    "spearman": spearman,
    "kendall": kendall,
}

_TEXTS = ("reference", "source", "context")


def meta_evaluate(
    rows: Sequence[Mapping[str, Any]], criterion: str | None = None, reps: int = 500, seed: int = 0
) -> list[dict[str, Any]]:
    """Agreement of every predictor in the rows with the human scores.

    Human scores are a row's ``scores`` (a dict) or its ``human_*`` columns. Predictors are the mean of the scores read
    from ``all_responses`` (the form of the published G-Eval results; what cannot be read is missing, not 0), columns
    ``judge_*``, as baselines the reply's length in words and characters, and of the judge-free measures those that need
    no Korean: a question at the end, repetition, chrF to the ``reference``, ``source`` (the dialogue) and ``context``
    where these are given.

    Args:
        rows: one per reply, with ``doc_id`` (or ``source``) and ``system_output`` (or ``reply``).
        criterion: only this human score.
        reps: bootstrap resamples, drawn over documents.
        seed: of the bootstrap.

    Returns:
        Rows of ``criterion, predictor, level, pearson, spearman, kendall, low, high, n``; ``low`` and ``high`` bound
        Spearman's rho at 95 %.

    Raises:
        UserError: no human scores, or no such criterion.
    """
    human = _human(rows)
    if criterion is not None and criterion not in human:
        raise UserError(f"no human score {criterion!r}", f"there are {', '.join(human)}")
    documents = [str(row.get("doc_id") or row.get("source") or row.get("item") or "") for row in rows]
    found = []
    for name in [criterion] if criterion else human:
        for predictor, predicted in _predictors(rows).items():
            for level, measure in (("summary", _summary_level), ("turn", _turn_level)):
                triples = [
                    (document, p, h)
                    for document, p, h in zip(documents, predicted, human[name], strict=True)
                    if p is not None and h is not None
                ]
                if triples:
                    values = measure(triples, reps, seed)
                    found.append({"criterion": name, "predictor": predictor, "level": level, **values})
    return found


def meta_evaluate_file(path: str | Path, criterion: str | None = None) -> list[dict[str, Any]]:
    """`meta_evaluate` on a .json, .jsonl or .csv file."""
    return meta_evaluate(load_rows(path), criterion)


def meta_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The rows of `meta_evaluate` as lines for a terminal."""
    lines = []
    for row in rows:
        numbers = "  ".join(f"{n} {'–' if row[n] is None else f'{row[n]:.3f}'}" for n in CORRELATIONS)
        bounds = f"[{row['low']:.2f}, {row['high']:.2f}]" if row["low"] is not None else ""
        lines.append(f"{row['criterion']:20} {row['predictor']:24} {row['level']:8} {numbers}  {bounds}  n {row['n']}")
    return lines


def read_response(text: str) -> float | None:
    """The score at the beginning of one of a judge's responses, as the published evaluation reads it."""
    found = re.match(r"\s*(\d+(?:\.\d+)?)", text)
    return float(found[1]) if found else None


Triple = tuple[str, float, float]


def _turn_level(triples: Sequence[Triple], reps: int, seed: int) -> dict[str, Any]:
    import numpy as np

    groups: dict[str, list[int]] = {}
    for index, (document, _, _) in enumerate(triples):
        groups.setdefault(document, []).append(index)
    predicted, human = (np.array([triple[i] for triple in triples], dtype=float) for i in (1, 2))
    members = [np.array(group) for group in groups.values()]
    draws = np.random.default_rng(seed).integers(len(members), size=(reps, len(members)))
    resampled = []
    for draw in draws:
        chosen = np.concatenate([members[i] for i in draw])
        resampled.append(spearman(predicted[chosen], human[chosen]))
    values = {name: _number(measure(predicted, human)) for name, measure in CORRELATIONS.items()}
    return {**values, **_bounds(np.array(resampled)), "n": len(triples)}


def _summary_level(triples: Sequence[Triple], reps: int, seed: int) -> dict[str, Any]:
    import numpy as np

    groups: dict[str, list[tuple[float, float]]] = {}
    for document, predicted, human in triples:
        groups.setdefault(document, []).append((predicted, human))
    columns = [np.array(group, dtype=float).T for group in groups.values() if len(group) > 1]
    found = {name: [measure(*column) for column in columns] for name, measure in CORRELATIONS.items()}
    whole = {name: [v for v in values if np.isfinite(v)] for name, values in found.items()}
    rho = np.array(whole["spearman"])
    draws = np.random.default_rng(seed).integers(len(rho), size=(reps, len(rho))) if len(rho) else np.empty((0, 0), int)
    values = {name: fmean(v) if v else None for name, v in whole.items()}
    return {**values, **_bounds(rho[draws].mean(axis=1) if len(rho) else rho), "n": len(rho)}


def _bounds(values: np.ndarray) -> dict[str, float | None]:
    import numpy as np

    values = values[np.isfinite(values)]
    if not len(values):
        return {"low": None, "high": None}
    low, high = np.quantile(values, [0.025, 0.975])
    return {"low": float(low), "high": float(high)}


def _number(value: float) -> float | None:
    return value if value == value else None


def _human(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[float | None]]:
    named = [
        {**(row.get("scores") or {}), **{k[6:]: v for k, v in row.items() if k.startswith("human_")}} for row in rows
    ]
    names = dict.fromkeys(name for row in named for name in row)
    if not names:
        raise UserError("no human scores", "rows need a `scores` object or `human_*` columns")
    return {name: [_float(row.get(name)) for row in named] for name in names}


def _predictors(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[float | None]]:
    """Judgements if there are any; length, which every judge must beat; and what `eval.reference` measures."""
    from sacrebleu.metrics import CHRF

    replies = [str(row.get("system_output") or row.get("reply") or "") for row in rows]
    found: dict[str, list[float | None]] = {}
    if any(row.get("all_responses") for row in rows):
        read = [[read_response(text) for text in row.get("all_responses") or ()] for row in rows]
        scores = [[score for score in line if score is not None] for line in read]
        found["judge"] = [fmean(line) if line else None for line in scores]
    for name in dict.fromkeys(key for row in rows for key in row if key.startswith("judge_")):
        found[name] = [_float(row.get(name)) for row in rows]
    found["length in words"] = [float(len(reply.split())) for reply in replies]
    found["length in characters"] = [float(len(reply)) for reply in replies]
    found["ends in a question"] = [float(ends_in_question(reply)) for reply in replies]
    found["repeated word trigrams"] = [repetition(reply.split()) for reply in replies]
    chrf = CHRF()
    for key in _TEXTS:
        if any(row.get(key) for row in rows):
            found[f"chrF to the {key}"] = [
                chrf.sentence_score(reply, [str(row[key])]).score if row.get(key) else None
                for row, reply in zip(rows, replies, strict=True)
            ]
    return found


def _float(value: Any) -> float | None:
    try:
        return None if value in (None, "") else float(value)
    except (TypeError, ValueError):
        return None

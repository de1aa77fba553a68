"""The judge is judged by people: do its scores follow theirs, is it lenient, does it pay for mere length?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from eval.geval import Answer
from eval.rubric import Rubric
from eval.stats import bootstrap, kendall, mean, slope, spearman, weighted_kappa

HUMAN = "human_"
RATED = "rated"

Scores = Mapping[tuple[str, str], float | None]


def rated_answers(ratings: Sequence[Mapping[str, Any]]) -> list[Answer]:
    """The replies people have scored (``id``, ``messages``, ``reply``, ``human_KEY`` per criterion), to be judged."""
    return [Answer(rating, str(rating["reply"]), RATED) for rating in ratings]


def agreement(
    judge: str,
    ratings: Sequence[Mapping[str, Any]],
    table: Mapping[str, Scores],
    rubric: Rubric,
    how: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """One row per criterion that people scored.

    As intervals: ``spearman``, ``kendall`` (tau-b), ``kappa`` (quadratic weights, whole scores), ``leniency`` (judge
    minus people, in points of the scale) and ``length_slope`` (points by which 100 further characters move the judge
    away from people). ``trusted``: the interval of Spearman's rho lies above 0.
    """
    rows = []
    for criterion in rubric.criteria:
        judged = [table[criterion.key].get((str(rating["id"]), RATED)) for rating in ratings]
        people = [None if (v := rating.get(HUMAN + criterion.key)) in (None, "") else float(v) for rating in ratings]
        if all(score is None for score in people):
            continue
        gaps = [None if j is None or p is None else j - p for j, p in zip(judged, people, strict=True)]
        lengths = [len(str(rating["reply"])) / 100 for rating in ratings]
        few = {**how, "reps": min(500, how["reps"])}
        rho = bootstrap(spearman, judged, people, **few)
        rows.append(
            {
                "judge": judge,
                "criterion": criterion.key,
                "spearman": rho.row(),
                "kendall": bootstrap(kendall, judged, people, **few).row(),
                "kappa": bootstrap(weighted_kappa, judged, people, **few).row(),
                "leniency": bootstrap(mean, gaps, **how).row(),
                "length_slope": bootstrap(slope, lengths, gaps, **few).row(),
                "missing": sum(gap is None for gap in gaps),
                "trusted": rho.low is not None and rho.low > 0,
            }
        )
    return rows

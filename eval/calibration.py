"""The judge is judged: can it tell a better answer from a worse one, and does mere length sway it?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from eval.geval import Answer
from eval.stats import Interval, bootstrap, mean, slope

BETTER, WORSE = "chosen", "rejected"


@dataclass(frozen=True)
class Calibration:
    """How a judge fared on pairs of a better and a worse answer to the same dialogue.

    Attributes:
        judge: its name.
        accuracy: share of pairs in which the better answer scored higher (ties count half).
        p_value: two-sided sign test against chance; ties are left out.
        kappa: agreement beyond chance of its preference with the pairs' (ties count as disagreement by half).
        length_slope: points (of 100) by which 100 further characters raise a score, quality gap held fixed.
        by_criterion: accuracy under each criterion alone.
        missing: pairs without two scores.
        trusted: better than chance at the 5 % level.
    """

    judge: str
    accuracy: Interval
    p_value: float
    kappa: Interval
    length_slope: Interval
    by_criterion: dict[str, Interval]
    missing: int
    trusted: bool

    def row(self) -> dict[str, Any]:
        """As a plain dict."""
        return asdict(self)


def pair_answers(pairs: Sequence[Mapping[str, Any]]) -> list[Answer]:
    """Both answers of every pair (``id``, ``messages``, ``chosen``, ``rejected``), to be scored like any other."""
    return [Answer(pair, str(pair[side]), side) for pair in pairs for side in (BETTER, WORSE)]


def calibrate(
    judge: str,
    pairs: Sequence[Mapping[str, Any]],
    totals: Mapping[tuple[str, str], float | None],
    by_criterion: Mapping[str, Mapping[tuple[str, str], float | None]],
    *,
    reps: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Calibration:
    """Judge a judge by its scores on pairs.

    Args:
        judge: its name.
        pairs: ``id``, ``messages``, ``chosen``, ``rejected``.
        totals: (pair id, side) → total score 0-100, None if missing.
        by_criterion: the same for each criterion, on its own scale.
        reps: bootstrap resamples.
        confidence: level of the intervals.
        seed: of the bootstrap.
    """
    from scipy.stats import binomtest

    how: Any = {"reps": reps, "confidence": confidence, "seed": seed}
    gaps = _gaps(pairs, totals)
    wins, losses = sum(gap > 0 for gap, _ in gaps), sum(gap < 0 for gap, _ in gaps)
    p_value = float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0
    right = [_credit(gap) for gap, _ in gaps]
    accuracy = bootstrap(mean, right, **how)
    return Calibration(
        judge=judge,
        accuracy=accuracy,
        p_value=p_value,
        kappa=bootstrap(lambda values: 2 * mean(values) - 1, right, **how),
        length_slope=bootstrap(slope, [length / 100 for _, length in gaps], [gap for gap, _ in gaps], **how),
        by_criterion={
            key: bootstrap(mean, [_credit(gap) for gap, _ in _gaps(pairs, scores)], **how)
            for key, scores in by_criterion.items()
        },
        missing=len(pairs) - len(gaps),
        trusted=p_value < 0.05 and wins > losses,
    )


def _gaps(
    pairs: Sequence[Mapping[str, Any]], scores: Mapping[tuple[str, str], float | None]
) -> list[tuple[float, int]]:
    """(better - worse score, better - worse length in characters) of the pairs that have both scores."""
    found = []
    for pair in pairs:
        better, worse = scores.get((str(pair["id"]), BETTER)), scores.get((str(pair["id"]), WORSE))
        if better is not None and worse is not None:
            found.append((better - worse, len(pair[BETTER]) - len(pair[WORSE])))
    return found


def _credit(gap: float) -> float:
    return 0.5 if gap == 0 else float(gap > 0)

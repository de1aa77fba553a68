"""Several rankings made into one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

RRF_K = 60


def reciprocal_rank(rankings: Iterable[tuple[Sequence[int], float]], k: int = RRF_K) -> dict[int, float]:
    """Fuse rankings by reciprocal rank (Cormack, Clarke, Buettcher: SIGIR 2009).

    Args:
        rankings: pairs of item numbers, best first, and the ranking's weight.
        k: damping; 60 is the paper's value.

    Returns:
        item number -> fused score, best first; 1 would be the score of an item that leads every ranking.
    """
    scores: dict[int, float] = {}
    total = 0.0
    for ranking, weight in rankings:
        total += weight
        for rank, item in enumerate(ranking):
            scores[item] = scores.get(item, 0.0) + weight * (k + 1) / (k + 1 + rank)
    return {
        item: score / (total or 1.0) for item, score in sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))
    }

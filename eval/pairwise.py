"""Which of two replies is better: asked in both orders, won only if both agree, with and without length held equal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eval.geval import Progress, ask_once, in_flight
from eval.judges import Judge, Question, Verdict
from eval.rubric import Rubric
from eval.stats import bootstrap, mean
from eval.store import Store

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Duel:
    """Two replies to the same dialogue: system ``a``'s and system ``b``'s."""

    item: Mapping[str, Any]
    a: str
    b: str
    reply_a: str
    reply_b: str


def fight(
    duels: Sequence[Duel],
    rubric: Rubric,
    judge: Judge,
    store: Store | None = None,
    seed: int = 0,
    concurrency: int | None = None,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Ask the judge about every duel in both orders; one row per duel.

    A row holds ``score`` (probability that ``a`` is better, over both orders; None if either is missing), ``a_first``
    and ``b_first`` (probability of the reply that stood first, in each order), ``longer`` (characters by which a's
    reply is longer), ``problem``, ``method``, ``outside`` and the tokens used. A duel with an empty reply is not asked.
    """

    def ask(duel: Duel, turned: bool) -> Verdict:
        if not duel.reply_a.strip() or not duel.reply_b.strip():
            return Verdict(judge.spec.method, problem="empty reply")
        return ask_once(judge, _question(rubric, duel, turned), store, seed=seed)

    calls = [lambda d=duel, t=turned: ask(d, t) for duel in duels for turned in (False, True)]
    verdicts: list[Verdict | None] = [None] * len(calls)
    width = concurrency or judge.spec.concurrency
    for done, (index, verdict) in enumerate(in_flight(calls, width), 1):
        verdicts[index] = verdict
        if progress:
            progress(done, len(calls))
    asked = zip(duels, verdicts[::2], verdicts[1::2], strict=True)
    return [_row(duel, judge, forth, back) for duel, forth, back in asked if forth and back]


def _question(rubric: Rubric, duel: Duel, turned: bool) -> Question:
    first, second = (duel.reply_b, duel.reply_a) if turned else (duel.reply_a, duel.reply_b)
    return Question(rubric.render_pair(duel.item, first, second), rubric.pair_form, (1, 2))


def _row(duel: Duel, judge: Judge, forth: Verdict, back: Verdict) -> dict[str, Any]:
    a_first, b_first = forth.probabilities.get(1, 0.0), back.probabilities.get(1, 0.0)
    problem = forth.problem or back.problem
    return {
        "item": str(duel.item["id"]),
        "a": duel.a,
        "b": duel.b,
        "judge": judge.spec.name,
        "score": None if problem else (a_first + 1 - b_first) / 2,
        "a_first": None if problem else a_first,
        "b_first": None if problem else b_first,
        "longer": len(duel.reply_a) - len(duel.reply_b),
        "problem": problem,
        "method": forth.method,
        "outside": (forth.outside + back.outside) / 2,
        "prompt_tokens": forth.prompt_tokens + back.prompt_tokens,
        "completion_tokens": forth.completion_tokens + back.completion_tokens,
    }


def tally(rows: Sequence[Mapping[str, Any]], how: Mapping[str, Any]) -> dict[str, Any]:
    """Sum up duels between the same two systems.

    Returns:
        ``a``, ``b``, ``wins``, ``losses``, ``ties`` (of a; a win needs both orders), ``missing``; and as intervals
        ``win_rate`` (ties count half), ``length_controlled`` (see below), ``consistency`` (share of duels in which both
        orders agree) and ``first_preferred`` (mean probability given to whichever reply stands first; 0.5 = no bias).
    """
    whole = [row for row in rows if row["problem"] is None]
    outcomes = [outcome(row["a_first"], row["b_first"]) for row in whole]
    scores, longer = [row["score"] for row in whole], [float(row["longer"]) for row in whole]
    return {
        "a": rows[0]["a"],
        "b": rows[0]["b"],
        "wins": outcomes.count(1.0),
        "losses": outcomes.count(0.0),
        "ties": outcomes.count(0.5),
        "missing": len(rows) - len(whole),
        "win_rate": bootstrap(mean, outcomes, **how).row(),
        "length_controlled": bootstrap(length_controlled, scores, longer, **{**how, "reps": 200}).row(),
        "consistency": bootstrap(mean, [float(o != 0.5) for o in outcomes], **how).row(),
        "first_preferred": bootstrap(mean, [(r["a_first"] + r["b_first"]) / 2 for r in whole], **how).row(),
    }


def outcome(a_first: float, b_first: float) -> float:
    """1 if ``a`` wins in both orders, 0 if ``b`` does, else 0.5."""
    if a_first > 0.5 > b_first:
        return 1.0
    return 0.0 if b_first > 0.5 > a_first else 0.5


def length_controlled(scores: np.ndarray, longer: np.ndarray) -> float:
    """Preference for ``a`` were both replies equally long (after Dubois et al. 2024, without their difficulty term).

    A logistic model of the preference with an intercept and tanh of the length difference over its spread; the answer
    is the model's value at difference 0. A weak ridge keeps it finite where one side always wins.

    Args:
        scores: probability that a is better, per duel.
        longer: characters by which a's reply is longer.
    """
    import numpy as np
    from scipy.optimize import minimize
    from scipy.special import expit

    feature = np.tanh(longer / (longer.std() or 1.0))

    def loss(theta: np.ndarray) -> float:
        logit = theta[0] + theta[1] * feature
        return float((np.logaddexp(0, logit) - scores * logit).sum() + 0.05 * (theta**2).sum())

    return float(expit(minimize(loss, np.zeros(2), method="BFGS").x[0]))

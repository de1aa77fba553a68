"""From token probabilities to a score: the weighted sum of G-Eval (Liu et al. 2023, section 2), done exactly.

A score may be several tokens ("10" as "1" "0"), and one score may begin another ("1" and "10"). Both are kept apart:
the probability of 1 is that of writing "1" and then no further digit.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

Path = tuple[int, ...]

NEGLIGIBLE = 1e-5
"""Paths less likely than this are not followed; what they hold counts as outside the scale."""


def expected_score(weights: Mapping[int, float]) -> tuple[float | None, dict[int, float], float]:
    """Expected score, the probabilities normalised over the scale, and the mass outside it.

    Args:
        weights: score → probability, not normalised (they may sum to less than 1).
    """
    inside = math.fsum(weights.values())
    outside = max(0.0, 1.0 - inside)
    if inside <= 0:
        return None, {}, outside
    probabilities = {score: weight / inside for score, weight in weights.items()}
    return math.fsum(score * p for score, p in probabilities.items()), probabilities, outside


def parse_score(text: str, scores: Sequence[int]) -> tuple[int | None, str | None]:
    """The one score in a judge's own words, or why there is none (`no score` or `several scores`).

    "4", "- 공감: 4점", "4/5" and "**4**" are scores; "5점 만점에 4점", "4.5", "3~4" and prose are not.
    """
    bare = re.sub(r"(?<=\d)\s*/\s*\d+(?:[.,]\d+)*", "", text)
    numbers = set(re.findall(r"\d+(?:[.,]\d+)*", bare))
    if len(numbers) > 1:
        return None, "several scores"
    for number in numbers:
        if number.isdigit() and int(number) in scores:
            return int(number), None
    return None, "no score"


def score_probabilities(
    next_probabilities: Callable[[Sequence[Path]], np.ndarray], texts: Sequence[str], scores: Sequence[int]
) -> dict[int, float]:
    """Probability that a model writes each score next, over all ways to spell it in tokens.

    One blank token before the score is allowed. The mass that is missing to 1 fell on anything else.

    Args:
        next_probabilities: paths of token ids after the prompt → (paths, vocabulary) next-token probabilities.
        texts: text of each token of the vocabulary.
        scores: the scores of the scale.
    """
    wanted = {str(score) for score in scores}
    prefixes = _beginnings(wanted)
    digits = {i: text for i, text in enumerate(texts) if _digit(text)}
    first = {i: bare for i, text in enumerate(texts) if (bare := text.lstrip(" ")) in prefixes}
    blank = {i: "" for i, text in enumerate(texts) if text and not text.strip(" ")}
    found = dict.fromkeys(scores, 0.0)
    frontier: dict[Path, tuple[str, float]] = {(): ("", 1.0)}
    while frontier:
        rows = next_probabilities(list(frontier))
        reached: dict[Path, tuple[str, float]] = {}
        for (path, (written, mass)), row in zip(frontier.items(), rows, strict=True):
            if written in wanted:  # the score ends here unless another digit follows
                found[int(written)] += mass * max(0.0, 1.0 - float(row[[*digits]].sum()))
            steps = digits if written else first if path else first | blank
            for token, piece in steps.items():
                text = written + piece
                if (text in prefixes or not text) and (weight := mass * float(row[token])) > NEGLIGIBLE:
                    reached[*path, token] = (text, weight)
        frontier = reached
    return found


def logprob_weights(
    tokens: Sequence[tuple[str, Mapping[str, float]]], scores: Sequence[int]
) -> dict[int, float] | None:
    """Score → probability out of an API's answer, or None where no token begins a score.

    At the token where the judge wrote its score, every alternative that is a score counts with its probability.
    Where the score was spelt in several tokens ("1" "0"), the next position parts "1" from "10". The mass of an
    alternative that may go on to a longer score, on a path the judge did not take, cannot be told apart; it is
    left out and so reported as outside, unless the tokenizer is seen to write the longer score in one token.

    Args:
        tokens: the written tokens in order, each with the alternatives' log-probabilities (itself among them).
        scores: the scores of the scale.
    """
    wanted = {str(score) for score in scores}
    prefixes = _beginnings(wanted)
    start = next((i for i, (token, _) in enumerate(tokens) if _digit(token.strip())), None)
    if start is None:
        return None
    found = dict.fromkeys(scores, 0.0)
    written, mass = "", 1.0
    for token, alternatives in tokens[start:]:
        steps: dict[str, float] = {}
        for other, logprob in alternatives.items():
            if text := _spelt(written, other):
                steps[text] = steps.get(text, 0.0) + mass * math.exp(logprob)
        if written in wanted:
            found[int(written)] += max(0.0, mass - math.fsum(steps.values()))
        taken = _spelt(written, token)
        for text, weight in steps.items():
            longer = {score for score in wanted if score != text and score.startswith(text)}
            if text in wanted and text != taken and (not longer or longer & steps.keys()):
                found[int(text)] += weight
        if taken not in prefixes:
            return found
        written, mass = taken, steps[taken]
    if written in wanted:
        found[int(written)] += mass
    return found


def _beginnings(scores: set[str]) -> set[str]:
    return {text[:n] for text in scores for n in range(1, len(text) + 1)}


def _spelt(written: str, token: str) -> str | None:
    """The digits written so far and those of the token, or None where it goes on with something else."""
    digits = token if written else token.lstrip()
    return written + digits.rstrip() if _digit(digits) else None


def _digit(text: str) -> bool:
    return "0" <= text[:1] <= "9"

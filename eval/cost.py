"""What an evaluation will cost, before anything is asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eval.judges import JudgeSpec
from eval.rubric import Rubric

TOKENS_PER_CHARACTER = 0.75
"""Of Korean text, on the safe side of what present tokenizers of large models need (0.5 to 0.7)."""


@dataclass(frozen=True)
class Estimate:
    """Questions, tokens and US dollars, roughly; answers already on disk are not taken off."""

    questions: int
    prompt_tokens: int
    completion_tokens: int
    cost: float


def estimate(
    rubric: Rubric,
    judges: Sequence[JudgeSpec],
    items: Sequence[Mapping[str, Any]],
    replies: Mapping[str, Sequence[str]],
    repeats: int = 1,
) -> Estimate:
    """What it takes to have every reply judged once under every criterion, ``repeats`` times, by every judge.

    Args:
        rubric: as judged.
        judges: the jury.
        items: what the replies answer.
        replies: system → one reply per item. Add the calibration pairs' two sides as systems of their own call.
        repeats: judgements per question.
    """
    characters = [
        len(rubric.render(criterion, item, reply)) + len(rubric.render_form(criterion))
        for texts in replies.values()
        for item, reply in zip(items, texts, strict=True)
        for criterion in rubric.criteria
    ]
    prompt = repeats * sum(int(n * TOKENS_PER_CHARACTER) + 10 for n in characters)
    written = {j.name: repeats * len(characters) * (j.samples if j.method == "samples" else 1) * 8 for j in judges}
    return Estimate(
        questions=len(characters) * repeats * len(judges),
        prompt_tokens=prompt * len(judges),
        completion_tokens=sum(written.values()),
        cost=sum(judge.cost(prompt, written[judge.name]) for judge in judges),
    )

"""What an evaluation will cost, before anything is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from eval.geval import Answer
from eval.judges import JudgeSpec
from eval.pairwise import Duel
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

    def __str__(self) -> str:
        return (
            f"{self.questions:,} questions, about {self.prompt_tokens:,} tokens read and "
            f"{self.completion_tokens:,} written, about {self.cost:.2f} USD"
        )


def estimate(
    rubric: Rubric,
    judges: Sequence[JudgeSpec],
    answers: Sequence[Answer],
    duels: Sequence[Duel] = (),
    repeats: int = 1,
) -> Estimate:
    """What it takes to have every judge score the answers under every criterion and decide the duels in both orders.

    Args:
        rubric: as judged.
        judges: the jury.
        answers: what is scored, calibration included; the empty ones are not asked about.
        duels: what is compared two by two.
        repeats: judgements per answer and criterion.
    """
    singles = [
        len(rubric.render(criterion, answer.item, answer.reply)) + len(rubric.render_form(criterion))
        for answer in answers
        for criterion in rubric.criteria
        if answer.reply.strip()
    ] * repeats
    pairs = [2 * len(rubric.render_pair(d.item, d.reply_a, d.reply_b)) for d in duels if d.reply_a and d.reply_b]
    questions = len(singles) + 2 * len(pairs)
    prompt = int(sum(singles + pairs) * TOKENS_PER_CHARACTER) + 10 * questions
    written = {j.name: questions * (j.samples if j.method == "samples" else 1) * 8 for j in judges}
    return Estimate(
        questions=questions * len(judges),
        prompt_tokens=prompt * len(judges),
        completion_tokens=sum(written.values()),
        cost=sum(judge.cost(prompt, written[judge.name]) for judge in judges),
    )

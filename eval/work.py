"""All that a judge is asked in one evaluation: calibration first, then the systems' replies, then the duels."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eval.agreement import rated_answers
from eval.calibration import BETTER, WORSE, pair_answers
from eval.geval import Answer
from eval.options import EvalOptions
from eval.pairwise import Duel

Item = Mapping[str, Any]


@dataclass(frozen=True)
class Work:
    """What each judge is asked.

    Attributes:
        pairs: both sides of the calibration pairs.
        ratings: the answers that people scored.
        answers: the systems' replies.
        pair_duels: the two sides of each pair against each other.
        duels: the systems' replies against each other.
    """

    pairs: list[Answer]
    ratings: list[Answer]
    answers: list[Answer]
    pair_duels: list[Duel]
    duels: list[Duel]

    @property
    def singles(self) -> list[Answer]:
        """All that is scored."""
        return [*self.pairs, *self.ratings, *self.answers]

    @property
    def against(self) -> list[Duel]:
        """All that is compared."""
        return [*self.pair_duels, *self.duels]


def work_of(
    items: Sequence[Item],
    replies: Mapping[str, Sequence[str]],
    options: EvalOptions,
    pairs: Sequence[Item] = (),
    ratings: Sequence[Item] = (),
) -> Work:
    """Lay out the work; of the dialogues as much is shown as the options say.

    Args:
        items: what the replies answer.
        replies: system → one reply per item.
        options: the recipe's ``eval:`` section.
        pairs: calibration by a better and a worse answer.
        ratings: calibration by people's scores.
    """
    items, pairs, ratings = (_shown(rows, options.history_turns) for rows in (items, pairs, ratings))
    answers = [Answer(i, t, name) for name, texts in replies.items() for i, t in zip(items, texts, strict=True)]
    known = [Duel(pair, BETTER, WORSE, str(pair[BETTER]), str(pair[WORSE])) for pair in pairs]
    duels = [
        Duel(item, a, b, replies[a][index], replies[b][index])
        for a, b in itertools.combinations(replies, 2)
        for index, item in enumerate(items)
    ]
    wanted = options.pairwise
    return Work(pair_answers(pairs), rated_answers(ratings), answers, known if wanted else [], duels if wanted else [])


def _shown(rows: Sequence[Item], turns: int | None) -> list[dict[str, Any]]:
    """The rows with as much of their dialogues as the judge is to see."""
    return [{**row, "messages": row["messages"][-turns:] if turns else row["messages"]} for row in rows]

"""The next token of every row at once, each by its own settings and its own chance.

The order is that of transformers' `generate`: repetition penalty, temperature, top-k, top-p. What a row draws depends
on its seed alone, not on the rows beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.chat.backends import Settings

if TYPE_CHECKING:
    import torch


class Chooser:
    """Chooses for rows of these settings, as long as the same rows stand together.

    Args:
        settings: of each row.
        device: where the logits are.
        unsaid: a token that is never chosen.
    """

    def __init__(self, settings: Sequence[Settings], device: torch.device, unsaid: int | None = None) -> None:
        self.unsaid, self._device = unsaid, device
        penalties = [one.repetition_penalty for one in settings]
        self._penalty = _column(penalties, device) if any(value != 1 for value in penalties) else None
        # Rows without a top-k sort the whole vocabulary: apart from the others, which need not.
        groups = [
            [at for at, one in enumerate(settings) if one.temperature > 0 and bool(one.top_k) == limited]
            for limited in (True, False)
        ]
        self._samplers = [(places, _Sampler.of([settings[at] for at in places], device)) for places in groups if places]

    def __call__(
        self, logits: torch.Tensor, ids: torch.Tensor, chances: Sequence[float]
    ) -> tuple[list[int], list[float]]:
        """A token for every row and its log-probability in nats under the unmodified model.

        Args:
            logits: shape (rows, vocabulary), float32.
            ids: tokens that the repetition penalty falls on, shape (rows, any); a token may stand there twice.
            chances: for each row a number from 0 to below 1.
        """
        import torch

        scores = logits
        if self.unsaid is not None or self._penalty is not None:
            scores = logits.clone()
        if self.unsaid is not None:
            scores[:, self.unsaid] = float("-inf")
        if self._penalty is not None:
            told = scores.gather(1, ids)
            scores.scatter_(1, ids, torch.where(told < 0, told * self._penalty, told / self._penalty))
        if len(self._samplers) == 1 and len(self._samplers[0][0]) == len(logits):
            tokens = self._samplers[0][1](scores, _column(chances, self._device))
        else:
            tokens = scores.argmax(-1)
            for places, sample in self._samplers:
                tokens[places] = sample(scores[places], _column([chances[at] for at in places], self._device))
        logprobs = logits.gather(1, tokens[:, None])[:, 0] - logits.logsumexp(-1)
        return tokens.tolist(), logprobs.tolist()


@dataclass(frozen=True)
class _Sampler:
    """Draws for rows that all have a top-k, of which ``widest`` is the largest, or all have none."""

    widest: int
    top_k: torch.Tensor
    temperature: torch.Tensor
    top_p: torch.Tensor

    @classmethod
    def of(cls, settings: Sequence[Settings], device: torch.device) -> _Sampler:
        """One for rows of these settings."""
        return cls(
            max(one.top_k for one in settings),
            _column([one.top_k for one in settings], device),
            _column([one.temperature for one in settings], device),
            _column([one.top_p for one in settings], device),
        )

    def __call__(self, scores: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
        """One token for each row, by inversion of the distribution over its likeliest tokens."""
        import torch

        best, tokens = scores.topk(min(self.widest or scores.shape[-1], scores.shape[-1]))
        best = best / self.temperature
        if self.widest:
            best.masked_fill_(torch.arange(best.shape[-1], device=best.device) >= self.top_k, float("-inf"))
        weights = best.softmax(-1)
        # A token is in as long as those likelier than it fall short of top_p: these are the first ones.
        weights.mul_(weights.cumsum(-1) - weights < self.top_p)
        reached = weights.cumsum(-1)
        passed = (reached <= drawn * reached[:, -1:]).sum(-1, keepdim=True)
        place = passed.minimum((weights > 0).sum(-1, keepdim=True) - 1)  # rounding may pass them all
        return tokens.gather(1, place)[:, 0]


def _column(values: Sequence[float], device: torch.device) -> torch.Tensor:
    import torch

    return torch.tensor(values, dtype=torch.float32, device=device)[:, None]

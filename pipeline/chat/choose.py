"""The next token of every row at once, each by its own settings and its own chance.

The order is that of transformers' `generate`: repetition penalty, temperature, top-k, top-p. What a row draws depends
on its seed alone, not on the rows beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
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
        import torch

        def column(values: list[float], dtype: torch.dtype = torch.float32) -> torch.Tensor:
            return torch.tensor(values, dtype=dtype, device=device)[:, None]

        self.unsaid = unsaid
        penalties = [one.repetition_penalty for one in settings]
        self._penalty = column(penalties) if any(value != 1 for value in penalties) else None
        self._greedy = all(one.temperature == 0 for one in settings)
        self._groups = []
        for limited in (True, False):
            places = [at for at, one in enumerate(settings) if one.temperature > 0 and bool(one.top_k) == limited]
            if places:
                group = [settings[at] for at in places]
                widest = max(one.top_k for one in group) if limited else None
                self._groups.append(
                    (
                        torch.tensor(places, device=device) if len(places) < len(settings) else None,
                        widest,
                        column([one.top_k for one in group], torch.long) if limited else None,
                        column([one.temperature for one in group]),
                        column([one.top_p for one in group]),
                    )
                )

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
        whole = len(self._groups) == 1 and self._groups[0][0] is None
        tokens = torch.empty(0) if whole else scores.argmax(-1)
        drawn = None if self._greedy else torch.tensor(chances, device=logits.device)[:, None]
        for places, *how in self._groups:
            if places is None:
                tokens = _sampled(scores, drawn, *how)
            else:
                tokens[places] = _sampled(scores[places], drawn[places], *how)
        logprobs = logits.gather(1, tokens[:, None])[:, 0] - logits.logsumexp(-1)
        return tokens.tolist(), logprobs.tolist()


def _sampled(
    scores: torch.Tensor,
    drawn: torch.Tensor,
    widest: int | None,
    top_k: torch.Tensor | None,
    temperature: torch.Tensor,
    top_p: torch.Tensor,
) -> torch.Tensor:
    """One token for each row, by inversion of the distribution over its likeliest tokens."""
    import torch

    best, tokens = scores.topk(min(widest or scores.shape[-1], scores.shape[-1]))
    best = best / temperature
    if top_k is not None:
        best.masked_fill_(torch.arange(best.shape[-1], device=best.device) >= top_k, float("-inf"))
    weights = best.softmax(-1)
    # A token is in as long as those likelier than it fall short of top_p: these are the first ones.
    weights.mul_(weights.cumsum(-1) - weights < top_p)
    reached = weights.cumsum(-1)
    passed = (reached <= drawn * reached[:, -1:]).sum(-1, keepdim=True)
    place = passed.minimum((weights > 0).sum(-1, keepdim=True) - 1)  # rounding may pass them all
    return tokens.gather(1, place)[:, 0]

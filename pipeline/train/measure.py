"""Measures of a policy on held-out data: log-probabilities of human replies, perplexity, preference accuracy."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from gonggam.progress import Progress
from pipeline.train.mask import IGNORE, Row

CHUNK = 1024  # tokens whose softmax is held in float32 at a time


@torch.inference_mode()
def reply_logprobs(
    model: PreTrainedModel, rows: Sequence[Row], *, batch_size: int = 8, progress: Progress | None = None
) -> list[tuple[float, int]]:
    """For each row the summed log-probability (nats) of its supervised tokens and their number.

    Rows are batched by length, padded on the right and masked; the order of ``rows`` is kept in the result.
    """
    model.eval()
    device = model.device
    result: list[tuple[float, int]] = [(0.0, 0)] * len(rows)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].input_ids))
    for at in range(0, len(order), batch_size):
        batch = order[at : at + batch_size]
        longest = max(len(rows[i].input_ids) for i in batch)
        ids = torch.zeros(len(batch), longest, dtype=torch.long)
        labels = torch.full((len(batch), longest), IGNORE)
        mask = torch.zeros_like(ids)
        for k, i in enumerate(batch):
            size = len(rows[i].input_ids)
            ids[k, :size], labels[k, :size], mask[k, :size] = (
                torch.tensor(rows[i].input_ids),
                torch.tensor(rows[i].labels),
                1,
            )
        target = labels[:, 1:].to(device)
        positions = (target != IGNORE).any(dim=0).nonzero().squeeze(1)
        target = target[:, positions]
        logits = model(
            input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False, logits_to_keep=positions
        ).logits
        loss = torch.nn.functional.cross_entropy(
            logits.float().flatten(0, 1), target.flatten(), ignore_index=IGNORE, reduction="none"
        ).view_as(target)
        for k, i in enumerate(batch):
            result[i] = (-loss[k].sum().item(), int((target[k] != IGNORE).sum()))
        if progress:
            progress(min(at + batch_size, len(order)), len(order))
    return result


def summed_loss(
    logits: torch.Tensor, target: torch.Tensor, *, label_smoothing: float = 0.0, dft: bool = False
) -> torch.Tensor:
    """Cross-entropy (nats) summed over tokens, its softmax in float32 and in chunks that are not kept for the gradient.

    Args:
        logits: (tokens, vocabulary) in any float type.
        target: (tokens,), -100 where no loss is taken.
        dft: weigh every token by its probability (Wu et al. 2025, https://arxiv.org/abs/2508.05629).
    """

    def chunk_loss(some: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        loss = torch.nn.functional.cross_entropy(
            some.float(), labels, ignore_index=IGNORE, reduction="none", label_smoothing=label_smoothing
        )
        return (loss * torch.exp(-loss.detach()) if dft else loss).sum()

    if len(target) <= CHUNK:
        return chunk_loss(logits, target)
    parts = zip(logits.split(CHUNK), target.split(CHUNK), strict=True)
    return torch.stack([checkpoint(chunk_loss, *part, use_reentrant=False) for part in parts]).sum()


def perplexity(logprobs: Sequence[tuple[float, int]]) -> float:
    """Token-weighted perplexity of the supervised tokens: exp(-sum of log-probabilities / number of tokens)."""
    total, count = sum(lp for lp, _ in logprobs), sum(n for _, n in logprobs)
    return math.exp(-total / count) if count else math.nan


def percentile_per_token(logprobs: Sequence[tuple[float, int]], share: float) -> float:
    """The ``share`` quantile (0 to 1) over rows of the mean log-probability (nats) of a supervised token."""
    means = torch.tensor([lp / n for lp, n in logprobs if n], dtype=torch.float64)
    return float(means.quantile(share)) if len(means) else -math.inf

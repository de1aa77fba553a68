"""Attention over several texts in one row, none of which sees another: no padding, no square mask.

A row is a sequence of segments ``(length, shared)``. A segment with ``shared`` 0 is a text of its own (a trunk); one
with ``shared`` n > 0 goes on after the first n tokens of the trunk before it (a branch), which is how a rejected reply
stands behind the same prompt as the chosen one. The function is registered with transformers under `NAME`; calls that
bring no segments (evaluation, generation) are plain sdpa. With segments goes `NO_MASK`: models would else derive the
square mask of a packed row from its positions, only for it to be left unread.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "gonggam_segments"
NO_MASK = torch.ones(1, 1, 1, 1, dtype=torch.bool)
"""A mask of four dimensions, which transformers takes for a finished one and hands on as it is."""
Segment = tuple[int, int]


def segment_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    segments: Sequence[Segment] | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention inside every segment, and of every branch to the shared part of its trunk.

    Args:
        query: (1, heads, tokens, head size), as ``key`` and ``value``.
        segments: their lengths sum to ``tokens``; None for plain sdpa under ``attention_mask``.

    Returns:
        the attended values (1, tokens, heads, head size), and no weights.
    """
    if segments is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    # One split for all segments: its backward is one concatenation, where slices would each fill a whole row of zeros.
    parts = [states.split([length for length, _ in segments], dim=2) for states in (query, key, value)]
    attended = []
    trunk: tuple[torch.Tensor, torch.Tensor] = parts[1][0], parts[2][0]
    for (length, shared), q, k, v in zip(segments, *parts, strict=True):
        mask = None
        if shared:
            mask = torch.ones(length, shared + length, dtype=torch.bool, device=q.device).tril(shared)[None, None]
            k, v = (torch.cat([whole[:, :, :shared], own], dim=2) for whole, own in zip(trunk, (k, v), strict=True))
        else:
            trunk = k, v
        attended.append(sdpa_attention_forward(module, q, k, v, mask, **options)[0])
    return torch.cat(attended, dim=1), None


AttentionInterface.register(NAME, segment_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


def positions(segments: Sequence[Segment]) -> list[int]:
    """Position ids of a row: trunks count from 0, branches go on from what they share."""
    return [shared + i for length, shared in segments for i in range(length)]


def cannot_keep_apart(config: PretrainedConfig, attention: str | None, max_length: int | None) -> str | None:
    """What in a model's configuration is against texts side by side in one row; None for nothing."""
    text = config.get_text_config()
    if attention not in (None, "sdpa"):
        return f"its attention is {attention}, not sdpa"
    window = getattr(text, "sliding_window", None)
    if window and getattr(text, "use_sliding_window", True) and (max_length is None or max_length > window):
        return f"its attention window slides ({window} tokens)"
    return None


def use_segments(model: PreTrainedModel, max_length: int | None) -> str | None:
    """Switch ``model`` to segment attention if it gives the same logits as text by text; else say why not.

    The proof is a trial on a few tokens, so a model that ignores segments is found out, whatever its architecture.

    Returns:
        None if the model now uses segments, else the reason, and the model is as it was.
    """
    config = model.config.get_text_config()
    before = config._attn_implementation
    if against := cannot_keep_apart(config, None if before == NAME else before, max_length):
        return against
    model.set_attn_implementation(NAME)
    if _same_logits(model):
        return None
    model.set_attn_implementation(before)
    return "it does not keep the texts of a row apart"


@torch.no_grad()
def _same_logits(model: PreTrainedModel) -> bool:
    """Whether two texts, the second with a branch, get the same logits in one row as each alone."""
    training = model.training
    model.eval()
    size = min(model.config.get_text_config().vocab_size, 1000)
    ids = [(7 * i) % (size - 1) + 1 for i in range(12)]
    segments = [(3, 0), (5, 0), (4, 2)]
    texts = [ids[:3], ids[3:8], ids[3:5] + ids[8:]]

    def logits(row: list[int], **more: Any) -> torch.Tensor:
        return model(input_ids=torch.tensor([row], device=model.device), use_cache=False, **more).logits[0].float()

    try:
        places = torch.tensor([positions(segments)], device=model.device)
        together = logits(ids, position_ids=places, segments=segments, attention_mask=NO_MASK.to(model.device))
        alone = torch.cat([logits(text)[-length:] for text, (length, _) in zip(texts, segments, strict=True)])
    except (TypeError, ValueError):  # the model knows no such arguments
        return False
    finally:
        model.train(training)
    exact = next(model.parameters()).dtype == torch.float32 and not getattr(model, "is_quantized", False)
    spread = alone.std().clamp(min=1e-6)
    return bool(((together - alone).abs().max() / spread) < (1e-3 if exact else 0.2))

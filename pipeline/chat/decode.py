"""Token by token: one batch of conversations through one causal model, each row with its own settings and adapter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pipeline.chat.backends import Settings

if TYPE_CHECKING:
    import torch
    from transformers import Cache, LogitsProcessorList, PreTrainedModel


@dataclass
class Row:
    """One conversation in a batch: its prompt, what was generated so far, and its own source of chance."""

    prompt: list[int]
    settings: Settings
    adapter: str | None = None
    limit: int = 1 << 30
    """Tokens of the model's context that are left for the reply."""
    emitted: list[int] = field(default_factory=list)
    done: bool = False
    processors: LogitsProcessorList | None = None
    generator: torch.Generator | None = None

    @property
    def ids(self) -> list[int]:
        """Prompt and what was generated."""
        return self.prompt + self.emitted


@dataclass(frozen=True)
class Step:
    """One generated token: which row, its id, and its log-probability in nats under the unmodified model."""

    row: int
    token: int
    logprob: float


def decode(
    model: PreTrainedModel, rows: Sequence[Row], eos: frozenset[int], pad: int, cache: Cache | None = None
) -> Iterator[Step]:
    """Generate until every row is done; a caller ends a row early by setting ``row.done``.

    The step that ends a row (an end-of-sequence token) is not yielded. ``cache`` may hold a computed prefix of the
    prompt (one row only); it is extended in place.

    Yields:
        one `Step` for every unfinished row and position.
    """
    import torch
    from transformers import DynamicCache

    device = model.get_input_embeddings().weight.device
    for row in rows:
        row.processors, row.generator = _processors(row.settings), _generator(row.settings.seed, device)
    cache = cache if cache is not None else DynamicCache(config=model.config)
    start = cache.get_seq_length()
    tokens, mask = _left_padded([row.ids for row in rows], pad, device)
    names = [row.adapter or "__base__" for row in rows]
    adapters = {"adapter_names": names} if hasattr(model, "peft_config") else {}
    while True:
        feed = tokens[:, start:]
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, start:]
        with torch.inference_mode():
            logits = model(
                input_ids=feed, attention_mask=mask, position_ids=positions, past_key_values=cache,
                use_cache=True, logits_to_keep=1, **adapters,
            ).logits[:, -1].float()  # fmt: skip
        start = tokens.shape[1]
        chosen = [pad] * len(rows)
        for index, row in enumerate(rows):
            if row.done:
                continue
            token, logprob = _choose(row, logits[index], device)
            if token in eos:
                row.done = True
                continue
            chosen[index] = token
            row.emitted.append(token)
            yield Step(index, token, logprob)
            row.done = row.done or len(row.emitted) >= min(row.settings.max_new_tokens, row.limit)
        if all(row.done for row in rows):
            return
        tokens = torch.cat([tokens, torch.tensor(chosen, device=device)[:, None]], dim=1)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)


def _choose(row: Row, logits: torch.Tensor, device: torch.device) -> tuple[int, float]:
    import torch

    ids = torch.tensor([row.ids], device=device)
    scores = row.processors(ids, logits[None].clone())[0]
    if row.settings.temperature == 0:
        token = int(scores.argmax())
    else:
        token = int(torch.multinomial(scores.softmax(-1), 1, generator=row.generator))
    return token, float(logits.log_softmax(-1)[token])


def _processors(settings: Settings) -> LogitsProcessorList:
    from transformers import (
        LogitsProcessorList,
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    processors = LogitsProcessorList()
    if settings.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(settings.repetition_penalty))
    if settings.temperature > 0:
        processors.append(TemperatureLogitsWarper(float(settings.temperature)))
        if settings.top_k:
            processors.append(TopKLogitsWarper(settings.top_k))
        if settings.top_p < 1:
            processors.append(TopPLogitsWarper(settings.top_p))
    return processors


def _generator(seed: int | None, device: torch.device) -> torch.Generator:
    import torch

    generator = torch.Generator(device=device)
    generator.seed() if seed is None else generator.manual_seed(seed)
    return generator


def _left_padded(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, both of shape (rows, longest), padded on the left."""
    import torch

    longest = max(map(len, rows))
    tokens = torch.tensor([[pad] * (longest - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=device)
    return tokens, mask

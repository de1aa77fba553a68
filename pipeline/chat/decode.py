"""Token by token: conversations through one causal model together, each row with its own settings and adapter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pipeline.chat.backends import Settings

if TYPE_CHECKING:
    import torch
    from transformers import Cache, LogitsProcessor, PreTrainedModel


@dataclass(eq=False)
class Row:
    """One conversation in a batch: its prompt, what was generated so far, and its own source of chance."""

    prompt: list[int]
    settings: Settings
    adapter: str | None = None
    limit: int = 1 << 30
    """Tokens of the model's context that are left for the reply."""
    cached: int = 0
    """How many of ``ids`` the model has read."""
    emitted: list[int] = field(default_factory=list)
    done: bool = False
    generator: torch.Generator | None = None

    @property
    def ids(self) -> list[int]:
        """Prompt and what was generated."""
        return self.prompt + self.emitted

    def prepare(self, device: torch.device) -> None:
        """Set up how tokens are chosen; a row that joins again goes on with its own chance."""
        if self.generator is None:
            self.generator = _generator(self.settings.seed, device)


@dataclass(frozen=True)
class Step:
    """One generated token: whose it is, its id, and its log-probability in nats under the unmodified model."""

    row: Row
    token: int
    logprob: float


class Running:
    """Rows that are decoded together; they join and leave between steps (continuous batching: Orca, OSDI 2022).

    Keys and values of all rows stand in one cache, aligned on the right and masked on the left. Rows that are done must
    `leave` before the next `step`. The token ``pad`` is never chosen, unless it ends replies: no reply holds padding,
    and models fitted on padded rows were known for nothing else.
    """

    def __init__(self, model: PreTrainedModel, eos: frozenset[int], pad: int | None = None) -> None:
        self.model, self.eos, self.rows = model, eos, list[Row]()
        self._unsaid = None if pad in eos else pad
        self._cache: Cache | None = None
        self._device = model.get_input_embeddings().weight.device

    def join(self, row: Row, cache: Cache | None = None) -> list[Step]:
        """Read a row's prompt, but for the beginning that ``cache`` holds, and take it in.

        Returns:
            its first token; nothing if the row is done at once.
        """
        import torch
        from transformers import DynamicCache

        row.prepare(self._device)
        cache = cache if cache is not None else DynamicCache()
        start, ids = cache.get_seq_length(), row.ids
        feed = torch.tensor([ids[start:]], device=self._device)
        positions = torch.arange(start, len(ids), device=self._device)[None]
        logits = self._forward([row], feed, torch.ones(1, len(ids), dtype=torch.long), positions, cache)
        row.cached = len(ids)
        self._cache = cache if self._cache is None else _beside(self._cache, cache)
        self.rows.append(row)
        return self._chosen([row], logits)

    def step(self) -> list[Step]:
        """One more token for every row; none for rows that end with it."""
        import torch

        assert self._cache is not None  # there is one as long as there are rows
        length = self._cache.get_seq_length()
        feed = torch.tensor([[row.ids[-1]] for row in self.rows], device=self._device)
        mask = torch.tensor([[0] * (length - row.cached) + [1] * (row.cached + 1) for row in self.rows])
        positions = torch.tensor([[row.cached] for row in self.rows], device=self._device)
        logits = self._forward(self.rows, feed, mask, positions, self._cache)
        for row in self.rows:
            row.cached += 1
        return self._chosen(self.rows, logits)

    def leave(self, row: Row) -> Cache:
        """Let a row go; returns what was computed of its first ``row.cached`` tokens."""
        place = self.rows.index(row)
        own = _picked(self._cache, [place], row.cached)
        del self.rows[place]
        rest = [at for at in range(len(self.rows) + 1) if at != place]
        longest = max((other.cached for other in self.rows), default=0)
        self._cache = _picked(self._cache, rest, longest) if rest else None
        return own

    def clear(self) -> None:
        """Let all rows go, with what was computed of them."""
        self.rows, self._cache = [], None

    def _forward(
        self, rows: Sequence[Row], feed: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: Cache
    ) -> torch.Tensor:
        import torch

        names = [row.adapter or "__base__" for row in rows]
        adapters = {"adapter_names": names} if hasattr(self.model, "peft_config") else {}
        with torch.inference_mode():
            return self.model(
                input_ids=feed, attention_mask=mask.to(self._device), position_ids=positions, past_key_values=cache,
                use_cache=True, logits_to_keep=1, **adapters,
            ).logits[:, -1].float()  # fmt: skip

    def _chosen(self, rows: Sequence[Row], logits: torch.Tensor) -> list[Step]:
        steps = []
        for row, token, logprob in zip(rows, *_choose(rows, logits, self._unsaid), strict=True):
            if token in self.eos:
                row.done = True
                continue
            row.emitted.append(token)
            row.done = row.done or len(row.emitted) >= min(row.settings.max_new_tokens, row.limit)
            steps.append(Step(row, token, logprob))
        return steps


def _beside(cache: Cache, other: Cache) -> Cache:
    """Two caches as one batch, the shorter padded on the left."""
    import torch
    from torch.nn.functional import pad
    from transformers import DynamicCache

    longest = max(cache.get_seq_length(), other.get_seq_length())

    def widened(states: torch.Tensor) -> torch.Tensor:
        return pad(states, (0, 0, longest - states.shape[-2], 0))

    return DynamicCache(
        [
            tuple(torch.cat([widened(a), widened(b)]) for a, b in zip(one[:2], two[:2], strict=True))
            for one, two in zip(cache, other, strict=True)
        ]
    )


def _picked(cache: Cache, places: Sequence[int], length: int) -> Cache:
    """The last ``length`` positions of some rows of a cache, as a copy."""
    from transformers import DynamicCache

    return DynamicCache([tuple(states[places][..., -length:, :].clone() for states in layer[:2]) for layer in cache])


def _choose(rows: Sequence[Row], logits: torch.Tensor, unsaid: int | None) -> tuple[list[int], list[float]]:
    """A token for every row and its log-probability; rows of the same settings go through the warpers together.

    Args:
        logits: shape (rows, vocabulary).
        unsaid: a token that is never chosen.
    """
    import torch
    from transformers import RepetitionPenaltyLogitsProcessor

    scores, chosen = logits.clone(), [torch.empty(0)] * len(rows)
    alike: dict[tuple[float, int, float], list[int]] = {}
    if unsaid is not None:
        scores[:, unsaid] = float("-inf")
    for place, row in enumerate(rows):
        said = row.settings
        if said.repetition_penalty != 1:
            punish, ids = RepetitionPenaltyLogitsProcessor(said.repetition_penalty), torch.tensor([row.ids])
            scores[place] = punish(ids.to(logits.device), scores[place : place + 1])[0]
        alike.setdefault((float(said.temperature), said.top_k, said.top_p), []).append(place)
    for settings, places in alike.items():
        part = scores[places]
        if settings[0] > 0:
            for warp in _warpers(*settings):
                part = warp(None, part)
            part = part.softmax(-1)
        for place, weights in zip(places, part, strict=True):
            sampled = settings[0] > 0
            chosen[place] = (
                torch.multinomial(weights, 1, generator=rows[place].generator) if sampled else weights.argmax()[None]
            )
    tokens = torch.cat(chosen)
    return tokens.tolist(), logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0].tolist()


def _warpers(temperature: float, top_k: int, top_p: float) -> list[LogitsProcessor]:
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    return [
        TemperatureLogitsWarper(temperature),
        *([TopKLogitsWarper(top_k)] if top_k else []),
        *([TopPLogitsWarper(top_p)] if top_p < 1 else []),
    ]


def _generator(seed: int | None, device: torch.device) -> torch.Generator:
    import torch

    generator = torch.Generator(device=device)
    generator.seed() if seed is None else generator.manual_seed(seed)
    return generator

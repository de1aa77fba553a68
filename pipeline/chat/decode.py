"""Token by token: conversations through one causal model together, each row with its own settings and adapter."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pipeline.chat.backends import Settings

if TYPE_CHECKING:
    import torch
    from transformers import Cache, PreTrainedModel

    from pipeline.chat.block import States
    from pipeline.chat.choose import Chooser

CHUNK = 512
"""Tokens of prompts that are read between two steps, so that a long one does not hold up the rows that decode."""
PADDING = 1.5
"""Prompts are read together while no more than this many times their own positions are worked on."""


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
    chance: random.Random = field(init=False)
    """A row that joins again goes on with it."""

    def __post_init__(self) -> None:
        """Seed what the row draws."""
        self.chance = random.Random(self.settings.seed)

    @property
    def ids(self) -> list[int]:
        """Prompt and what was generated."""
        return self.prompt + self.emitted

    @property
    def unread(self) -> int:
        """How many tokens the model has yet to read."""
        return len(self.prompt) + len(self.emitted) - self.cached


@dataclass(frozen=True, slots=True)
class Step:
    """One generated token: whose it is, its id, and its log-probability in nats under the unmodified model."""

    row: Row
    token: int
    logprob: float


class Running:
    """Rows that are worked on together; they join and leave between steps (continuous batching: Orca, OSDI 2022).

    Prompts are read in chunks between the steps of the rows that decode (Sarathi-Serve, OSDI 2024), several at once
    where they are of like length. Rows that are done must `leave` before the next `step`. The token ``pad`` is never
    chosen, unless it ends replies: no reply holds padding, and models fitted on padded rows were known for little else.
    """

    def __init__(self, model: PreTrainedModel, eos: frozenset[int], pad: int | None = None) -> None:
        from pipeline.chat.block import Block

        self.model, self.eos, self.rows = model, eos, list[Row]()
        self._reading: dict[Row, States | None] = {}
        self._unsaid = None if pad in eos else pad
        self._block = Block()
        self._chooser: Chooser | None = None
        self._device = model.get_input_embeddings().weight.device

    @property
    def reading(self) -> list[Row]:
        """Rows whose prompt is not read yet, in the order they came."""
        return list(self._reading)

    def join(self, row: Row, states: States | None = None) -> None:
        """Take in a row, and what was computed already of its beginning."""
        from pipeline.chat.block import length_of

        row.cached = length_of(states)
        self._reading[row] = states

    def read(self) -> list[Step]:
        """Read a chunk of what waits to be read; returns the first tokens of the rows that are through."""
        import torch

        group = self._next_to_read()
        if not group:
            return []
        with torch.inference_mode():
            feeds = [row.ids[row.cached : row.cached + CHUNK] for row in group]
            cache = _side_by_side([self._reading[row] for row in group])
            cached = cache.get_seq_length()
            logits = self._read(group, feeds, cache)
            through, states = [], []
            for place, (row, feed) in enumerate(zip(group, feeds, strict=True)):
                own = _own(cache, place, cached - row.cached, cached + len(feed))
                row.cached += len(feed)
                if row.unread:
                    self._reading[row] = own if len(group) == 1 else _copied(own)
                else:
                    through.append(place)
                    states.append(own)
            return self._begin([group[place] for place in through], states, logits[through]) if through else []

    def step(self) -> list[Step]:
        """One more token for every row whose prompt is read; none for rows that end with it."""
        import torch

        if not self.rows:
            return []
        with torch.inference_mode():
            feed = torch.tensor([[row.emitted[-1]] for row in self.rows], device=self._device)
            positions = torch.tensor([[row.cached] for row in self.rows], device=self._device)
            mask = self._block.feed(feed)
            logits = self._forward(self.rows, feed, mask, positions, self._block.cache)[:, -1]
            self._block.fed()
            for row in self.rows:
                row.cached += 1
            self._chooser = choose = self._chooser or self._choose(self.rows)
            return self._chosen(self.rows, logits, self._block.ids(), choose)

    def leave(self, row: Row) -> States | None:
        """Let a row go; returns what was computed of its first ``row.cached`` tokens."""
        import torch

        if row in self._reading:
            return self._reading.pop(row)
        place = self.rows.index(row)
        self.rows[place] = self.rows[-1]
        del self.rows[-1]
        self._chooser = None
        with torch.inference_mode():
            return self._block.drop(place)

    def clear(self) -> None:
        """Let all rows go, with what was computed of them."""
        self.rows, self._chooser = [], None
        self._reading.clear()
        self._block.clear()

    def _begin(self, rows: list[Row], states: list[States], logits: torch.Tensor) -> list[Step]:
        """The first tokens of rows whose prompts are read; they decode from now on."""
        for row in rows:
            del self._reading[row]
        self._block.add([(own, row.ids) for own, row in zip(states, rows, strict=True)])
        self._chooser, ids = None, self._block.ids(len(self.rows))
        self.rows += rows
        return self._chosen(rows, logits, ids, self._choose(rows))

    def _next_to_read(self) -> list[Row]:
        """The oldest row that reads, with as many of the next ones as are read well beside it."""
        group, longest, own, widest = list[Row](), 0, 0, 0
        for row in self._reading:
            feed = min(CHUNK, row.unread)
            longest, widest, own = max(longest, row.cached), max(widest, feed), own + row.cached + feed
            count = len(group) + 1
            if group and (count * widest > CHUNK or count * (longest + widest) > PADDING * own):
                break
            group.append(row)
        return group

    def _read(self, rows: Sequence[Row], feeds: Sequence[list[int]], cache: Cache) -> torch.Tensor:
        """Read tokens of several rows, padded behind, where no token of theirs looks; logits after the last of each."""
        import torch

        device, cached = self._device, cache.get_seq_length()
        widest, ends = max(map(len, feeds)), sorted({len(feed) - 1 for feed in feeds})
        feed = torch.tensor([ids + ids[-1:] * (widest - len(ids)) for ids in feeds], device=device)
        begins = torch.tensor([[row.cached] for row in rows], device=device)
        steps = torch.arange(cached + widest, device=device)
        mask = None if len({row.cached for row in rows}) == 1 else (steps >= cached - begins).long()
        # Behind the end of a short prompt any position will do that the model has.
        positions = begins + steps[:widest].minimum(torch.tensor([[len(ids) - 1] for ids in feeds], device=device))
        keep = 1 if len(ends) == 1 else torch.tensor(ends, device=device)
        logits = self._forward(rows, feed, mask, positions, cache, keep)
        places = [ends.index(len(ids) - 1) if len(ends) > 1 else 0 for ids in feeds]
        return logits[range(len(rows)), places]

    def _forward(
        self,
        rows: Sequence[Row],
        feed: torch.Tensor,
        mask: torch.Tensor | None,
        positions: torch.Tensor,
        cache: Cache,
        keep: int | torch.Tensor = 1,
    ) -> torch.Tensor:
        return self.model(
            input_ids=feed, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True,
            logits_to_keep=keep, **self._adapters(rows),
        ).logits.float()  # fmt: skip

    def _adapters(self, rows: Sequence[Row]) -> dict[str, list[str]]:
        """How the model is told each row's adapter: one that all share is made active, as peft is faster then."""
        if not hasattr(self.model, "peft_config"):
            return {}
        names = [row.adapter or "__base__" for row in rows]
        if names[0] == "__base__" or len(set(names)) > 1:
            return {"adapter_names": names}
        if self.model.active_adapter != names[0]:
            self.model.set_adapter(names[0], inference_mode=True)
        return {}

    def _choose(self, rows: Sequence[Row]) -> Chooser:
        from pipeline.chat.choose import Chooser

        return Chooser([row.settings for row in rows], self._device, self._unsaid)

    def _chosen(self, rows: Sequence[Row], logits: torch.Tensor, ids: torch.Tensor, choose: Chooser) -> list[Step]:
        steps = []
        chances = [row.chance.random() for row in rows]
        for row, token, logprob in zip(rows, *choose(logits, ids, chances), strict=True):
            if token in self.eos:
                row.done = True
                continue
            row.emitted.append(token)
            row.done = row.done or len(row.emitted) >= min(row.settings.max_new_tokens, row.limit)
            steps.append(Step(row, token, logprob))
        return steps


def _side_by_side(rows: Sequence[States | None]) -> Cache:
    """What was computed of several rows as one cache, the shorter padded on the left."""
    import torch
    from torch.nn.functional import pad
    from transformers import DynamicCache

    from pipeline.chat.block import length_of

    longest = max(map(length_of, rows))
    if not longest:
        return DynamicCache()
    if len(rows) == 1:
        return DynamicCache(rows[0])
    like = next(row for row in rows if row)
    rows = [row or [(k[..., :0, :], v[..., :0, :]) for k, v in like] for row in rows]
    return DynamicCache(
        [
            tuple(
                torch.cat([pad(part, (0, 0, longest - part.shape[-2], 0)) for part in parts])
                for parts in zip(*layers, strict=True)
            )
            for layers in zip(*rows, strict=True)
        ]
    )


def _own(cache: Cache, place: int, start: int, end: int) -> States:
    """Positions of one row of a cache, as views."""
    return [tuple(part[place, None, :, start:end] for part in layer[:2]) for layer in cache]


def _copied(states: States) -> States:
    """A copy that does not keep the memory of the rows beside it."""
    return [(keys.clone(), values.clone()) for keys, values in states]

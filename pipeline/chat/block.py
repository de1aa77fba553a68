"""Keys and values of the rows that are decoded together: one allocation for each layer, written in place.

Loads torch and transformers; import it inside the function that needs it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

States = list[tuple[torch.Tensor, torch.Tensor]]
"""Keys and values of one row, layer by layer, each of shape (1, heads, length, dimensions)."""
SPARE = 64
"""Positions beyond the longest row: so many steps go by between two allocations."""


def length_of(states: States | None) -> int:
    """Tokens whose keys and values these are."""
    return states[0][0].shape[-2] if states else 0


def beginning(states: States, length: int) -> States:
    """The first ``length`` tokens, as a view."""
    return [(keys[..., :length, :], values[..., :length, :]) for keys, values in states]


@dataclass
class _Frame:
    """The positions in use: ``begin`` of the longest row, and ``end`` of all."""

    begin: int = 0
    end: int = 0


class _Layer(CacheLayerMixin):
    """One layer of a block, as transformers' models use it."""

    def __init__(self, frame: _Frame, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()
        self.frame, self.keys, self.values, self.is_initialized = frame, keys, values, True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing is left to do."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write new states at the end; returns views of all in use."""
        rows, begin, at = key_states.shape[0], self.frame.begin, self.frame.end
        end = at + key_states.shape[-2]
        self.keys[:rows, :, at:end] = key_states
        self.values[:rows, :, at:end] = value_states
        return self.keys[:rows, :, begin:end], self.values[:rows, :, begin:end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Positions in use with the new ones, and where they begin."""
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        """Positions in use."""
        return self.frame.end - self.frame.begin

    def get_max_length(self) -> int:
        """None: the block grows."""
        return -1


class Block:
    """Rows aligned on the right, so that a step writes one position for all of them.

    Positions left of a row hold zeros or what an earlier row left there: finite, and masked. A row that leaves is
    replaced by the last one; the block is laid out anew, no larger than it has to be, when it is full.
    """

    def __init__(self) -> None:
        self.lengths: list[int] = []
        self._frame, self._layers = _Frame(), list[_Layer]()
        self._ids = self._mask = torch.empty(0, 0, dtype=torch.long)

    @property
    def cache(self) -> Cache:
        """The block as a model takes it."""
        return Cache(self._layers)

    def ids(self, since: int = 0) -> torch.Tensor:
        """Tokens of the rows from place ``since`` on, shape (rows, longest); shorter rows begin with repetitions."""
        return self._ids[since : len(self.lengths), self._frame.begin : self._frame.end]

    def add(self, rows: Sequence[tuple[States, Sequence[int]]]) -> None:
        """Take in the states and tokens of new rows, behind those that are there."""
        need, longest = len(self.lengths) + len(rows), max(len(ids) for _, ids in rows)
        if need > self._ids.shape[0] or longest > self._frame.end:
            self._lay_out(1 << (need - 1).bit_length(), max([longest, *self.lengths]), rows[0][0])
        end = self._frame.end
        for states, ids in rows:
            place, start = len(self.lengths), end - len(ids)
            for layer, (keys, values) in zip(self._layers, states, strict=True):
                layer.keys[place, :, start:end] = keys[0]
                layer.values[place, :, start:end] = values[0]
            self._ids[place] = ids[0]
            self._ids[place, start:end] = torch.tensor(ids)
            self._mask[place] = 0
            self._mask[place, start:end] = 1
            self.lengths.append(len(ids))
        self._frame.begin = end - max(self.lengths)

    def drop(self, place: int) -> States:
        """Let a row go; returns its states."""
        end, last = self._frame.end, len(self.lengths) - 1
        start = end - self.lengths[place]
        own = [
            (x.keys[place, None, :, start:end].clone(), x.values[place, None, :, start:end].clone())
            for x in self._layers
        ]
        for kept in [part for x in self._layers for part in (x.keys, x.values)] if place != last else ():
            kept[place, :, self._frame.begin : end] = kept[last, :, self._frame.begin : end]
        self._ids[place], self._mask[place] = self._ids[last], self._mask[last]
        self.lengths[place] = self.lengths[last]
        del self.lengths[last]
        if self.lengths:
            self._frame.begin = end - max(self.lengths)
        else:
            self.clear()
        return own

    def feed(self, tokens: torch.Tensor) -> torch.Tensor | None:
        """Make room for one more token of every row.

        Args:
            tokens: shape (rows, 1).

        Returns:
            the attention mask, shape (rows, positions); None where all rows are of one length.
        """
        if self._frame.end == self._ids.shape[1]:
            self._lay_out(1 << (len(self.lengths) - 1).bit_length(), max(self.lengths))
        rows, begin, end = len(self.lengths), self._frame.begin, self._frame.end
        self._ids[:rows, end], self._mask[:rows, end] = tokens[:, 0], 1
        return None if min(self.lengths) == end - begin else self._mask[:rows, begin : end + 1]

    def fed(self) -> None:
        """The model has read what `feed` was given."""
        self._frame.end += 1
        self.lengths = [length + 1 for length in self.lengths]

    def clear(self) -> None:
        """Let all rows go."""
        self.lengths, self._frame, self._layers = [], _Frame(), []
        self._ids = self._mask = torch.empty(0, 0, dtype=torch.long)

    def _lay_out(self, slots: int, longest: int, like: States | None = None) -> None:
        """Move all rows to fresh tensors in which the longest ends at ``longest``, layer by layer."""
        rows, old, width = len(self.lengths), self._frame, longest + SPARE
        new = _Frame(longest - max(self.lengths, default=0), longest)

        def moved(part: torch.Tensor, positions: int) -> torch.Tensor:
            shape = list(part.shape)
            shape[0], shape[positions] = slots, width
            fresh = part.new_zeros(shape)
            fresh[:rows].narrow(positions, new.begin, new.end - new.begin).copy_(
                part[:rows].narrow(positions, old.begin, old.end - old.begin)
            )
            return fresh

        if not self._layers:
            self._layers = [_Layer(old, keys[:, :, :0], values[:, :, :0]) for keys, values in like or ()]
            self._ids = self._mask = torch.empty(1, 0, dtype=torch.long, device=self._layers[0].keys.device)
        for layer in self._layers:
            layer.keys, layer.values, layer.frame = moved(layer.keys, 2), moved(layer.values, 2), new
        first = self._ids[:rows, old.begin, None].clone() if rows else None
        self._ids, self._mask, self._frame = moved(self._ids, 1), moved(self._mask, 1), new
        if first is not None:
            self._ids[:rows, : new.begin] = first

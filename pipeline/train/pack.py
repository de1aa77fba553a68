"""Rows side by side in one, without padding and without seeing each other."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import Any

import torch

from pipeline.train.attend import NO_MASK, positions
from pipeline.train.mask import IGNORE, Row


def best_fit(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Which rows go together: best-fit decreasing, every bin at most ``size`` tokens.

    Longest first, each into the bin that it fills best. Needs at most 11/9 of the fewest possible bins, and one more
    (Johnson 1973, "Near-optimal bin packing algorithms").

    Returns:
        bins of indices into ``lengths``, each index once.

    Raises:
        ValueError: a row is longer than ``size``.
    """
    if lengths and max(lengths) > size:
        raise ValueError(f"a row of {max(lengths)} tokens does not fit {size}")
    bins: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free tokens, bin), sorted
    for row in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        at = bisect_left(room, (lengths[row], -1))
        free, number = room.pop(at) if at < len(room) else (size, len(bins))
        if number == len(bins):
            bins.append([])
        bins[number].append(row)
        insort(room, (free - lengths[row], number))
    return bins


def columns(rows: Sequence[Row], bins: Sequence[Sequence[int]]) -> dict[str, list[Any]]:
    """Data set columns, one entry a bin: ``input_ids``, ``labels``, ``seq_lengths`` and the ``names`` of its rows."""
    packed = [[rows[i] for i in bin] for bin in bins]
    return {
        "input_ids": [[token for row in bin for token in row.input_ids] for bin in packed],
        "labels": [[label for row in bin for label in (IGNORE, *row.labels[1:])] for bin in packed],
        "seq_lengths": [[len(row.input_ids) for row in bin] for bin in packed],
        "names": [[row.name for row in bin] for bin in packed],
    }


class FlatCollator:
    """A batch as one row without padding: positions start anew with every text, and no text sees another.

    Args:
        segments: the model takes segments (`pipeline.train.attend`). Without them the positions alone keep texts
            apart, which FlashAttention understands.
    """

    def __init__(self, *, segments: bool) -> None:
        self.segments = segments

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """``input_ids``, ``labels`` and ``position_ids`` (1, tokens), and ``segments`` with their mask."""
        segments = [(length, 0) for example in examples for length in example["seq_lengths"]]
        batch: dict[str, Any] = {
            "input_ids": torch.tensor([[token for example in examples for token in example["input_ids"]]]),
            "labels": torch.tensor([[label for example in examples for label in example["labels"]]]),
            "position_ids": torch.tensor([positions(segments)]),
        }
        return batch | {"segments": segments, "attention_mask": NO_MASK} if self.segments else batch

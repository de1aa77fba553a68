"""Joining rows that hold prefixes of one conversation, and finding exact duplicates.

A conversation of three exchanges is often stored as three rows: one exchange, two, all three. Only the longest is
kept, with every reply of it supervised. Conversations that part after a common beginning stay separate; the common
replies are taught by the first of them only, in the others they are context (`Conversation.given`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from data_prep.conversation import Conversation

if TYPE_CHECKING:
    import numpy as np

KEPT, MERGED, DUPLICATE = 0, 1, 2


def fates(hashes: Sequence[int], lengths: Sequence[int], *, exact: bool = True, prefixes: bool = True) -> np.ndarray:
    """What becomes of each row: `KEPT`, `MERGED` (the beginning of another row) or `DUPLICATE` (of an earlier one).

    Args:
        hashes: the `Conversation.prefix_hashes` of all rows, one after another.
        lengths: how many of them belong to each row, at least one each.
        exact: whether later rows with the same turns are duplicates.
        prefixes: whether rows that are the beginning of another row are merged into it.
    """
    import numpy as np

    flat = np.asarray(hashes, dtype=np.uint64)
    last = np.cumsum(np.asarray(lengths, dtype=np.int64)) - 1
    ends = flat[last]
    result = np.full(len(last), KEPT, dtype=np.int8)
    repeated = np.ones(len(last), dtype=bool)
    repeated[np.unique(ends, return_index=True)[1]] = False
    if prefixes:
        result[repeated | np.isin(ends, np.delete(flat, last))] = MERGED
    if exact:
        result[repeated] = DUPLICATE
    return result


def given_turns(conversation: Conversation, taught: set[int]) -> int:
    """Number of leading turns, up to a reply, that ``taught`` holds already; adds this conversation's replies to it."""
    hashes = conversation.prefix_hashes()
    replies = [(n, value) for n, value in enumerate(hashes, 1) if conversation.turns[n - 1].role == "assistant"]
    given = max((n for n, value in replies if value in taught), default=0)
    taught.update(value for _, value in replies)
    return given


def reassemble(conversations: Iterable[Conversation]) -> list[Conversation]:
    """The distinct conversations, prefixes joined, each (context, reply) taught exactly once."""
    rows = list(conversations)
    chains = [row.prefix_hashes() for row in rows]
    decided = fates([value for chain in chains for value in chain], [len(chain) for chain in chains])
    taught: set[int] = set()
    kept = (row for row, fate in zip(rows, decided, strict=True) if fate == KEPT)
    return [replace(row, given=given_turns(row, taught)) for row in kept]

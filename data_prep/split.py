"""Splitting by a hash of how a conversation begins: adding data does not move what is already placed.

Two exceptions. Where an added conversation shares an exchange with two that lay in different splits, the three move
together, since anything else would be a leak. And while a small source has nothing in a held-out split by its hashes
alone, its conversation with the lowest hash stands in (`guaranteed`); that one goes back to train when one with a lower
hash is added. No rule without memory can do better: if every twenty conversations had one in test that never moves,
no more than nineteen of all could ever be outside test.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from typing import Literal

from data_prep.conversation import SHORT_OPENER, Conversation

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

#: A source of at least so many conversations (counted by root) has one in every split that is asked for.
ENOUGH = 20


def split_of(root: int, *, validation: float, test: float) -> Split:
    """The split of all conversations with this `Conversation.root`.

    The root is read as a number in [0, 1), the same way for every source, so each source is divided in equal shares.
    """
    place = root / 2**64
    return "test" if place < test else "validation" if place < test + validation else "train"


def guaranteed(sources: Iterable[Iterable[int]], *, validation: float, test: float) -> dict[int, Split]:
    """Roots that are held out although `split_of` places them elsewhere, so that no source goes without.

    Args:
        sources: the roots of each source.
        validation, test: shares; a split with share 0 is given nothing.
    """
    moved: dict[int, Split] = {}
    every = [sorted(set(roots)) for roots in sources]

    def place(root: int) -> Split:
        return moved.get(root) or split_of(root, validation=validation, test=test)

    held_out: tuple[tuple[Split, float, set[Split]], ...] = (
        ("test", test, {"validation", "train"}),
        ("validation", validation, {"train"}),
    )
    for split, share, rest in held_out:
        for roots in every:
            if share and len(roots) >= ENOUGH and all(place(root) != split for root in roots):
                moved.update((root, split) for root in [r for r in roots if place(r) in rest][:1])
    return moved


class Roots:
    """Which conversations must share a split: those that begin alike, or hold the same exchange anywhere.

    The second matters for rows that start in the middle of a conversation.
    """

    def __init__(self) -> None:
        self._parent: dict[int, int] = {}
        self._exchanges: dict[int, int] = {}

    def add(self, conversation: Conversation) -> int:
        """Take note of a conversation; returns its root."""
        root = conversation.root()
        exchanges = conversation.exchanges()
        for said, reply in exchanges:
            if len(said) + len(reply) >= 2 * SHORT_OPENER:
                key = int.from_bytes(
                    blake2b(f"{said}\0{reply}".encode(errors="replace"), digest_size=8).digest(), "big"
                )
                other = self._exchanges.setdefault(key, root)
                if other != root:
                    self._join(root, other)
        return root

    def group(self, root: int) -> int:
        """The root that stands for all that must share a split with ``root``: the smallest of them."""
        while root in self._parent:
            root = self._parent[root]
        return root

    def _join(self, one: int, other: int) -> None:
        low, high = sorted((self.group(one), self.group(other)))
        if low != high:
            self._parent[high] = low

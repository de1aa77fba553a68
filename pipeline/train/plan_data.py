"""How long the rows of a run are, and what batches of them come to: exact with a tokenizer, estimated without."""

from __future__ import annotations

import random
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gonggam.errors import UserError
from pipeline.prompt import with_system

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# A token a character is more than tokenizers with Korean in their vocabulary need; a turn has markers beside its text.
_MARKERS = 6


@dataclass(frozen=True)
class Rows:
    """The rows of a training split, as the model reads them.

    Attributes:
        lengths: tokens of each row.
        supervised: tokens of each row that the loss is on.
        over: conversations (pairs) longer than max_length, which are cut into several rows (lose old exchanges).
        lost: replies that do not fit max_length at all; training would refuse them.
        exact: counted with the model's tokenizer, not estimated from characters.
        pairs: preference pairs in all; 0 for SFT.
        heads: positions of each row that get logits, where they are not the supervised tokens: a chosen reply gets
            them once for every rejected one.
    """

    lengths: Sequence[int]
    supervised: Sequence[int]
    over: int = 0
    lost: int = 0
    exact: bool = True
    pairs: int = 0
    heads: Sequence[int] = ()

    @property
    def positions(self) -> Sequence[int]:
        """Positions of each row that get logits."""
        return self.heads or self.supervised

    @property
    def tokens(self) -> int:
        """Tokens of all rows."""
        return sum(self.lengths)

    @property
    def share(self) -> float:
        """Share of tokens that the loss is on."""
        return sum(self.supervised) / max(1, self.tokens)


@dataclass(frozen=True)
class Batches:
    """An epoch as the trainer reads it.

    Attributes:
        count: rows (packed: bins) that are drawn from.
        slots: places for tokens, padding and gaps included.
        tokens: what fills them.
        longest: length of a row of the largest batch.
        squares: sum over rows of the square of their length, padding included.
    """

    count: int
    slots: int
    tokens: int
    longest: int
    squares: int

    @property
    def waste(self) -> float:
        """Share of slots that hold no token."""
        return 1 - self.tokens / max(1, self.slots)


def sft_lengths(
    tokenizer: PreTrainedTokenizerBase | None, prepared: Path, *, system: str | None, max_length: int | None
) -> Rows:
    """Rows of the training split for SFT.

    Raises:
        UserError: the split is empty, or a row fails the mask's proof.
    """
    from pipeline.train.data import conversations, writable

    found = conversations(prepared, "train")
    if not found:
        raise UserError("no conversations in the train split", "prepare more data", file=prepared)
    lengths: list[int] = []
    supervised: list[int] = []
    over = lost = 0

    def build(conversation: dict[str, Any]) -> list[list[tuple[int, int]]]:
        messages = with_system(conversation["messages"], system)
        given = sum(m["role"] == "assistant" for m in conversation["messages"][: conversation.get("given", 0)])
        return [_pieces(tokenizer, messages, given, max_length, conversation["id"])]

    for pieces in writable(found, build, "conversations of the train split"):
        over += len(pieces) != 1 or bool(max_length and pieces[0][0] > max_length)
        lost += not pieces or bool(tokenizer is None and max_length and pieces[0][0] > max_length)
        for length, count in pieces:
            lengths.append(min(length, max_length or length))
            supervised.append(min(count, lengths[-1]))
    return Rows(lengths, supervised, over, lost if tokenizer else 0, tokenizer is not None)


def _pieces(
    tokenizer: PreTrainedTokenizerBase | None,
    messages: list[dict[str, str]],
    first: int,
    max_length: int | None,
    name: str,
) -> list[tuple[int, int]]:
    """(tokens, supervised tokens) of the rows that a conversation becomes; none if a reply does not fit."""
    if tokenizer is None:
        replies = [m for m in messages if m["role"] == "assistant"][first:]
        return [(sum(map(_estimate, messages)), sum(len(m["content"]) + 1 for m in replies))]
    from pipeline.train.mask import supervise, windows

    whole = supervise(tokenizer, messages, first=first, name=name)
    if max_length is None or len(whole.input_ids) <= max_length:
        return [(len(whole.input_ids), whole.supervised)]
    try:
        return [(len(r.input_ids), r.supervised) for r in windows(tokenizer, messages, max_length, first=first)]
    except UserError:
        return []


def dpo_lengths(
    tokenizer: PreTrainedTokenizerBase | None,
    prepared: Path,
    *,
    system: str | None,
    max_length: int | None,
    shared: bool = True,
) -> Rows:
    """Preference pairs of the training split as rows [prompt; chosen; rejected; rejected ...].

    ``over`` counts pairs of which the prompt with one reply is longer than ``max_length``.

    Args:
        shared: pairs of one prompt and chosen reply share a row, as in `pipeline.train.prefix.grouped`; else each has
            its own.

    Raises:
        UserError: there are no pairs.
    """
    pairs = _pair_sizes(tokenizer, prepared, system)
    if not pairs:
        raise UserError("no preference pairs to train on", "add a source with pairs to prepare", file=prepared)
    limit = max_length or max(prompt + max(replies) for _, prompt, *replies in pairs)
    over = sum(prompt + max(chosen, rejected) > limit for _, prompt, chosen, rejected in pairs)
    lost = sum(max(chosen, rejected) > limit for *_, chosen, rejected in pairs) if tokenizer else 0
    rows: dict[Any, tuple[int, int, list[int]]] = {}
    for number, (said, prompt, chosen, rejected) in enumerate(pairs):
        kept = min(prompt, max(0, limit - max(chosen, rejected)))
        rows.setdefault((said, kept) if shared else number, (kept, chosen, []))[2].append(rejected)
    return Rows(
        lengths=[kept + chosen + sum(rejected) for kept, chosen, rejected in rows.values()],
        supervised=[chosen + sum(rejected) for _, chosen, rejected in rows.values()],
        over=over,
        lost=lost,
        exact=tokenizer is not None,
        pairs=len(pairs),
        heads=[chosen * len(rejected) + sum(rejected) for _, chosen, rejected in rows.values()],
    )


def _pair_sizes(
    tokenizer: PreTrainedTokenizerBase | None, prepared: Path, system: str | None
) -> list[tuple[Any, int, int, int]]:
    """Of each pair: what tells its prompt and chosen reply, and the tokens of prompt, chosen and rejected reply."""
    from pipeline.train.data import dpo_rows, pairs

    if tokenizer:
        return [
            (
                (tuple(row["prompt_ids"]), tuple(row["chosen_ids"])),
                len(row["prompt_ids"]),
                len(row["chosen_ids"]),
                len(row["rejected_ids"]),
            )
            for row in dpo_rows(tokenizer, prepared, "train", system=system, max_length=None)
        ]
    return [
        (
            repr((pair["prompt"], pair["chosen"])),
            sum(map(_estimate, with_system(pair["prompt"], system))),
            sum(map(_estimate, pair["chosen"])),
            sum(map(_estimate, pair["rejected"])),
        )
        for pair in pairs(prepared, "train")
    ]


def _estimate(message: dict[str, Any]) -> int:
    return len(message["content"]) + _MARKERS


def twice(rows: Rows) -> list[int]:
    """Lengths of the rows that TRL makes of each pair, the prompt with either reply, these taken for equally long."""
    return [length - said // 2 for length, said in zip(rows.lengths, rows.supervised, strict=True) for _ in range(2)]


def loose(lengths: Sequence[int]) -> Batches:
    """Rows side by side, without padding."""
    return Batches(len(lengths), sum(lengths), sum(lengths), max(lengths), sum(n**2 for n in lengths))


def padded(lengths: Sequence[int], batch: int, seed: int) -> Batches:
    """Rows in random order, each batch as long as its longest row."""
    order = list(lengths)
    random.Random(seed).shuffle(order)
    shapes = [(len(some), max(some)) for some in (order[i : i + batch] for i in range(0, len(order), batch))]
    slots, squares = sum(n * longest for n, longest in shapes), sum(n * longest**2 for n, longest in shapes)
    return Batches(len(order), slots, sum(order), max(order), squares)


def packed(lengths: Sequence[int], size: int) -> Batches:
    """Rows side by side in bins of ``size`` tokens, best-fit decreasing; a longer row has a bin of its own."""
    room: list[int] = []
    bins = 0
    for length in sorted(lengths, reverse=True):
        at = bisect_left(room, length)
        free = room.pop(at) if at < len(room) else size
        bins += free == size
        insort(room, max(0, free - length))
    return Batches(bins, bins * size, sum(lengths), min(size, sum(lengths)), sum(n**2 for n in lengths))

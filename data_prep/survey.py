"""Counting what is in a set of conversations: the figures behind `data_prep.explore`."""

from __future__ import annotations

import re
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from heapq import nsmallest
from itertools import islice, pairwise
from pathlib import Path
from typing import Any
from zlib import crc32

from data_prep.conversation import Conversation, letters
from data_prep.reassemble import DUPLICATE, MERGED, fates
from data_prep.sources import read
from data_prep.split import SPLITS
from gonggam.errors import UserError
from gonggam.files import read_json, read_jsonl

Count = Callable[[list[dict[str, str]]], int]


@dataclass
class Survey:
    """Figures of a set of conversations.

    Attributes:
        sources, splits: number of conversations by each.
        labels: the same by what else is known of them: origin (the data's own source column), type, category, emotion.
        hashes, lengths: the prefix hashes of all conversations, one after another, and how many each has.
        exchanges: number of conversations by their number of exchanges.
        user, reply: lengths of user turns and replies in characters.
        tokens: for each tokenizer the length of every conversation in tokens.
        openings, endings: first two words and last word of replies.
        replies: how often the same reply stands in the set (letters only), and ``repeated`` the most common ones.
        words, pairs: distinct and all words and word pairs of replies, for distinct-1 and distinct-2.
        chosen: conversations picked by hash, to be shown.
        report: of preparation, if there is one; ``quarantine`` some rows of it.
    """

    conversations: int = 0
    sources: Counter[str] = field(default_factory=Counter)
    splits: Counter[str] = field(default_factory=Counter)
    labels: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    hashes: array[int] = field(default_factory=lambda: array("Q"))
    lengths: array[int] = field(default_factory=lambda: array("L"))
    exchanges: Counter[int] = field(default_factory=Counter)
    user: list[int] = field(default_factory=list)
    reply: list[int] = field(default_factory=list)
    tokens: dict[str, list[int]] = field(default_factory=dict)
    openings: Counter[str] = field(default_factory=Counter)
    endings: Counter[str] = field(default_factory=Counter)
    replies: Counter[int] = field(default_factory=Counter)
    repeated: Counter[str] = field(default_factory=Counter)
    words: Counter[str] = field(default_factory=Counter)
    pairs: Counter[tuple[str, str]] = field(default_factory=Counter)
    chosen: list[Conversation] = field(default_factory=list)
    report: dict[str, Any] = field(default_factory=dict)
    quarantine: list[dict[str, Any]] = field(default_factory=list)

    def distinct(self) -> tuple[float, float]:
        """Distinct-1 and distinct-2 of the replies (Li et al. 2016): different words, or word pairs, among all."""
        words, pairs = (len(c) / max(1, c.total()) for c in (self.words, self.pairs))
        return words, pairs

    def stored_again(self) -> tuple[int, int]:
        """Conversations that stand in the set before, and those that are the beginning of another one."""
        decided = fates(self.hashes, self.lengths).tolist()
        return decided.count(DUPLICATE), decided.count(MERGED)

    def repeated_share(self) -> float:
        """Share of replies that stand in the set more than once."""
        return sum(n for n in self.replies.values() if n > 1) / max(1, self.replies.total())


def survey(path: str | Path, tokenizers: Mapping[str, Count] | None = None, show: int = 20, seed: int = 0) -> Survey:
    """Look through a prepared folder, or any file a reader recognises.

    Args:
        path: what to look at.
        tokenizers: name → a function that counts the tokens of a list of messages.
        show: how many conversations to pick.
        seed: another seed picks others.

    Raises:
        UserError: there is no conversation in it.
    """
    result = Survey(tokens={name: [] for name in tokenizers or {}})
    folder = Path(path)
    prepared = (folder / "report.json").is_file()
    if prepared:
        result.report = read_json(folder / "report.json")
        result.quarantine = list(islice(_few_of_each(read_jsonl(folder / "quarantine.jsonl")), 50))
    found = (
        (crc32(f"{seed}:{i}".encode()), i, c) for i, c in enumerate(_counted(folder, prepared, tokenizers, result))
    )
    result.chosen = [conversation for *_, conversation in nsmallest(show, found)]
    if not result.conversations:
        raise UserError("no conversation in it", "name a prepared folder or a file of dialogues", file=path)
    common = {key for key, n in result.replies.most_common(200) if n > 1}
    result.repeated = Counter({t: n for t, n in result.repeated.items() if _key(t) in common and n > 1})
    return result


def _few_of_each(rows: Iterable[dict[str, Any]], n: int = 3) -> Iterable[dict[str, Any]]:
    """The first rows for each reason."""
    seen: Counter[str] = Counter()
    for row in rows:
        seen[row["reason"]] += 1
        if seen[row["reason"]] <= n:
            yield row


def _counted(
    folder: Path, prepared: bool, tokenizers: Mapping[str, Count] | None, result: Survey
) -> Iterable[Conversation]:
    for split, reader, file in _files(folder) if prepared else [("", None, folder)]:
        for _, row, outcome in read(reader, str(file)):
            if isinstance(outcome, Conversation):
                outcome = replace(outcome, source=row.values["source"]) if prepared else outcome
                _add(result, outcome, split)
                for name, count in (tokenizers or {}).items():
                    result.tokens[name].append(count(outcome.messages()))
                yield outcome


def _files(folder: Path) -> Iterable[tuple[str, str, Path]]:
    """What preparation wrote: split, reader and path of every file that is not empty."""
    for form, reader in (("messages", "messages"), ("labelled", "emotion")):
        for split in SPLITS:
            file = folder / form / f"{split}.jsonl"
            if file.is_file() and file.stat().st_size:
                yield split, reader, file


def _add(result: Survey, conversation: Conversation, split: str) -> None:
    result.conversations += 1
    result.sources[conversation.source] += 1
    result.splits[split] += bool(split)
    for name in ("origin", "type", "category", "emotion"):
        if conversation.meta.get(name):
            result.labels[name][conversation.meta[name]] += 1
    chain = conversation.prefix_hashes()
    result.hashes.extend(chain)
    result.lengths.append(len(chain))
    result.exchanges[len(conversation.exchanges())] += 1
    for turn in conversation.turns:
        if turn.role == "user":
            result.user.append(len(turn.content))
        elif turn.role == "assistant":
            _add_reply(result, turn.content)


def _add_reply(result: Survey, text: str) -> None:
    result.reply.append(len(text))
    result.replies[_key(text)] += 1
    if result.replies[_key(text)] > 1:
        result.repeated[text] += 1 if text in result.repeated else 2
    words = text.split()
    if words:
        result.openings[" ".join(words[:2])] += 1
        result.endings[re.sub(r"^.*?(\S{1,6})$", r"\1", words[-1])] += 1
        result.words.update(words)
        result.pairs.update(pairwise(words))


def _key(text: str) -> int:
    return hash(letters(text))

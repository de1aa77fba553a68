"""Leak audit: does anything a model is trained on stand in what it is measured by?

Any beginning of a conversation of two turns or more that stands in train and also in validation, test, an evaluation
set or a set of preference pairs is an error. Only pairs of the train split may share beginnings with the train
conversations: preparation makes them from these, so that DPO starts where SFT ended (``apart`` forbids it). A shared
first turn is listed only: people often open with the same words. Texts are compared by their letters and digits, so
that spacing and marks hide nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

from data_prep.conversation import Conversation, letters
from data_prep.near import near_duplicates
from data_prep.sources import read
from data_prep.split import SPLITS
from gonggam.errors import UserError

TRAIN, HELD_OUT, PREFERENCE, TRAIN_PAIRS = "train", "held-out", "preference", "train pairs"
_ROLES = {
    "train": TRAIN,
    "validation": HELD_OUT,
    "valid": HELD_OUT,
    "dev": HELD_OUT,
    "test": HELD_OUT,
    "eval": HELD_OUT,
    "evaluation": HELD_OUT,
    "preference": PREFERENCE,
}


@dataclass
class Audit:
    """What an audit found.

    Attributes:
        files: each file with its role and its number of conversations.
        unread: rows that hold no conversation.
        leaks: held-out conversations that share two turns or more with train; ``examples`` shows some.
        openers: first turns that stand on both sides, with how many held-out conversations they open.
        preference: pairs of the train split whose conversation is also trained on by SFT.
        near: held-out conversations that nearly equal one in train without sharing its beginning.
    """

    files: list[dict[str, Any]] = field(default_factory=list)
    unread: int = 0
    leaks: int = 0
    examples: list[dict[str, Any]] = field(default_factory=list)
    openers: dict[str, int] = field(default_factory=dict)
    preference: int = 0
    near: int = 0
    near_examples: list[dict[str, Any]] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing leaks."""
        return not self.leaks


@dataclass(frozen=True, slots=True)
class _Entry:
    conversation: Conversation
    role: str
    file: str
    row: int
    chain: tuple[int, ...]


def audit(files: Sequence[str | Path], *, near: float | None = 0.85, apart: bool = False, examples: int = 10) -> Audit:
    """Audit files, or folders that `data_prep.prepare` wrote, against one another.

    Args:
        files: each a path whose name says its role (train, validation, test, eval, preference ...), or ``role=path``.
            Pairs of the role train may share beginnings with train conversations, pairs of the role preference not.
        near: Jaccard similarity from which on two conversations are near duplicates; None does not look.
        apart: whether a train pair from an SFT training conversation is a leak too.
        examples: how many leaks to show.

    Raises:
        UserError: a file cannot be read, or its role is not clear from its name.
    """
    result = Audit()
    entries: list[_Entry] = []
    for role, path in _roles(files):
        count = 0
        for reader, row, outcome in read(None, str(path)):
            if isinstance(outcome, str):
                result.unread += 1
                continue
            count += 1
            role = TRAIN_PAIRS if role == TRAIN and reader == "pairs" else role
            entries.append(_Entry(outcome, role, path.as_posix(), row.number, _chain(outcome)))
        result.files.append({"file": path.as_posix(), "role": role, "conversations": count})
    held, train, pairs, train_pairs = (
        [entry for entry in entries if entry.role == role] for role in (HELD_OUT, TRAIN, PREFERENCE, TRAIN_PAIRS)
    )
    leaking = _shared(held, [*train, *pairs, *train_pairs], result, examples)
    leaking |= _shared(pairs, train, result, examples)
    by_design = result if apart else Audit()
    result.preference = len(_shared(train_pairs, train, by_design, examples))
    if near is not None:
        _near([*train, *pairs, *train_pairs], [e for e in held if id(e) not in leaking], near, result, examples)
    return result


def _roles(files: Sequence[str | Path]) -> Iterator[tuple[str, Path]]:
    """Each file with its role; folders written by preparation stand for the files in them."""
    for name in files:
        label, _, rest = str(name).partition("=")
        path = Path(rest) if rest and label in _ROLES else Path(name)
        if rest and label in _ROLES:
            yield _ROLES[label], path
        elif path.is_dir():
            forms = ("messages", "preference", "labelled")
            found = [file for form in forms for file in sorted((path / form).glob("*.jsonl"))]
            found = found or [path / f"{split}.jsonl" for split in SPLITS if (path / f"{split}.jsonl").is_file()]
            if not found:
                raise UserError("holds nothing that preparation wrote", "name the files themselves", file=path)
            yield from ((_role(file), file) for file in found if file.stat().st_size)
        elif not path.is_file():
            raise UserError("file not found", file=path)
        else:
            yield _role(path), path


def _role(path: Path) -> str:
    for word in (*re.split(r"[\W_]+", path.stem.lower()), path.parent.name):
        if word in _ROLES:
            return _ROLES[word]
    raise UserError("is this train or held-out?", f"say so: train={path} or test={path}", file=path)


def _chain(conversation: Conversation) -> tuple[int, ...]:
    """A hash for each beginning of the conversation, by letters and digits; system turns do not count."""
    chain, hashes = b"", []
    for turn in conversation.turns:
        if turn.role != "system":
            text = f"{turn.role}\0{letters(turn.content) or turn.content}".encode(errors="replace")
            chain = blake2b(text, digest_size=8, key=chain).digest()
            hashes.append(int.from_bytes(chain, "big"))
    return tuple(hashes)


def _positions(entries: Iterable[_Entry]) -> dict[int, _Entry]:
    seen: dict[int, _Entry] = {}
    for entry in entries:
        for value in entry.chain:
            seen.setdefault(value, entry)
    return seen


def _shared(held: list[_Entry], train: list[_Entry], result: Audit, examples: int) -> set[int]:
    """Count what of ``held`` begins like something in ``train``; returns the ids of the leaking entries."""
    seen, leaking = _positions(train), set[int]()
    for entry in held:
        length = max((n for n, value in enumerate(entry.chain, 1) if value in seen), default=0)
        if length == 1:
            opener = next(turn.content for turn in entry.conversation.turns if turn.role != "system")
            result.openers[opener] = result.openers.get(opener, 0) + 1
        if length > 1:
            result.leaks += 1
            leaking.add(id(entry))
            if len(result.examples) < examples:
                result.examples.append(_example(entry, seen[entry.chain[length - 1]], turns=length))
    return leaking


def _near(train: list[_Entry], held: list[_Entry], threshold: float, result: Audit, examples: int) -> None:
    entries = [*train, *held]
    texts = [entry.conversation.text() for entry in entries]
    for index, twin in near_duplicates(texts, texts.__getitem__, threshold).items():
        one, other = entries[index], entries[twin]
        if (index < len(train)) != (twin < len(train)):
            result.near += 1
            if len(result.near_examples) < examples:
                held_out, trained = (one, other) if index >= len(train) else (other, one)
                result.near_examples.append(_example(held_out, trained))
    result.openers = dict(sorted(result.openers.items(), key=lambda item: (-item[1], item[0])))


def _example(held: _Entry, train: _Entry, **more: Any) -> dict[str, Any]:
    return {
        "held_out": f"{held.file}:{held.row}",
        "train": f"{train.file}:{train.row}",
        **more,
        "text": held.conversation.text()[:200],
    }

"""First half of preparation: read, clean and mask every row into a spool, keeping only numbers in memory."""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import IO, Any

from data_prep.clean import Cleaner, in_order
from data_prep.conversation import Conversation
from data_prep.options import PrepareOptions, SourceOptions
from data_prep.privacy import Privacy
from data_prep.rows import Row
from data_prep.sources import read
from data_prep.split import Roots
from data_prep.spool import Spool
from gonggam.errors import UserError
from gonggam.progress import Progress


class Collected:
    """All usable rows of all sources.

    Attributes:
        spool: the conversations, by number.
        source: for each of them the index of its source in ``names``.
        root: for each its `Conversation.root`; ``roots`` knows which of these must stay together.
        hashes, lengths: the prefix hashes of all of them, one after another, and how many each has.
        books: for each source the number of rows read, quarantined and filtered.
        wanted: the options of each source.
        reasons: why rows were quarantined or filtered.
    """

    def __init__(self, options: PrepareOptions, spool: Spool) -> None:
        self.options, self.spool = options, spool
        self.cleaner, self.privacy = Cleaner(options.clean), Privacy(options.privacy)
        self.names: list[str] = []
        self.source, self.root = array("H"), array("Q")
        self.hashes, self.lengths = array("Q"), array("L")
        self.roots = Roots()
        self.wanted: dict[str, SourceOptions] = {}
        self.books: dict[str, Counter[str]] = {}
        self.reasons: Counter[str] = Counter()

    def collect(self, quarantine: IO[str], progress: Progress) -> None:
        """Read everything; rows that cannot be used are written to ``quarantine`` with their reason.

        Raises:
            UserError: an unknown reader, data that is not there or cannot be read at all, or a limit for one of two
            sources of the same name.
        """
        for done, (name, row, outcome) in enumerate(self._outcomes(), 1):
            book = self._book(name)
            book["rows"] += 1
            fate = "quarantined"
            if not isinstance(outcome, str):
                outcome, fate = self._refine(outcome), "filtered"
            if isinstance(outcome, str):
                book[fate] += 1
                self.reasons[outcome] += 1
                quarantine.write(_entry(name, row, fate, outcome))
            else:
                self._add(name, outcome)
            if done % 500 == 0:
                progress(done, 0)

    def _book(self, name: str) -> Counter[str]:
        if name not in self.books:
            self.names.append(name)
            self.books[name] = Counter()
        return self.books[name]

    def _outcomes(self) -> Iterator[tuple[str, Row, Conversation | str]]:
        for source in self.options.sources:
            for path in source.path if isinstance(source.path, list) else [source.path]:
                for name, row, outcome in read(source.reader, path):
                    self._want(source.name or name, source)
                    yield source.name or name, row, outcome

    def _want(self, name: str, source: SourceOptions) -> None:
        other = self.wanted.setdefault(name, source)
        if other is not source and (other.rows or other.weight or source.rows or source.weight):
            raise UserError(
                f"two sources are called {name}, and one has rows or a weight", "give each a name: of its own"
            )

    def _refine(self, conversation: Conversation) -> Conversation | str:
        """The cleaned and masked conversation, or the reason why it is filtered out."""
        cleaned = self.cleaner(conversation)
        if isinstance(cleaned, str):
            return cleaned
        replies = sum(turn.role == "assistant" for turn in cleaned.turns)
        if not replies and "emotion" not in cleaned.meta:
            return "nobody replies"
        if in_order(cleaned.turns, keep_single=not replies) != cleaned.turns:
            return "roles out of order"
        if replies > 1 and self.options.turns == "single":
            return "more than one exchange"
        return self.privacy(cleaned)

    def _add(self, name: str, conversation: Conversation) -> None:
        hashes = conversation.prefix_hashes()
        if conversation.turns[-1].role == "user":  # a labelled utterance is not the beginning of a conversation
            label = conversation.meta["emotion"].encode()
            digest = blake2b(label, digest_size=8, key=hashes[-1].to_bytes(8, "big")).digest()
            hashes = [int.from_bytes(digest, "big")]
        self.source.append(self.names.index(name))
        self.root.append(self.roots.add(conversation))
        self.hashes.extend(hashes)
        self.lengths.append(len(hashes))
        identity = conversation.id or f"{name}-{hashes[-1]:016x}"
        self.spool.append(replace(conversation, id=identity, source=name))


def _entry(name: str, row: Row, fate: str, reason: str) -> str:
    """One line of quarantine.jsonl."""
    entry: dict[str, Any] = {"source": name, "file": Path(row.file).name, "row": row.number, "fate": fate}
    entry |= {"reason": reason, "values": row.values}
    try:
        line = json.dumps(entry, ensure_ascii=False, default=str, allow_nan=False)
    except ValueError:  # NaN and Infinity are no JSON
        entry["values"] = {key: str(value) for key, value in row.values.items()}
        line = json.dumps(entry, ensure_ascii=False)
    return line.encode("utf-8", "replace").decode("utf-8") + "\n"

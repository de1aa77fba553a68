"""A list of conversations that lies on disk, so that memory does not grow with the text of a data set."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType

from data_prep.conversation import Conversation, Turn


class Spool:
    """Append-only and readable by index; its file has no name and is gone when closed."""

    def __init__(self, folder: Path) -> None:
        self._file = TemporaryFile(dir=folder)  # noqa: SIM115 - closed by __exit__
        self._starts = array("Q")
        self._end = 0

    def __enter__(self) -> Spool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._starts)

    def append(self, conversation: Conversation) -> None:
        """Put one at the end."""
        packed = [
            conversation.id,
            [[turn.role, turn.content] for turn in conversation.turns],
            conversation.source,
            conversation.meta,
            conversation.rejected,
        ]
        line = json.dumps(packed, ensure_ascii=False, default=str).encode() + b"\n"
        self._file.seek(self._end)
        self._file.write(line)
        self._starts.append(self._end)
        self._end += len(line)

    def __getitem__(self, index: int) -> Conversation:
        self._file.seek(self._starts[index])
        return _unpack(self._file.readline())

    def __iter__(self) -> Iterator[Conversation]:
        self._file.seek(0)
        for _ in range(len(self)):
            yield _unpack(self._file.readline())


def _unpack(line: bytes) -> Conversation:
    name, turns, source, meta, rejected = json.loads(line)
    return Conversation(name, tuple(Turn(role, text) for role, text in turns), source, meta, tuple(rejected))

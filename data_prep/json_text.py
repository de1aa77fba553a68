"""JSON that is larger than memory: the objects of a list, of the lists in an object, or of JSON one after another."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import IO, Any

_BLANK = re.compile(r"[ \t\r\n]*")
#: Characters a single value may have; what is longer is taken for broken, so that a lost bracket fills no memory.
_LARGEST = 1 << 26
#: An object with one of these is itself a row and not a wrapping around a list of rows.
_ROW = {"messages", "conversations", "dialogue", "turns", "prompt", "chosen", "rejected", "instruction"}


def objects(stream: IO[str], piece: int = 1 << 16) -> Iterator[Any]:
    """The rows in ``stream``, one at a time: the members of a list, or of the lists of objects that an object wraps.

    Args:
        stream: the text.
        piece: characters to read at once.

    Raises:
        ValueError: it is no JSON from here on.
        RecursionError: likewise, lists in lists in lists.
    """
    text = _Text(stream, piece)
    while start := text.peek():
        if start == "[":
            text.expect("[")
            yield from _members(text)
        elif start == "{":
            yield from _wrapped(text)
        else:
            yield text.value()


def _wrapped(text: _Text) -> Iterator[Any]:
    text.expect("{")
    row: dict[str, Any] = {}
    lists = False
    while text.peek() != "}":
        key = text.value()
        text.expect(":")
        if text.peek() == "[" and not _is_row({key, *row}):
            text.expect("[")
            if text.peek() == "{":
                lists = True
                yield from _members(text)
            else:
                row[key] = list(_members(text))
        else:
            row[key] = text.value()
        if not text.skip(","):
            break
    text.expect("}")
    if not lists or _is_row(row):
        yield row


def _members(text: _Text) -> Iterator[Any]:
    """The members of a list whose bracket has been read."""
    while text.peek() != "]":
        yield text.value()
        if not text.skip(","):
            break
    text.expect("]")


def _is_row(keys: Any) -> bool:
    return any(str(key).strip().lower() in _ROW for key in keys)


class _Text:
    """A text read piece by piece, of which only what is not yet understood is held."""

    def __init__(self, stream: IO[str], piece: int) -> None:
        self._stream, self._piece, self._held, self._at = stream, piece, "", 0
        self._decoder = json.JSONDecoder()

    def peek(self) -> str:
        """The next character that is not blank; empty at the end."""
        while True:
            if blank := _BLANK.match(self._held, self._at):
                self._at = blank.end()
            if self._at < len(self._held) or not self._more(self._piece):
                return self._held[self._at : self._at + 1]

    def skip(self, mark: str) -> bool:
        """Go past ``mark`` if it is next."""
        there = self.peek() == mark
        self._at += there
        return there

    def expect(self, mark: str) -> None:
        """Go past ``mark``, which must be next."""
        if not self.skip(mark):
            raise ValueError(f"{mark!r} expected, not {self.peek() or 'the end'!r}")

    def value(self) -> Any:
        """The next value, whole."""
        self.peek()
        size = self._piece
        while True:
            try:
                value, end = self._decoder.raw_decode(self._held, self._at)
                length = end - self._at
                if end < len(self._held) or not self._more(size):  # a number at the very end may go on
                    self._at += length
                    return value
            except json.JSONDecodeError:
                if len(self._held) - self._at > _LARGEST or not self._more(size):
                    raise
            size *= 2

    def _more(self, size: int) -> bool:
        """Read on; what has been gone past is forgotten."""
        piece = self._stream.read(size)
        self._held, self._at = self._held[self._at :] + piece, 0
        return bool(piece)

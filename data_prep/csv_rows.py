"""Records of csv text in which a quote may have been left open: it costs its own line, not the rest of the file."""

from __future__ import annotations

import csv
import sys
from collections import deque
from collections.abc import Iterable, Iterator

#: Characters within which an open quote must be closed, so that a lost one fills no memory.
LOOK_AHEAD = 1 << 20

#: Line number (1-based, of the first line), cells, and what is wrong with them; the text of the line if that is so.
Record = tuple[int, list[str], str]


def records(stream: Iterable[str], delimiter: str = ",", look_ahead: int = LOOK_AHEAD) -> Iterator[Record]:
    """Every record, one at a time; lines without text are left out.

    A quote that is never closed swallows good rows, up to the end of the file or to the next quote. Whether it did is
    seen by what follows the next quote (a cell must end there), by how far it is away (``look_ahead`` characters), and
    by the lines between: where each of them has as many cells as the first record, they are records themselves. Then
    only the line with the open quote is broken, and reading goes on with the line after it.
    """
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    lines = _Lines(stream, look_ahead)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    width = 0
    while True:
        lines.begin()
        number, fault = lines.number, ""
        try:
            cells = next(reader)
            broken = _swallowed(lines.taken, delimiter, width)
        except StopIteration:
            return
        except csv.Error:
            cells, broken = [], True
        if broken:
            cells = [] if lines.asked > 1 else _leniently(lines.taken[0], delimiter, width)
            fault = "" if cells else "a quote that is not closed"
            cells = cells or [lines.taken[0]]
            lines.give_back()
            reader = csv.reader(lines, delimiter=delimiter, strict=True)
        width = width or (0 if fault else len(cells))
        if cells:
            yield number, cells, fault


def _leniently(line: str, delimiter: str, width: int) -> list[str]:
    """The cells of a line in which text follows a closed quote (``"네" 라고``), if there are enough."""
    cells = next(csv.reader([line], delimiter=delimiter), [])
    return cells if not width or len(cells) == width else []


def _swallowed(taken: list[str], delimiter: str, width: int) -> bool:
    """Whether a record of several lines looks as if it held other records: two or more, and nothing else."""
    inside = taken[1:-1]
    if len(inside) < 2 or width < 2:
        return False
    try:
        return all(len(next(csv.reader([line], delimiter=delimiter, strict=True), [])) == width for line in inside)
    except csv.Error:
        return False


class _Lines:
    """Lines without NUL bytes, of which all but the first since `begin` can be given back.

    Attributes:
        number: 1-based number of the first line of the record at hand.
        taken: its lines so far; ``asked`` is how many were asked for, one more where the text ended.
    """

    def __init__(self, stream: Iterable[str], look_ahead: int) -> None:
        self._stream, self._back, self._look_ahead = iter(stream), deque[str](), look_ahead
        self.number, self.taken, self.asked, self._size = 1, list[str](), 0, 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        self.asked += 1
        if self._size > self._look_ahead:
            raise csv.Error("the look-ahead is used up")
        line = self._back.popleft() if self._back else next(self._stream).replace("\0", "")
        self.taken.append(line)
        self._size += len(line) if len(self.taken) > 1 else 0
        return line

    def begin(self) -> None:
        """A new record begins with the next line."""
        self.number += len(self.taken)
        self.taken, self.asked, self._size = [], 0, 0

    def give_back(self) -> None:
        """The lines after the first are read again."""
        self._back.extendleft(reversed(self.taken[1:]))
        del self.taken[1:]

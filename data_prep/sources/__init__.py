"""One small reader per data set, found by name or recognised from the columns.

A reader module holds ``COLUMNS`` (sets of column names by which it is recognised) and either
``parse(values) -> Conversation``, which raises `BadRow` for a row it cannot use, or ``read(rows)`` where rows of one
data set must be seen together. ``DEFAULT`` names the file that is read when no path is given.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain, groupby, islice
from types import ModuleType

from data_prep.conversation import Conversation
from data_prep.rows import Row, find_files, read_rows
from data_prep.sources.fields import BadRow
from gonggam.errors import UserError

#: Order matters for recognition: the most particular columns first.
READERS = (
    "counsel_ko",
    "kor_empathetic_dialogues",
    "pairs",
    "empathetic_dialogues_ko",
    "chatbot_ko",
    "wellness",
    "wellness_pairs",
    "messages",
    "sharegpt",
    "alpaca",
    "emotion",
    "single_practice",
)

#: Where rows are counted that no reader knows.
UNKNOWN = "unrecognised"

Outcome = tuple[str, Row, Conversation | str]


def reader(name: str) -> ModuleType:
    """The reader module of that name.

    Raises:
        UserError: there is none; names the nearest.
    """
    if name not in READERS:
        near = difflib.get_close_matches(name, READERS, 1, 0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UserError(f"no reader {name!r}", f"{hint}Readers: {', '.join(READERS)}")
    return importlib.import_module(f"data_prep.sources.{name}")


def recognise(columns: Iterable[str]) -> str | None:
    """The name of the first reader whose columns are all there."""
    have = set(columns)
    return next((name for name in READERS if any(want <= have for want in reader(name).COLUMNS)), None)


def read(name: str | None, path: str | None) -> Iterator[Outcome]:
    """The reader's name and each row of a source, with its conversation or the reason (str) why it holds none.

    Without a name every file is recognised by itself, so that a folder may hold files of several kinds; rows of a file
    that no reader knows come with the reason, under the name `UNKNOWN`.

    Raises:
        UserError: unknown reader, no data at ``path``, or the columns of its only file are those of no reader.
    """
    if path is None:
        path = _default_path(name)
    rows = read_rows(path)
    for found, group in _recognised(rows, path) if name is None else [(name, rows)]:
        for row, result in _outcomes(reader(found), group) if found in READERS else ((row, found) for row in group):
            if isinstance(result, Conversation):
                result.meta["file"], result.meta["row"] = row.file.rpartition("/")[2], row.number
                result = result if result.source else replace(result, source=found)
            yield found if found in READERS else UNKNOWN, row, result


def _default_path(name: str | None) -> str:
    module = reader(name) if name else None
    if module is None or not hasattr(module, "DEFAULT"):
        raise UserError(f"the source {name or ''} names no path", "add path: FILE to it")
    return str(module.DEFAULT)


def _recognised(rows: Iterator[Row], path: str) -> Iterator[tuple[str, Iterator[Row]]]:
    """The rows of each file with its reader's name, or with the reason why none can be named."""
    alone = len(find_files(path)) < 2
    empty = True
    for file, group in groupby(rows, key=lambda row: row.file):
        empty = False
        name, reason, whole = _reader_of(group)
        if alone and not name:
            raise UserError(reason, f"check the file, or name a reader: {', '.join(READERS)}", file=file)
        yield name or reason, whole
    if empty and alone:
        raise UserError("holds no rows", "check the file", file=path)


def _reader_of(rows: Iterator[Row]) -> tuple[str, str, Iterator[Row]]:
    """The reader that knows rows like these, or else the reason why there is none; and all the rows again."""
    head = list(islice(rows, 50))
    whole = chain(head, rows)
    if all(row.error for row in head):
        return "", f"no row of it can be read: {head[0].error}", whole
    columns: dict[str, None] = {column: None for row in head if not row.error for column in row.values}
    name = recognise(columns)
    if name == "single_practice" and not any("###" in str(row.values.get("text")) for row in head):
        name = "wellness" if set(columns) == {"text"} else None  # both may have nothing but lines of text
    seen = ", ".join(filter(str.isprintable, columns)) or "without names"
    return name or "", f"its columns ({seen}) are those of no reader", whole


def _outcomes(module: ModuleType, rows: Iterable[Row]) -> Iterator[tuple[Row, Conversation | str]]:
    if hasattr(module, "read"):
        yield from module.read(rows)
        return
    for row in rows:
        if row.error:
            yield row, row.error
            continue
        try:
            yield row, module.parse(row.values)
        except BadRow as error:
            yield row, str(error)

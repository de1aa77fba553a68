"""Raw rows out of files of any kind, one at a time, so that a file larger than memory can be read.

A row that cannot be read comes as a `Row` with ``error`` set; nothing is dropped here.
"""

from __future__ import annotations

import codecs
import glob
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from data_prep.csv_rows import records
from data_prep.json_text import objects
from gonggam.errors import UserError

SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".xlsx", ".txt")


@dataclass(frozen=True, slots=True)
class Row:
    """One row: where it stands (1-based line or record number) and what it holds."""

    file: str
    number: int
    values: dict[str, Any] = field(default_factory=dict)
    error: str = ""


def find_files(path: str) -> list[Path]:
    """The files that ``path`` (a file, a folder or a glob) names, in order of name; empty if there are none.

    Raises:
        UserError: a file is of a kind that cannot be read.
    """
    place = Path(path).expanduser()
    if place.is_file():
        if place.suffix.lower() not in SUFFIXES:
            raise UserError(f"cannot read {place.suffix or 'this kind of file'}", f"use {_known()}", file=place)
        return [place]
    found = place.rglob("*") if place.is_dir() else (Path(name) for name in glob.iglob(str(place), recursive=True))
    return sorted(file for file in found if file.is_file() and file.suffix.lower() in SUFFIXES)


def read_rows(path: str) -> Iterator[Row]:
    """Every row of a file, folder, glob, or data set of the Hugging Face hub (all its splits, streamed).

    Raises:
        UserError: nothing is there, or it is of a kind that cannot be read.
    """
    files = find_files(path)
    if files:
        for file in files:
            yield from _read_file(file)
    elif _looks_like_hub(path):
        yield from _read_hub(path)
    else:
        raise UserError(f"no data found at {path!r}", f"name a file, a folder or a glob of {_known()}")


def _known() -> str:
    return ", ".join(suffix[1:] for suffix in SUFFIXES)


def _looks_like_hub(path: str) -> bool:
    if path.count("/") != 1 or path.startswith((".", "/", "~")) or Path(path).suffix or "*" in path:
        return False
    return not Path(path).parent.is_dir()  # else it is a local path with a mistake in it


def _read_hub(name: str) -> Iterator[Row]:
    from datasets import load_dataset

    try:
        for split, data in load_dataset(name, streaming=True).items():
            for number, values in enumerate(data, 1):
                yield Row(f"{name}@{split}", number, _lower(dict(values)))
    except Exception as error:  # the hub's client raises a dozen unrelated types; all mean the same to a user
        raise UserError(
            f"neither a local file nor reachable on the Hugging Face hub: {name!r} ({type(error).__name__})",
            "give the path of a downloaded copy (csv, jsonl, parquet ...), or check the name and the network",
        ) from error


def _read_file(file: Path) -> Iterator[Row]:
    kinds = {
        ".csv": _read_csv,
        ".tsv": _read_csv,
        ".json": _read_json,
        ".jsonl": _read_jsonl,
        ".parquet": _read_parquet,
        ".xlsx": _read_xlsx,
        ".txt": _read_txt,
    }
    name = file.as_posix()
    try:
        for number, values, *error in kinds[file.suffix.lower()](file):
            yield Row(name, number, values, *error)
    except PermissionError as error:
        raise UserError("may not be read", "change its permissions", file=file) from error


#: Number and values of each row; where they cannot be used a third item says why, and the values are what is there.
Numbered = Iterator[tuple[int, dict[str, Any]] | tuple[int, dict[str, Any], str]]


def _open(file: Path) -> IO[str]:
    """Open text as UTF-16 if it is marked so, else as UTF-8 or CP949, whichever fits its first megabyte better."""
    with file.open("rb") as raw:
        head = raw.read(1 << 20)
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    else:
        # An incremental decoder does not mind that the sample may end inside a character.
        broken = {
            name: codecs.getincrementaldecoder(name)("replace").decode(head).count("\ufffd")
            for name in ("utf-8", "cp949")
        }
        encoding = "utf-8-sig" if broken["utf-8"] <= broken["cp949"] else "cp949"
    return file.open(encoding=encoding, errors="replace", newline="")


def _read_csv(file: Path) -> Numbered:
    header: list[str] | None = None
    with _open(file) as stream:
        for number, cells, fault in records(stream, "\t" if file.suffix.lower() == ".tsv" else ","):
            if fault:
                yield number, {"line": cells[0][:1000].strip()}, fault
            elif header is None:
                header = [cell.strip().lower() for cell in cells]
            elif len(cells) > len(header):
                yield number, {"cells": cells}, f"{len(cells)} fields where the header names {len(header)}"
            else:
                yield number, dict(zip(header, cells, strict=False))


def _read_jsonl(file: Path) -> Numbered:
    with _open(file) as stream:
        for number, line in enumerate(stream, 1):
            if line.strip():
                yield _json_line(number, line)


def _json_line(number: int, line: str) -> tuple[int, dict[str, Any]] | tuple[int, dict[str, Any], str]:
    try:
        return _json_row(number, json.loads(line))
    except (ValueError, RecursionError) as error:
        return number, {"line": line[:1000].strip()}, f"no valid JSON ({_why(error)})"


def _json_row(number: int, value: Any) -> tuple[int, dict[str, Any]] | tuple[int, dict[str, Any], str]:
    if isinstance(value, dict):
        return number, _lower(value)
    return number, {"value": value}, "a JSON value, but no object"


def _why(error: Exception) -> str:
    return getattr(error, "msg", str(error))  # without the place, so that like faults are counted together


def _read_json(file: Path) -> Numbered:
    """A list of objects, an object that holds such lists, or JSON lines under another name."""
    if _is_jsonl(file):
        yield from _read_jsonl(file)
        return
    number = 0
    with _open(file) as stream:
        try:
            for number, value in enumerate(objects(stream), 1):
                yield _json_row(number, value)
        except (ValueError, RecursionError) as error:
            yield number + 1, {}, f"no valid JSON from here on ({_why(error)})"


def _is_jsonl(file: Path) -> bool:
    """Whether the first line is an object and not the only one, or is broken but stands among lines that are."""
    with _open(file) as stream:
        lines = (line.strip() for line in iter(lambda: stream.readline(1 << 20), ""))
        head = [line for line, _ in zip(filter(None, lines), range(20), strict=False)]
    whole = [len(_json_line(0, line)) == 2 for line in head]
    return len(head) > 1 and (whole[0] or (any(whole) and all(line.startswith("{") for line in head)))


def _lower(value: dict[str, Any]) -> dict[str, Any]:
    return {str(key).strip().lower(): item for key, item in value.items()}


def _read_parquet(file: Path) -> Numbered:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        table = pq.ParquetFile(file)
        for batch in table.iter_batches(batch_size=1024):
            for values in batch.to_pylist():
                number += 1
                yield number, _lower(values)
    except (pa.ArrowException, OSError, ValueError) as error:
        yield number + 1, {}, f"broken parquet from here on ({type(error).__name__})"


def _read_xlsx(file: Path) -> Numbered:
    import zlib
    from zipfile import BadZipFile

    import openpyxl
    from openpyxl.utils.exceptions import InvalidFileException

    number = 0
    try:
        with file.open("rb") as raw:
            for sheet in openpyxl.load_workbook(raw, read_only=True, data_only=True).worksheets:
                rows = sheet.iter_rows(values_only=True)
                header = [str(cell or "").strip().lower() for cell in next(rows, ())]
                for number, cells in enumerate(rows, 2):
                    if any(cell is not None for cell in cells):
                        yield number, {name: cell for name, cell in zip(header, cells, strict=False) if name}
    except (
        BadZipFile,
        LookupError,
        ValueError,
        TypeError,
        AttributeError,
        SyntaxError,
        EOFError,
        OSError,
        zlib.error,
        NotImplementedError,
        RuntimeError,
        InvalidFileException,
    ) as error:  # what a broken workbook can set off
        yield number + 1, {}, f"broken xlsx from here on ({type(error).__name__})"


def _read_txt(file: Path) -> Numbered:
    with _open(file) as stream:
        for number, line in enumerate(stream, 1):
            if line.strip():
                yield number, {"text": line.rstrip("\r\n")}

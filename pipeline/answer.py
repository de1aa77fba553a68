"""`gonggam answer`: a table of questions answered by one or more runs, row by row, and resumed where it stopped.

Finished rows go to ``OUT.partial`` as they come; the table itself is written from it at the end, whole or not at all.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.rows import read_rows
from data_prep.sources.fields import text_of
from gonggam.errors import UserError
from gonggam.files import friendly_os_errors, sha256_file, writing

if TYPE_CHECKING:
    from pipeline.chat.counselor import Counselor
    from pipeline.chat.reply import Reply

COLUMNS = ("question", "질문", "유저", "q", "text", "발화", "문장")
OUTPUTS = (".csv", ".xlsx")
_BATCH = 16
# What a spreadsheet takes for a formula (OWASP, "CSV Injection").
_FORMULA = re.compile(r"^[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
# What XML, and so a workbook, cannot hold.
_ILLEGAL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff\ud800-\udfff]")


def answer_all(
    questions: str | Path,
    bots: Sequence[tuple[str, Counselor]],
    out: str | Path,
    progress: Callable[[int], None] = lambda done: None,
    states: Mapping[str, Any] | None = None,
) -> int:
    """Answer every question of a .txt, .csv or .xlsx file and write ``out`` (.csv or .xlsx).

    Each question stands alone: nobody is remembered. Rows that an interrupted run has answered are not asked again.

    Args:
        questions: one question a line, or a table with one of `COLUMNS`.
        bots: name and counsellor of each run; names head the columns.
        out: table of question, emotion, and each run's answer, category, score and source.
        progress: called with the number of rows done.
        states: what changes when a run is trained anew, by name (see `pipeline.run.state_of`); every question is then
            asked again.

    Returns:
        the number of rows.

    Raises:
        UserError: no questions, an output that is neither .csv nor .xlsx, or what a counsellor raises.
    """
    out = Path(out)
    check_output(out)
    names = [name for name, _ in bots]
    begun = {
        "questions": sha256_file(questions),
        "runs": {name: [bot.options.model_dump(mode="json"), (states or {}).get(name)] for name, bot in bots},
    }
    partial = out.with_name(out.name + ".partial")
    with friendly_os_errors(partial):
        done = _resume(partial, begun)
        rest = islice(_questions(questions), done, None)
        with partial.open("a", encoding="utf-8", newline="\n") as file:
            while batch := list(islice(rest, _BATCH)):
                replies = [bot.reply_many(batch) for _, bot in bots]
                for question, *row in zip(batch, *replies, strict=True):
                    file.write(json.dumps(_record(question, row), ensure_ascii=False) + "\n")
                file.flush()
                done += len(batch)
                progress(done)
    if not done:
        partial.unlink()
        raise UserError("there is no question in this file", "write one a line", file=questions)
    _write(out, names, partial)
    partial.unlink()
    return done


def check_output(out: Path) -> None:
    """Refuse an output of another kind before anything is asked.

    Raises:
        UserError: it is neither .csv nor .xlsx.
    """
    if out.suffix.lower() not in OUTPUTS:
        raise UserError(f"cannot write {out.suffix or 'this kind of file'}", f"use {' or '.join(OUTPUTS)}", file=out)


def inert_cell(text: str) -> str:
    """``text`` such that no spreadsheet takes it for a formula: an apostrophe before what would begin one."""
    return "'" + text if _FORMULA.match(text) else text


def _questions(path: str | Path) -> Iterator[str]:
    for row in read_rows(str(path)):
        column = next((name for name in COLUMNS if name in row.values), None)
        if row.error or column is None:
            hint = row.error or f"it has {', '.join(row.values)}; name one column {COLUMNS[0]}"
            raise UserError("no question in this row", hint, file=path, line=row.number)
        yield text_of(row.values[column])


def _record(question: str, replies: Sequence[Reply]) -> dict[str, Any]:
    emotion = next((reply.emotion.label for reply in replies if reply.emotion), "")
    answers = [[reply.text, reply.category, reply.score, reply.source] for reply in replies]
    return {"question": question, "emotion": emotion, "answers": answers}


def _resume(partial: Path, begun: dict[str, Any]) -> int:
    """Rows that are done already; what was begun with other questions, runs or settings of theirs is thrown away."""
    head = json.dumps(begun, ensure_ascii=False).encode()
    whole: list[bytes] = []
    if partial.is_file():
        *lines, _ = partial.read_bytes().split(b"\n")  # the last one was cut short, maybe within a character
        whole = lines[1:] if lines[:1] == [head] else []
    with writing(partial, "wb", _aside(partial)) as file:
        file.writelines(line + b"\n" for line in (head, *whole))
    return len(whole)


def _aside(path: Path) -> Path:
    """Of one name, so that what a killed run left there is taken by the next."""
    return path.with_name(f".{path.name}.new")


def _rows(names: Sequence[str], partial: Path) -> Iterator[list[Any]]:
    yield [
        "question",
        "emotion",
        *(f"{name} {what}" for name in names for what in ("answer", "category", "score", "source")),
    ]
    with partial.open(encoding="utf-8") as file:
        for line in islice(file, 1, None):
            row = json.loads(line)
            yield [row["question"], row["emotion"], *(cell for answer in row["answers"] for cell in answer)]


def _write(out: Path, names: Sequence[str], partial: Path) -> None:
    if out.suffix.lower() == ".csv":
        with writing(out, aside=_aside(out)) as file:
            file.write("\ufeff")  # by which Excel knows UTF-8
            table = csv.writer(file)
            for row in _rows(names, partial):
                table.writerow([inert_cell(cell) if isinstance(cell, str) else cell for cell in row])
        return
    import openpyxl
    from openpyxl.cell import WriteOnlyCell

    book = openpyxl.Workbook(write_only=True)
    sheet = book.create_sheet("answers")
    for row in _rows(names, partial):
        cells = [WriteOnlyCell(sheet, _ILLEGAL.sub("", cell) if isinstance(cell, str) else cell) for cell in row]
        for cell in cells:
            if isinstance(cell.value, str):
                cell.data_type = "s"  # else a text that begins with = would be a formula
        sheet.append(cells)
    with writing(out, "wb", _aside(out)) as file:
        book.save(file)

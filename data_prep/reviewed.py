"""Reviewed answers: a table of categories and the answers that people wrote for each."""

from __future__ import annotations

from collections import defaultdict

from data_prep.rows import read_rows
from data_prep.sources.fields import text_of
from gonggam.errors import UserError

_CATEGORY = ("구분", "category", "label", "카테고리")
_ANSWER = ("챗봇", "answer", "답변")


def read_answers(path: str) -> dict[str, list[str]]:
    """Answers by category, in the table's order, each once.

    Reads the AI Hub wellness workbook, whose merged cells name the category in their first row only, and any table
    with a column of categories (구분, category, label) and one of answers (챗봇, answer, 답변).

    Raises:
        UserError: no such file, or no row with both.
    """
    found: dict[str, dict[str, None]] = defaultdict(dict)
    category = ""
    for row in read_rows(path):
        category = next((t for name in _CATEGORY if (t := text_of(row.values.get(name)))), category)
        answer = next((t for name in _ANSWER if (t := text_of(row.values.get(name)))), "")
        if category and answer:
            found[category][answer] = None
    if not found:
        hint = f"it needs a column {' or '.join(_CATEGORY)} and a column {' or '.join(_ANSWER)}"
        raise UserError("no category with an answer in this table", hint, file=path)
    return {name: list(answers) for name, answers in found.items()}

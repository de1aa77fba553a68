"""AI Hub wellness dialogues: the workbook (category, question, answer) and the text files derived from it.

In the workbook most questions have no answer beside them: the answers are listed once per category. Such a question
is answered by one of its category's answers, chosen by the question's hash. In the text files the two fields are
parted by four spaces or a tab; a second field without Hangul is a class label.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any
from zlib import crc32

from data_prep.conversation import Conversation, Turn
from data_prep.rows import Row
from data_prep.sources.fields import BadRow, need, single, split_line, text_of

CATEGORY, QUESTION, ANSWER = ("구분", "category"), ("유저", "question", "질문"), ("챗봇", "answer", "답변")
COLUMNS = (*(frozenset({q, a}) for q in QUESTION for a in ANSWER), frozenset({"구분", "유저"}))


def read(rows: Iterable[Row]) -> Iterator[tuple[Row, Conversation | str]]:
    """Every row; questions without an answer wait until all answers of their category are known."""
    answers: dict[str, list[str]] = defaultdict(list)
    waiting: list[tuple[Row, str, str]] = []
    category = ""
    for row in rows:
        if row.error:
            yield row, row.error
            continue
        if set(row.values) == {"text"}:
            yield row, _line(row.values["text"])
            continue
        category = cell(row.values, CATEGORY) or category  # merged cells hold their text in the first row only
        question, answer = cell(row.values, QUESTION), cell(row.values, ANSWER)
        if answer:
            answers[category].append(answer)
        if question and answer:
            yield row, single(question, answer, meta={"category": category})
        elif question:
            waiting.append((row, category, question))
        else:
            yield row, "an answer without a question (used for questions of its category)" if answer else "empty row"
    for row, category, question in waiting:
        choice = answers.get(category)
        if choice:
            answer = choice[crc32(question.encode(errors="replace")) % len(choice)]
            yield row, single(question, answer, meta={"category": category})
        else:
            yield row, "a question without an answer, and its category has none"


def cell(values: dict[str, Any], names: tuple[str, ...]) -> str:
    """The first non-empty of the named cells, or nothing."""
    try:
        return need(values, *names)
    except BadRow:
        return ""


def _line(text: str) -> Conversation | str:
    fields = split_line(text_of(text))
    if len(fields) != 2:
        return f"{len(fields)} fields where two are wanted, parted by four spaces or a tab"
    said, second = fields
    if re.search("[가-힣]", second) and not _is_label(second):
        return single(said, second)
    return Conversation("", (Turn("user", said),), "", {"emotion": second, "category": second})


def _is_label(text: str) -> bool:
    """Class names of the derived files look like ``감정/우울감``."""
    return "/" in text and " " not in text

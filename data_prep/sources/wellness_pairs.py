"""The wellness workbook with every question of a category beside every answer of it, for plain generation.

Where `wellness` gives each question one answer, this reader gives it all of them; the questions of a category and its
answers were never written for one another, which is what such generators learn from.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

from data_prep.conversation import Conversation
from data_prep.rows import Row
from data_prep.sources.fields import single
from data_prep.sources.wellness import ANSWER, CATEGORY, QUESTION, cell

#: Recognised by name only: the columns are those of `wellness`.
COLUMNS: tuple[frozenset[str], ...] = ()


def read(rows: Iterable[Row]) -> Iterator[tuple[Row, Conversation | str]]:
    """One conversation for each question and each answer of its category, once all answers are known."""
    answers: dict[str, dict[str, None]] = defaultdict(dict)
    questions: list[tuple[Row, str, str]] = []
    category = ""
    for row in rows:
        if row.error:
            yield row, row.error
            continue
        category = cell(row.values, CATEGORY) or category  # merged cells hold their text in the first row only
        question, answer = cell(row.values, QUESTION), cell(row.values, ANSWER)
        if answer:
            answers[category][answer] = None
        if question:
            questions.append((row, category, question))
        elif not answer:
            yield row, "empty row"
    for row, category, question in questions:
        if category not in answers:
            yield row, "a question without an answer, and its category has none"
        for answer in answers.get(category, ()):
            yield row, single(question, answer, meta={"category": category})

"""Evaluation steps a rubric lacks: written once by the judge, then frozen (G-Eval, section 2)."""

from __future__ import annotations

import re

from eval.judges import Judge
from eval.rubric import Criterion, Rubric
from eval.store import Store, content_key
from gonggam.errors import UserError


def freeze_steps(rubric: Rubric, judge: Judge, store: Store | None = None) -> Rubric:
    """The rubric with steps for every criterion; those the judge wrote are kept in ``store`` and not written again.

    Its ``hash`` covers the steps, so two runs with the same hash were judged by the same ones.

    Raises:
        UserError: steps are missing and the rubric has no ``steps_prompt``, or the judge wrote none.
    """
    return rubric.model_copy(
        update={"criteria": tuple(c if c.steps else _with_steps(rubric, c, judge, store) for c in rubric.criteria)}
    )


def _with_steps(rubric: Rubric, criterion: Criterion, judge: Judge, store: Store | None) -> Criterion:
    if not rubric.steps_prompt:
        raise UserError(
            f"criterion {criterion.key!r} of rubric {rubric.name!r} has no steps",
            "write `steps:`, or a `steps_prompt:` by which the judge can write them",
        )
    prompt = rubric.render_steps_prompt(criterion)
    key = content_key("steps", prompt, judge.spec.identity)
    row = store.get(key) if store else None
    if row is None:
        row = {"steps": parse_steps(judge.write(prompt))}
        if store and row["steps"]:
            store.put(key, row)
    if not row["steps"]:
        raise UserError(
            f"judge {judge.spec.name!r} wrote no steps for criterion {criterion.key!r}", "write `steps:` in the rubric"
        )
    return criterion.model_copy(update={"steps": tuple(row["steps"])})


def parse_steps(text: str) -> list[str]:
    """The steps in a judge's words: its numbered or bulleted lines, or else every line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    marked = [re.sub(r"^(\d+[.)]|[-*•])\s*", "", line) for line in lines if re.match(r"(\d+[.)]|[-*•])\s*\S", line)]
    return marked or lines

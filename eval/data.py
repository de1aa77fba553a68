"""Items from files: a run's held-out conversations, or rows with ``instruction`` and ``output``."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gonggam.errors import UserError
from gonggam.files import read_json, read_jsonl

_MARK = re.compile(r"^(질문|답변)\s*:\s*", re.MULTILINE)
_ROLE = {"질문": "user", "답변": "assistant"}


def load_rows(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a .csv, .jsonl or .json file (a list of objects).

    Raises:
        UserError: it is missing, in another encoding, of another kind, or holds no rows.
    """
    path = Path(path)
    if path.suffix == ".csv":
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                rows = list(csv.DictReader(file))
        except FileNotFoundError as error:
            raise UserError("file not found", file=path) from error
        except UnicodeDecodeError as error:
            raise UserError("not UTF-8 text", "save the file as UTF-8", file=path) from error
    else:
        rows = list(read_jsonl(path)) if path.suffix == ".jsonl" else read_json(path)
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise UserError("expected a list of rows", "give a .csv, .jsonl or .json file with one object a row", file=path)
    return rows


def load_items(path: str | Path) -> list[dict[str, Any]]:
    """Items to evaluate on (`id`, `category`, `messages`, `reference`, `human_*` where there are any).

    A row holds either ``messages`` (a last assistant turn becomes the reference) or ``instruction`` with an optional
    ``output``; an instruction is one message, or several in the form `질문: …` / `답변: …`. A row without a dialogue
    that ends with the user stays in its place, for replies go by position; the evaluation leaves it out and counts it.

    Raises:
        UserError: naming the file; no row of it has such a dialogue.
    """
    items = []
    for number, row in enumerate(load_rows(path), 1):
        messages, reference = _dialogue(row)
        human = {key: value for key, value in row.items() if key.startswith("human_")}
        identity = str(row.get("id") or number)
        items.append(
            {"id": identity, "category": row.get("category") or row.get("type") or "", "messages": messages,
             "reference": reference, **human}
        )  # fmt: skip
    if not any(item["messages"] and item["messages"][-1]["role"] == "user" for item in items):
        raise UserError(
            "no row has a dialogue that ends with the user", "rows need `messages` or `instruction`", file=path
        )
    return items


def parse_instruction(text: str) -> list[dict[str, str]]:
    """Messages of an instruction in single or in `질문: …` / `답변: …` form."""
    marks = list(_MARK.finditer(text))
    if not marks or text[: marks[0].start()].strip():
        return [{"role": "user", "content": text.strip()}] if text.strip() else []
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    turns = [(_ROLE[mark[1]], text[mark.end() : end].strip()) for mark, end in zip(marks, ends, strict=True)]
    return [{"role": role, "content": content} for role, content in turns if content]


def _dialogue(row: Mapping[str, Any]) -> tuple[list[dict[str, str]], str]:
    messages: Sequence[Mapping[str, str]] = row.get("messages") or row.get("turns") or ()
    if messages:
        plain = [{"role": m["role"], "content": m["content"]} for m in messages]
        if plain[-1]["role"] == "assistant":
            return plain[:-1], plain[-1]["content"]
        return plain, str(row.get("reference") or row.get("output") or "")
    return parse_instruction(str(row.get("instruction") or "")), str(row.get("output") or "")

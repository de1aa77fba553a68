"""Answers that cost time or money, kept on disk as they come: what was answered once is never asked again."""

from __future__ import annotations

import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from gonggam.files import friendly_os_errors

P = ParamSpec("P")
T = TypeVar("T")


def key_of(asked: Any) -> str:
    """A key for what was asked, any JSON."""
    return sha256(json.dumps(asked, ensure_ascii=False, sort_keys=True).encode("utf-8", "replace")).hexdigest()


class Answers:
    """An append-only JSON-lines file of answers by key.

    A last line cut short by a kill is left out, and ended so that the next one stands alone.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._answers: dict[str, Any] = {}
        data = self.path.read_text("utf-8", errors="replace") if self.path.exists() else ""
        for line in data.split("\n"):
            try:
                entry = json.loads(line)
                self._answers[entry["key"]] = entry["answer"]
            except (ValueError, LookupError, TypeError):
                continue
        if data and not data.endswith("\n"):
            self._append("")

    def __contains__(self, key: str) -> bool:
        return key in self._answers

    def get(self, key: str) -> Any:
        """The answer, or None."""
        return self._answers.get(key)

    def put(self, key: str, answer: Any) -> None:
        """Keep an answer, on disk before this returns."""
        self._answers[key] = answer
        self._append(json.dumps({"key": key, "answer": answer}, ensure_ascii=False))

    def _append(self, line: str) -> None:
        with friendly_os_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8", errors="replace", newline="\n") as file:
                file.write(line + "\n")


def kept(answers: Answers, name: str, ask: Callable[P, T]) -> Callable[P, T]:
    """``ask``, but what it once said to the same arguments (JSON) is taken from ``answers``.

    Args:
        answers: where answers are kept.
        name: of who is asked; another name is asked anew.
        ask: gives JSON.
    """

    def remembering(*args: P.args, **kwargs: P.kwargs) -> T:
        key = key_of([name, args, kwargs])
        if key not in answers:
            answers.put(key, ask(*args, **kwargs))
        return answers.get(key)

    return remembering

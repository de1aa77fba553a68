"""Answers on disk: appended one a line as they come, so that a killed run goes on without asking twice."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gonggam.files import friendly_os_errors


def content_key(*parts: Any) -> str:
    """Hash of JSON-able parts: equal content, equal key."""
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False, sort_keys=True).encode()).hexdigest()[:32]


class Store:
    """An append-only JSON-lines file of rows by key. Safe for threads; a half-written last line is dropped.

    Args:
        path: the file, made if absent; None keeps the rows in memory only.

    Raises:
        UserError: the file may not be written.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = None if path is None else Path(path)
        self._rows: dict[str, dict[str, Any]] = {}
        self._lock = threading.Lock()
        self._file = None
        if self.path is not None:
            with friendly_os_errors(self.path):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._rows = {row.pop("key"): row for row in _whole_rows(self.path)}
                self._file = self.path.open("a", encoding="utf-8")

    def get(self, key: str) -> dict[str, Any] | None:
        """The row last stored under this key."""
        return self._rows.get(key)

    def put(self, key: str, row: dict[str, Any]) -> None:
        """Store a row; it is in the operating system's hands when this returns."""
        line = json.dumps({"key": key, **row}, ensure_ascii=False)
        with self._lock:
            self._rows[key] = row
            if self._file is not None and self.path is not None:
                with friendly_os_errors(self.path):
                    self._file.write(line + "\n")
                    self._file.flush()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def _whole_rows(path: Path) -> Iterator[dict[str, Any]]:
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):  # the process died in the middle of a line
        with path.open("r+b") as file:
            file.truncate(whole)
    for line in content[:whole].splitlines():  # bytes: as text it would part at U+2028 inside an answer
        yield json.loads(line)

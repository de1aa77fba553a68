"""Errors that a user can act on: one line that says what was wrong, where, and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


class UserError(Exception):
    """Something the user can mend. The command line prints it as one line and exits with code 2.

    Args:
        what: what was wrong, in one sentence without a full stop.
        hint: what to do about it.
        file: the file it is about, if any.
        line: 1-based line in ``file``.
    """

    def __init__(self, what: str, hint: str = "", *, file: str | Path | None = None, line: int | None = None) -> None:
        super().__init__(what)
        self.what, self.hint, self.file, self.line = what, hint, file, line

    def __str__(self) -> str:
        where = "" if self.file is None else f"{self.file}:{self.line}: " if self.line else f"{self.file}: "
        text = f"{where}{self.what}. {self.hint}" if self.hint else f"{where}{self.what}"
        return " ".join(text.split())


class UserErrors(UserError):
    """Several errors found together, so that a user mends them in one go."""

    def __init__(self, errors: Sequence[UserError]) -> None:
        super().__init__(f"{len(errors)} errors")
        self.errors = tuple(errors)

    def __str__(self) -> str:
        return "\n".join(str(error) for error in self.errors)


class Interrupted(SystemExit):
    """Work was asked to stop and did so after a full checkpoint; the exit code is 128 + the signal's number."""

"""Words at rest: sealed with Fernet where there is a key (AES-128-CBC, HMAC-SHA256; cryptography.io, Fernet).

Both the database and the memories of users use it. The first letter of a stored text says how it was stored, so a key
may be given later, and texts of both kinds may stand side by side while `gonggam db rotate-key` is at work.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from gonggam.errors import UserError
from gonggam.files import writing

VARIABLE = "GONGGAM_KEY"
PLAIN, SEALED = "=", "$"


class WrongKey(UserError):
    """What is stored was sealed with a key that is not at hand."""


class Cipher:
    """Seals with the first of ``keys``, opens with any; with no key texts are stored as they are.

    Raises:
        UserError: a key is not 32 bytes in URL-safe base64.
    """

    def __init__(self, keys: Sequence[str] = ()) -> None:
        self.keys = tuple(keys)
        try:
            self._fernet = MultiFernet([Fernet(key) for key in keys]) if keys else None
        except ValueError as error:
            raise UserError("a key is not 32 bytes in URL-safe base64", "make one with: gonggam db new-key") from error

    def encrypt(self, data: bytes) -> bytes:
        """Seal bytes; there must be a key."""
        assert self._fernet is not None
        return self._fernet.encrypt(data)

    def decrypt(self, sealed: bytes) -> bytes:
        """The bytes that were sealed.

        Raises:
            WrongKey: they were sealed with a key that is not among these.
        """
        if self._fernet is not None:
            with suppress(InvalidToken):  # told below, as is what there is no key for at all
                return self._fernet.decrypt(sealed)
        hint = f"give the key they were sealed with ({VARIABLE} or key_file)"
        raise WrongKey("stored texts were sealed with another key", hint)

    def seal(self, text: str) -> str:
        """The text as it is stored."""
        if self._fernet is None:
            return PLAIN + text
        return SEALED + self.encrypt(text.encode("utf-8")).decode("ascii")

    def open(self, stored: str) -> str:
        """The text that was sealed.

        Raises:
            UserError: it was sealed with a key that is not among these.
        """
        if stored.startswith(PLAIN):
            return stored[1:]
        return self.decrypt(stored[1:].encode("ascii")).decode("utf-8")


def new_key() -> str:
    """A fresh key."""
    return Fernet.generate_key().decode("ascii")


def read_keys(file: str | Path | None = None) -> tuple[str, ...]:
    """Keys out of a file (one a line, the newest first), else out of the environment variable ``GONGGAM_KEY``.

    Raises:
        UserError: the file is not there, or no key is in it.
    """
    if file is None:
        return tuple(os.environ.get(VARIABLE, "").split())
    try:
        keys = tuple(Path(file).read_text("ascii", "replace").split())
    except FileNotFoundError as error:
        raise UserError("no such key file", "make one with: gonggam db new-key FILE", file=file) from error
    if not keys:  # whoever names a file believes that texts are sealed
        raise UserError("no key in this file", "make one with: gonggam db new-key FILE", file=file)
    return keys


def write_keys(file: str | Path, keys: Sequence[str]) -> None:
    """Write a key file that only its owner may read."""
    with writing(file) as out:
        out.write("\n".join(keys) + "\n")
    os.chmod(file, 0o600)

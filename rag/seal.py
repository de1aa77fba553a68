"""Files that hold people's words, sealed where the caller has a key.

A sealed line or file begins with `MARK`, which neither JSON nor a FAISS index does: what was written before there was
a key is still read, and is sealed when it is written anew.
"""

from __future__ import annotations

from typing import Protocol

from gonggam.errors import UserError

MARK = b"$"


class Seal(Protocol):
    """What seals and opens; results of `encrypt` are base64 (no newline in them)."""

    def encrypt(self, data: bytes) -> bytes:
        """``data``, so that only who has the key can read it."""

    def decrypt(self, sealed: bytes) -> bytes:
        """What was sealed; raises `UserError` if it was with another key, or was changed since."""


def sealed(data: bytes, seal: Seal | None) -> bytes:
    """``data`` as it is stored."""
    return data if seal is None else MARK + seal.encrypt(data)


def opened(stored: bytes, seal: Seal | None) -> bytes:
    """What `sealed` was given, with or without a seal.

    Raises:
        UserError: it was sealed, and there is no key or another one, or it is damaged.
    """
    if not stored.startswith(MARK):
        return stored
    if seal is None:
        raise UserError("memories are sealed, and there is no key", "give the key they were sealed with")
    return seal.decrypt(stored[len(MARK) :])

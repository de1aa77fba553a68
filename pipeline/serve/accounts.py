"""Accounts: names, passwords (argon2id), log-ins by opaque random tokens, and how often one may try.

Passwords and tokens are never stored: argon2id hashes with the parameters of RFC 9106's low-memory profile, and
SHA-256 of 256-bit tokens. Tries are counted in the database, so that all workers count together.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import unicodedata
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache, cached_property
from pathlib import Path
from threading import Semaphore

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from pipeline.serve.refused import Refused
from pipeline.serve.store import Store
from pipeline.serve.store.records import Kind, Person

NAME = re.compile(r"[0-9a-z가-힣_.-]{2,32}")
WINDOW = timedelta(minutes=15)
TERMS_VERSION = "1"
HASHING = 4
"""Passwords that are hashed at once, each in 64 MiB: many log-ins at once shall not take the machine's memory."""


@dataclass(frozen=True)
class Login:
    """A log-in that has just begun; the only time the token itself is seen."""

    token: str
    person: Person
    expires_at: datetime


@dataclass(frozen=True)
class Limits:
    """Tries within `WINDOW`: at one account from one address, at one account, from one address; and sign-ups."""

    name_and_address: int = 8
    name: int = 40
    address: int = 80
    sign_ups: int = 20


class Accounts:
    """Everything that decides who somebody is.

    Args:
        store: where accounts are kept.
        hasher: argon2 parameters; only tests use weaker ones.
        lasts: how long a log-in holds.
        limits: how often one may try.
    """

    def __init__(
        self,
        store: Store,
        *,
        hasher: PasswordHasher | None = None,
        lasts: timedelta = timedelta(days=14),
        limits: Limits | None = None,
    ) -> None:
        self.store, self.lasts, self.limits = store, lasts, limits or Limits()
        self._hasher, self._turn = hasher or PasswordHasher(), Semaphore(HASHING)

    def sign_up(self, name: str, password: str, *, address: str = "", training: bool = False) -> Person:
        """A new account, by which its holder agrees to the terms.

        Args:
            training: whether choices between replies may be used to improve the model.

        Raises:
            Refused: bad_name, bad_password, name_taken or too_many.
        """
        folded = fold(name)
        if not NAME.fullmatch(folded):
            raise Refused("bad_name")
        self._check_password(folded, password)
        self._limit({_bucket("sign-up", address): self.limits.sign_ups} if address else {})
        consents = [("terms", TERMS_VERSION), *([("training", TERMS_VERSION)] if training else [])]
        person = self.store.people.add(folded, self._hash(password), consents=consents)
        if person is None:
            raise Refused("name_taken")
        return person

    def log_in(self, name: str, password: str, *, kind: Kind = "web", address: str = "") -> Login:
        """Begin a log-in.

        Raises:
            Refused: bad_login (which of the two was wrong is not told) or too_many.
        """
        folded = fold(name)
        both = _bucket("both", folded, address)
        self._limit(
            {
                both: self.limits.name_and_address,
                _bucket("name", folded): self.limits.name,
                _bucket("address", address): self.limits.address,
            }
        )
        found = self.store.people.find(folded)
        if not self._matches(found[1] if found else self._nobody, password) or found is None:
            raise Refused("bad_login")
        person, hashed = found
        if self._hasher.check_needs_rehash(hashed):
            self.store.people.set_password(person.id, self._hash(password))
        self.store.people.clear_attempts(both)
        token = secrets.token_urlsafe(32)
        return Login(token, person, self.store.people.add_token(person.id, token_hash(token), kind, self.lasts))

    def who(self, token: str) -> tuple[Person, Kind] | None:
        """Whose log-in this is, and of which kind; None if it is none or has ended."""
        return self.store.people.of_token(token_hash(token))

    def account_of(self, token: str) -> str | None:
        """Id of the account whose log-in this is."""
        found = self.who(token)
        return found[0].id if found else None

    def log_out(self, token: str) -> bool:
        """End this log-in."""
        return self.store.people.drop_token(token_hash(token))

    def change_password(self, person: Person, old: str, new: str, *, token: str | None, address: str = "") -> None:
        """Change the password and end every log-in but the one with ``token``.

        Raises:
            Refused: bad_login (the old one is wrong), bad_password or too_many.
        """
        self.confirm(person, old, address=address)
        self._check_password(person.name, new)
        keep = token_hash(token) if token else None
        self.store.people.set_password(person.id, self._hash(new), keep=keep, drop_tokens=True)

    def confirm(self, person: Person, password: str, *, address: str = "") -> None:
        """Make sure that it is the holder who asks.

        Raises:
            Refused: bad_login or too_many.
        """
        both = _bucket("both", person.name, address)
        self._limit({both: self.limits.name_and_address, _bucket("name", person.name): self.limits.name})
        found = self.store.people.find(person.name)
        if found is None or not self._matches(found[1], password):
            raise Refused("bad_login")
        self.store.people.clear_attempts(both)

    def _limit(self, limits: dict[str, int]) -> None:
        if limits and (wait := self.store.people.attempt(limits, WINDOW)):
            raise Refused("too_many", retry_after=wait)

    def _hash(self, password: str) -> str:
        with self._turn:
            return self._hasher.hash(password)

    def _matches(self, hashed: str, password: str) -> bool:
        try:
            with self._turn:
                return self._hasher.verify(hashed, password)
        except (VerificationError, InvalidHashError, UnicodeEncodeError):
            return False

    def _check_password(self, name: str, password: str) -> None:
        halves = any(unicodedata.category(letter) == "Cs" for letter in password)  # JSON can spell them, UTF-8 cannot
        folded = fold(password)
        if halves or not 8 <= len(password) <= 128 or len(set(password)) < 4 or folded == name or folded in _common():
            raise Refused("bad_password")

    @cached_property
    def _nobody(self) -> str:
        """A hash that no password has, so that an unknown name takes as long to refuse as a wrong password."""
        return self._hash(secrets.token_urlsafe(32))


def fold(name: str) -> str:
    """The one way a name is written: compatible characters composed, lower case, no space around it."""
    return unicodedata.normalize("NFKC", name).strip().casefold()


def token_hash(token: str) -> str:
    """What is stored of a token."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


@cache
def _common() -> frozenset[str]:
    """Passwords that are tried first by whoever tries many names with few (NIST SP 800-63B, 3.1.1.2)."""
    return frozenset(map(fold, Path(__file__).with_name("common_passwords.txt").read_text("utf-8").split()))


def _bucket(*what: str) -> str:
    return hashlib.sha256("\0".join(what).encode("utf-8", "surrogatepass")).hexdigest()

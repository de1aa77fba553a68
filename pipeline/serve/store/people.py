"""Accounts, log-ins and consents in the database; what a password must be is for `pipeline.serve.accounts`."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import bindparam, delete, func, select, update
from sqlalchemy.exc import IntegrityError

from pipeline.serve.store.database import Database, affected
from pipeline.serve.store.models import Attempt, Consent, Memory, Token, User, now, table
from pipeline.serve.store.records import Agreement, Kind, Person, Role

LOCAL_NAME = "(local)"
"""Account of the one person where there are no accounts; no name that can be signed up has brackets."""


class People:
    """Rows of ``user``, ``token``, ``consent`` and ``attempt``."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def add(self, name: str, password: str, *, consents: Sequence[tuple[str, str]] = ()) -> Person | None:
        """A new account; None if the name is taken.

        Args:
            password: its hash.
            consents: (kind, version) that were agreed to.
        """
        user = User(name=name, password=password)
        try:
            with self._db.writing() as session:
                session.add(user)
                session.flush()
                session.add_all(Consent(user_id=user.id, kind=k, version=v, granted=True) for k, v in consents)
        except IntegrityError:
            return None
        return _person(user)

    def local(self) -> Person:
        """The one person where there are no accounts; nobody can log in as them."""
        found = self.find(LOCAL_NAME)
        return found[0] if found else self.add(LOCAL_NAME, "!") or self.local()

    def find(self, name: str) -> tuple[Person, str] | None:
        """The account of this name, and its password's hash."""
        with self._db.reading() as session:
            user = session.scalar(select(User).where(User.name == name))
        return (_person(user), user.password) if user else None

    def get(self, user: str) -> Person | None:
        """The account of this id."""
        with self._db.reading() as session:
            found = session.get(User, user)
        return _person(found) if found else None

    def set_password(self, user: str, password: str, *, keep: str | None = None, drop_tokens: bool = False) -> None:
        """Change the hash; with ``drop_tokens`` end every log-in but the one whose token's hash is ``keep``."""
        with self._db.writing() as session:
            session.execute(update(User).where(User.id == user).values(password=password))
            if drop_tokens:
                session.execute(delete(Token).where(Token.user_id == user, Token.hash != (keep or "")))

    def set_role(self, name: str, role: Role) -> bool:
        """Give an account a role; False if there is none of this name."""
        with self._db.writing() as session:
            return bool(affected(session, update(User).where(User.name == name).values(role=role)))

    def remove(self, user: str) -> bool:
        """Delete an account and every row that belongs to it."""
        with self._db.writing() as session:
            return bool(affected(session, delete(User).where(User.id == user)))

    def add_token(self, user: str, hashed: str, kind: Kind, lasts: timedelta) -> datetime:
        """Note a log-in; returns when it ends. Log-ins that have ended are swept out."""
        ends = now() + lasts
        with self._db.writing() as session:
            session.execute(delete(Token).where(Token.expires_at <= now()))
            session.add(Token(hash=hashed, user_id=user, kind=kind, expires_at=ends))
        return ends

    def of_token(self, hashed: str) -> tuple[Person, Kind] | None:
        """Who holds the token of this hash, and of which kind it is; None if there is none or it has ended."""
        with self._db.looking() as connection:
            row = connection.execute(_HOLDER, {"hashed": hashed, "moment": now()}).first()
        return (_person(row), row.kind) if row else None

    def drop_token(self, hashed: str) -> bool:
        """End one log-in."""
        with self._db.writing() as session:
            return bool(affected(session, delete(Token).where(Token.hash == hashed)))

    def agree(self, user: str, kind: str, version: str, granted: bool) -> None:
        """Note that a user agreed to something, or took it back."""
        with self._db.writing() as session:
            session.add(Consent(user_id=user, kind=kind, version=version, granted=granted))

    def agreements(self, user: str) -> list[Agreement]:
        """What counts now: the newest of every kind."""
        with self._db.reading() as session:
            rows = session.scalars(select(Consent).where(Consent.user_id == user).order_by(Consent.id)).all()
        newest = {row.kind: row for row in rows}
        return [
            Agreement(kind=row.kind, version=row.version, granted=row.granted, created_at=row.created_at)
            for row in newest.values()
        ]

    def note_memory(self, user: str, name: str) -> None:
        """Note the name of a memory that is about to be written for an account; noted ones stay as they are."""
        key = hashlib.sha256(f"{user}\0{name}".encode("utf-8", "surrogatepass")).hexdigest()
        with self._db.reading() as session:
            if session.get(Memory, key):
                return
        with suppress(IntegrityError), self._db.writing() as session:  # another worker may be just as quick
            session.add(Memory(id=key, user_id=user, name=self._db.cipher.seal(name)))

    def memories(self, user: str) -> list[str]:
        """Names of an account's memories."""
        with self._db.reading() as session:
            return [self._db.cipher.open(name) for name in session.scalars(select(Memory.name).filter_by(user_id=user))]

    def attempt(self, limits: dict[str, int], window: timedelta) -> int:
        """Count one more try against every bucket; returns 0, or the seconds to wait if any is full within ``window``.

        A try is committed before it is judged, so that many at once cannot slip through together. One that is refused
        is then taken out of every bucket: who may not try from one address cannot fill the account's bucket either.
        """
        tries = [Attempt(bucket=bucket) for bucket in limits]
        with self._db.writing(lasting=False) as session:
            session.execute(delete(Attempt).where(Attempt.created_at <= now() - window))
            session.add_all(tries)
        wanted = select(Attempt.bucket, func.count(), func.min(Attempt.created_at)).group_by(Attempt.bucket)
        with self._db.reading() as session:
            found = session.execute(wanted.where(Attempt.bucket.in_(limits))).tuples().all()
        full = [oldest for bucket, count, oldest in found if count > limits[bucket]]
        if not full:
            return 0
        with self._db.writing(lasting=False) as session:
            session.execute(delete(Attempt).where(Attempt.id.in_([one.id for one in tries])))
        return max(1, math.ceil((max(full) + window - now()).total_seconds()))

    def clear_attempts(self, bucket: str) -> None:
        """Start a bucket anew."""
        with self._db.writing(lasting=False) as session:
            session.execute(delete(Attempt).where(Attempt.bucket == bucket))


_USER, _TOKEN = table(User), table(Token)
_HOLDER = (  # asked with every request, so built once
    select(*_USER.c["id", "name", "role", "created_at"], _TOKEN.c.kind)
    .join(_TOKEN)
    .where(_TOKEN.c.hash == bindparam("hashed"), _TOKEN.c.expires_at > bindparam("moment"))
)


def _person(user: Any) -> Person:
    return Person(id=user.id, name=user.name, role=user.role, created_at=user.created_at)

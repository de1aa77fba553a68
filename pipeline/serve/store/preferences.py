"""Two replies, one choice: what becomes preference pairs for training, where the user agreed to that."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from sqlalchemy import Select, delete, select

from pipeline.serve.store.claims import LostClaim, finish_claim, holds
from pipeline.serve.store.database import Database
from pipeline.serve.store.models import Consent, Counsel, Dialog, Preference, now
from pipeline.serve.store.records import Choice, Draft, Exchanged, Pair, Preferred
from pipeline.serve.store.rooms import put

TRAINING = "training"
"""The consent without which no pair leaves the database."""


class Preferences:
    """Rows of ``preference``."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def offer(self, room: str, claim: str, a: Draft, b: Draft) -> Pair:
        """Keep two replies until one is chosen, and let go of the claim.

        Raises:
            LostClaim: the claim is not held any more.
        """
        seal = self._db.cipher.seal
        row = Preference(counsel_id=room, a=seal(a.model_dump_json()), b=seal(b.model_dump_json()))
        with self._db.writing() as session:
            finish_claim(session.connection(), room, claim)
            session.add(row)
        return Pair(id=row.id, a=a, b=b, created_at=row.created_at)

    def pending(self, user: str, pair: str) -> tuple[str, Pair] | None:
        """(room, pair) of a choice that is still to be made."""
        with self._db.reading() as session:
            row = session.scalar(_undecided(user).where(Preference.id == pair))
        return (row.counsel_id, self._pair(row)) if row else None

    def pending_in(self, user: str, room: str) -> list[Pair]:
        """Every pair of a room that is still to be chosen from, the oldest first."""
        oldest = Preference.created_at, Preference.id
        with self._db.reading() as session:
            rows = session.scalars(_undecided(user).where(Counsel.id == room).order_by(*oldest)).all()
        return [self._pair(row) for row in rows]

    def choose(self, room: str, claim: str, pair: str, choice: Choice, draft: Draft) -> Exchanged:
        """Make the chosen reply an exchange of the room.

        Raises:
            LostClaim: the claim is not held any more.
        """
        with self._db.writing() as session:
            finish_claim(session.connection(), room, claim)
            row = session.get_one(Preference, pair)
            row.chosen, row.chosen_at = choice, now()
            session.flush()
            written = put(session.connection(), self._db.cipher, room, draft)
            row.dialog_id = written.id
        return written

    def settle(self, room: str, claim: str, pair: str, draft: Draft) -> Exchanged:
        """Make a reply an exchange of the room without a choice, so that no preference comes of it; the claim stays.

        Raises:
            LostClaim: the claim is not held any more.
        """
        with self._db.writing() as session:
            if not holds(session.connection(), room, claim):
                raise LostClaim(room)
            session.execute(delete(Preference).where(Preference.id == pair))
            return put(session.connection(), self._db.cipher, room, draft)

    def of(self, user: str) -> list[dict[str, Any]]:
        """Every pair that was offered to a user and is still there, as plain JSON values."""
        wanted = select(Preference).join(Counsel).where(Counsel.user_id == user).order_by(Preference.created_at)
        with self._db.reading() as session:
            rows = session.scalars(wanted).all()
        return [
            {
                "id": row.id,
                "room": row.counsel_id,
                "dialog": row.dialog_id,
                "chosen": row.chosen,
                "created_at": row.created_at.isoformat(),
                **{name: json.loads(self._db.cipher.open(getattr(row, name))) for name in ("a", "b")},
            }
            for row in rows
        ]

    def pairs(self) -> Iterator[Preferred]:
        """Every choice that was made by users who let theirs be used for training, the oldest first."""
        wanted = (
            select(Preference, Counsel.user_id, Dialog.position)
            .join(Counsel, Counsel.id == Preference.counsel_id)
            .join(Dialog, Dialog.id == Preference.dialog_id)
            .order_by(Preference.chosen_at, Preference.id)
        )
        with self._db.reading() as session:
            agreed: dict[str, bool] = {}
            for consent in session.scalars(select(Consent).where(Consent.kind == TRAINING).order_by(Consent.id)):
                agreed[consent.user_id] = consent.granted
            for row, user, position in session.execute(wanted).all():
                if not agreed.get(user):
                    continue
                earlier = select(Dialog.message, Dialog.reply).where(Dialog.counsel_id == row.counsel_id)
                before = session.execute(earlier.where(Dialog.position < position).order_by(Dialog.position)).all()
                if found := self._preferred(row, [text for pair in before for text in pair]):
                    yield found

    def _pair(self, row: Preference) -> Pair:
        a, b = (Draft.model_validate_json(self._db.cipher.open(sealed)) for sealed in (row.a, row.b))
        return Pair(id=row.id, a=a, b=b, created_at=row.created_at)

    def _preferred(self, row: Preference, before: list[str]) -> Preferred | None:
        """The pair; None where neither reply is the model's, so that there is nothing for it to learn."""
        pair = self._pair(row)
        if "model" not in (pair.a.source, pair.b.source):
            return None
        chosen, rejected = (pair.a, pair.b) if row.chosen == "a" else (pair.b, pair.a)
        said = [*map(self._db.cipher.open, before), pair.a.message]
        messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]
        return Preferred(messages=messages, chosen=chosen.reply, rejected=rejected.reply)


def _undecided(user: str) -> Select[Preference]:
    return select(Preference).join(Counsel).where(Counsel.user_id == user, Preference.chosen.is_(None))

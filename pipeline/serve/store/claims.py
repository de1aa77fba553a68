"""Claims: one request at a time works in a room, over all workers.

The name of a claim begins with its worker's. A claim that was never ended can be taken over when it has run out, or at
once when its worker is provably gone. Whoever lost a claim cannot write any more: every commit ends its own claim
with it (`finish_claim`), so two requests never both answer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from secrets import token_hex
from typing import Any

from sqlalchemy import Connection, bindparam, exists, func, or_, select, update

from pipeline.chat.reply import Emotion
from pipeline.chat.safety import Risk
from pipeline.cipher import Cipher
from pipeline.serve.store.database import Database
from pipeline.serve.store.models import Character, Counsel, Dialog, EmotionLog, Preference, now, table
from pipeline.serve.store.records import Exchanged
from pipeline.serve.store.workers import Workers

LEASE = timedelta(seconds=30)
"""How long a claim on a room holds if whoever made it is never heard of again, and cannot be seen to be gone."""

IN_VIEW, STRIDE = 200, 100
"""The next reply is told of the newest `IN_VIEW` exchanges of a room and of up to `STRIDE` more, so that the first one
told of stays the same for a while (as the prompt's beginning does). Of those before them only dangers are told."""

_ROOM, _SAID = table(Counsel), table(Dialog)
_NAME = 12  # letters of a claim that name its worker


class LostClaim(Exception):
    """The room was deleted or given to another request meanwhile; nothing was written."""


@dataclass(frozen=True)
class Past:
    """An exchange of a room, as far as the next reply needs it."""

    id: str
    message: str
    reply: str
    risk: Risk
    character: str
    emotion: Emotion | None
    exchange: str | None

    @classmethod
    def of(cls, kept: Exchanged) -> Past:
        """An exchange that was just written."""
        return cls(kept.id, kept.message, kept.reply, kept.risk, kept.character, kept.emotion, kept.exchange)


@dataclass(frozen=True)
class Entered:
    """A room at the door.

    Attributes:
        room: its id.
        character: its manner of speech.
        closed: it takes no new messages.
        claim: name of the claim; None: closed or another request is in it.
        abandoned: an earlier claim was taken over, so that what its request did to the memory must be put right.
        undecided: two replies were offered in it, of which none was chosen.
        said: the exchanges that the next reply is told of (`IN_VIEW`), oldest first, where they were asked for.
    """

    room: str
    character: str
    closed: bool
    claim: str | None = None
    abandoned: bool = False
    undecided: bool = False
    said: list[Past] = field(default_factory=list)


class Claims:
    """The columns ``claim`` and ``claim_until`` of ``counsel``."""

    def __init__(self, database: Database, workers: Workers) -> None:
        self._db, self._workers = database, workers

    def enter(
        self, user: str, room: str, *, closed: bool = False, said: bool = False, lease: timedelta = LEASE
    ) -> Entered | None:
        """Take a room for one request, in one transaction with all that is read of it.

        Args:
            closed: whether also a room that takes no new messages is wanted.
            said: whether the exchanges are wanted.
            lease: how long the claim holds unless it is renewed.

        Returns:
            None if the user has no such room; without a claim if another request is in it.
        """
        name = self._workers.own + token_hex(_NAME // 2)
        with self._db.acting(lasting=False) as connection:
            row = connection.execute(_DOOR, {"room": room, "user": user}).first()
            if row is None:
                return None
            found = Entered(room, row.name, row.ended_at is not None)
            if (found.closed and not closed) or not self._free(row.claim, row.claim_until):
                return found
            taken = {"room": room, "held": row.claim, "name": name, "until": now() + lease}
            if not connection.execute(_TAKE_OVER if row.claim else _TAKE_FREE, taken).rowcount:
                return found
            rows = connection.execute(_TOLD, {"room": room}).all() if said else []
        opened = [_past(row, self._db.cipher) for row in rows]
        return Entered(room, found.character, found.closed, name, row.claim is not None, bool(row.undecided), opened)

    def renew(self, room: str, claim: str, lease: timedelta = LEASE) -> bool:
        """Hold a claim for longer; False if it is lost."""
        with self._db.acting(lasting=False) as connection:
            return holds(connection, room, claim, lease)

    def release(self, room: str, claim: str) -> None:
        """Let others have the room."""
        with self._db.acting(lasting=False) as connection:
            connection.execute(_FINISH, {"room": room, "held": claim})

    def abandoned(self) -> list[tuple[str, str]]:
        """(user, room) of every claim that has run out or whose worker is gone."""
        over = or_(_ROOM.c.claim_until <= now(), *map(_ROOM.c.claim.startswith, self._workers.departed()))
        wanted = select(_ROOM.c.user_id, _ROOM.c.id).where(_ROOM.c.claim_until.is_not(None), over)
        with self._db.looking() as connection:
            return [(user, room) for user, room in connection.execute(wanted)]

    def _free(self, claim: str | None, until: datetime | None) -> bool:
        return claim is None or until is None or until <= now() or self._workers.gone(claim[:_NAME])


def holds(connection: Connection, room: str, claim: str, lease: timedelta = LEASE) -> bool:
    """Whether a claim is held; from then on it holds for ``lease``."""
    return bool(connection.execute(_RENEW, {"room": room, "held": claim, "until": now() + lease}).rowcount)


def finish_claim(connection: Connection, room: str, claim: str, *, ends: bool = False) -> None:
    """Let go of a claim within a transaction that writes what was claimed for.

    Args:
        ends: whether the room is closed with it.

    Raises:
        LostClaim: it is not held any more.
    """
    values = {"room": room, "held": claim} | ({"moment": now()} if ends else {})
    if not connection.execute(_END if ends else _FINISH, values).rowcount:
        raise LostClaim(room)


def _past(row: Any, cipher: Cipher) -> Past:
    return Past(
        row.id,
        cipher.open(row.message),
        cipher.open(row.reply),
        row.risk,
        row.name,
        Emotion(label=row.label, score=row.score) if row.label else None,
        row.exchange,
    )


# Written once: what is built anew for every message costs more than SQLite takes to answer it.
_FREED = {"claim": None, "claim_until": None}
_TAKEN: dict[str, Any] = {"claim": bindparam("name"), "claim_until": bindparam("until")}
_HERE = _ROOM.c.id == bindparam("room")
_MINE = _ROOM.c.claim == bindparam("held")
_OFFERED = table(Preference)
_UNDECIDED = exists().where(_OFFERED.c.counsel_id == _ROOM.c.id, _OFFERED.c.chosen.is_(None)).label("undecided")
_DOOR = (
    select(_ROOM.c.claim, _ROOM.c.claim_until, _ROOM.c.ended_at, table(Character).c.name, _UNDECIDED)
    .join(table(Character))
    .where(_HERE, _ROOM.c.user_id == bindparam("user"))
)
_TAKE_FREE = update(_ROOM).where(_HERE, _ROOM.c.claim.is_(None)).values(_TAKEN)
_TAKE_OVER = update(_ROOM).where(_HERE, _MINE).values(_TAKEN)
_RENEW = update(_ROOM).where(_HERE, _MINE).values(claim_until=bindparam("until"))
_FINISH = update(_ROOM).where(_HERE, _MINE).values(_FREED)
_END = _FINISH.values(ended_at=bindparam("moment"))
_FELT = table(EmotionLog)
_LAST = select(func.max(_SAID.c.position)).where(_SAID.c.counsel_id == bindparam("room")).scalar_subquery()
_FIRST = _LAST - _LAST % STRIDE - IN_VIEW
_TOLD = (
    select(*_SAID.c["id", "message", "reply", "risk", "exchange"], table(Character).c.name, *_FELT.c["label", "score"])
    .join(table(Character))
    .outerjoin(_FELT)
    .where(_SAID.c.counsel_id == bindparam("room"), or_(_SAID.c.position >= _FIRST, _SAID.c.risk == "high"))
    .order_by(_SAID.c.position)
)

"""Rooms and what is said in them. Every method takes the user: a room of somebody else is as if it were not there."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Connection, Select, bindparam, delete, func, select, update
from sqlalchemy.orm import Session

from gonggam.errors import UserError
from pipeline.chat.reply import Emotion
from pipeline.cipher import Cipher
from pipeline.serve.store.claims import finish_claim
from pipeline.serve.store.database import Database, affected
from pipeline.serve.store.models import Character, Counsel, Dialog, EmotionLog, Feedback, new_id, now, table
from pipeline.serve.store.records import Draft, Exchanged, Manner, Room


class Rooms:
    """Rows of ``character``, ``counsel``, ``dialog``, ``emotion_log`` and ``feedback``."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def set_characters(self, manners: Iterable[tuple[str, str]]) -> None:
        """Make (name, description) the characters there are; earlier ones stay for the rooms that used them."""
        wanted = dict(manners)
        with self._db.writing() as session:
            known = {row.name: row for row in session.scalars(select(Character))}
            for name, row in known.items():
                row.active, row.description = name in wanted, wanted.get(name, row.description)
            session.add_all(Character(name=n, description=d) for n, d in wanted.items() if n not in known)

    def characters(self) -> list[Manner]:
        """The characters there are, the default first."""
        with self._db.reading() as session:
            rows = session.scalars(select(Character).where(Character.active).order_by(Character.id)).all()
        return [Manner(name=row.name, description=row.description) for row in rows]

    def start(self, user: str, character: str, title: str | None = None) -> Room:
        """Open a room.

        Raises:
            UserError: no such character.
        """
        with self._db.writing() as session:
            sealed = self._db.cipher.seal(title) if title else None
            room = Counsel(user_id=user, character_id=character_id(session, character), title=sealed)
            session.add(room)
        return self._room(room, character, 0)

    def change(self, user: str, room: str, *, title: str | None, character: str | None) -> bool:
        """Rename a room or change its character, as far as given; False if the user has no such room."""
        with self._db.writing() as session:
            found = session.scalar(_own(user, room))
            if found and title is not None:
                found.title = self._db.cipher.seal(title) if title else None
            if found and character is not None:
                found.character_id = character_id(session, character)
        return found is not None

    def of(self, user: str, *, limit: int | None = None, offset: int = 0) -> list[Room]:
        """A user's rooms, the newest first."""
        newest = Counsel.created_at.desc(), Counsel.id
        wanted = _listed().where(Counsel.user_id == user).order_by(*newest).limit(limit).offset(offset)
        with self._db.reading() as session:
            return [self._room(*row) for row in session.execute(wanted).tuples()]

    def get(self, user: str, room: str) -> Room | None:
        """One room."""
        with self._db.reading() as session:
            row = session.execute(_listed().where(Counsel.user_id == user, Counsel.id == room)).first()
        return self._room(*row) if row else None

    def end(self, user: str, room: str) -> bool:
        """Close a room to new messages; it can still be read."""
        with self._db.writing() as session:
            own = update(Counsel).where(Counsel.id == room, Counsel.user_id == user)
            return bool(affected(session, own.values(ended_at=func.coalesce(Counsel.ended_at, now()))))

    def delete_all(self, user: str) -> None:
        """Delete every room of a user."""
        with self._db.writing() as session:
            session.execute(delete(Counsel).where(Counsel.user_id == user))

    def delete(self, user: str, room: str) -> bool:
        """Delete a room and all that was said in it."""
        with self._db.writing() as session:
            own = delete(Counsel).where(Counsel.id == room, Counsel.user_id == user)
            return bool(affected(session, own))

    def write(
        self, room: str, claim: str, draft: Draft, *, replaces: str | None = None, ends: bool = False
    ) -> Exchanged:
        """Write an exchange and let go of the claim, both or neither.

        Args:
            replaces: id of the exchange whose place it takes.
            ends: whether it closes the room.

        Raises:
            LostClaim: the claim is not held any more.
        """
        with self._db.acting() as connection:
            finish_claim(connection, room, claim, ends=ends)
            return put(connection, self._db.cipher, room, draft, replaces)

    def dialogs(self, user: str, room: str, *, limit: int | None = None, before: int | None = None) -> list[Exchanged]:
        """What was said in a room, oldest first: the newest ``limit`` exchanges, those before a position if given."""
        wanted = _said().where(Counsel.user_id == user, Counsel.id == room).order_by(Dialog.position.desc())
        if before is not None:
            wanted = wanted.where(Dialog.position < before)
        with self._db.reading() as session:
            rows = session.execute(wanted.limit(limit)).all()
        return [self._exchanged(*row) for row in reversed(rows)]

    def dialog(self, user: str, dialog: str) -> Exchanged | None:
        """One exchange."""
        with self._db.reading() as session:
            row = session.execute(_said().where(Counsel.user_id == user, Dialog.id == dialog)).first()
        return self._exchanged(*row) if row else None

    def delete_dialog(self, user: str, dialog: str) -> bool:
        """Delete one exchange."""
        rooms = select(Counsel.id).where(Counsel.user_id == user)
        with self._db.writing() as session:
            own = delete(Dialog).where(Dialog.id == dialog, Dialog.counsel_id.in_(rooms))
            return bool(affected(session, own))

    def forget_exchange(self, user: str, exchange: str | None = None) -> None:
        """Note that an exchange (None: none at all) is in the memory any more."""
        rooms = select(Counsel.id).where(Counsel.user_id == user)
        forgotten = update(Dialog).where(Dialog.counsel_id.in_(rooms)).values(exchange=None)
        with self._db.writing() as session:
            session.execute(forgotten.where(Dialog.exchange == exchange) if exchange else forgotten)

    def rate(self, dialog: str, rating: int | None, comment: str | None = None) -> None:
        """Note what the user thought of a reply; None takes it back. The caller has seen to whose it is."""
        with self._db.writing() as session:
            session.execute(delete(Feedback).where(Feedback.dialog_id == dialog))
            if rating is not None:
                sealed = self._db.cipher.seal(comment) if comment else None
                session.add(Feedback(dialog_id=dialog, rating=rating, comment=sealed))

    def _room(self, row: Counsel, character: str, dialogs: int) -> Room:
        return Room(
            id=row.id,
            title=self._db.cipher.open(row.title) if row.title else None,
            character=character,
            created_at=row.created_at,
            ended_at=row.ended_at,
            dialogs=dialogs,
        )

    def _exchanged(
        self,
        row: Dialog,
        character: str,
        label: str | None,
        score: float | None,
        rating: int | None,
        comment: str | None,
    ) -> Exchanged:
        return Exchanged(
            id=row.id,
            room=row.counsel_id,
            position=row.position,
            message=self._db.cipher.open(row.message),
            reply=self._db.cipher.open(row.reply),
            source=row.source,
            risk=row.risk,
            character=character,
            emotion=Emotion(label=label, score=score) if label else None,
            exchange=row.exchange,
            reasons=row.reasons,
            recalled=row.recalled,
            prompt_tokens=row.prompt_tokens,
            completion_tokens=row.completion_tokens,
            seconds=row.seconds,
            created_at=row.created_at,
            replied_at=row.replied_at,
            rating=rating,
            comment=self._db.cipher.open(comment) if comment else None,
        )


def put(connection: Connection, cipher: Cipher, room: str, draft: Draft, replaces: str | None = None) -> Exchanged:
    """Insert an exchange, at the end of the room or in another's place."""
    place = connection.execute(_PLACE, {"room": room, "manner": draft.character, "old": replaces}).one()
    if place.character_id is None:
        raise UserError(f"no character {draft.character!r}", "see the list of characters")
    if replaces and place.position is not None:
        connection.execute(delete(_DIALOG).where(_DIALOG.c.id == replaces))
        position, created = place.position, place.created_at
    else:
        position, created = 0 if place.last is None else place.last + 1, now()
    own = {"id": new_id(), "position": position, "created_at": created, "replied_at": now()}
    row = own | {
        "counsel_id": room,
        "character_id": place.character_id,
        "message": cipher.seal(draft.message),
        "reply": cipher.seal(draft.reply),
    }
    connection.execute(_INSERT, row | {name: getattr(draft, name) for name in _AS_DRAFTED})
    if draft.emotion:
        felt = {"dialog_id": own["id"], "label": draft.emotion.label, "score": draft.emotion.score}
        connection.execute(_FEEL, felt)
    return Exchanged.model_construct(**draft.__dict__, **own, room=room, rating=None, comment=None)


def character_id(session: Session, name: str) -> int:
    """Key of a character.

    Raises:
        UserError: there is none of this name.
    """
    found = session.scalar(select(Character.id).where(Character.name == name))
    if found is None:
        raise UserError(f"no character {name!r}", "see the list of characters")
    return found


# The statements of every message, built once.
_DIALOG = table(Dialog)
_AS_DRAFTED = ("source", "risk", "exchange", "reasons", "recalled", "prompt_tokens", "completion_tokens", "seconds")
_INSERT, _FEEL = _DIALOG.insert(), table(EmotionLog).insert()


_LAST = select(func.max(_DIALOG.c.position)).where(_DIALOG.c.counsel_id == bindparam("room"))
_MANNER = select(Character.id).where(Character.name == bindparam("manner"))
_OLD = _DIALOG.c.id == bindparam("old")
_PLACE = select(
    _LAST.scalar_subquery().label("last"),
    _MANNER.scalar_subquery().label("character_id"),
    select(_DIALOG.c.position).where(_OLD).scalar_subquery().label("position"),
    select(_DIALOG.c.created_at).where(_OLD).scalar_subquery().label("created_at"),
)


def _own(user: str, room: str) -> Select[Counsel]:
    return select(Counsel).where(Counsel.id == room, Counsel.user_id == user)


def _listed() -> Select[Counsel, str, int]:
    count = select(func.count()).where(Dialog.counsel_id == Counsel.id).correlate(Counsel).scalar_subquery()
    return select(Counsel, Character.name, count).join(Character, Character.id == Counsel.character_id)


def _said() -> Select[Dialog, str, str | None, float | None, int | None, str | None]:
    return (
        select(Dialog, Character.name, EmotionLog.label, EmotionLog.score, Feedback.rating, Feedback.comment)
        .join(Counsel, Counsel.id == Dialog.counsel_id)
        .join(Character, Character.id == Dialog.character_id)
        .outerjoin(EmotionLog, EmotionLog.dialog_id == Dialog.id)
        .outerjoin(Feedback, Feedback.dialog_id == Dialog.id)
    )

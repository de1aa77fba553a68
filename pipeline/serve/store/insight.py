"""What the database tells as figures: emotions over time, and how much there is of everything."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Select, func, select

from pipeline.serve.store.database import Database
from pipeline.serve.store.models import Counsel, Dialog, EmotionLog, Feedback, Preference, User, now
from pipeline.serve.store.records import Counts, Felt


class Insight:
    """Sums over the tables."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def emotions(self, user: str, *, room: str | None = None, since: datetime | None = None) -> list[Felt]:
        """The emotion of every message of a user, oldest first; of one room, or since a time, if given."""
        wanted = (
            select(EmotionLog, Dialog.created_at)
            .join(Dialog, Dialog.id == EmotionLog.dialog_id)
            .join(Counsel, Counsel.id == Dialog.counsel_id)
            .where(Counsel.user_id == user)
            .order_by(Dialog.created_at, Dialog.position)
        )
        if room is not None:
            wanted = wanted.where(Counsel.id == room)
        if since is not None:
            wanted = wanted.where(Dialog.created_at >= since)
        with self._db.reading() as session:
            rows = session.execute(wanted).all()
        return [Felt(dialog=log.dialog_id, at=at, label=log.label, score=log.score) for log, at in rows]

    def counts(self) -> Counts:
        """How much there is of everything."""
        with self._db.reading() as session:

            def count(what: Any, *where: Any) -> int:
                return session.scalar(select(func.count()).select_from(what).where(*where)) or 0

            def by(wanted: Select[Any, int]) -> dict[str, int]:
                return {str(value): number for value, number in session.execute(wanted).all()}

            return Counts(
                users=count(User),
                rooms=count(Counsel),
                open_rooms=count(Counsel, Counsel.ended_at.is_(None)),
                dialogs=count(Dialog),
                dialogs_last_day=count(Dialog, Dialog.created_at >= now() - timedelta(days=1)),
                risk=by(select(Dialog.risk, func.count()).group_by(Dialog.risk)),
                source=by(select(Dialog.source, func.count()).group_by(Dialog.source)),
                ratings=by(select(Feedback.rating, func.count()).group_by(Feedback.rating)),
                choices=count(Preference, Preference.chosen.is_not(None)),
            )

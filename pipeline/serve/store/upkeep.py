"""What is done to the whole database: checking and changing keys, letting old words go, wiping what was erased."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from sqlalchemy import Column, Connection, Table, delete, exists, select, text, update
from sqlalchemy.exc import OperationalError

from gonggam.errors import UserError
from pipeline.cipher import SEALED, Cipher
from pipeline.serve.store.database import Database, affected
from pipeline.serve.store.models import Attempt, Counsel, Dialog, Preference, Setting, Token, now, sealed_columns

_PROOF = "proof"
_BATCH = 500


class Upkeep:
    """Care for the whole database."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def check_key(self) -> None:
        """Make sure that texts can be read with the keys given.

        Raises:
            UserError: they were sealed with another key.
        """
        with self._db.writing() as session:
            proof = session.get(Setting, _PROOF)
            if proof is None:
                session.add(Setting(name=_PROOF, value=self._db.cipher.seal(_PROOF)))
            else:
                self._db.cipher.open(proof.value)
                if self._db.cipher.keys and not proof.value.startswith(SEALED):
                    proof.value = self._db.cipher.seal(_PROOF)

    def rotate(self) -> int:
        """Seal every text with the first key, whatever it was stored with; returns how many there are.

        Killed midway it can be run again: texts sealed with any of the keys are read all the while.
        """
        only, count = Cipher(self._db.cipher.keys[:1]), 0
        for table, column in [*sealed_columns(), (Setting.__table__, Setting.__table__.c.value)]:
            for keys in self._batches(table):
                with self._db.writing() as session:
                    connection = session.connection()
                    count += self._reseal(connection, table, column, keys, only)
        self.scrub()
        return count

    def _reseal(self, connection: Connection, table: Table, column: Column[Any], keys: list[str], only: Cipher) -> int:
        key = next(iter(table.primary_key))
        rows = connection.execute(select(key, column).where(key.in_(keys), column.is_not(None))).all()
        for name, stored in rows:
            sealed = only.seal(self._db.cipher.open(stored))
            connection.execute(update(table).where(key == name).values({column.name: sealed}))
        return len(rows)

    def _batches(self, table: Table) -> Iterator[list[str]]:
        key, last = next(iter(table.primary_key)), ""
        while True:
            with self._db.reading() as session:
                keys = list(session.scalars(select(key).where(key > last).order_by(key).limit(_BATCH)))
            if not keys:
                return
            yield keys
            last = keys[-1]

    def expire(self, days: float) -> int:
        """Erase exchanges, choices and empty rooms older than ``days``, and what has run out; returns the exchanges.

        Memories have their own term (`memory.retention_days`, `rag.memory.MemoryStore.expire`).
        """
        oldest = now() - timedelta(days=days)
        with self._db.writing() as session:
            gone = affected(session, delete(Dialog).where(Dialog.created_at < oldest))
            session.execute(delete(Preference).where(Preference.created_at < oldest))
            empty = (
                ~exists().where(Dialog.counsel_id == Counsel.id),
                ~exists().where(Preference.counsel_id == Counsel.id),
            )
            session.execute(delete(Counsel).where(Counsel.created_at < oldest, Counsel.claim.is_(None), *empty))
            session.execute(delete(Token).where(Token.expires_at <= now()))
            session.execute(delete(Attempt).where(Attempt.created_at < now() - timedelta(days=1)))
        self.scrub()
        return gone

    def wipe_log(self) -> bool:
        """SQLite: empty the write-ahead log, where erased text would stand a while longer; False if it was busy."""
        if not self._db.is_sqlite:
            return True
        with self._db.bare() as connection:
            busy = connection.execute(text("PRAGMA wal_checkpoint(TRUNCATE)")).one()[0]
        return not busy

    def scrub(self) -> None:
        """Write the database anew without what was erased, so that its files do not hold it any more.

        SQLite: `VACUUM` and an empty log. PostgreSQL: `VACUUM`, which frees the space for overwriting (its log and
        backups are the server's). MySQL and MariaDB purge by themselves.

        Raises:
            UserError: others were at work all the time; the rows are gone, but their bytes may still be in the file.
        """
        backend = self._db.url.get_backend_name()
        if backend in ("mysql", "mariadb"):
            return
        try:
            with self._db.bare() as connection:
                connection.execute(text("VACUUM"))
        except OperationalError as error:
            raise UserError("the database was too busy to be written anew", "run gonggam db expire later") from error
        if not self.wipe_log():
            raise UserError("the database was too busy to empty its log", "run gonggam db expire later")

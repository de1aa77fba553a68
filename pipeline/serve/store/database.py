"""A connection to SQLite, MySQL/MariaDB or PostgreSQL: what is committed stays, what is erased is gone."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, CursorResult, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
from sqlalchemy.orm import Session
from sqlalchemy.sql.dml import UpdateBase

from gonggam.errors import UserError
from gonggam.files import can_be_written, friendly_os_errors
from pipeline.cipher import Cipher

BUSY_S = 15.0
"""How long SQLite waits for another writer."""
SHOWN = "sqlite:///folder/file.db, mysql+pymysql://… or postgresql+psycopg://…"


def default_url(folder: str | Path) -> str:
    """SQLite beside a run: ``FOLDER/service/gonggam.db``."""
    return f"sqlite:///{(Path(folder) / 'service' / 'gonggam.db').absolute()}"


class Database:
    """An engine and its cipher.

    Args:
        url: SQLAlchemy URL of SQLite, MySQL/MariaDB (PyMySQL) or PostgreSQL (psycopg).
        keys: seal texts with the first of these (see `Cipher`).

    Raises:
        UserError: no such kind of database, or SQLite's folder cannot be made.
    """

    def __init__(self, url: str | URL, keys: Sequence[str] = ()) -> None:
        self.url, self.cipher = _url(url), Cipher(keys)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self.file = Path(self.url.database).absolute() if self.is_sqlite and self.url.database else None
        if self.file:
            with friendly_os_errors(self.file.parent):
                self.file.parent.mkdir(0o700, parents=True, exist_ok=True)
        self.engine = _engine(self.url, self.is_sqlite)
        # SQLite must be told at the beginning that a transaction will write, or two may wait for each other.
        self._writer = self.engine.execution_options(writes="FULL")
        self._jotter = self.engine.execution_options(writes="NORMAL")
        # SQLite's own way to wait for another writer is to sleep and try again, up to 0.1 s at a time, and whoever
        # comes meanwhile goes first. Threads of one process queue here instead.
        self._turn: AbstractContextManager[Any] = threading.Lock() if self.is_sqlite else nullcontext()

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A session that sees one state of the database and changes nothing."""
        with Session(self.engine, expire_on_commit=False, autoflush=False) as session:
            yield session

    @contextmanager
    def writing(self, *, lasting: bool = True) -> Iterator[Session]:
        """A session whose changes are on the disk when the block is left without an error, or never were.

        Args:
            lasting: False for what a power cut may undo, though a killed process may not, such as a claim on a room;
                SQLite then need not wait for the disk.
        """
        engine = self._writer if lasting else self._jotter
        with self._turn, Session(engine, expire_on_commit=False) as session, session.begin():
            yield session

    @contextmanager
    def looking(self) -> Iterator[Connection]:
        """As `reading`, without objects: for what every message needs."""
        with self.engine.connect() as connection:
            yield connection

    @contextmanager
    def acting(self, *, lasting: bool = True) -> Iterator[Connection]:
        """As `writing`, without objects."""
        with (self._writer if lasting else self._jotter).connect() as connection, self._turn, connection.begin():
            yield connection

    @contextmanager
    def bare(self) -> Iterator[Connection]:
        """A connection without a transaction, for what may not stand in one."""
        options = {"bare": True} if self.is_sqlite else {"isolation_level": "AUTOCOMMIT"}
        with self.engine.connect().execution_options(**options) as connection:
            yield connection

    def alive(self) -> bool:
        """Whether the database answers, and SQLite's files may be written and have room to grow."""
        if self.file and not (can_be_written(self.file) and can_be_written(self.file.parent)):
            return False
        try:
            with self.engine.connect() as connection:
                return connection.scalar(text("SELECT 1")) == 1
        except DBAPIError:
            return False

    def reach(self) -> None:
        """Make sure that the database can be had.

        Raises:
            UserError: it does not answer, refuses us, or is no database.
        """
        try:
            self.engine.connect().close()
        except DBAPIError as error:
            where = self.url.render_as_string(hide_password=True)
            raise UserError(f"no database at {where} ({error.orig})", "start it, or mend its URL") from error

    def close(self) -> None:
        """Let go of the connections."""
        self.engine.dispose()


def _url(url: str | URL) -> URL:
    try:
        found = make_url(url)
    except ArgumentError as error:
        raise UserError("not the URL of a database", f"such as {SHOWN}") from error
    if found.get_backend_name() not in ("sqlite", "mysql", "mariadb", "postgresql"):
        raise UserError(f"databases of kind {found.drivername!r} are not supported", f"use {SHOWN}")
    if found.get_backend_name() == "sqlite" and found.database in (None, "", ":memory:"):
        raise UserError("a database in memory is gone with the process", f"use {SHOWN}")
    if found.get_backend_name() in ("mysql", "mariadb"):
        found = found.update_query_dict({"charset": "utf8mb4"})
    return found


def _engine(url: URL, is_sqlite: bool) -> Engine:
    # hide_parameters: an error that is logged must not hold what somebody said.
    options: dict[str, Any] = {"hide_parameters": True, "pool_size": 16, "max_overflow": 48, "pool_use_lifo": True}
    if not is_sqlite:
        options |= {"pool_pre_ping": True, "pool_recycle": 1800, "isolation_level": "READ COMMITTED"}
    else:
        options["connect_args"] = {"timeout": BUSY_S, "check_same_thread": False}
    try:
        engine = create_engine(url, **options)
    except (NoSuchModuleError, ModuleNotFoundError) as error:
        raise UserError(f"no driver {url.drivername!r}", f"use {SHOWN}") from error
    if is_sqlite:
        event.listen(engine, "connect", _set_up_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def _set_up_sqlite(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # transactions begin where `_begin_sqlite` says so
    _write_ahead(connection)
    for pragma in (
        "foreign_keys = ON",
        "secure_delete = ON",  # what is erased is overwritten
        "temp_store = MEMORY",  # and was never in a temporary file
    ):
        connection.execute(f"PRAGMA {pragma}")


def _write_ahead(connection: Any) -> None:
    """Switch a new file to its write-ahead log: for this SQLite does not wait while another process does the same."""
    until = time.monotonic() + BUSY_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if not error.sqlite_errorname.startswith("SQLITE_BUSY") or time.monotonic() > until:
                raise
            time.sleep(0.01)


def _begin_sqlite(connection: Connection) -> None:
    options = connection.get_execution_options()
    if not options.get("bare"):
        driver: Any = connection.connection.dbapi_connection
        say = driver.execute
        if pace := options.get("writes"):
            say(f"PRAGMA synchronous = {pace}")
        say("BEGIN IMMEDIATE" if pace else "BEGIN")


def affected(session: Session, change: UpdateBase) -> int:
    """How many rows an update or a deletion met."""
    result = session.execute(change)
    assert isinstance(result, CursorResult)
    return result.rowcount

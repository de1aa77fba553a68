"""Bringing a database to the tables of this version and back, with Alembic; any number of workers may start at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from filelock import FileLock
from sqlalchemy import text

from gonggam.errors import UserError
from pipeline.serve.store.database import Database

_LOCK = 4_870_011
"""Any number that no other program locks."""


def upgrade(database: Database, revision: str = "head", *, then: Callable[[], None] | None = None) -> None:
    """Bring the tables to ``revision``.

    Args:
        then: what else is to be done before other processes that start go on.

    Raises:
        UserError: there is no such revision, or the database was made by a newer version.
    """
    _run(database, command.upgrade, revision, then)


def downgrade(database: Database, revision: str) -> None:
    """Take the tables back to ``revision`` (``base``: none are left; ``-1``: one step)."""
    _run(database, command.downgrade, revision)


def current(database: Database) -> str | None:
    """The revision that the database is at; None: it has no tables of ours."""
    with database.engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()


def newest() -> str | None:
    """The revision that this version brings."""
    return ScriptDirectory.from_config(_config()).get_current_head()


def _run(
    database: Database, action: Callable[[Config, str], None], revision: str, then: Callable[[], None] | None = None
) -> None:
    config = _config()
    with _alone(database):
        with database.engine.connect() as connection:
            config.attributes["connection"] = connection
            try:
                action(config, revision)
            except CommandError as error:
                hint = "see gonggam db current; a database of a newer version needs that version"
                raise UserError(f"cannot migrate to {revision!r} ({error})", hint) from error
            connection.commit()
        if then:
            then()


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", (Path(__file__).parent / "migrations").as_posix().replace("%", "%%"))
    return config


@contextmanager
def _alone(database: Database) -> Iterator[None]:
    """No other process does this to this database meanwhile."""
    if database.file:
        with FileLock(database.file.with_name(f"{database.file.name}.migrate.lock")):
            yield
        return
    postgres = database.url.get_backend_name() == "postgresql"
    take, give = (
        (f"SELECT pg_advisory_lock({_LOCK})", f"SELECT pg_advisory_unlock({_LOCK})")
        if postgres
        else (f"SELECT GET_LOCK('gonggam.{_LOCK}', 600)", f"SELECT RELEASE_LOCK('gonggam.{_LOCK}')")
    )
    with database.bare() as lock:
        lock.execute(text(take))
        try:
            yield
        finally:
            lock.execute(text(give))

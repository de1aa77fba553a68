"""The service's database: accounts, rooms, what was said and how it felt.

    store = Store.open("sqlite:///data/gonggam.db")          # brings the tables up to date
    person = store.people.add("minji", hash)
    room = store.rooms.start(person.id, "기본")

A method that returns has committed. Every method that takes a user sees that user's rows only.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from sqlalchemy import URL
from sqlalchemy.exc import DBAPIError

from pipeline.serve.store.claims import Claims, LostClaim
from pipeline.serve.store.database import Database, default_url
from pipeline.serve.store.insight import Insight
from pipeline.serve.store.migrate import upgrade
from pipeline.serve.store.pace import Pace
from pipeline.serve.store.people import People
from pipeline.serve.store.preferences import Preferences
from pipeline.serve.store.rooms import Rooms
from pipeline.serve.store.upkeep import Upkeep
from pipeline.serve.store.workers import Workers

__all__ = ["Database", "LostClaim", "Store", "default_url"]


class Store:
    """All tables, by what they are about. Safe to use from many threads; many processes may open one database."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.people, self.rooms, self.preferences = People(database), Rooms(database), Preferences(database)
        self.insight, self.upkeep = Insight(database), Upkeep(database)
        self.pace = Pace(database)
        self.workers = Workers(database)
        self.claims = Claims(database, self.workers)

    @classmethod
    def open(cls, url: str | URL, keys: Sequence[str] = ()) -> Store:
        """A store with its tables up to date, its key checked and its characters those of this version.

        Args:
            url: SQLAlchemy URL (see `Database`).
            keys: Fernet keys; texts are sealed with the first, opened with any (see `cipher.read_keys`).

        Raises:
            UserError: the database cannot be reached, was made by a newer version, or was sealed with another key.
        """
        from pipeline.chat.personas import personas

        store = cls(Database(url, keys))
        store.database.reach()

        def prepare() -> None:
            store.upkeep.check_key()
            store.rooms.set_characters((persona.name, persona.description) for persona in personas().values())

        upgrade(store.database, then=prepare)
        return store

    def alive(self) -> bool:
        """Whether a message could be kept."""
        return self.database.alive()

    def close(self) -> None:
        """Let go of what is claimed and of the connections; may be called again."""
        with suppress(DBAPIError):  # a database that is gone: claims run out by themselves
            self.workers.leave()
        self.database.close()

"""The tables: who talks, in which room, what was said, how it felt, and what they thought of the reply.

Columns marked *sealed* hold text of people and go through `pipeline.cipher`. All times are UTC.
"""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy.dialects import mysql
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from pipeline.serve.store.records import Kind

# Exact comparison and every character there is, where the server would do otherwise.
_MYSQL = {"mysql_engine": "InnoDB", "mysql_charset": "utf8mb4", "mysql_collate": "utf8mb4_bin"}
for _key, _value in tuple(_MYSQL.items()):
    _MYSQL[_key.replace("mysql", "mariadb")] = _value


class UtcTime(TypeDecorator[datetime]):
    """An aware time, stored as UTC to the microsecond."""

    impl = DateTime
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> Any:
        """MySQL and MariaDB drop fractions of a second unless told."""
        kind = mysql.DATETIME(fsp=6) if dialect.name in ("mysql", "mariadb") else DateTime()
        return dialect.type_descriptor(kind)

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Into the database."""
        return value.astimezone(UTC).replace(tzinfo=None) if value else None

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Out of the database."""
        return value.replace(tzinfo=UTC) if value else None


LongText = Text().with_variant(mysql.MEDIUMTEXT(), "mysql", "mariadb")


def new_id() -> str:
    """An id that tells nothing and is never given twice: 96 random bits in hex."""
    return secrets.token_hex(12)


def now() -> datetime:
    """The time, aware."""
    return datetime.now(UTC)


class Base(DeclarativeBase):
    """Common ground of the tables."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {datetime: UtcTime, dict[str, Any]: JSON, list[str]: JSON}  # noqa: RUF012


def _owner(column: str, **options: Any) -> Any:
    return mapped_column(ForeignKey(column, ondelete="CASCADE"), **options)


class User(Base):
    """An account.

    ``name`` is folded (see `pipeline.serve.accounts.fold`); ``password`` is an argon2 hash; ``used_until``: see `pace`.
    """

    __tablename__ = "user"
    __table_args__ = _MYSQL
    id: Mapped[str] = mapped_column(String(24), primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(String(64), unique=True)
    password: Mapped[str] = mapped_column(String(255))
    role: Mapped[str] = mapped_column(String(8), default="user")
    created_at: Mapped[datetime] = mapped_column(default=now)
    used_until: Mapped[int | None] = mapped_column(BigInteger)


class Token(Base):
    """A log-in: SHA-256 of the random token that the browser (``web``) or program (``api``) holds."""

    __tablename__ = "token"
    __table_args__ = _MYSQL
    hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    user_id: Mapped[str] = _owner("user.id", index=True)
    kind: Mapped[Kind] = mapped_column(String(8))
    created_at: Mapped[datetime] = mapped_column(default=now)
    expires_at: Mapped[datetime] = mapped_column(index=True)


class Consent(Base):
    """What a user agreed to or took back; the newest row of a kind counts."""

    __tablename__ = "consent"
    __table_args__ = (Index(None, "user_id", "kind"), _MYSQL)
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    user_id: Mapped[str] = _owner("user.id")
    kind: Mapped[str] = mapped_column(String(16))
    version: Mapped[str] = mapped_column(String(32))
    granted: Mapped[bool]
    created_at: Mapped[datetime] = mapped_column(default=now)


class Memory(Base):
    """A name under which an account's memory is kept on disk, so that all of them go when the account goes."""

    __tablename__ = "memory"
    __table_args__ = _MYSQL
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    user_id: Mapped[str] = _owner("user.id", index=True)
    name: Mapped[str] = mapped_column(LongText, doc="sealed")


class Attempt(Base):
    """A try at something that is limited, such as a log-in. ``bucket`` is a hash of what is counted."""

    __tablename__ = "attempt"
    __table_args__ = (Index(None, "bucket", "created_at"), _MYSQL)
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    bucket: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime] = mapped_column(default=now, index=True)


class Character(Base):
    """A manner of speech (말투) that there is or once was."""

    __tablename__ = "character"
    __table_args__ = _MYSQL
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    name: Mapped[str] = mapped_column(String(64), unique=True)
    description: Mapped[str] = mapped_column(String(255))
    active: Mapped[bool] = mapped_column(default=True)


class Counsel(Base):
    """A room. ``claim`` names the one request that is answering in it, until ``claim_until`` (see `claims`)."""

    __tablename__ = "counsel"
    __table_args__ = (Index(None, "user_id", "created_at"), _MYSQL)
    id: Mapped[str] = mapped_column(String(24), primary_key=True, default=new_id)
    user_id: Mapped[str] = _owner("user.id")
    character_id: Mapped[int] = mapped_column(ForeignKey("character.id"), index=True)
    title: Mapped[str | None] = mapped_column(LongText, doc="sealed")
    created_at: Mapped[datetime] = mapped_column(default=now)
    ended_at: Mapped[datetime | None]
    claim: Mapped[str | None] = mapped_column(String(24))
    claim_until: Mapped[datetime | None] = mapped_column(index=True)


class Dialog(Base):
    """One exchange: a message and its reply. ``exchange``: its id in the user's memory; ``recalled``: those it used."""

    __tablename__ = "dialog"
    __table_args__ = (UniqueConstraint("counsel_id", "position"), _MYSQL)
    id: Mapped[str] = mapped_column(String(24), primary_key=True, default=new_id)
    counsel_id: Mapped[str] = _owner("counsel.id")
    position: Mapped[int]
    character_id: Mapped[int] = mapped_column(ForeignKey("character.id"), index=True)
    message: Mapped[str] = mapped_column(LongText, doc="sealed")
    reply: Mapped[str] = mapped_column(LongText, doc="sealed")
    source: Mapped[str] = mapped_column(String(16))
    risk: Mapped[str] = mapped_column(String(8))
    exchange: Mapped[str | None] = mapped_column(String(64))
    reasons: Mapped[list[str]]
    recalled: Mapped[list[str]]
    prompt_tokens: Mapped[int] = mapped_column(default=0)
    completion_tokens: Mapped[int] = mapped_column(default=0)
    seconds: Mapped[float] = mapped_column(default=0.0)
    created_at: Mapped[datetime] = mapped_column(default=now, index=True)
    replied_at: Mapped[datetime] = mapped_column(default=now)


class EmotionLog(Base):
    """What a message sounded like."""

    __tablename__ = "emotion_log"
    __table_args__ = _MYSQL
    dialog_id: Mapped[str] = _owner("dialog.id", primary_key=True)
    label: Mapped[str] = mapped_column(String(64))
    score: Mapped[float]


class Feedback(Base):
    """What the user thought of a reply: 1 or -1, and maybe why."""

    __tablename__ = "feedback"
    __table_args__ = _MYSQL
    dialog_id: Mapped[str] = _owner("dialog.id", primary_key=True)
    rating: Mapped[int]
    comment: Mapped[str | None] = mapped_column(LongText, doc="sealed")
    created_at: Mapped[datetime] = mapped_column(default=now)


class Preference(Base):
    """Two replies to one message, of which the user takes one (``chosen``: a or b); that one becomes ``dialog_id``."""

    __tablename__ = "preference"
    __table_args__ = _MYSQL
    id: Mapped[str] = mapped_column(String(24), primary_key=True, default=new_id)
    counsel_id: Mapped[str] = _owner("counsel.id", index=True)
    dialog_id: Mapped[str | None] = _owner("dialog.id", index=True)
    a: Mapped[str] = mapped_column(LongText, doc="sealed")
    b: Mapped[str] = mapped_column(LongText, doc="sealed")
    chosen: Mapped[str | None] = mapped_column(String(1))
    created_at: Mapped[datetime] = mapped_column(default=now, index=True)
    chosen_at: Mapped[datetime | None]


class Worker(Base):
    """A process that answers in rooms; claims begin with its id (see `pipeline.serve.store.workers`)."""

    __tablename__ = "worker"
    __table_args__ = _MYSQL
    id: Mapped[str] = mapped_column(String(12), primary_key=True)
    place: Mapped[str] = mapped_column(String(128))
    pid: Mapped[int] = mapped_column(BigInteger)
    started: Mapped[int] = mapped_column(BigInteger)
    began_at: Mapped[datetime] = mapped_column(default=now)


class Setting(Base):
    """What the database knows of itself, such as a word by which a wrong key is noticed."""

    __tablename__ = "setting"
    __table_args__ = _MYSQL
    name: Mapped[str] = mapped_column(String(40), primary_key=True)
    value: Mapped[str] = mapped_column(LongText)


def table(model: type[Base]) -> Table:
    """The table of a model, for statements that are built once."""
    found = model.__table__
    assert isinstance(found, Table)
    return found


def sealed_columns() -> list[tuple[Any, Any]]:
    """Every (table, column) that holds text of people."""
    tables = Base.metadata.sorted_tables
    return [(table, column) for table in tables for column in table.columns if column.doc == "sealed"]

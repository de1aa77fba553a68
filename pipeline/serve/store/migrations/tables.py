"""Tables as every migration makes them: kinds of columns, names of keys, characters."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql
from sqlalchemy.schema import SchemaItem
from sqlalchemy.types import TypeEngine

TIME = sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")
TEXT = sa.Text().with_variant(mysql.MEDIUMTEXT(), "mysql", "mariadb")
ID = sa.String(24)
CHARSET: dict[str, Any] = {
    f"{server}_{key}": value
    for server in ("mysql", "mariadb")
    for key, value in (("engine", "InnoDB"), ("charset", "utf8mb4"), ("collate", "utf8mb4_bin"))
}


def column(name: str, kind: TypeEngine[Any], *, null: bool = False, **options: Any) -> sa.Column[Any]:
    """A column that must have a value unless said otherwise."""
    return sa.Column(name, kind, nullable=null, **options)


def number() -> sa.Column[Any]:
    """A key that counts up."""
    return column("id", sa.Integer(), autoincrement=True)


def table(
    name: str, *parts: SchemaItem, key: str = "id", indices: tuple[str, ...] = (), unique: str | None = None
) -> None:
    """A table with its key and indices; those of several columns are written with a space between."""
    named: list[SchemaItem] = [sa.PrimaryKeyConstraint(key, name=f"pk_{name}")]
    if unique:
        named.append(sa.UniqueConstraint(*unique.split(), name=f"uq_{name}_{unique.replace(' ', '_')}"))
    op.create_table(name, *parts, *named, **CHARSET)
    for columns in indices:
        op.create_index(f"ix_{name}_{columns.replace(' ', '_')}", name, columns.split())


def foreign(name: str, own: str, other: str, *, cascade: bool = True) -> sa.ForeignKeyConstraint:
    """A foreign key; what it points at takes its rows along when it goes."""
    ondelete = "CASCADE" if cascade else None
    return sa.ForeignKeyConstraint([own], [other], name=f"fk_{name}_{own}", ondelete=ondelete)

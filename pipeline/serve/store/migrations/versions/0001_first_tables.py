"""The first tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from pipeline.serve.store.migrations.tables import ID, TEXT, TIME, column, foreign, number, table

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables."""
    table("setting", column("name", sa.String(40)), column("value", TEXT), key="name")
    table(
        "attempt",
        number(),
        column("bucket", sa.String(64)),
        column("created_at", TIME),
        indices=("bucket created_at", "created_at"),
    )
    table(
        "character",
        number(),
        column("name", sa.String(64)),
        column("description", sa.String(255)),
        column("active", sa.Boolean()),
        unique="name",
    )
    _people()
    _talk()
    _opinions()


def _people() -> None:
    table(
        "user",
        column("id", ID),
        column("name", sa.String(64)),
        column("password", sa.String(255)),
        column("role", sa.String(8)),
        column("created_at", TIME),
        unique="name",
    )
    table(
        "token",
        column("hash", sa.String(64)),
        column("user_id", ID),
        column("kind", sa.String(8)),
        column("created_at", TIME),
        column("expires_at", TIME),
        foreign("token", "user_id", "user.id"),
        key="hash",
        indices=("user_id", "expires_at"),
    )
    table(
        "consent",
        number(),
        column("user_id", ID),
        column("kind", sa.String(16)),
        column("version", sa.String(32)),
        column("granted", sa.Boolean()),
        column("created_at", TIME),
        foreign("consent", "user_id", "user.id"),
        indices=("user_id kind",),
    )
    table(
        "memory",
        column("id", sa.String(64)),
        column("user_id", ID),
        column("name", TEXT),
        foreign("memory", "user_id", "user.id"),
        indices=("user_id",),
    )


def _talk() -> None:
    table(
        "counsel",
        column("id", ID),
        column("user_id", ID),
        column("character_id", sa.Integer()),
        column("title", TEXT, null=True),
        column("created_at", TIME),
        column("ended_at", TIME, null=True),
        column("claim", ID, null=True),
        column("claim_until", TIME, null=True),
        foreign("counsel", "user_id", "user.id"),
        foreign("counsel", "character_id", "character.id", cascade=False),
        indices=("user_id created_at", "character_id", "claim_until"),
    )
    table(
        "dialog",
        column("id", ID),
        column("counsel_id", ID),
        column("position", sa.Integer()),
        column("character_id", sa.Integer()),
        column("message", TEXT),
        column("reply", TEXT),
        column("source", sa.String(16)),
        column("risk", sa.String(8)),
        column("exchange", sa.String(64), null=True),
        column("reasons", sa.JSON()),
        column("recalled", sa.JSON()),
        column("prompt_tokens", sa.Integer()),
        column("completion_tokens", sa.Integer()),
        column("seconds", sa.Double()),
        column("created_at", TIME),
        column("replied_at", TIME),
        foreign("dialog", "counsel_id", "counsel.id"),
        foreign("dialog", "character_id", "character.id", cascade=False),
        unique="counsel_id position",
        indices=("character_id", "created_at"),
    )


def _opinions() -> None:
    table(
        "emotion_log",
        column("dialog_id", ID),
        column("label", sa.String(64)),
        column("score", sa.Double()),
        foreign("emotion_log", "dialog_id", "dialog.id"),
        key="dialog_id",
    )
    table(
        "feedback",
        column("dialog_id", ID),
        column("rating", sa.Integer()),
        column("comment", TEXT, null=True),
        column("created_at", TIME),
        foreign("feedback", "dialog_id", "dialog.id"),
        key="dialog_id",
    )
    table(
        "preference",
        column("id", ID),
        column("counsel_id", ID),
        column("dialog_id", ID, null=True),
        column("a", TEXT),
        column("b", TEXT),
        column("chosen", sa.String(1), null=True),
        column("created_at", TIME),
        column("chosen_at", TIME, null=True),
        foreign("preference", "counsel_id", "counsel.id"),
        foreign("preference", "dialog_id", "dialog.id"),
        indices=("counsel_id", "dialog_id", "created_at"),
    )


def downgrade() -> None:
    """Take every table away, and what is in it."""
    for name in ("preference", "feedback", "emotion_log", "dialog", "counsel"):
        op.drop_table(name)
    for name in ("memory", "consent", "token", "user", "character", "attempt", "setting"):
        op.drop_table(name)

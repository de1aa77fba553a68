"""Workers, so that what one has claimed is free at once when it is gone."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from pipeline.serve.store.migrations.tables import TIME, column, table

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table."""
    table(
        "worker",
        column("id", sa.String(12)),
        column("place", sa.String(128)),
        column("pid", sa.BigInteger()),
        column("started", sa.BigInteger()),
        column("began_at", TIME),
    )


def downgrade() -> None:
    """Remove it."""
    op.drop_table("worker")

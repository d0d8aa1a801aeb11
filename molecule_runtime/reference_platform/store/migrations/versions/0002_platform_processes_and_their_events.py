"""The platform processes on one database, and the events they pass to each other."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "platform_processes",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("expires_s", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_platform_processes"),
    )
    op.create_table(
        "platform_events",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False, autoincrement=True),
        sa.Column("process_id", sa.String(36), nullable=False),
        sa.Column("events", sa.Text, nullable=False),
        sa.Column("created_s", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_platform_events"),
        sqlite_autoincrement=True,
    )

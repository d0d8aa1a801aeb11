"""Namespaces, memories, and the terms by which they are found."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from molecule_runtime.reference_platform.store.full_text import create_terms_table

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    moment = sa.DateTime(timezone=True)
    number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "memory_namespaces",
        sa.Column("no", number, nullable=False, autoincrement=True),
        sa.Column("name", sa.String(256)),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("metadata", sa.JSON),
        sa.Column("created_at", moment, nullable=False),
        sa.Column("expires_at", moment),
        sa.PrimaryKeyConstraint("no", name="pk_memory_namespaces"),
        sa.UniqueConstraint("name", name="uq_memory_namespaces_name"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "memory_records",
        sa.Column("no", number, nullable=False, autoincrement=True),
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("namespace_no", sa.BigInteger, nullable=False),
        sa.Column("content", sa.Text, nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("source", sa.String(16), nullable=False),
        sa.Column("pin", sa.Boolean, nullable=False),
        sa.Column("propagation", sa.JSON),
        sa.Column("created_at", moment, nullable=False),
        sa.Column("expires_at", moment),
        sa.PrimaryKeyConstraint("no", name="pk_memory_records"),
        sa.UniqueConstraint("id", name="uq_memory_records_id"),
        sa.ForeignKeyConstraint(
            ["namespace_no"], ["memory_namespaces.no"], name="fk_memory_records_namespace_no", ondelete="CASCADE"
        ),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_memory_records_list", "memory_records", ["namespace_no", "pin", "no", "kind", "expires_at"])
    expiring = sa.text("expires_at IS NOT NULL")
    op.create_index(
        "ix_memory_records_expires_at",
        "memory_records",
        ["expires_at"],
        postgresql_where=expiring,
        sqlite_where=expiring,
    )
    create_terms_table(op.get_bind(), "memory_terms", "memory_records")

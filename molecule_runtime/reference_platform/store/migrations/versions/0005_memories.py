"""Memories of v1, the terms by which they are found, and who committed which memory."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from molecule_runtime.reference_platform.store.full_text import create_terms_table

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    moment = sa.DateTime(timezone=True)
    op.create_table(
        "agent_memories",
        sa.Column("no", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False, autoincrement=True),
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("workspace_id", sa.String(36), nullable=False),
        sa.Column("scope", sa.String(8), nullable=False),
        sa.Column("namespace", sa.Text, nullable=False),
        sa.Column("content", sa.Text, nullable=False),
        sa.Column("created_at", moment, nullable=False),
        sa.Column("updated_at", moment, nullable=False),
        sa.PrimaryKeyConstraint("no", name="pk_agent_memories"),
        sa.UniqueConstraint("id", name="uq_agent_memories_id"),
        sa.ForeignKeyConstraint(
            ["workspace_id"], ["workspaces.id"], name="fk_agent_memories_workspace_id", ondelete="CASCADE"
        ),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_agent_memories_workspace_id_scope_no", "agent_memories", ["workspace_id", "scope", "no"])
    op.create_index("ix_agent_memories_scope_no", "agent_memories", ["scope", "no"])
    create_terms_table(op.get_bind(), "agent_memory_terms", "agent_memories")
    op.create_table(
        "memory_commits",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("workspace_id", sa.String(36), nullable=False),
        sa.Column("scope", sa.String(8)),
        sa.Column("label", sa.Text),
        sa.Column("namespace", sa.String(256)),
        sa.Column("stored_at", moment),
        sa.Column("created_at", moment, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_memory_commits"),
        sa.ForeignKeyConstraint(
            ["workspace_id"], ["workspaces.id"], name="fk_memory_commits_workspace_id", ondelete="CASCADE"
        ),
    )
    op.create_index("ix_memory_commits_workspace_id", "memory_commits", ["workspace_id"])

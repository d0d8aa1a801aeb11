"""Delegations: their ledger, and what finds their rows in the activity log."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    moment = sa.DateTime(timezone=True)
    op.add_column("activity_logs", sa.Column("delegation_id", sa.String(36)))
    op.add_column("activity_logs", sa.Column("idempotency_key", sa.Text))
    of_a_delegation = sa.text("delegation_id IS NOT NULL")
    op.create_index(
        "ix_activity_logs_delegation_id",
        "activity_logs",
        ["delegation_id", "workspace_id"],
        postgresql_where=of_a_delegation,
        sqlite_where=of_a_delegation,
    )
    with_a_key = sa.text("idempotency_key IS NOT NULL")
    op.create_index(
        "uq_activity_logs_workspace_id_idempotency_key",
        "activity_logs",
        ["workspace_id", "idempotency_key"],
        unique=True,
        postgresql_where=with_a_key,
        sqlite_where=with_a_key,
    )
    op.create_table(
        "delegations",
        sa.Column("delegation_id", sa.String(36), nullable=False),
        sa.Column("caller_id", sa.String(36), nullable=False),
        sa.Column("callee_id", sa.String(36), nullable=False),
        sa.Column("task_preview", sa.Text, nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("error_detail", sa.Text),
        sa.Column("result_preview", sa.Text),
        sa.Column("last_heartbeat", moment),
        sa.Column("deadline", moment, nullable=False),
        sa.Column("idempotency_key", sa.Text),
        sa.Column("retry_count", sa.Integer, nullable=False),
        sa.Column("created_at", moment, nullable=False),
        sa.Column("updated_at", moment, nullable=False),
        sa.PrimaryKeyConstraint("delegation_id", name="pk_delegations"),
        sa.UniqueConstraint("caller_id", "idempotency_key", name="uq_delegations_caller_id_idempotency_key"),
    )
    op.create_index("ix_delegations_status", "delegations", ["status"])
    op.create_index("ix_delegations_created_at", "delegations", ["created_at"])

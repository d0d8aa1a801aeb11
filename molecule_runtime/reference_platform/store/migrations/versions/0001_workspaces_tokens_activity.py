"""Workspaces, their tokens and their activity."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    moment = sa.DateTime(timezone=True)
    op.create_table(
        "workspaces",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("role", sa.Text),
        sa.Column("tier", sa.Integer, nullable=False),
        sa.Column("status", sa.String(32), nullable=False),
        sa.Column("runtime", sa.String(100), nullable=False),
        sa.Column("delivery_mode", sa.String(8), nullable=False),
        sa.Column("url", sa.Text, nullable=False),
        sa.Column("agent_card", sa.JSON),
        sa.Column("parent_id", sa.String(36)),
        sa.Column("active_tasks", sa.BigInteger, nullable=False),
        sa.Column("max_concurrent_tasks", sa.Integer, nullable=False),
        sa.Column("last_error_rate", sa.Float, nullable=False),
        sa.Column("last_sample_error", sa.Text, nullable=False),
        sa.Column("uptime_seconds", sa.BigInteger, nullable=False),
        sa.Column("current_task", sa.Text, nullable=False),
        sa.Column("runtime_metadata", sa.JSON),
        sa.Column("workspace_dir", sa.Text),
        sa.Column("monthly_spend", sa.BigInteger, nullable=False),
        sa.Column("budget_limit", sa.BigInteger),
        sa.Column("x", sa.Float, nullable=False),
        sa.Column("y", sa.Float, nullable=False),
        sa.Column("collapsed", sa.Boolean, nullable=False),
        sa.Column("platform_inbound_secret", sa.String(64)),
        sa.Column("last_seq", sa.BigInteger, nullable=False),
        sa.Column("last_row_us", sa.BigInteger, nullable=False),
        sa.Column("last_heartbeat_at", moment),
        sa.Column("last_outbound_at", moment),
        sa.Column("removed_at", moment),
        sa.Column("created_at", moment, nullable=False),
        sa.Column("updated_at", moment, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_workspaces"),
        sa.ForeignKeyConstraint(["parent_id"], ["workspaces.id"], name="fk_workspaces_parent_id"),
    )
    op.create_index("ix_workspaces_parent_id", "workspaces", ["parent_id"])
    op.create_index("ix_workspaces_status", "workspaces", ["status"])
    op.create_table(
        "workspace_tokens",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("workspace_id", sa.String(36), nullable=False),
        sa.Column("digest", sa.LargeBinary(32), nullable=False),
        sa.Column("prefix", sa.String(8), nullable=False),
        sa.Column("created_at", moment, nullable=False),
        sa.Column("last_used_at", moment),
        sa.Column("revoked_at", moment),
        sa.PrimaryKeyConstraint("id", name="pk_workspace_tokens"),
        sa.UniqueConstraint("digest", name="uq_workspace_tokens_digest"),
        sa.ForeignKeyConstraint(
            ["workspace_id"], ["workspaces.id"], name="fk_workspace_tokens_workspace_id", ondelete="CASCADE"
        ),
    )
    op.create_index("ix_workspace_tokens_workspace_id", "workspace_tokens", ["workspace_id"])
    op.create_table(
        "activity_logs",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("workspace_id", sa.String(36), nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("activity_type", sa.String(32), nullable=False),
        sa.Column("source_id", sa.String(36)),
        sa.Column("target_id", sa.String(36)),
        sa.Column("method", sa.Text),
        sa.Column("summary", sa.Text),
        sa.Column("request_body", sa.JSON),
        sa.Column("response_body", sa.JSON),
        sa.Column("tool_trace", sa.JSON),
        sa.Column("duration_ms", sa.BigInteger),
        sa.Column("status", sa.String(32), nullable=False),
        sa.Column("error_detail", sa.Text),
        sa.Column("created_at", moment, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_activity_logs"),
        sa.UniqueConstraint("workspace_id", "seq", name="uq_activity_logs_workspace_id_seq"),
        sa.ForeignKeyConstraint(
            ["workspace_id"], ["workspaces.id"], name="fk_activity_logs_workspace_id", ondelete="CASCADE"
        ),
    )
    op.create_index("ix_activity_logs_created_at", "activity_logs", ["created_at"])

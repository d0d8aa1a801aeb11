"""The tables, for SQLite and PostgreSQL alike (contract 1.2, 2, 3, 4.3, 5.6, 6.5).

The live schema comes from the migrations; a test compares the two.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    bindparam,
    or_,
)

from molecule_runtime.reference_platform.store.full_text import FullText


class UtcDateTime(TypeDecorator[datetime]):
    """An aware UTC instant. SQLite keeps it as text of fixed width, so that text order is time order."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        moment = value.astimezone(UTC)
        return moment.replace(tzinfo=None) if dialect.name == "sqlite" else moment

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        moment: datetime = value
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


class PlainText(TypeDecorator[str]):
    """Text without NUL characters, which PostgreSQL cannot store and nobody can read."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else value.replace("\x00", "")


def _json() -> JSON:
    return JSON(none_as_null=True)


NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s",
    "pk": "pk_%(table_name)s",
}

metadata = MetaData(naming_convention=NAMING)

workspaces = Table(
    "workspaces",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("name", PlainText, nullable=False),
    Column("role", PlainText),
    Column("tier", Integer, nullable=False, default=3),
    Column("status", String(32), nullable=False),
    Column("runtime", String(100), nullable=False),
    Column("delivery_mode", String(8), nullable=False),
    Column("url", PlainText, nullable=False, default=""),
    Column("agent_card", _json()),
    Column("parent_id", String(36), ForeignKey("workspaces.id"), index=True),
    Column("active_tasks", BigInteger, nullable=False, default=0),
    Column("max_concurrent_tasks", Integer, nullable=False, default=1),
    Column("last_error_rate", Float, nullable=False, default=0.0),
    Column("last_sample_error", PlainText, nullable=False, default=""),
    Column("uptime_seconds", BigInteger, nullable=False, default=0),
    Column("current_task", PlainText, nullable=False, default=""),
    Column("runtime_metadata", _json()),
    Column("workspace_dir", PlainText),
    Column("monthly_spend", BigInteger, nullable=False, default=0),
    Column("budget_limit", BigInteger),
    Column("x", Float, nullable=False, default=0.0),
    Column("y", Float, nullable=False, default=0.0),
    Column("collapsed", Boolean, nullable=False, default=False),
    Column("platform_inbound_secret", String(64)),
    # The workspace's activity sequence and the instant of its last row in microseconds since 1970 (contract 0.7).
    Column("last_seq", BigInteger, nullable=False, default=0),
    Column("last_row_us", BigInteger, nullable=False, default=0),
    Column("last_heartbeat_at", UtcDateTime),
    Column("last_outbound_at", UtcDateTime),
    Column("removed_at", UtcDateTime),
    Column("created_at", UtcDateTime, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
    Index(None, "status"),
)

workspace_tokens = Table(
    "workspace_tokens",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("workspace_id", String(36), ForeignKey("workspaces.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("digest", LargeBinary(32), nullable=False, unique=True),
    Column("prefix", String(8), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("last_used_at", UtcDateTime),
    Column("revoked_at", UtcDateTime),
)

activity_logs = Table(
    "activity_logs",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("workspace_id", String(36), ForeignKey("workspaces.id", ondelete="CASCADE"), nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("activity_type", String(32), nullable=False),
    Column("source_id", String(36)),
    Column("target_id", String(36)),
    Column("method", PlainText),
    Column("summary", PlainText),
    Column("request_body", _json()),
    Column("response_body", _json()),
    Column("tool_trace", _json()),
    Column("duration_ms", BigInteger),
    Column("status", String(32), nullable=False),
    Column("error_detail", PlainText),
    Column("created_at", UtcDateTime, nullable=False),
    # Never on the wire: how the rows of a delegation are found, and that one key of a delegator makes one of them.
    Column("delegation_id", String(36)),
    Column("idempotency_key", PlainText),
    UniqueConstraint("workspace_id", "seq"),
    Index(None, "created_at"),
)
_activity = activity_logs.c
Index(
    "ix_activity_logs_delegation_id",
    _activity.delegation_id,
    _activity.workspace_id,
    postgresql_where=_activity.delegation_id.is_not(None),
    sqlite_where=_activity.delegation_id.is_not(None),
)
Index(
    "uq_activity_logs_workspace_id_idempotency_key",
    _activity.workspace_id,
    _activity.idempotency_key,
    unique=True,
    postgresql_where=_activity.idempotency_key.is_not(None),
    sqlite_where=_activity.idempotency_key.is_not(None),
)

delegations = Table(
    "delegations",
    metadata,
    Column("delegation_id", String(36), primary_key=True),
    # No foreign keys: a delegation outlives both its ends until the retention takes it.
    Column("caller_id", String(36), nullable=False),
    Column("callee_id", String(36), nullable=False),
    Column("task_preview", PlainText, nullable=False),
    Column("status", String(16), nullable=False),
    Column("error_detail", PlainText),
    Column("result_preview", PlainText),
    Column("last_heartbeat", UtcDateTime),
    Column("deadline", UtcDateTime, nullable=False),
    Column("idempotency_key", PlainText),
    Column("retry_count", Integer, nullable=False, default=0),
    Column("created_at", UtcDateTime, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
    UniqueConstraint("caller_id", "idempotency_key"),
    Index(None, "status"),
    Index(None, "created_at"),
)

platform_processes = Table(
    "platform_processes",
    metadata,
    Column("id", String(36), primary_key=True),
    # Seconds since 1970 by the database's clock, the one clock that all processes share.
    Column("expires_s", BigInteger, nullable=False),
)

platform_events = Table(
    "platform_events",
    metadata,
    # Never used twice, or a reader that remembers the last one would miss what comes after all rows were deleted.
    Column("id", BigInteger().with_variant(Integer(), "sqlite"), primary_key=True, autoincrement=True),
    Column("process_id", String(36), nullable=False),
    Column("events", Text, nullable=False),
    Column("created_s", BigInteger, nullable=False),
    sqlite_autoincrement=True,
)

pending_uploads = Table(
    "pending_uploads",
    metadata,
    Column("file_id", String(36), primary_key=True),
    # No foreign key (contract 5.6): what is staged outlives the workspace until it is swept.
    Column("workspace_id", String(36), nullable=False),
    Column("filename", PlainText, nullable=False),
    Column("mimetype", PlainText, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("fetched_at", UtcDateTime),
    Column("acked_at", UtcDateTime),
    Column("expires_at", UtcDateTime, nullable=False),
)
_uploads = pending_uploads.c
# One index for each arm of the sweep: only rows that the arm may delete are in it.
Index(
    "ix_pending_uploads_acked_at",
    _uploads.acked_at,
    postgresql_where=_uploads.acked_at.is_not(None),
    sqlite_where=_uploads.acked_at.is_not(None),
)
Index(
    "ix_pending_uploads_expires_at",
    _uploads.expires_at,
    postgresql_where=_uploads.acked_at.is_(None),
    sqlite_where=_uploads.acked_at.is_(None),
)

pending_upload_chunks = Table(
    "pending_upload_chunks",
    metadata,
    # The bytes stand apart from their row, and in pieces: SQLite writes a whole row anew when one column of it
    # changes, and nobody ever needs a whole file in memory.
    Column("file_id", String(36), ForeignKey("pending_uploads.file_id", ondelete="CASCADE"), primary_key=True),
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("content", LargeBinary, nullable=False),
)

agent_memories = Table(
    "agent_memories",
    metadata,
    # The higher, the newer: what lists and searches are ordered by.
    Column("no", BigInteger().with_variant(Integer(), "sqlite"), primary_key=True, autoincrement=True),
    Column("id", String(36), nullable=False, unique=True),
    Column("workspace_id", String(36), ForeignKey("workspaces.id", ondelete="CASCADE"), nullable=False),
    Column("scope", String(8), nullable=False),
    Column("namespace", PlainText, nullable=False),
    Column("content", PlainText, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
    Index(None, "workspace_id", "scope", "no"),
    Index(None, "scope", "no"),
    sqlite_autoincrement=True,
)
_memories = agent_memories.c
# An empty text stands for any.
_BY_WRITER = or_(bindparam("writer", type_=String) == "", _memories.workspace_id == bindparam("writer", type_=String))
_IN_NAMESPACE = or_(bindparam("within", type_=String) == "", _memories.namespace == bindparam("within", type_=String))
memory_texts = FullText(metadata, "agent_memory_terms", agent_memories, (_BY_WRITER, _IN_NAMESPACE))

memory_commits = Table(
    "memory_commits",
    metadata,
    # Who wrote which memory, and where it went. It outlives the memory: a repeat must not bring back a forgotten one.
    Column("id", String(36), primary_key=True),
    Column("workspace_id", String(36), ForeignKey("workspaces.id", ondelete="CASCADE"), nullable=False, index=True),
    # Of a commit by v1 the scope and the namespace as they were sent; null of one by v2.
    Column("scope", String(8)),
    Column("label", PlainText),
    # The plugin's namespace; null of a memory in agent_memories.
    Column("namespace", String(256)),
    # Null while it is not known to be in the plugin.
    Column("stored_at", UtcDateTime),
    Column("created_at", UtcDateTime, nullable=False),
)

"""Files of the chat that wait to be fetched."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    moment = sa.DateTime(timezone=True)
    op.create_table(
        "pending_uploads",
        sa.Column("file_id", sa.String(36), nullable=False),
        sa.Column("workspace_id", sa.String(36), nullable=False),
        sa.Column("filename", sa.Text, nullable=False),
        sa.Column("mimetype", sa.Text, nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("created_at", moment, nullable=False),
        sa.Column("fetched_at", moment),
        sa.Column("acked_at", moment),
        sa.Column("expires_at", moment, nullable=False),
        sa.PrimaryKeyConstraint("file_id", name="pk_pending_uploads"),
    )
    acked = sa.text("acked_at IS NOT NULL")
    op.create_index(
        "ix_pending_uploads_acked_at", "pending_uploads", ["acked_at"], postgresql_where=acked, sqlite_where=acked
    )
    waiting = sa.text("acked_at IS NULL")
    op.create_index(
        "ix_pending_uploads_expires_at",
        "pending_uploads",
        ["expires_at"],
        postgresql_where=waiting,
        sqlite_where=waiting,
    )
    op.create_table(
        "pending_upload_chunks",
        sa.Column("file_id", sa.String(36), nullable=False),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("content", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("file_id", "position", name="pk_pending_upload_chunks"),
        sa.ForeignKeyConstraint(
            ["file_id"], ["pending_uploads.file_id"], name="fk_pending_upload_chunks_file_id", ondelete="CASCADE"
        ),
    )
    if op.get_bind().dialect.name == "postgresql":
        # Files are mostly packed already: the server need not try to pack each of them again.
        op.execute("ALTER TABLE pending_upload_chunks ALTER COLUMN content SET STORAGE EXTERNAL")

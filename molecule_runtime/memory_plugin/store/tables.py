"""The plugin's tables, for SQLite and PostgreSQL alike, with names of their own: a platform may live beside them.

The live schema comes from the migrations; a test compares the two.
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    bindparam,
    or_,
)

from molecule_runtime.reference_platform.store.full_text import FullText
from molecule_runtime.reference_platform.store.schema import Schema
from molecule_runtime.reference_platform.store.tables import NAMING, PlainText, UtcDateTime

MIGRATIONS = Path(__file__).parent / "migrations"
VERSION_TABLE = "memory_version"
SCHEMA = Schema(MIGRATIONS, VERSION_TABLE)

metadata = MetaData(naming_convention=NAMING)
_NUMBER = BigInteger().with_variant(Integer(), "sqlite")

namespaces = Table(
    "memory_namespaces",
    metadata,
    # Never used twice, or what is left of an old namespace would come back in a new one.
    Column("no", _NUMBER, primary_key=True, autoincrement=True),
    # Null when the namespace was deleted or had expired, until its memories are swept.
    Column("name", String(256), unique=True),
    Column("kind", String(16), nullable=False),
    Column("metadata", JSON(none_as_null=True)),
    Column("created_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime),
    sqlite_autoincrement=True,
)

records = Table(
    "memory_records",
    metadata,
    # The higher, the newer: what lists and searches are ordered by.
    Column("no", _NUMBER, primary_key=True, autoincrement=True),
    Column("id", String(36), nullable=False, unique=True),
    Column("namespace_no", BigInteger, ForeignKey("memory_namespaces.no", ondelete="CASCADE"), nullable=False),
    Column("content", PlainText, nullable=False),
    Column("kind", String(16), nullable=False),
    Column("source", String(16), nullable=False),
    Column("pin", Boolean, nullable=False, default=False),
    # JSON as text, so that the order of keys stays.
    Column("propagation", JSON(none_as_null=True)),
    Column("created_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime),
    sqlite_autoincrement=True,
)
_of = records.c
Index("ix_memory_records_list", _of.namespace_no, _of.pin, _of.no, _of.kind, _of.expires_at)
Index(
    "ix_memory_records_expires_at",
    _of.expires_at,
    postgresql_where=_of.expires_at.is_not(None),
    sqlite_where=_of.expires_at.is_not(None),
)

LASTING = or_(_of.expires_at.is_(None), _of.expires_at > bindparam("now", type_=UtcDateTime))
OF_KIND = _of.kind.in_(bindparam("kinds", expanding=True))
"""What every memory that is found fulfils; `now` is the instant, `kinds` those that are wanted."""
full_text = FullText(metadata, "memory_terms", records, (LASTING, OF_KIND))

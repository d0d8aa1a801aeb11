"""Alembic runs this file: it hands over the connection that `store.schema` put into the configuration."""

from __future__ import annotations

from alembic import context

from molecule_runtime.reference_platform.store.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()

"""Who committed which memory: one line for each id, in the caller's transaction.

The line is what makes a repeat harmless: the same workspace with the same id learns what became of the first attempt,
and nothing is written twice. It stays when the memory is forgotten, so a late repeat cannot bring it back. And it tells
whose a memory in the plugin is, which the plugin itself cannot be asked.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, select, update
from sqlalchemy.dialects import postgresql, sqlite

from molecule_runtime.reference_platform.refusals import Refusal
from molecule_runtime.reference_platform.store.tables import memory_commits

_columns = memory_commits.c


@dataclass(frozen=True)
class Commit:
    """One line. `scope` and `label` are of v1; `namespace` is the plugin's, None for a memory that is not there: it is
    in the platform's table, or forgotten.

    `is_stored` says that the memory is (or was) where it belongs.
    """

    id: str
    workspace_id: str
    scope: str | None = None
    label: str | None = None
    namespace: str | None = None
    is_stored: bool = False


def id_taken() -> Refusal:
    """Nothing is told of the other one."""
    return Refusal(409, "this id is in use; choose another one or leave it out")


def claim(connection: Connection, commit: Commit, now: datetime) -> Commit:
    """Note what is about to be stored; the line as it stands, which may be that of an attempt before this one.

    Raises:
        Refusal: 409, the id is another workspace's.
    """
    values = {"scope": commit.scope, "label": commit.label, "namespace": commit.namespace}
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    statement = dialect.insert(memory_commits).values(
        id=commit.id, workspace_id=commit.workspace_id, created_at=now, **values
    )
    # An attempt of which nothing is known to have been stored is replaced by the new one.
    statement = statement.on_conflict_do_update(
        index_elements=[_columns.id],
        set_=values,
        where=(_columns.workspace_id == commit.workspace_id) & _columns.stored_at.is_(None),
    )
    connection.execute(statement)
    found = find(connection, commit.id)
    if found is None or found.workspace_id != commit.workspace_id:
        raise id_taken()
    return found


def find(connection: Connection, memory_id: str) -> Commit | None:
    """The line of an id."""
    row = connection.execute(select(memory_commits).where(_columns.id == memory_id)).mappings().one_or_none()
    if row is None:
        return None
    return Commit(
        id=row["id"],
        workspace_id=row["workspace_id"],
        scope=row["scope"],
        label=row["label"],
        namespace=row["namespace"],
        is_stored=row["stored_at"] is not None,
    )


def mark_stored(connection: Connection, memory_id: str, now: datetime) -> bool:
    """Note that the memory is where it belongs; False when that was known."""
    statement = update(memory_commits).where(_columns.id == memory_id, _columns.stored_at.is_(None))
    return connection.execute(statement.values(stored_at=now)).rowcount > 0


def mark_forgotten(connection: Connection, memory_id: str, now: datetime) -> None:
    """Note that the memory is in the plugin no more, and that it was: a repeat must not bring it back."""
    mark_stored(connection, memory_id, now)
    connection.execute(update(memory_commits).where(_columns.id == memory_id).values(namespace=None))

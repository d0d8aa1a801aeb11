"""Namespaces: made, changed, deleted, and gone when they expire (contract 7.4).

A namespace that is deleted or has expired gives up its name at once, which takes its memories out of every answer; its
rows follow in portions, here or in the sweep. So nothing that has expired comes back with a later expiry.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, bindparam, delete, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from molecule_runtime.clock import Clock
from molecule_runtime.memory_plugin.store.tables import namespaces, records
from molecule_runtime.reference_platform.refusals import Refusal
from molecule_runtime.reference_platform.store.engine import Store
from molecule_runtime.reference_platform.store.tables import UtcDateTime
from molecule_runtime.wire.memories import NamespaceKind, PluginNamespace

PORTION = 500
"""Memories deleted in one transaction: others need not wait long for the database."""

_of = namespaces.c
_SHOWN = (_of.name, _of.kind, _of.expires_at, _of.metadata, _of.created_at)


class Namespaces:
    """The namespaces of one database."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def put(self, name: str, kind: NamespaceKind, changes: Mapping[str, Any]) -> PluginNamespace:
        """Make it, or give it this kind. `changes` may hold `expires_at` and `metadata`; what it lacks stays.

        Raises:
            StoreError: the database failed.
        """
        return await self._store.write(_put, name, kind, changes, self._clock.now())

    async def patch(self, name: str, changes: Mapping[str, Any]) -> PluginNamespace:
        """Change `expires_at`, `metadata` or both.

        Raises:
            Refusal: 404, there is no such namespace.
            StoreError: the database failed.
        """
        return await self._store.write(_patch, name, changes, self._clock.now())

    async def delete(self, name: str) -> None:
        """Delete it with its memories. When this is cut short, the sweep deletes the rest; nobody finds it any more.

        Raises:
            Refusal: 404, there is no such namespace.
            StoreError: the database failed.
        """
        no = await self._store.write(_give_up, name, self._clock.now())
        more = True
        while more:
            more = await self._store.write(delete_portion, no)


def is_live(now: datetime | ColumnElement[datetime]) -> ColumnElement[bool]:
    """The namespace has a name and has not expired."""
    return _of.name.is_not(None) & or_(_of.expires_at.is_(None), _of.expires_at > now)


_LIVE_NUMBERS = select(_of.no).where(
    _of.name.in_(bindparam("names", expanding=True)), is_live(bindparam("now", type_=UtcDateTime))
)
_LIVE_AND_KEPT = _LIVE_NUMBERS.with_for_update(read=True, key_share=True)  # SQLite has one writer at a time anyway


def live_numbers(connection: Connection, names: Iterable[str], now: datetime) -> list[int]:
    """The numbers of those that exist."""
    return list(connection.execute(_LIVE_NUMBERS, {"names": list(names), "now": now}).scalars())


def ensure(connection: Connection, name: str, now: datetime) -> int:
    """The number of a namespace, which is made when there is none; its kind is then what its name begins with.

    It stays until this transaction ends: whoever deletes it waits for what is written into it now.
    """
    for number in connection.execute(_LIVE_AND_KEPT, {"names": [name], "now": now}).scalars():
        return int(number)
    begins = name.partition(":")[0]
    kind = NamespaceKind(begins) if begins in set(NamespaceKind) else NamespaceKind.CUSTOM
    _put(connection, name, kind, {}, now)
    made: int = connection.execute(select(_of.no).where(_of.name == name)).scalar_one()
    return made


def delete_portion(connection: Connection, no: int) -> bool:
    """Delete some memories of a namespace that has no name any more; False when all and the namespace are deleted."""
    some = select(records.c.no).where(records.c.namespace_no == no).limit(PORTION)
    deleted = connection.execute(delete(records).where(records.c.no.in_(some))).rowcount
    if deleted == PORTION:
        return True
    connection.execute(delete(namespaces).where(_of.no == no, _of.name.is_(None)))
    return False


def _put(
    connection: Connection, name: str, kind: NamespaceKind, changes: Mapping[str, Any], now: datetime
) -> PluginNamespace:
    expired = (_of.name == name) & (_of.expires_at <= now)
    connection.execute(update(namespaces).where(expired).values(name=None))
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    statement = dialect.insert(namespaces).values(name=name, kind=kind, created_at=now, **changes)
    row = connection.execute(
        statement.on_conflict_do_update(index_elements=[_of.name], set_={"kind": kind, **changes}).returning(*_SHOWN)
    ).one()
    return PluginNamespace.model_validate(row._mapping)


def _patch(connection: Connection, name: str, changes: Mapping[str, Any], now: datetime) -> PluginNamespace:
    change = update(namespaces).where(_of.name == name, is_live(now)).values(**changes)
    row = connection.execute(change.returning(*_SHOWN)).one_or_none()
    if row is None:
        raise no_such_namespace()
    return PluginNamespace.model_validate(row._mapping)


def _give_up(connection: Connection, name: str, now: datetime) -> int:
    change = update(namespaces).where(_of.name == name, is_live(now)).values(name=None)
    no: int | None = connection.execute(change.returning(_of.no)).scalar_one_or_none()
    if no is None:
        raise no_such_namespace()
    return no


def no_such_namespace() -> Refusal:
    return Refusal(404, "namespace not found")

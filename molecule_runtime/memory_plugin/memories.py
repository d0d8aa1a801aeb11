"""Memories: written once, found again, forgotten for good (contract 7.4)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, bindparam, delete, exists, func, or_, select
from sqlalchemy.dialects import postgresql, sqlite

from molecule_runtime.clock import Clock
from molecule_runtime.memory_plugin.namespaces import PORTION, delete_portion, ensure, is_live, live_numbers
from molecule_runtime.memory_plugin.store.tables import LASTING, OF_KIND, full_text, namespaces, records
from molecule_runtime.reference_platform.identifiers import new_id
from molecule_runtime.reference_platform.refusals import Refusal
from molecule_runtime.reference_platform.store.engine import Store
from molecule_runtime.reference_platform.store.tables import UtcDateTime
from molecule_runtime.reference_platform.text_search import Query
from molecule_runtime.wire.memories import MemoryKind, MemorySource, MemoryWritten, PluginMemory

_of = records.c
_SHOWN = (
    _of.no,
    _of.id,
    namespaces.c.name.label("namespace"),
    _of.content,
    _of.kind,
    _of.source,
    _of.created_at,
    _of.expires_at,
    _of.propagation,
    _of.pin,
)
_SELECT = select(*_SHOWN).join_from(records, namespaces, namespaces.c.no == _of.namespace_no)
_BY_NUMBER = _SELECT.where(_of.no.in_(bindparam("numbers", expanding=True)))
_NEWEST = (
    select(_of.pin, _of.no)
    .where(_of.namespace_no == bindparam("namespace_no"), LASTING, OF_KIND)
    .order_by(_of.pin.desc(), _of.no.desc())
    .limit(bindparam("limit"))
)


def _upsert(insert: Callable[..., Any]) -> Any:
    """Insert a row, or replace what may change of the one with this id, if it is in the same namespace; its number."""
    statement = insert(records)
    new = statement.excluded
    changed = {name: new[name] for name in ("content", "kind", "source", "pin", "propagation", "expires_at")}
    here = _of.namespace_no == new.namespace_no
    return statement.on_conflict_do_update(index_elements=[_of.id], set_=changed, where=here).returning(_of.no)


_UPSERT = {"sqlite": _upsert(sqlite.insert), "postgresql": _upsert(postgresql.insert)}
_NOW = bindparam("now", type_=UtcDateTime)
_REMAINS = delete(records).where(
    _of.id == bindparam("memory_id"),
    or_(_of.expires_at <= _NOW, exists().where(namespaces.c.no == _of.namespace_no, ~is_live(_NOW))),
)


@dataclass(frozen=True)
class NewMemory:
    """What is to be remembered; `id` None asks for a new one."""

    id: str | None
    content: str
    kind: MemoryKind
    source: MemorySource
    pin: bool
    propagation: dict[str, Any] | None
    expires_at: datetime | None


class Memories:
    """The memories of one database."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def write(self, namespace: str, memory: NewMemory) -> MemoryWritten:
        """Store it; a memory of the same id in the same namespace is replaced and keeps its age.

        Raises:
            Refusal: 403, the id is that of another namespace's memory.
            StoreError: the database failed.
        """
        written = await self._store.write(_write, namespace, memory, self._clock.now())
        return MemoryWritten(id=written, namespace=namespace)

    async def search(
        self, names: Collection[str], query: str, kinds: Collection[MemoryKind], limit: int
    ) -> list[PluginMemory]:
        """What these namespaces hold, at most `limit`; `kinds` empty means any, `query` is trimmed.

        A query with a word in it is answered best first, with scores; any other text is looked for as it is, pinned
        first and then newest; "" matches everything, in the same order.

        Raises:
            StoreError: the database failed.
        """
        return await self._store.read(_search, names, query, kinds, limit, self._clock.now())

    async def forget(self, memory_id: str, namespace: str) -> None:
        """Delete a memory of this namespace.

        Raises:
            Refusal: 404, this namespace has no such memory.
            StoreError: the database failed.
        """
        if not await self._store.write(_forget, memory_id, namespace, self._clock.now()):
            raise not_in_namespace()

    async def sweep(self) -> bool:
        """Delete some of what has expired or lost its namespace; False when all is deleted.

        Raises:
            StoreError: the database failed.
        """
        return await self._store.write(_sweep, self._clock.now())


def not_in_namespace() -> Refusal:
    return Refusal(404, "memory not found in namespace")


def _write(connection: Connection, namespace: str, memory: NewMemory, now: datetime) -> str:
    namespace_no = ensure(connection, namespace, now)
    memory_id = memory.id or new_id()
    if memory.id is not None:
        _remove_remains(connection, memory.id, now)
    row = asdict(memory) | {"id": memory_id, "namespace_no": namespace_no, "created_at": now}
    no = connection.execute(_UPSERT[connection.dialect.name], row).scalar_one_or_none()
    if no is None:
        raise Refusal(403, "a memory of another namespace has this id; leave the id out or choose another one")
    full_text.put(connection, no, namespace_no, memory.content)
    return memory_id


def _remove_remains(connection: Connection, memory_id: str, now: datetime) -> None:
    """Delete what has this id and is gone for everybody: it must neither stand in the way nor come back."""
    connection.execute(_REMAINS, {"memory_id": memory_id, "now": now})


def _forget(connection: Connection, memory_id: str, namespace: str, now: datetime) -> bool:
    numbers = live_numbers(connection, [namespace], now)
    mine = delete(records).where(_of.id == memory_id, _of.namespace_no.in_(numbers), LASTING)
    return connection.execute(mine, {"now": now}).rowcount > 0


def _search(
    connection: Connection,
    names: Collection[str],
    query: str,
    kinds: Collection[MemoryKind],
    limit: int,
    now: datetime,
) -> list[PluginMemory]:
    numbers = live_numbers(connection, names, now)
    wanted = Query.parse(query) if len(query.encode()) > 1 else None
    bound = {"now": now, "kinds": sorted(kinds or MemoryKind)}
    if wanted is not None and numbers:
        hits = full_text.search(connection, wanted, numbers, limit=limit, bound=bound)
        return _shown(connection, [(hit.no, hit.score) for hit in hits])
    return _shown(connection, [(no, None) for no in _newest(connection, numbers, query, bound, limit)])


def _shown(connection: Connection, chosen: Sequence[tuple[int, float | None]]) -> list[PluginMemory]:
    """Memories by their numbers, in this order, with these scores."""
    rows = {row.no: row for row in connection.execute(_BY_NUMBER, {"numbers": [no for no, _ in chosen]})}
    return [_memory(rows[no], score) for no, score in chosen]


def _newest(
    connection: Connection, numbers: Sequence[int], text: str, bound: Mapping[str, Any], limit: int
) -> list[int]:
    """Numbers, pinned first, then newest: the first of each namespace, in the order of the index, and then of all.

    Their texts are not read: 100 namespaces may have 100 candidates of 128 KiB each.
    """
    statement = _NEWEST.where(_holds(text, connection.dialect.name)) if text else _NEWEST
    found: list[tuple[bool, int]] = []
    for number in numbers:
        rows = connection.execute(statement, {**bound, "namespace_no": number, "limit": limit})
        found += [(pin, no) for pin, no in rows]
    return [no for _, no in sorted(found, reverse=True)[:limit]]


def _holds(text: str, dialect: str) -> ColumnElement[bool]:
    """The text is in the content, in either case if it is a letter.

    Not by LIKE, with which SQLite takes seconds for a long row of brackets in a longer one.
    """
    position = func.strpos if dialect == "postgresql" else func.instr
    return or_(*(position(_of.content, each) > 0 for each in dict.fromkeys((text, text.swapcase()))))


def _memory(row: Any, score: float | None) -> PluginMemory:
    return PluginMemory.model_construct(**row._mapping, score=score)


def _sweep(connection: Connection, now: datetime) -> bool:
    expired = select(_of.no).where(_of.expires_at <= now).limit(PORTION)
    deleted = connection.execute(delete(records).where(_of.no.in_(expired))).rowcount
    gone = connection.execute(select(namespaces.c.no).where(~is_live(now)).limit(1)).scalar_one_or_none()
    if gone is not None:
        connection.execute(namespaces.update().where(namespaces.c.no == gone).values(name=None))
        delete_portion(connection, gone)
    return deleted == PORTION or gone is not None

"""Where files of the chat wait to be fetched: one small interface, and the tables behind it (contract 5.6).

`PendingUploads` is all that the rest of the platform knows. An object store can take the tables' place: its `put_batch`
would put the bytes first and write their rows and `also` in one transaction afterwards. When that fails, the bytes have
no row: nobody can find them, and its `sweep` deletes what has none and is old.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Protocol, TypeVar

from sqlalchemy import Connection, delete, func, insert, literal, select, update

from molecule_runtime.clock import Clock
from molecule_runtime.reference_platform.store.blocking import off_the_loop
from molecule_runtime.reference_platform.store.engine import Store, StoreError
from molecule_runtime.reference_platform.store.locks import Lock, exclusively
from molecule_runtime.reference_platform.store.tables import UtcDateTime, pending_upload_chunks, pending_uploads

CHUNK_BYTES = 1024 * 1024
"""Bytes of a file that are in memory at one time, on its way in and out."""
SWEPT_AT_ONCE = 16
"""Files deleted in one transaction: SQLite, built to wipe what it deletes, takes 0.1 s for one of 25 MiB."""

T = TypeVar("T")


@dataclass(frozen=True)
class NewUpload:
    """A file to stage; name and type are cleaned. `chunks` gives its bytes anew at each call, and blocks."""

    file_id: str
    workspace_id: str
    filename: str
    mimetype: str
    size_bytes: int
    chunks: Callable[[], Iterable[bytes]]


@dataclass(frozen=True)
class PendingUpload:
    """What is known of a staged file."""

    file_id: str
    workspace_id: str
    filename: str
    mimetype: str
    size_bytes: int
    created_at: datetime
    fetched_at: datetime | None
    acked_at: datetime | None
    expires_at: datetime


@dataclass(frozen=True)
class Swept:
    """How many files a sweep deleted, by the reason."""

    acked: int = 0
    expired: int = 0

    @property
    def total(self) -> int:
        return self.acked + self.expired

    def __add__(self, other: Swept) -> Swept:
        return Swept(self.acked + other.acked, self.expired + other.expired)


class PendingUploads(Protocol):
    """A place for staged files. Every method raises StoreError when the place does not answer."""

    async def put_batch(self, uploads: Sequence[NewUpload], also: Callable[[Connection], T]) -> T:
        """Stage all files and run `also` in the transaction that makes them visible; its result.

        All or nothing: when anything raises, `also` included, no file can be found and nothing of `also` stays.
        """

    async def get(self, file_id: str) -> PendingUpload | None:
        """What is known of a file until it is swept, whatever its state."""

    def content(self, upload: PendingUpload) -> AsyncIterator[bytes]:
        """Its bytes in pieces. Raises StoreError, too, when it is swept meanwhile."""

    async def mark_fetched(self, file_id: str) -> None:
        """Note that the bytes were read now."""

    async def ack(self, file_id: str) -> bool:
        """Note that the file has arrived; the first time is kept. False when it is not there any more."""

    async def sweep(self, acked_for: timedelta) -> Swept:
        """Delete what was acked at least `acked_for` ago (nothing or less: all of it) and what expired unacked.

        A part of very many, so that others need not wait long for the store: call again until nothing is deleted.
        """


class UploadTables:
    """Staged files in the platform's own database."""

    def __init__(self, store: Store, clock: Clock, *, ttl: timedelta) -> None:
        self._store = store
        self._clock = clock
        self._ttl = ttl

    async def put_batch(self, uploads: Sequence[NewUpload], also: Callable[[Connection], T]) -> T:
        now = self._clock.now()
        return await self._store.write(_put, uploads, now, now + self._ttl, also)

    async def get(self, file_id: str) -> PendingUpload | None:
        return await self._store.read(_select, file_id)

    async def content(self, upload: PendingUpload) -> AsyncIterator[bytes]:
        """A read for each piece: a slow reader holds no connection. See the interface."""
        left = upload.size_bytes
        position = 0
        while left > 0:
            chunk = await self._store.read(_select_chunk, upload.file_id, position)
            if not chunk:
                raise StoreError("the file was deleted while it was read")
            yield chunk
            left -= len(chunk)
            position += 1

    async def mark_fetched(self, file_id: str) -> None:
        await self._store.write(_mark_fetched, file_id, self._clock.now())

    async def ack(self, file_id: str) -> bool:
        return await self._store.write(_ack, file_id, self._clock.now())

    async def sweep(self, acked_for: timedelta) -> Swept:
        now = self._clock.now()
        return await self._store.write(_sweep, now - acked_for, now)


def _put(
    connection: Connection,
    uploads: Sequence[NewUpload],
    now: datetime,
    expires_at: datetime,
    also: Callable[[Connection], T],
) -> T:
    """The bytes first: `also` locks the workspace's line, which others wait for."""
    for upload in uploads:
        row = {
            "file_id": upload.file_id,
            "workspace_id": upload.workspace_id,
            "filename": upload.filename,
            "mimetype": upload.mimetype,
            "size_bytes": upload.size_bytes,
            "created_at": now,
            "expires_at": expires_at,
        }
        connection.execute(insert(pending_uploads).values(row))
        chunks = iter(upload.chunks())
        position = 0
        while chunk := off_the_loop(connection, partial(next, chunks, b"")):
            connection.execute(
                insert(pending_upload_chunks).values(file_id=upload.file_id, position=position, content=chunk)
            )
            position += 1
    return also(connection)


def _select(connection: Connection, file_id: str) -> PendingUpload | None:
    row = connection.execute(select(pending_uploads).where(pending_uploads.c.file_id == file_id)).mappings().first()
    return None if row is None else PendingUpload(**row)


def _select_chunk(connection: Connection, file_id: str, position: int) -> bytes | None:
    chunks = pending_upload_chunks.c
    query = select(chunks.content).where(chunks.file_id == file_id, chunks.position == position)
    content: bytes | None = connection.execute(query).scalar_one_or_none()
    return content


def _mark_fetched(connection: Connection, file_id: str, now: datetime) -> None:
    connection.execute(update(pending_uploads).where(pending_uploads.c.file_id == file_id).values(fetched_at=now))


def _ack(connection: Connection, file_id: str, now: datetime) -> bool:
    first = func.coalesce(pending_uploads.c.acked_at, literal(now, UtcDateTime()))
    done = connection.execute(
        update(pending_uploads).where(pending_uploads.c.file_id == file_id).values(acked_at=first)
    )
    return done.rowcount > 0


def _sweep(connection: Connection, acked_until: datetime, now: datetime) -> Swept:
    """One statement; the chunks go with their rows. It tells of each row by which arm it went."""
    exclusively(connection, Lock.UPLOAD_SWEEP)  # two processes would lock the same rows, perhaps in different orders
    uploads = pending_uploads.c
    acked = uploads.acked_at.is_not(None) & (uploads.acked_at <= acked_until)
    expired = uploads.acked_at.is_(None) & (uploads.expires_at <= now)
    some = select(uploads.file_id).where(acked | expired).limit(SWEPT_AT_ONCE)
    # The column and not "acked_at IS NOT NULL": that is always true in a RETURNING of SQLite 3.40.
    when = connection.execute(
        delete(pending_uploads).where(uploads.file_id.in_(some)).returning(uploads.acked_at)
    ).scalars()
    counts = [acked_at is not None for acked_at in when]
    return Swept(acked=sum(counts), expired=len(counts) - sum(counts))

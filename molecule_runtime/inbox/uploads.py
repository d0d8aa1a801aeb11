"""The user's files on their way to this machine: fetched beside the poll, stored whole or not at all, acked.

At most four at a time, streamed to `files/<32 hex>-<cleaned name>`. The bytes go to a part file first, which gets its
name only when every byte is on the disk; so what bears a name is whole, and a process that was killed at any moment is
followed by one that goes on: a named file that the journal does not know is taken as it is, a part file is removed. The
ack comes after the journal's word, and is repeated until the platform has taken it.

A failure is tried again, soon at first and then every five minutes, until the platform says that the file is gone; what
cannot get better by itself (it is gone, it is larger than announced) is not. The agent reads the reason either way.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

import anyio
import anyio.abc
import anyio.to_thread
import structlog

from molecule_runtime.client import PlatformClient
from molecule_runtime.clock import Clock, wait_for_event
from molecule_runtime.errors import (
    FileNotStored,
    FileTooLarge,
    JournalUnusable,
    LocalStateError,
    MoleculeError,
    Retry,
    TransferFailed,
    Unavailable,
    outcome,
)
from molecule_runtime.inbox.files import FileRecord, FileState, Removable
from molecule_runtime.inbox.journal import Journal
from molecule_runtime.retry import FILES
from molecule_runtime.text import safe_file_name

AT_A_TIME = 4
"""Files fetched at once for one workspace (agent-side 8), and as many acks."""
PATIENCE = 5
"""Failed attempts after which a message no longer calls its file pending: about half a minute."""
RETRY_LATER_S = 300.0
MAX_FILE_BYTES = 100 * 1024 * 1024
"""The largest file that any platform takes (contract 5.1); larger ones are refused whatever was announced."""
SLOWEST_BYTES_PER_S = 50_000
GRACE_S = 30.0
"""A file has this long, and a second for each 50 kB, from its first byte to its last."""
KEPT_S = 7 * 86_400.0
"""How long a file stays on the disk after its message was handled."""
UNFETCHED = frozenset({FileState.PENDING, FileState.FAILED})
TIDY_EVERY_S = 3600.0
DISK_MARGIN_BYTES = 64 * 1024 * 1024
"""What files leave free on the disk, or a twentieth of it if that is less: the journal could not be written else."""
WRITE_BYTES = 1024 * 1024
PART = ".part"
_OURS = re.compile(r"[0-9a-f]{32}-")

P = ParamSpec("P")
T = TypeVar("T")
log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclass(frozen=True)
class _Stored:
    """A whole file on the disk."""

    path: Path
    size: int
    sha256: str


@dataclass
class _Place:
    """Bytes held for a file on its way; 0 when they are held no longer."""

    size: int


class Uploads:
    """Fetches one workspace's files. `on_change` hears of every file that was stored or has failed."""

    def __init__(
        self,
        client: PlatformClient,
        journal: Journal,
        directory: Path,
        *,
        clock: Clock,
        quota_bytes: int,
        on_change: Callable[[], Awaitable[None]],
    ) -> None:
        self._client = client
        self._journal = journal
        self._directory = directory
        self._clock = clock
        self._quota_bytes = quota_bytes
        self._on_change = on_change
        self._kicked = asyncio.Event()
        self._fetching: dict[str, asyncio.Event] = {}
        self._acking: set[str] = set()
        self._slots = asyncio.Semaphore(AT_A_TIME)
        self._hands = asyncio.Semaphore(AT_A_TIME // 2)  # the other places are for messages that come meanwhile
        self._by_hand: set[asyncio.Future[None]] = set()
        self._reserved_bytes = 0
        self._room = asyncio.Lock()

    def kick(self) -> None:
        """There may be something to fetch. Call in the event loop that runs this."""
        self._kicked.set()

    async def hasten(self) -> None:
        """The platform is back: what waits for another attempt is due now."""
        try:
            if await self._journal.off_loop(self._journal.files.hasten, self._now()):
                self.kick()
        except JournalUnusable as error:
            log.warning("uploads.journal_failed", detail=str(error))

    async def run(self) -> None:
        """Fetch what is due, until cancelled; only the process that reads the feed does. No failure ends it."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._tidy_forever)
            while True:
                self._kicked.clear()
                wait_s = RETRY_LATER_S
                try:
                    wait_s = await self._start_what_is_due(tasks)
                except JournalUnusable as error:
                    log.warning("uploads.journal_failed", detail=str(error))
                await wait_for_event(self._kicked, wait_s, self._clock)

    async def _start_what_is_due(self, tasks: anyio.abc.TaskGroup) -> float:
        """Begin as much as may run at once; seconds until the next look."""
        files, now = self._journal.files, self._now()
        acks = await self._journal.off_loop(
            files.due, now, {FileState.STAGED}, limit=AT_A_TIME - len(self._acking), besides=self._acking
        )
        for record in acks:
            if record.file_id not in self._acking:  # begun by hand meanwhile
                self._acking.add(record.file_id)
                tasks.start_soon(self._ack, record)
        wanted = await self._journal.off_loop(
            files.due, now, UNFETCHED, limit=AT_A_TIME - len(self._fetching), besides=self._fetching.keys()
        )
        for record in wanted:
            if record.file_id not in self._fetching:
                self._fetching[record.file_id] = asyncio.Event()
                tasks.start_soon(self._work, record)
        # What is due and has not begun waits for a place, and whatever ends looks again.
        next_at = await self._journal.off_loop(files.next_due_at, now)
        return RETRY_LATER_S if next_at is None else min(next_at - now, RETRY_LATER_S)

    async def fetch_now(self, records: Iterable[FileRecord], *, within_s: float) -> None:
        """Try files that are not here yet, at once; their records say how that went.

        What takes longer than `within_s` goes on. Any process may ask for it, one that does not read the feed too.
        """
        tries = {asyncio.ensure_future(self._fetch_now(record)) for record in records if record.state in UNFETCHED}
        for each in tries:
            self._by_hand.add(each)
            each.add_done_callback(self._by_hand.discard)
        if tries:
            await asyncio.wait(tries, timeout=within_s)

    async def _fetch_now(self, record: FileRecord) -> None:
        async with self._hands:
            await self._fetch_by_hand(record)

    async def _fetch_by_hand(self, record: FileRecord) -> None:
        underway = self._fetching.get(record.file_id)
        if underway is not None:
            await underway.wait()
            return
        self._fetching[record.file_id] = asyncio.Event()
        if not await self._work(record) or record.file_id in self._acking:
            return
        self._acking.add(record.file_id)
        try:  # the loop that acks may run in another process, or not have come to it
            owes_ack = await self._journal.off_loop(self._journal.files.owes_ack, record.file_id)
        except JournalUnusable:
            owes_ack = False
        if owes_ack:
            await self._ack(record)
        else:
            self._acking.discard(record.file_id)

    async def _work(self, record: FileRecord) -> bool:
        """One attempt at a file, and what the journal is told of it; True when the file is here."""
        is_here = False
        try:
            async with self._slots:
                is_here = await self._attempt(record)
        except JournalUnusable as error:
            log.warning("uploads.journal_failed", file_id=record.file_id, detail=str(error))
            await self._clock.sleep(1.0)  # it is still due, and a full disk is not asked in a circle
        except Exception as bug:
            log.exception("uploads.attempt_crashed", file_id=record.file_id, error=type(bug).__name__)
            await self._crashed(record, bug)
        finally:
            self._fetching.pop(record.file_id).set()
            self.kick()
        await self._on_change()
        return is_here

    async def _attempt(self, record: FileRecord) -> bool:
        try:
            await self._fetch(record)
        except JournalUnusable:
            raise
        except MoleculeError as error:
            await self._missed(record, error)
            return False
        return True

    async def _keep(self, record: FileRecord, stored: _Stored) -> None:
        """Tell the journal of a file that has its name."""
        await self._journal.off_loop(
            self._journal.files.stage,
            record.file_id,
            path=os.fspath(stored.path),
            size=stored.size,
            sha256=stored.sha256,
            now=self._now(),
        )
        log.info("uploads.staged", file_id=record.file_id, size_bytes=stored.size)

    async def _missed(self, record: FileRecord, error: MoleculeError) -> None:
        failures = record.attempt + 1
        is_final = outcome(error).retry is Retry.NO
        is_ours = isinstance(error, LocalStateError)
        state = FileState.FAILED if is_final or is_ours or failures >= PATIENCE else FileState.PENDING
        asked_s = error.retry_after_s if isinstance(error, Unavailable) else None
        wait_s = FILES.delay(failures, retry_after_s=asked_s) if state is FileState.PENDING else RETRY_LATER_S
        wait_s = min(wait_s, RETRY_LATER_S)
        tell = log.warning if record.state is not state or failures == 1 else log.info
        tell("uploads.failed", file_id=record.file_id, error=type(error).__name__, detail=str(error), attempt=failures)
        await self._journal.off_loop(
            self._journal.files.miss,
            record.file_id,
            state=state,
            reason=str(error),
            next_at=None if is_final else self._now() + wait_s,
        )

    async def _crashed(self, record: FileRecord, bug: Exception) -> None:
        reason = f"The attempt failed inside molecule-mcp ({type(bug).__name__}); its log has the details."
        with suppress(JournalUnusable):
            await self._journal.off_loop(
                self._journal.files.miss,
                record.file_id,
                state=FileState.FAILED,
                reason=reason,
                next_at=self._now() + RETRY_LATER_S,
            )

    async def _ack(self, record: FileRecord) -> None:
        try:
            try:
                await self._client.ack(record.file_id)
            except MoleculeError as error:
                if outcome(error).retry is not Retry.NO:
                    raise
                log.warning("uploads.ack_refused", file_id=record.file_id, detail=str(error))
            await self._journal.off_loop(self._journal.files.acked, record.file_id)
        except MoleculeError as error:
            log.info("uploads.ack_failed", file_id=record.file_id, error=type(error).__name__, detail=str(error))
            await self._ack_later(record)
        except Exception as bug:
            log.exception("uploads.ack_crashed", file_id=record.file_id, error=type(bug).__name__)
            await self._ack_later(record)
        finally:
            self._acking.discard(record.file_id)
            self.kick()

    async def _ack_later(self, record: FileRecord) -> None:
        wait_s = min(FILES.delay(record.attempt + 1), RETRY_LATER_S)
        with suppress(JournalUnusable):
            await self._journal.off_loop(self._journal.files.ack_missed, record.file_id, next_at=self._now() + wait_s)

    # one file

    async def _fetch(self, record: FileRecord) -> None:
        """Bring the file to the disk, whole, and into the journal.

        Raises:
            JournalUnusable
            PlatformError, CredentialError: it did not come.
            FileTooLarge: it is more than was announced, or than any platform takes.
            FileNotStored: there is no place for it here.
        """
        path = self._path(record)
        there = await anyio.to_thread.run_sync(_whole_file, path)
        if there is not None:  # a process before this one was killed between the file and the journal
            await self._keep(record, there)
            return
        if record.size is not None and record.size > MAX_FILE_BYTES:
            raise FileTooLarge(limit=MAX_FILE_BYTES)
        limit_s = GRACE_S + (record.size or MAX_FILE_BYTES) / SLOWEST_BYTES_PER_S
        try:
            async with asyncio.timeout(limit_s), AsyncExitStack() as held:
                if record.size is not None:
                    place = await held.enter_async_context(self._space(record.size))
                download = await held.enter_async_context(self._client.download(record.file_id))
                size = download.size if record.size is None else record.size
                if record.size is None:
                    place = await held.enter_async_context(self._space(size if size is not None else MAX_FILE_BYTES))
                stored = await self._store(download.pieces, path, size)
                async with self._room:  # nobody sees its bytes counted twice, or not at all
                    await self._keep(record, stored)
                    self._release(place)
        except TimeoutError:
            raise TransferFailed(
                endpoint="GET /workspaces/:id/pending-uploads/:file_id/content",
                base_url=self._client.base_url,
                workspace_id=self._client.workspace_id,
                detail=f"it was not complete after {limit_s:.0f} s",
            ) from None

    async def _store(self, pieces: AsyncIterator[bytes], path: Path, size: int | None) -> _Stored:
        """Write the bytes beside `path`, and give them that name once they are all there."""
        limit = MAX_FILE_BYTES if size is None else size
        part = path.with_name(f".{path.name[:32]}-{os.urandom(4).hex()}{PART}")
        sink = _Sink(part)
        try:
            await self._on_disk(sink.open)
            waiting = bytearray()
            received = 0
            async for piece in pieces:
                received += len(piece)
                if received > limit:
                    raise FileTooLarge(limit=limit)
                waiting += piece
                if len(waiting) >= WRITE_BYTES:
                    await self._on_disk(sink.write, bytes(waiting))
                    waiting.clear()
            await self._on_disk(sink.write, bytes(waiting))
            if size is not None and received < size:
                raise self._short(received, size)
            await self._on_disk(sink.finish, path)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(sink.close)
        return _Stored(path, received, sink.sha256)

    async def _on_disk(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a step that blocks; whoever is cancelled meanwhile goes on only when the step has ended."""
        step = asyncio.ensure_future(anyio.to_thread.run_sync(lambda: work(*args, **kwargs)))
        try:
            return await asyncio.shield(step)
        except OSError as error:
            raise self._no_place(error.strerror or str(error)) from None
        except asyncio.CancelledError:
            with anyio.CancelScope(shield=True):
                await asyncio.wait([step])
            raise

    def _short(self, received: int, size: int) -> TransferFailed:
        return TransferFailed(
            endpoint="GET /workspaces/:id/pending-uploads/:file_id/content",
            base_url=self._client.base_url,
            workspace_id=self._client.workspace_id,
            detail=f"{received} of {size} bytes came",
        )

    def _no_place(self, reason: str) -> FileNotStored:
        return FileNotStored(path=os.fspath(self._directory), reason=reason)

    def _path(self, record: FileRecord) -> Path:
        """Where the file belongs: the same after any restart, and made of nothing that came from outside as it is."""
        digest = hashlib.sha256(f"{self._client.workspace_id}/{record.file_id}".encode()).hexdigest()[:32]
        return self._directory / f"{digest}-{safe_file_name(record.name)}"

    # room

    @asynccontextmanager
    async def _space(self, size: int) -> AsyncIterator[_Place]:
        """Hold `size` bytes of disk and quota while a file is written, removing handled files for them, oldest first.

        Raises:
            FileNotStored: the files that are still needed leave no room.
        """
        async with self._room:
            await self._make_room(size)
            self._reserved_bytes += size
        place = _Place(size)
        try:
            yield place
        finally:
            self._release(place)

    def _release(self, place: _Place) -> None:
        self._reserved_bytes -= place.size
        place.size = 0

    async def _make_room(self, size: int) -> None:
        """Remove what is needed and no more: nothing at all where everything would not be enough."""
        short, reason = await self._shortage(size)
        if short <= 0:
            return
        removable = await self._journal.off_loop(self._journal.files.removable, self._now())
        if sum(old.size for old in removable) < short:
            raise self._no_place(reason)
        for old in removable:
            await self._remove(old)
            short, reason = await self._shortage(size)
            if short <= 0:
                return
        raise self._no_place(reason)

    async def _shortage(self, size: int) -> tuple[int, str]:
        """How many bytes are missing for `size` more to be stored, not above 0 when none are; and for what reason."""
        stored = await self._journal.off_loop(self._journal.files.stored_bytes)
        taken = stored + self._reserved_bytes
        over_quota = taken + size - self._quota_bytes
        free = await anyio.to_thread.run_sync(_free_bytes, self._directory)
        over_disk = 0 if free is None else size + self._reserved_bytes - free
        if over_disk > over_quota:
            left = max(0, (free or 0) - self._reserved_bytes)
            return over_disk, f"the disk is full: {size:,} bytes are needed, and {left:,} are left"
        return over_quota, (
            f"this workspace keeps at most {self._quota_bytes:,} bytes of files (MOLECULE_MCP_FILES_QUOTA_MB),"
            f" this one has {size:,}, and {taken:,} are taken"
        )

    async def _tidy_forever(self) -> None:
        await self._tidied(self._clear_parts)
        while True:
            await self._tidied(self._tidy)
            await self._clock.sleep(TIDY_EVERY_S)

    async def _tidied(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except (OSError, JournalUnusable) as error:
            log.warning("uploads.not_tidied", error=type(error).__name__, detail=str(error))

    async def _clear_parts(self) -> None:
        """Remove what a killed process left half-written; a stopped one that wakes begins its file anew."""

        def clear() -> None:
            for part in self._directory.glob(f".*{PART}"):
                part.unlink(missing_ok=True)

        await anyio.to_thread.run_sync(clear)

    async def _tidy(self) -> None:
        """Remove the files of messages that were handled long ago, and files that nobody knows any more."""
        files, now = self._journal.files, self._now()
        for old in await self._journal.off_loop(files.removable, now - KEPT_S):
            await self._remove(old)
        await self._journal.off_loop(files.forget, now)
        known = await self._journal.off_loop(files.known_paths)

        def clear() -> None:
            for file in self._directory.iterdir():
                if _OURS.match(file.name) and os.fspath(file) not in known and now - file.lstat().st_mtime > KEPT_S:
                    file.unlink(missing_ok=True)

        await anyio.to_thread.run_sync(clear)

    async def _remove(self, old: Removable) -> None:
        """The record first: a file that a kill leaves behind then is one that nobody knows."""
        if await self._journal.off_loop(self._journal.files.give_up, old.file_id, now=self._now()):
            with suppress(OSError):
                await anyio.to_thread.run_sync(Path(old.path).unlink)
            log.info("uploads.removed", file_id=old.file_id)

    def _now(self) -> float:
        return self._clock.now().timestamp()


class _Sink:
    """A part file: bytes go in, their digest comes out. Every method blocks."""

    def __init__(self, part: Path) -> None:
        self._part = part
        self._descriptor = -1
        self._digest = hashlib.sha256()

    def open(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        try:
            self._descriptor = os.open(self._part, flags, 0o600)
        except FileNotFoundError:
            self._part.parent.mkdir(mode=0o700, exist_ok=True)
            self._descriptor = os.open(self._part, flags, 0o600)

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def write(self, data: bytes) -> None:
        self._digest.update(data)
        view = memoryview(data)
        while view:
            view = view[os.write(self._descriptor, view) :]

    def finish(self, path: Path) -> None:
        """Bring the bytes to the disk, and the file to its name."""
        os.fsync(self._descriptor)
        os.replace(self._part, path)

    def close(self) -> None:
        """Let go of it; what has not been finished leaves nothing behind."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            with suppress(OSError):
                self._part.unlink(missing_ok=True)


def _free_bytes(directory: Path) -> int | None:
    """What may be written to this disk, with something left for the journal; None when nobody can say."""
    try:
        disk = shutil.disk_usage(directory)
    except OSError:
        return None
    return disk.free - min(DISK_MARGIN_BYTES, disk.total // 20)


def _whole_file(path: Path) -> _Stored | None:
    """The file of this name, if there is one."""
    try:
        if path.is_symlink() or not path.is_file():
            return None
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
            return _Stored(path, os.fstat(file.fileno()).st_size, digest.hexdigest())
    except OSError:
        return None

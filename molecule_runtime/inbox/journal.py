"""The journal: what arrived for a workspace and what became of it; one SQLite file that every process shares.

A page of rows and the cursor behind it are written in one transaction, so a crash between them cannot lose or repeat
anything. A message goes new -> leased -> handled; a lease names the session (process) that holds it, and a session
that is gone gives its leases back. A message handed out five times without an answer is parked: shown, never offered,
never dropped. Ids of handled messages stay for a week, so that a cursor that is lost (410) cannot bring them back.

WAL with synchronous=NORMAL: nothing is lost when a process dies; a power cut may lose the last moments, which the
platform then sends again. All calls are synchronous and short; `off_loop` runs one beside an event loop.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import anyio
import anyio.to_thread
import structlog

from molecule_runtime.errors import JournalUnusable
from molecule_runtime.inbox import delegations, files, memories
from molecule_runtime.inbox.classify import Kind, Message, UploadNotice
from molecule_runtime.inbox.delegations import Delegations
from molecule_runtime.inbox.files import FileRecord, Files
from molecule_runtime.inbox.memories import PendingMemories
from molecule_runtime.state import OwnerLock

SCHEMA_VERSION = 5
MAX_ATTEMPTS = 5
HANDLED_KEPT_S = 7 * 86_400 + 3_600
"""Longer than the largest window that is ever read again (7 days), so that no handled id returns with it."""
HELD_FOR_FILES_S = 30.0
"""How long a message waits for its files (agent-side 4)."""
BUSY_TIMEOUT_MS = 5_000
SALVAGED_ROWS = 100_000
"""How many of the newest rows of a damaged file are looked at: about a second."""

_SCHEMA = """
CREATE TABLE messages (
  ord           INTEGER PRIMARY KEY AUTOINCREMENT,
  activity_id   TEXT NOT NULL UNIQUE,
  state         TEXT NOT NULL CHECK (state IN ('new', 'leased', 'parked', 'handled')),
  attempt       INTEGER NOT NULL DEFAULT 0,
  body          TEXT,
  received_at   REAL NOT NULL,
  lease_session TEXT,
  lease_key     TEXT,
  lease_until   REAL,
  handled_at    REAL,
  pushed_to     TEXT,
  held_until    REAL,
  result_of     TEXT,
  works_on      TEXT
);
CREATE INDEX messages_by_state ON messages (state, ord);
CREATE INDEX messages_by_result ON messages (result_of) WHERE result_of IS NOT NULL;
CREATE TABLE position (
  id          INTEGER PRIMARY KEY CHECK (id = 1),
  cursor      TEXT,
  last_row_at REAL,
  backlog     INTEGER NOT NULL DEFAULT 0
);
INSERT INTO position (id) VALUES (1);
CREATE TABLE owners (
  job        TEXT PRIMARY KEY,
  session    TEXT NOT NULL,
  pid        INTEGER NOT NULL,
  epoch      INTEGER NOT NULL,
  stamped_at REAL NOT NULL,
  detail     TEXT NOT NULL
);"""

_UPGRADES = {
    1: ("ALTER TABLE messages ADD COLUMN pushed_to TEXT",),
    2: ("ALTER TABLE messages ADD COLUMN held_until REAL", *files.SCHEMA.split(";")),
    3: (*delegations.COLUMNS, delegations.INDEX, *delegations.SCHEMA.split(";")),
    4: (memories.SCHEMA,),
}
"""From each older schema version, what makes it the next one."""

P = ParamSpec("P")
T = TypeVar("T")
log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class MessageState(StrEnum):
    NEW = "new"
    LEASED = "leased"
    PARKED = "parked"
    HANDLED = "handled"


@dataclass(frozen=True)
class Entry:
    """A message as the journal holds it: `ord` is the order of arrival, `pushed_to` the session that pushed it last.

    `files` are the records of what its file parts name.
    """

    ord: int
    message: Message
    state: MessageState
    attempt: int
    pushed_to: str | None = None
    files: tuple[FileRecord, ...] = ()


@dataclass(frozen=True)
class Position:
    """Where reading the feed goes on. `backlog` is true after a journal was lost: read as far back as possible."""

    cursor: str | None
    last_row_at: float | None
    backlog: bool


@dataclass(frozen=True)
class Counts:
    """Messages by state, and the files that are still to come. `held` are those of the new that wait for theirs."""

    new: int = 0
    leased: int = 0
    parked: int = 0
    files_pending: int = 0
    held: int = 0


@dataclass(frozen=True)
class Owner:
    """Who does a job ("beat" or "inbox"), and what it last said about it. `stamped_at` is a POSIX time."""

    job: str
    session: str
    pid: int
    epoch: int
    stamped_at: float
    detail: dict[str, Any]


class Journal:
    """One open journal file. Raises `JournalUnusable` from every method when the file or the disk refuses."""

    def __init__(self, path: Path, connection: sqlite3.Connection, *, moved_aside: Path | None) -> None:
        self.path = path
        self.moved_aside = moved_aside
        """The damaged file that this journal replaced, if it did."""
        self._db = connection
        self._turn = anyio.CapacityLimiter(1)
        self._in_use = threading.Lock()
        self.files = Files(self._reading, self._writing)
        self.delegations = Delegations(self._reading, self._writing)
        self.memories = PendingMemories(self._reading, self._writing)

    @classmethod
    def open(cls, path: Path) -> Journal:
        """Open or make the journal; a damaged file is moved aside and what can be read of it is carried over.

        Raises:
            JournalUnusable: a newer version wrote it, or it cannot be opened or written.
        """
        try:
            return cls(path, _connect(path), moved_aside=None)
        except (sqlite3.OperationalError, OSError) as error:
            raise JournalUnusable(path=str(path), reason=str(error)) from None
        except sqlite3.DatabaseError:
            return cls._mend(path)

    @classmethod
    def open_to_look(cls, path: Path) -> Journal:
        """Open an existing journal for reading; nothing is made, written, mended or upgraded, not even an index.

        Raises:
            JournalUnusable: there is none, it is damaged, or a newer version wrote it.
        """
        # Beside a live or killed writer there is an index to share; after a clean end the file stands for itself.
        how = "readonly_shm=1" if path.with_name(f"{path.name}-shm").exists() else "immutable=1"
        try:
            db = sqlite3.connect(f"{path.as_uri()}?mode=ro&{how}", uri=True, timeout=BUSY_TIMEOUT_MS / 1000)
            try:
                _refuse_newer(db, path)
            except BaseException:
                db.close()
                raise
        except (sqlite3.Error, ValueError) as error:
            raise JournalUnusable(path=str(path), reason=str(error)) from None
        return cls(path, db, moved_aside=None)

    @classmethod
    def _mend(cls, path: Path) -> Journal:
        """Replace a damaged file, unless another process has done so meanwhile; one process at a time."""
        lock = OwnerLock(path.with_name(f"{path.name}.mend.lock"))
        if not lock.try_acquire():
            raise JournalUnusable(path=str(path), reason="it is damaged, and another process is mending it")
        aside = None
        try:
            try:
                connection = _connect(path)
            except sqlite3.OperationalError:
                raise
            except sqlite3.DatabaseError as damage:
                aside = _move_aside(path)
                log.warning("journal.moved_aside", detail=str(damage), path=str(aside))
                connection = _connect(path)
            journal = cls(path, connection, moved_aside=aside)
            if aside is not None:
                journal._start_over(_salvage_handled(aside))
            return journal
        except (sqlite3.Error, OSError) as error:
            raise JournalUnusable(path=str(path), reason=str(error)) from None
        finally:
            lock.release()

    def close(self) -> None:
        with self._in_use:
            self._db.close()

    async def off_loop(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run one of this journal's methods in a worker thread; calls take turns, in the order they were made.

        A caller that is cancelled leaves its call to end, and what is called next still comes after it: a lease that
        nobody waits for any more is there before its `give_back`.
        """
        turn = asyncio.ensure_future(anyio.to_thread.run_sync(lambda: call(*args, **kwargs), limiter=self._turn))
        turn.add_done_callback(_look_at)
        return await asyncio.shield(turn)

    # the feed

    def position(self) -> Position:
        with self._reading() as db:
            cursor, last_row_at, backlog = db.execute("SELECT cursor, last_row_at, backlog FROM position").fetchone()
        return Position(cursor, last_row_at, bool(backlog))

    def append(
        self,
        messages: Iterable[Message],
        *,
        notices: Iterable[UploadNotice] = (),
        cursor: str | None,
        last_row_at: float | None,
        now: float,
    ) -> list[str]:
        """Write a page and the cursor behind it, together or not at all; the ids that were not known before.

        A message whose id is known, handled ones included, is passed over. One that names files is held for them, for
        a time. A result that was told before is handled when it comes. `cursor` None leaves the old one.
        """
        added = []
        with self._writing() as db:
            for message in messages:
                if not _is_known(db, message.activity_id) and (stored := _insert(db, message, now)) is not None:
                    added.append(stored)
            files.note_arrivals(db, notices, added, now)
            if cursor is not None:
                db.execute(
                    "UPDATE position SET cursor = ?, backlog = 0, last_row_at = MAX(COALESCE(last_row_at, 0), ?)",
                    (cursor, last_row_at or 0),
                )
            db.execute("DELETE FROM messages WHERE state = 'handled' AND handled_at < ?", (now - HANDLED_KEPT_S,))
        return [message.activity_id for message in added]

    def note_read(self, moment: float) -> None:
        """The feed was read up to `moment` and there was nothing: a later read without a cursor begins there."""
        with self._writing() as db:
            db.execute("UPDATE position SET backlog = 0, last_row_at = MAX(COALESCE(last_row_at, 0), ?)", (moment,))

    def forget_cursor(self) -> None:
        """After a 410: the next read goes by time, and known ids are passed over."""
        with self._writing() as db:
            db.execute("UPDATE position SET cursor = NULL")

    # the messages

    def lease(self, *, session: str, key: str, until: float, now: float) -> Entry | None:
        """Hand out the oldest new message, else the oldest of this session's own expired leases; None when neither.

        `key` names the call that asks, so that a call that was cancelled can give back what it got.
        """
        with self._reading() as db:
            if not self._offer(db, session, now):
                return None
        with self._writing() as db:
            while (found := self._offer(db, session, now)) is not None:
                ord_, state, attempt = found
                if state == MessageState.LEASED and attempt >= MAX_ATTEMPTS:
                    db.execute("UPDATE messages SET state = 'parked', lease_session = NULL WHERE ord = ?", (ord_,))
                    continue
                db.execute(
                    "UPDATE messages SET state = 'leased', attempt = attempt + 1, lease_session = ?, lease_key = ?,"
                    " lease_until = ? WHERE ord = ?",
                    (session, key, until, ord_),
                )
                return self._entry(db, "ord", ord_)
        return None

    def give_back(self, *, session: str, key: str) -> bool:
        """Undo the hand-out of one call, its attempt included: nobody saw the message. True when there was one."""
        with self._writing() as db:
            undone = db.execute(
                "UPDATE messages SET state = 'new', attempt = attempt - 1, lease_session = NULL, lease_key = NULL,"
                " lease_until = NULL WHERE state = 'leased' AND lease_session = ? AND lease_key = ?",
                (session, key),
            )
        return undone.rowcount > 0

    def lease_holders(self) -> set[str]:
        """The sessions that hold a lease now."""
        with self._reading() as db:
            rows = db.execute("SELECT DISTINCT lease_session FROM messages WHERE state = 'leased'").fetchall()
        return {session for (session,) in rows}

    def release_session(self, session: str) -> int:
        """Offer again what a session that is gone had in hand; its attempts count. Messages tried out are parked."""
        with self._writing() as db:
            released = db.execute(
                "UPDATE messages SET state = CASE WHEN attempt >= ? THEN 'parked' ELSE 'new' END,"
                " lease_session = NULL, lease_key = NULL, lease_until = NULL"
                " WHERE state = 'leased' AND lease_session = ?",
                (MAX_ATTEMPTS, session),
            )
        return released.rowcount

    def handle(self, activity_id: str, *, now: float) -> bool:
        """Mark a message as handled for good, whoever holds it; False when it is unknown or was handled before."""
        with self._writing() as db:
            done = db.execute(
                "UPDATE messages SET state = 'handled', handled_at = ?, body = NULL, lease_session = NULL,"
                " lease_key = NULL, lease_until = NULL WHERE activity_id = ? AND state != 'handled'",
                (now, activity_id),
            )
            delegations.note_handled(db, activity_id, now)
        return done.rowcount > 0

    def find(self, activity_id: str) -> Entry | None:
        """An open message by id; None when it is unknown or handled."""
        with self._reading() as db:
            return self._entry(db, "activity_id", activity_id)

    def open_messages(self, limit: int) -> list[Entry]:
        """What is not handled, in order of arrival; leases nothing."""
        with self._reading() as db:
            rows = db.execute(
                f"SELECT {_ENTRY} FROM messages WHERE state != 'handled' ORDER BY ord LIMIT ?", (limit,)
            ).fetchall()
            return _entries(db, rows)

    def take_unpushed(self, session: str, limit: int, *, now: float) -> list[Entry]:
        """New messages that this session was not shown yet, oldest first; from now on they count as shown."""
        query = f"SELECT {_ENTRY} FROM messages WHERE {_OFFERED} AND pushed_to IS NOT ? ORDER BY ord LIMIT ?"
        with self._reading() as db:
            if db.execute(query, (now, session, 1)).fetchone() is None:
                return []
        with self._writing() as db:
            rows = db.execute(query, (now, session, limit)).fetchall()
            db.executemany("UPDATE messages SET pushed_to = ? WHERE ord = ?", [(session, row[0]) for row in rows])
            entries = _entries(db, rows)
        return [replace(entry, pushed_to=session) for entry in entries]

    def open_ids(self) -> set[str]:
        """The ids of everything that is not handled."""
        with self._reading() as db:
            rows = db.execute("SELECT activity_id FROM messages WHERE state != 'handled'").fetchall()
        return {activity_id for (activity_id,) in rows}

    def counts(self, now: float | None = None) -> Counts:
        """The counts; of messages that are held only with the time of now."""
        with self._reading() as db:
            rows = db.execute("SELECT state, COUNT(*) FROM messages WHERE state != 'handled' GROUP BY state").fetchall()
            (pending,) = db.execute("SELECT COUNT(*) FROM files WHERE state = 'pending'").fetchone()
            held = 0
            if now is not None:
                query = f"SELECT COUNT(*) FROM messages WHERE state = 'new' AND ({_HELD} OR {delegations.AWAITED})"
                (held,) = db.execute(query, (now,)).fetchone()
        return Counts(**dict(rows), files_pending=pending, held=held)

    # the owners

    def begin_epoch(self, job: str, *, session: str, pid: int, now: float, after: int) -> int | None:
        """Sign as the owner of `job` in the epoch after `after`; None when another has signed meanwhile."""
        with self._writing() as db:
            row = db.execute("SELECT epoch FROM owners WHERE job = ?", (job,)).fetchone()
            if (row[0] if row else 0) != after:
                return None
            db.execute(
                "INSERT INTO owners (job, session, pid, epoch, stamped_at, detail) VALUES (?, ?, ?, ?, ?, '{}')"
                " ON CONFLICT (job) DO UPDATE SET session = excluded.session, pid = excluded.pid,"
                " epoch = excluded.epoch, stamped_at = excluded.stamped_at, detail = excluded.detail",
                (job, session, pid, after + 1, now),
            )
        return after + 1

    def renew(self, job: str, *, session: str, epoch: int, now: float) -> bool:
        """Stamp again; False when the epoch has passed to another."""
        with self._writing() as db:
            renewed = db.execute(
                "UPDATE owners SET stamped_at = ? WHERE job = ? AND session = ? AND epoch = ?",
                (now, job, session, epoch),
            )
        return renewed.rowcount > 0

    def describe(self, job: str, *, session: str, detail: dict[str, Any]) -> None:
        """Leave word of how the job goes, for the other processes; nothing while another is its owner."""
        with self._writing() as db:
            db.execute("UPDATE owners SET detail = ? WHERE job = ? AND session = ?", (json.dumps(detail), job, session))

    def owner(self, job: str) -> Owner | None:
        with self._reading() as db:
            row = db.execute(
                "SELECT job, session, pid, epoch, stamped_at, detail FROM owners WHERE job = ?", (job,)
            ).fetchone()
        return Owner(row[0], row[1], row[2], row[3], row[4], detail=json.loads(row[5])) if row else None

    # SQL

    def _start_over(self, handled: list[tuple[str, float]]) -> None:
        with self._writing() as db:
            db.execute("UPDATE position SET backlog = 1")
            db.executemany(
                "INSERT OR IGNORE INTO messages (activity_id, state, received_at, handled_at)"
                " VALUES (?, 'handled', ?, ?)",
                [(activity_id, handled_at, handled_at) for activity_id, handled_at in handled],
            )

    def _offer(self, db: sqlite3.Connection, session: str, now: float) -> tuple[int, str, int] | None:
        for where, values in (
            (_OFFERED, (now,)),
            ("state = 'leased' AND lease_session = ? AND lease_until <= ?", (session, now)),
        ):
            row = db.execute(
                f"SELECT ord, state, attempt FROM messages WHERE {where} ORDER BY ord LIMIT 1", values
            ).fetchone()
            if row is not None:
                return (int(row[0]), str(row[1]), int(row[2]))
        return None

    def _entry(self, db: sqlite3.Connection, column: str, value: str | int) -> Entry | None:
        row = db.execute(
            f"SELECT {_ENTRY} FROM messages WHERE {column} = ? AND state != 'handled'", (value,)
        ).fetchone()
        return _entries(db, [row])[0] if row is not None else None

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        try:
            with self._in_use:
                yield self._db
        except sqlite3.Error as error:
            raise JournalUnusable(path=str(self.path), reason=str(error)) from None

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction; IMMEDIATE, so that a read that decides a write is not overtaken by another process."""
        try:
            with self._in_use:
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    yield self._db
                    self._db.execute("COMMIT")
                finally:
                    if self._db.in_transaction:  # SQLite itself rolls back when the disk is full
                        self._db.execute("ROLLBACK")
        except sqlite3.Error as error:
            raise JournalUnusable(path=str(self.path), reason=str(error)) from None


def _look_at(turn: asyncio.Future[Any]) -> None:
    """A call whose caller is gone may fail (the journal was closed meanwhile) without anybody being told."""
    if not turn.cancelled():
        turn.exception()


_ENTRY = "ord, body, state, attempt, pushed_to"
# A message held for longer than it can be was held before the clock was set back.
_HELD = (
    f"(held_until IS NOT NULL AND held_until - ?1 BETWEEN 0.000001 AND {HELD_FOR_FILES_S + 1}"
    f" AND {files.WAITS_FOR_A_FILE})"
)
_OFFERED = f"state = 'new' AND NOT {_HELD} AND NOT {delegations.AWAITED}"
"""?1 is now."""


def _is_known(db: sqlite3.Connection, activity_id: str) -> bool:
    return db.execute("SELECT 1 FROM messages WHERE activity_id = ?", (activity_id,)).fetchone() is not None


def _insert(db: sqlite3.Connection, message: Message, now: float) -> Message | None:
    """Write a new message; None when it brings a result that was told before, which makes it a handled one."""
    message, is_news = delegations.note_arrival(db, delegations.recognise(db, message), now)
    names_files = any(part.file_id is not None for part in message.files)
    is_result = message.kind is Kind.DELEGATION_RESULT
    db.execute(
        "INSERT INTO messages (activity_id, state, body, received_at, handled_at, held_until, result_of, works_on)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            message.activity_id,
            MessageState.NEW if is_news else MessageState.HANDLED,
            json.dumps(message.to_json(), ensure_ascii=False),  # also of a told one: the call may be taken back
            now,
            None if is_news else now,
            now + HELD_FOR_FILES_S if names_files else None,
            message.delegation_id if is_result else None,
            message.delegation_id if message.kind is Kind.PEER_AGENT else None,
        ),
    )
    return message if is_news else None


def _entries(db: sqlite3.Connection, rows: Sequence[tuple[int, str, str, int, str | None]]) -> list[Entry]:
    entries = [
        Entry(ord_, Message.from_json(json.loads(body)), MessageState(state), attempt, pushed_to)
        for ord_, body, state, attempt, pushed_to in rows
    ]
    with_files = [entry.message.activity_id for entry in entries if entry.message.files]
    if not with_files:
        return entries
    found = files.of_messages(db, with_files)
    return [replace(entry, files=tuple(found.get(entry.message.activity_id, ()))) for entry in entries]


def _connect(path: Path) -> sqlite3.Connection:
    """An autocommit connection to a journal of our schema.

    Raises:
        JournalUnusable: a newer version wrote the file.
        sqlite3.DatabaseError: the file is damaged (OperationalError: it cannot be opened or written).
    """
    path.touch(mode=0o600, exist_ok=True)
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=BUSY_TIMEOUT_MS / 1000)
    try:
        _refuse_newer(db, path)  # before anything is changed
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        if db.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
            raise sqlite3.DatabaseError("the integrity check failed")
        db.execute("BEGIN IMMEDIATE")
        version = _refuse_newer(db, path)
        if version == 0:
            whole = ";".join((_SCHEMA.rstrip(";"), files.SCHEMA, delegations.SCHEMA, memories.SCHEMA))
            for statement in whole.split(";"):
                db.execute(statement)
        for older in range(version or SCHEMA_VERSION, SCHEMA_VERSION):
            for statement in _UPGRADES[older]:
                db.execute(statement)
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        db.execute("COMMIT")
    except BaseException:
        db.close()
        raise
    return db


def _refuse_newer(db: sqlite3.Connection, path: Path) -> int:
    """The schema version of the file; JournalUnusable when it is not ours to touch."""
    version = int(db.execute("PRAGMA user_version").fetchone()[0])
    if version > SCHEMA_VERSION:
        raise JournalUnusable(
            path=str(path),
            reason=f"a newer version of molecule-mcp wrote it (schema {version}, this one knows {SCHEMA_VERSION}); "
            "upgrade this one",
        )
    return version


def _move_aside(path: Path) -> Path:
    """Rename a damaged journal (with its WAL) to the first free `inbox.sqlite3.damaged-N`."""
    number = 1
    while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    for suffix in ("-wal", "-shm", ""):  # the file last: a WAL left behind would be played into its successor
        part = path.with_name(path.name + suffix)
        if part.exists():
            part.rename(aside.with_name(aside.name + suffix))
    return aside


def _salvage_handled(damaged: Path) -> list[tuple[str, float]]:
    """The ids a damaged journal can still name as handled: they must not be handed out again. Best effort."""
    with closing(sqlite3.connect(damaged)) as db:
        try:
            (last,) = db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'messages'").fetchone()
        except (sqlite3.Error, TypeError):
            return []
        newest = range(max(1, int(last) - SALVAGED_ROWS + 1), int(last) + 1)
        return [found for ord_ in newest if (found := _handled_row(db, ord_)) is not None]


def _handled_row(db: sqlite3.Connection, ord_: int) -> tuple[str, float] | None:
    """One row by itself, so that a torn page costs no more than its own rows."""
    try:
        row = db.execute(
            "SELECT activity_id, handled_at FROM messages WHERE ord = ? AND state = 'handled'", (ord_,)
        ).fetchone()
        return (str(row[0]), float(row[1])) if row is not None else None
    except (sqlite3.Error, TypeError, ValueError):
        return None

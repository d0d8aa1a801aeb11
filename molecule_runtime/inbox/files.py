"""The journal's record of files: what the user sent, where it is now, and which message it belongs to.

A file goes pending -> staged | failed, and is removed from the disk some time after its messages are handled; its
record stays as long as the feed may show it again, so that nothing is fetched twice. `sent` are this workspace's own
uploads, which some platforms show to their sender as if they had come from the user (contract 5.7): while an upload is
under way, what looks like it is not fetched; after it, its ids are known.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum

from molecule_runtime.inbox.classify import Message, UploadNotice
from molecule_runtime.text import safe_file_name

RECORD_KEPT_S = 8 * 86_400
"""Longer than the largest window of the feed that is ever read again (7 days)."""
LONGEST_WAIT_S = 301.0
"""No attempt is put off for longer: a time beyond was written before the clock was set back, and is due."""
UNNAMED_KEPT_S = 86_400.0
"""How long a file waits for a message that names it before it counts as handled."""

SCHEMA = """
CREATE TABLE files (
  ord         INTEGER PRIMARY KEY AUTOINCREMENT,
  file_id     TEXT NOT NULL UNIQUE,
  state       TEXT NOT NULL CHECK (state IN ('pending', 'staged', 'failed', 'sent', 'removed')),
  name        TEXT NOT NULL,
  mime_type   TEXT,
  size        INTEGER,
  reason      TEXT,
  attempt     INTEGER NOT NULL DEFAULT 0,
  next_at     REAL,
  path        TEXT,
  sha256      TEXT,
  received_at REAL NOT NULL,
  staged_at   REAL,
  removed_at  REAL
);
CREATE INDEX files_by_next_at ON files (next_at) WHERE next_at IS NOT NULL;
CREATE TABLE message_files (
  activity_id TEXT NOT NULL,
  file_id     TEXT NOT NULL,
  PRIMARY KEY (activity_id, file_id)
);
CREATE INDEX message_files_by_file ON message_files (file_id);
CREATE TABLE sendings (
  key      TEXT NOT NULL,
  name     TEXT NOT NULL,
  size     INTEGER NOT NULL,
  began_at REAL NOT NULL,
  until    REAL NOT NULL
)"""
"""Part of the journal's schema; `next_at` is when a fetch (pending, failed) or an ack (staged) is due, POSIX time."""

WAITS_FOR_A_FILE = (
    "EXISTS (SELECT 1 FROM message_files JOIN files USING (file_id)"
    " WHERE message_files.activity_id = messages.activity_id AND files.state = 'pending')"
)
"""SQL over a row of `messages`."""
_ECHO_OF_OURS = (
    "EXISTS (SELECT 1 FROM sendings WHERE sendings.name = files.name AND sendings.size = files.size"
    " AND sendings.began_at <= files.received_at AND sendings.until > :now)"
)
_IN_AN_OPEN_MESSAGE = (
    "EXISTS (SELECT 1 FROM message_files JOIN messages USING (activity_id)"
    " WHERE message_files.file_id = files.file_id AND messages.state != 'handled')"
)
_FIELDS = "file_id, state, name, mime_type, size, reason, attempt, path, sha256"
_DONE = (
    "SELECT files.file_id, files.path, files.size,"
    " COALESCE(MAX(messages.handled_at), files.staged_at + :unnamed) AS done_at"
    " FROM files LEFT JOIN message_files USING (file_id) LEFT JOIN messages USING (activity_id)"
    " WHERE files.state = 'staged' AND files.path IS NOT NULL AND files.next_at IS NULL GROUP BY files.file_id"
    " HAVING COALESCE(SUM(messages.state != 'handled'), 0) = 0 AND done_at <= :before ORDER BY done_at, files.ord"
)


class FileState(StrEnum):
    PENDING = "pending"
    STAGED = "staged"
    FAILED = "failed"
    SENT = "sent"
    REMOVED = "removed"


@dataclass(frozen=True)
class FileRecord:
    """A file of the chat. `size` in bytes, as the platform announced it (None: it did not) or as it was stored.

    `reason` says why the last attempt failed; `path` and `sha256` are there once it is staged.
    """

    file_id: str
    state: FileState
    name: str
    mime_type: str | None
    size: int | None
    reason: str | None
    attempt: int
    path: str | None
    sha256: str | None


@dataclass(frozen=True)
class Removable:
    """A staged file that nobody needs any more."""

    file_id: str
    path: str
    size: int


class Files:
    """The records, in the transactions of a journal; every method raises `JournalUnusable` as the journal does."""

    def __init__(
        self,
        reading: Callable[[], AbstractContextManager[sqlite3.Connection]],
        writing: Callable[[], AbstractContextManager[sqlite3.Connection]],
    ) -> None:
        self._reading = reading
        self._writing = writing

    # fetching

    def due(
        self, now: float, states: Collection[FileState], *, limit: int, besides: Collection[str] = ()
    ) -> list[FileRecord]:
        """What is to be fetched, or acked, now: the least tried first, without `besides` and our own uploads."""
        if limit <= 0:
            return []
        names = ", ".join(f"'{state.value}'" for state in states)
        with self._reading() as db:
            rows = db.execute(
                f"SELECT {_FIELDS} FROM files WHERE (next_at <= :now OR next_at > :never) AND state IN ({names})"
                f" AND NOT (state = 'pending' AND {_ECHO_OF_OURS}) ORDER BY attempt, ord LIMIT :limit",
                {"now": now, "never": now + LONGEST_WAIT_S, "limit": limit + len(besides)},
            ).fetchall()
        return [record for row in rows if (record := _record(row)).file_id not in besides][:limit]

    def next_due_at(self, now: float) -> float | None:
        """When something that is not due now will be; None when nothing ever is."""
        with self._reading() as db:
            row = db.execute(
                "SELECT MIN(next_at) FROM (SELECT next_at FROM files WHERE next_at > :now UNION ALL"
                " SELECT :now + 1 FROM sendings WHERE until > :now)",  # what it holds back is looked at each second
                {"now": now},
            ).fetchone()
        return float(row[0]) if row[0] is not None else None

    def stage(self, file_id: str, *, path: str, size: int, sha256: str, now: float) -> bool:
        """The file is on the disk, whole; its ack is due. False when another process was first."""
        with self._writing() as db:
            done = db.execute(
                "UPDATE files SET state = 'staged', path = ?, size = ?, sha256 = ?, staged_at = ?, reason = NULL,"
                " attempt = 0, next_at = ? WHERE file_id = ? AND state IN ('pending', 'failed')",
                (path, size, sha256, now, now, file_id),
            )
        return done.rowcount > 0

    def miss(self, file_id: str, *, state: FileState, reason: str, next_at: float | None) -> None:
        """An attempt to fetch has failed; the next is due at `next_at`, or never."""
        with self._writing() as db:
            db.execute(
                "UPDATE files SET state = ?, reason = ?, attempt = attempt + 1, next_at = ?"
                " WHERE file_id = ? AND state IN ('pending', 'failed')",
                (state.value, reason, next_at, file_id),
            )

    def ack_missed(self, file_id: str, *, next_at: float) -> None:
        with self._writing() as db:
            db.execute(
                "UPDATE files SET attempt = attempt + 1, next_at = ? WHERE file_id = ? AND state = 'staged'",
                (next_at, file_id),
            )

    def owes_ack(self, file_id: str) -> bool:
        """Whether the file is here and the platform does not know it yet."""
        with self._reading() as db:
            where = "file_id = ? AND state = 'staged' AND next_at IS NOT NULL"
            return db.execute(f"SELECT 1 FROM files WHERE {where}", (file_id,)).fetchone() is not None

    def acked(self, file_id: str) -> None:
        """The platform knows; nothing is left to do."""
        with self._writing() as db:
            db.execute("UPDATE files SET next_at = NULL WHERE file_id = ? AND state = 'staged'", (file_id,))

    def hasten(self, now: float) -> bool:
        """Make due what waits for another attempt: the platform is back. True when there was something."""
        with self._reading() as db:
            if db.execute("SELECT 1 FROM files WHERE next_at > ? LIMIT 1", (now,)).fetchone() is None:
                return False
        with self._writing() as db:
            return db.execute("UPDATE files SET next_at = ? WHERE next_at > ?", (now, now)).rowcount > 0

    # messages

    def of_message(self, activity_id: str) -> list[FileRecord]:
        """The files that a message names, a handled one included, in the order of their arrival."""
        with self._reading() as db:
            return of_messages(db, [activity_id]).get(activity_id, [])

    # our own uploads

    def begin_sending(self, key: str, files: Sequence[tuple[str, int]], *, now: float, until: float) -> None:
        """An upload of ours begins, of these (cleaned name, size in bytes); it is over at `until` at the latest."""
        with self._writing() as db:
            db.execute("DELETE FROM sendings WHERE until <= ?", (now,))
            db.executemany(
                "INSERT INTO sendings (key, name, size, began_at, until) VALUES (?, ?, ?, ?, ?)",
                [(key, name, size, now, until) for name, size in files],
            )

    def end_sending(self, key: str, file_ids: Iterable[str], *, now: float) -> None:
        """That upload is over and has these ids: none of them is ever fetched, acked or shown."""
        with self._writing() as db:
            db.executemany(
                "INSERT INTO files (file_id, state, name, received_at) VALUES (?, 'sent', '', ?)"
                " ON CONFLICT (file_id) DO UPDATE SET state = 'sent', next_at = NULL"
                " WHERE state IN ('pending', 'failed')",
                [(file_id, now) for file_id in file_ids],
            )
            db.execute("DELETE FROM sendings WHERE key = ?", (key,))

    # keeping within bounds

    def stored_bytes(self) -> int:
        """What the staged files take on the disk."""
        with self._reading() as db:
            return int(db.execute("SELECT COALESCE(SUM(size), 0) FROM files WHERE state = 'staged'").fetchone()[0])

    def removable(self, before: float) -> list[Removable]:
        """Acked files whose messages were all handled before `before`, the oldest first."""
        with self._reading() as db:
            rows = db.execute(_DONE, {"before": before, "unnamed": UNNAMED_KEPT_S}).fetchall()
        return [Removable(file_id, path, size) for file_id, path, size, _ in rows]

    def give_up(self, file_id: str, *, now: float) -> bool:
        """Whether the file may go: from then on it counts as removed. False when a message has named it meanwhile."""
        with self._writing() as db:
            done = db.execute(
                "UPDATE files SET state = 'removed', path = NULL, removed_at = ?"
                f" WHERE file_id = ? AND state = 'staged' AND NOT {_IN_AN_OPEN_MESSAGE}",
                (now, file_id),
            )
        return done.rowcount > 0

    def known_paths(self) -> set[str]:
        with self._reading() as db:
            return {path for (path,) in db.execute("SELECT path FROM files WHERE path IS NOT NULL")}

    def forget(self, now: float) -> None:
        """Drop the records that the feed cannot bring back."""
        with self._writing() as db:
            db.execute(
                "DELETE FROM files WHERE received_at < :old AND (state = 'sent' OR state = 'removed'"
                " AND removed_at < :old OR state = 'failed' AND next_at IS NULL)"
                f" AND NOT {_IN_AN_OPEN_MESSAGE}",
                {"old": now - RECORD_KEPT_S},
            )
            db.execute("DELETE FROM message_files WHERE file_id NOT IN (SELECT file_id FROM files)")


def note_arrivals(
    db: sqlite3.Connection, notices: Iterable[UploadNotice], messages: Iterable[Message], now: float
) -> None:
    """Record what a page of the feed says about files, in the caller's transaction; due at once.

    The platform's notice is believed about name and size, a message only about which file it names.
    """
    for notice in notices:
        part = notice.part
        db.execute(
            "INSERT INTO files (file_id, state, name, mime_type, size, received_at, next_at)"
            " VALUES (:file_id, 'pending', :name, :mime_type, :size, :now, :now) ON CONFLICT (file_id) DO UPDATE"
            " SET name = excluded.name, mime_type = excluded.mime_type, size = excluded.size"
            " WHERE state = 'pending' AND size IS NULL",
            {
                "file_id": notice.file_id,
                "name": safe_file_name(part.name),
                "mime_type": part.mime_type,
                "size": part.size,
                "now": now,
            },
        )
    for message in messages:
        for part in message.files:
            if part.file_id is None:
                continue
            db.execute(
                "INSERT OR IGNORE INTO files (file_id, state, name, mime_type, received_at, next_at)"
                " VALUES (?, 'pending', ?, ?, ?, ?)",
                (part.file_id, safe_file_name(part.name), part.mime_type, now, now),
            )
            db.execute("INSERT OR IGNORE INTO message_files VALUES (?, ?)", (message.activity_id, part.file_id))


def of_messages(db: sqlite3.Connection, activity_ids: Sequence[str]) -> dict[str, list[FileRecord]]:
    """The files that each of these messages names, by activity id."""
    found: dict[str, list[FileRecord]] = {}
    marks = ", ".join("?" * len(activity_ids))
    rows = db.execute(
        f"SELECT activity_id, {_FIELDS} FROM message_files JOIN files USING (file_id)"
        f" WHERE activity_id IN ({marks}) ORDER BY files.ord",
        list(activity_ids),
    )
    for activity_id, *fields in rows:
        found.setdefault(activity_id, []).append(_record(fields))
    return found


def _record(row: Sequence[object]) -> FileRecord:
    file_id, state, *rest = row
    return FileRecord(file_id, FileState(state), *rest)  # type: ignore[arg-type]

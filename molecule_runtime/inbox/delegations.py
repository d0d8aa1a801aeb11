"""The journal's record of delegations: jobs that this workspace handed to peers, and what became of each.

A record begins as an intent, before the platform hears of it: its key goes with the request, so that a retry (after a
lost answer, after a crash) cannot hand the job out twice. Two calls are one intent while no agent has been given the
handle of it, nor has handled its result; from then on the same words are a new job. A result comes by the feed, by
asking, or both, in any order: it is told once, to the call that waits for it or as a message.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

from molecule_runtime.inbox.classify import Kind, Message
from molecule_runtime.wire.delegations import DelegationStatus

INTENT_LASTS_S = 3_600.0
"""How long a call may take up an intent whose handle no agent was given: as long as a host may need to come back."""
RECORD_KEPT_S = 8 * 86_400
"""Longer than the largest window of the feed that is ever read again (7 days)."""
AWAITED_AT_MOST_S = 60.0
"""No call waits longer (clients.md 1.4); a later time was written before the clock was set back."""

SCHEMA = """
CREATE TABLE delegations (
  ord           INTEGER PRIMARY KEY AUTOINCREMENT,
  key           TEXT NOT NULL UNIQUE,
  peer_id       TEXT NOT NULL,
  task_digest   TEXT NOT NULL,
  task          TEXT NOT NULL,
  delegation_id TEXT UNIQUE,
  status        TEXT NOT NULL,
  text          TEXT,
  error         TEXT,
  is_whole      INTEGER NOT NULL DEFAULT 0,
  created_at    REAL NOT NULL,
  updated_at    REAL NOT NULL,
  handed_at     REAL,
  awaited_until REAL,
  told_at       REAL,
  to_report     INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX delegations_by_intent ON delegations (peer_id, task_digest) WHERE handed_at IS NULL"""
"""Part of the journal's schema. `handed_at`: an agent was given the handle. `told_at`: the call that waited was given
the result. `to_report`: the platform does not know of the result yet."""

COLUMNS = ("ALTER TABLE messages ADD COLUMN result_of TEXT", "ALTER TABLE messages ADD COLUMN works_on TEXT")
"""What `messages` needs: the delegation whose result a message is, and the one whose job it brings."""
INDEX = "CREATE INDEX messages_by_result ON messages (result_of) WHERE result_of IS NOT NULL"

AWAITED = (
    "(result_of IS NOT NULL AND EXISTS (SELECT 1 FROM delegations WHERE delegations.delegation_id = messages.result_of"
    f" AND awaited_until - ?1 BETWEEN 0.000001 AND {AWAITED_AT_MOST_S}))"
)
"""SQL over a row of `messages`, ?1 is now: a call waits for this very result and will be given it."""

_FIELDS = "key, peer_id, task, delegation_id, status, text, error, is_whole, created_at, updated_at, handed_at, told_at"


@dataclass(frozen=True)
class DelegationRecord:
    """A job that was handed out. `task` is its beginning; `text` the result, a part of it when not `is_whole`.

    `delegation_id` is None until the platform has accepted it. Times are POSIX.
    """

    key: str
    peer_id: str
    task: str
    delegation_id: str | None
    status: DelegationStatus
    text: str | None
    error: str | None
    is_whole: bool
    created_at: float
    updated_at: float
    handed_at: float | None
    told_at: float | None


@dataclass(frozen=True)
class Told:
    """What was heard of a delegation. `is_whole`: `text` is all of the result, not a preview."""

    status: DelegationStatus
    text: str | None = None
    error: str | None = None
    is_whole: bool = True


class Delegations:
    """The records, in the transactions of a journal; every method raises `JournalUnusable` as the journal does."""

    def __init__(
        self,
        reading: Callable[[], AbstractContextManager[sqlite3.Connection]],
        writing: Callable[[], AbstractContextManager[sqlite3.Connection]],
    ) -> None:
        self._reading = reading
        self._writing = writing

    # handing out

    def intend(self, *, key: str, peer_id: str, digest: str, task: str, now: float) -> DelegationRecord:
        """The open intent for this peer and task (`digest` names its words), else a new one under `key`."""
        with self._writing() as db:
            open_ = db.execute(
                f"SELECT {_FIELDS} FROM delegations WHERE peer_id = ? AND task_digest = ? AND handed_at IS NULL"
                " AND ABS(? - created_at) <= ? ORDER BY ord DESC LIMIT 1",
                (peer_id, digest, now, INTENT_LASTS_S),
            ).fetchone()
            if open_ is not None:
                return _record(open_)
            db.execute(
                "INSERT INTO delegations (key, peer_id, task_digest, task, status, created_at, updated_at)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                (key, peer_id, digest, task, DelegationStatus.QUEUED, now, now),
            )
            db.execute("DELETE FROM delegations WHERE updated_at < ?", (now - RECORD_KEPT_S,))
            return _one(db, "key", key)

    def accepted(self, key: str, delegation_id: str, *, now: float) -> DelegationRecord:
        """The platform has taken the job. A result that was quicker than this answer becomes part of the record."""
        with self._writing() as db:
            early = db.execute(
                f"SELECT {_FIELDS} FROM delegations WHERE delegation_id = ? AND key != ?", (delegation_id, key)
            ).fetchone()
            if early is not None:  # the feed was faster
                db.execute("DELETE FROM delegations WHERE delegation_id = ? AND key != ?", (delegation_id, key))
            db.execute(
                "UPDATE delegations SET delegation_id = ?, updated_at = ? WHERE key = ? AND delegation_id IS NULL",
                (delegation_id, now, key),
            )
            if early is not None:
                known = _record(early)
                _set(db, delegation_id, Told(known.status, known.text, known.error, known.is_whole), now)
                _name_peer(db, delegation_id)
            return _one(db, "key", key)

    def withdraw(self, key: str) -> None:
        """The platform refused the job: there is none."""
        with self._writing() as db:
            db.execute("DELETE FROM delegations WHERE key = ? AND delegation_id IS NULL", (key,))

    def hand(self, key: str, *, now: float) -> None:
        """An agent is given the handle: the same words are a new job from now on."""
        with self._writing() as db:
            db.execute("UPDATE delegations SET handed_at = ? WHERE key = ? AND handed_at IS NULL", (now, key))

    # the result

    def note(self, delegation_id: str, told: Told, *, now: float) -> DelegationRecord | None:
        """What was heard by asking; a later state never gives way to an earlier one. None: no such record."""
        with self._writing() as db:
            record = _find(db, "delegation_id", delegation_id)
            if record is None:
                return None
            if _is_news(record, told):
                _set(db, delegation_id, told, now)
            return _one(db, "delegation_id", delegation_id)

    def wait_until(self, delegation_id: str, until: float | None) -> None:
        """A call waits for the result until then: it is not offered as a message meanwhile. None: nobody waits."""
        with self._writing() as db:
            db.execute("UPDATE delegations SET awaited_until = ? WHERE delegation_id = ?", (until, delegation_id))

    def tell(self, key: str, *, now: float) -> DelegationRecord:
        """Give the result to the call that waited: the message with it, here or still to come, is handled by that."""
        with self._writing() as db:
            db.execute(
                "UPDATE delegations SET told_at = ?, handed_at = COALESCE(handed_at, ?), awaited_until = NULL"
                " WHERE key = ?",
                (now, now, key),
            )
            db.execute(  # the body stays, for `untell`
                "UPDATE messages SET state = 'handled', handled_at = ?, lease_session = NULL, lease_key = NULL,"
                " lease_until = NULL WHERE state != 'handled'"
                " AND result_of = (SELECT delegation_id FROM delegations WHERE key = ?)",
                (now, key),
            )
            return _one(db, "key", key)

    def untell(self, key: str) -> None:
        """The call was cancelled, nobody saw what it was given: the handle, or the result, which is a message again."""
        with self._writing() as db:
            db.execute(
                "UPDATE messages SET state = 'new', handled_at = NULL WHERE state = 'handled' AND body IS NOT NULL"
                " AND result_of = (SELECT delegation_id FROM delegations WHERE key = ? AND told_at IS NOT NULL)",
                (key,),
            )
            db.execute("UPDATE delegations SET told_at = NULL, handed_at = NULL WHERE key = ?", (key,))

    # looking

    def get(self, key: str) -> DelegationRecord | None:
        with self._reading() as db:
            return _find(db, "key", key)

    def find(self, delegation_id: str) -> DelegationRecord | None:
        with self._reading() as db:
            return _find(db, "delegation_id", delegation_id)

    def latest(self, limit: int) -> list[DelegationRecord]:
        """The newest that the platform has accepted, newest first."""
        with self._reading() as db:
            rows = db.execute(
                f"SELECT {_FIELDS} FROM delegations WHERE delegation_id IS NOT NULL AND peer_id != ''"
                " ORDER BY ord DESC LIMIT ?",
                (limit,),
            ).fetchall()
        return [_record(row) for row in rows]

    def ids(self) -> set[str]:
        """The ids of all that are remembered."""
        with self._reading() as db:
            rows = db.execute("SELECT delegation_id FROM delegations WHERE delegation_id IS NOT NULL").fetchall()
        return {delegation_id for (delegation_id,) in rows}

    # results that the platform does not know, jobs in hand

    def to_report(self) -> list[DelegationRecord]:
        """Those that a peer has answered without the platform seeing it for a result."""
        with self._reading() as db:
            rows = db.execute(f"SELECT {_FIELDS} FROM delegations WHERE to_report ORDER BY ord").fetchall()
        return [_record(row) for row in rows]

    def reported(self, key: str) -> None:
        with self._writing() as db:
            db.execute("UPDATE delegations SET to_report = 0 WHERE key = ?", (key,))

    def in_hand(self, session: str) -> list[str]:
        """The delegations whose jobs this session has taken and not answered."""
        with self._reading() as db:
            rows = db.execute(
                "SELECT DISTINCT works_on FROM messages WHERE state = 'leased' AND lease_session = ?"
                " AND works_on IS NOT NULL",
                (session,),
            ).fetchall()
        return [delegation_id for (delegation_id,) in rows]


def recognise(db: sqlite3.Connection, message: Message) -> Message:
    """The message as the result that it is, when a peer answers a job of ours by an ordinary one (contract 0.8).

    An answer to what is completed already is a message without an id: with it, it would look like a job for us.
    """
    if message.kind is not Kind.PEER_AGENT or message.delegation_id is None:
        return message
    record = _find(db, "delegation_id", message.delegation_id)
    if record is None or record.peer_id != message.peer_id:
        return message
    if record.status is DelegationStatus.COMPLETED:
        return replace(message, delegation_id=None)
    db.execute("UPDATE delegations SET to_report = 1 WHERE key = ?", (record.key,))
    return replace(message, kind=Kind.DELEGATION_RESULT, outcome=DelegationStatus.COMPLETED.value)


def note_arrival(db: sqlite3.Connection, message: Message, now: float) -> tuple[Message, bool]:
    """Keep the result that a message brings; the message with the peer whose result it is, and whether it is news.

    It is none when the call that waited was given it, or when a message has brought it before.
    """
    if message.kind is not Kind.DELEGATION_RESULT or message.delegation_id is None:
        return message, True
    delegation_id = message.delegation_id
    failed = message.outcome == DelegationStatus.FAILED
    status = DelegationStatus.FAILED if failed else DelegationStatus.COMPLETED
    told = Told(status, None if failed else message.text, message.text if failed else None)
    record = _find(db, "delegation_id", delegation_id)
    if record is None:  # handed out by other means, or before the journal was lost
        db.execute(
            "INSERT INTO delegations (key, peer_id, task_digest, task, delegation_id, status, created_at, updated_at)"
            " VALUES (?, '', '', '', ?, ?, ?, ?)",
            (delegation_id, delegation_id, DelegationStatus.QUEUED, now, now),
        )
        record = _one(db, "delegation_id", delegation_id)
    had_come = record.told_at is not None or _has_come(db, delegation_id)
    is_news = _is_news(record, told)
    if is_news:
        _set(db, delegation_id, told, now)
    if not message.peer_id:
        message = replace(message, peer_id=record.peer_id)
    return message, is_news or not had_come


def note_handled(db: sqlite3.Connection, activity_id: str, now: float) -> None:
    """An agent is done with the message that had a job's result: the same words are a new job, handle or not."""
    db.execute(
        "UPDATE delegations SET handed_at = ? WHERE handed_at IS NULL"
        " AND delegation_id = (SELECT result_of FROM messages WHERE activity_id = ?)",
        (now, activity_id),
    )


def _is_news(record: DelegationRecord, told: Told) -> bool:
    """Completed outranks failed and stuck, those outrank what is under way, and the whole text a part of it."""
    if record.status == told.status:
        return bool(told.is_whole and not record.is_whole and told.text is not None)
    return _RANK[told.status] > _RANK[record.status]


_RANK = {
    DelegationStatus.QUEUED: 0,
    DelegationStatus.DISPATCHED: 1,
    DelegationStatus.IN_PROGRESS: 2,
    DelegationStatus.STUCK: 3,
    DelegationStatus.FAILED: 3,
    DelegationStatus.COMPLETED: 4,
}


def _has_come(db: sqlite3.Connection, delegation_id: str) -> bool:
    return db.execute("SELECT 1 FROM messages WHERE result_of = ? LIMIT 1", (delegation_id,)).fetchone() is not None


def _name_peer(db: sqlite3.Connection, delegation_id: str) -> None:
    """A message whose delegation was not known when it came gets the peer of it."""
    db.execute(
        "UPDATE messages SET body = json_set(body, '$.peer_id',"
        " (SELECT peer_id FROM delegations WHERE delegations.delegation_id = result_of))"
        " WHERE result_of = ? AND body IS NOT NULL",
        (delegation_id,),
    )


def _set(db: sqlite3.Connection, delegation_id: str, told: Told, now: float) -> None:
    db.execute(
        "UPDATE delegations SET status = ?, text = ?, error = ?, is_whole = ?, updated_at = ? WHERE delegation_id = ?",
        (told.status, told.text, told.error, told.is_whole, now, delegation_id),
    )


def _find(db: sqlite3.Connection, column: str, value: str) -> DelegationRecord | None:
    row = db.execute(f"SELECT {_FIELDS} FROM delegations WHERE {column} = ?", (value,)).fetchone()
    return None if row is None else _record(row)


def _one(db: sqlite3.Connection, column: str, value: str) -> DelegationRecord:
    record = _find(db, column, value)
    assert record is not None
    return record


def _record(row: tuple[Any, ...]) -> DelegationRecord:
    key, peer_id, task, delegation_id, status, text, error, is_whole, *times = row
    return DelegationRecord(
        key, peer_id, task, delegation_id, DelegationStatus(status), text, error, bool(is_whole), *times
    )

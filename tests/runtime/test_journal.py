"""The journal: nothing lost, nothing twice, whatever dies in between."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import anyio
import pytest

from molecule_runtime.errors import JournalUnusable
from molecule_runtime.inbox.classify import Kind
from molecule_runtime.inbox.journal import (
    HANDLED_KEPT_S,
    MAX_ATTEMPTS,
    SCHEMA_VERSION,
    Counts,
    Entry,
    Journal,
    MessageState,
    Owner,
    Position,
)
from molecule_runtime.state import OwnerLock

from .support import message, python, spawn

NOW = 1_000_000.0
LEASE = {"session": "s1", "key": "k1", "until": NOW + 600, "now": NOW}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "inbox.sqlite3"


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    journal = Journal.open(path)
    yield journal
    journal.close()


def fill(journal: Journal, *numbers: int, now: float = NOW) -> list[str]:
    page = [message(number) for number in numbers]
    return journal.append(page, cursor=f"cursor {numbers[-1]}", last_row_at=NOW, now=now)


def lease(journal: Journal, *, session: str = "s1", key: str = "k1", now: float = NOW, for_s: float = 600) -> Entry:
    entry = journal.lease(session=session, key=key, until=now + for_s, now=now)
    assert entry is not None
    return entry


def states(journal: Journal) -> list[tuple[str, str, int]]:
    return [(entry.message.activity_id[-2:], entry.state.value, entry.attempt) for entry in journal.open_messages(500)]


def test_a_new_journal_is_private_and_empty(journal: Journal, path: Path) -> None:
    """agent-side 4: one file per workspace, 0600, its companions too."""
    fill(journal, 1)
    assert {file.name: oct(file.stat().st_mode & 0o777) for file in path.parent.iterdir()} == {
        "inbox.sqlite3": "0o600",
        "inbox.sqlite3-wal": "0o600",
        "inbox.sqlite3-shm": "0o600",
    }


def test_a_page_and_its_cursor_are_kept_together(journal: Journal, path: Path) -> None:
    """design: the journal before the cursor."""
    assert journal.position() == Position(cursor=None, last_row_at=None, backlog=False)
    assert fill(journal, 1, 2) == [message(1).activity_id, message(2).activity_id]
    journal.close()

    with closing(Journal.open(path)) as again:
        assert again.position() == Position(cursor="cursor 2", last_row_at=NOW, backlog=False)
        assert again.open_messages(10) == [
            Entry(1, message(1), MessageState.NEW, 0),
            Entry(2, message(2), MessageState.NEW, 0),
        ]


def test_a_page_that_cannot_be_written_whole_leaves_nothing(journal: Journal, path: Path) -> None:
    """design: one transaction; the cursor that fails takes the rows before it along."""
    fill(journal, 1)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute(
            "CREATE TRIGGER no_move BEFORE UPDATE ON position BEGIN SELECT RAISE(ABORT, 'the disk said no'); END"
        )
    with pytest.raises(JournalUnusable) as refused:
        fill(journal, 2, 3)
    assert (refused.value.path, refused.value.reason) == (str(path), "the disk said no")
    assert states(journal) == [("01", "new", 0)]
    assert journal.position().cursor == "cursor 1"


def test_a_kill_in_the_middle_of_a_page_leaves_nothing_of_it(path: Path) -> None:
    """design: kill -9 between the rows and the cursor; the next start reads the page again."""
    child = spawn(
        """
import os, signal, sys
from pathlib import Path
from molecule_runtime.inbox.journal import Journal
from tests.runtime.rows import message
journal = Journal.open(Path(sys.argv[1]))
journal.append([message(1)], cursor="cursor 1", last_row_at=1.0, now=1.0)

def page():
    yield message(2)
    os.kill(os.getpid(), signal.SIGKILL)
    yield message(3)

journal.append(page(), cursor="cursor 3", last_row_at=3.0, now=3.0)
""",
        path,
    )
    child.communicate(timeout=30)
    assert child.returncode == -9

    with closing(Journal.open(path)) as journal:
        assert states(journal) == [("01", "new", 0)]
        assert journal.position() == Position(cursor="cursor 1", last_row_at=1.0, backlog=False)


def test_known_ids_are_passed_over_handled_ones_included(journal: Journal) -> None:
    """agent-side 4: a handled id is never offered again."""
    fill(journal, 1, 2)
    assert journal.handle(message(1).activity_id, now=NOW) is True
    assert fill(journal, 1, 2, 3) == [message(3).activity_id]
    assert states(journal) == [("02", "new", 0), ("03", "new", 0)]


def test_rows_without_a_cursor_leave_the_old_one(journal: Journal) -> None:
    """agent-side 4: the look back on a platform without seq moves nothing."""
    fill(journal, 1)
    journal.append([message(2)], cursor=None, last_row_at=NOW + 50, now=NOW)
    assert journal.position() == Position(cursor="cursor 1", last_row_at=NOW, backlog=False)


def test_a_page_of_older_rows_does_not_turn_the_time_back(journal: Journal) -> None:
    """agent-side 4: the window after a 410 is measured from the newest row ever seen."""
    fill(journal, 1)
    journal.append([], cursor="echo", last_row_at=NOW - 900, now=NOW)
    assert journal.position() == Position(cursor="echo", last_row_at=NOW, backlog=False)


def test_an_expired_cursor_is_forgotten_and_nothing_else(journal: Journal) -> None:
    """Contract 4.3: 410 = drop the cursor."""
    fill(journal, 1)
    journal.forget_cursor()
    assert journal.position() == Position(cursor=None, last_row_at=NOW, backlog=False)
    assert states(journal) == [("01", "new", 0)]


def test_messages_are_handed_out_in_order_of_arrival_each_once(journal: Journal) -> None:
    """agent-side 4: a leased message is not offered while its session lives."""
    fill(journal, 1, 2)
    assert lease(journal) == Entry(1, message(1), MessageState.LEASED, 1)
    assert lease(journal, session="s2", key="k2") == Entry(2, message(2), MessageState.LEASED, 1)
    assert journal.lease(session="s1", key="k3", until=NOW + 600, now=NOW) is None
    assert journal.lease_holders() == {"s1", "s2"}
    assert journal.counts() == Counts(new=0, leased=2, parked=0)


def test_an_expired_lease_is_offered_to_its_own_session_when_nothing_new_waits(journal: Journal) -> None:
    """agent-side 4: after the lease time its own next wait offers it again."""
    fill(journal, 1)
    lease(journal)
    later = NOW + 601
    assert journal.lease(session="s2", key="x", until=later + 600, now=later) is None
    fill(journal, 2)
    assert lease(journal, key="k2", now=later).message == message(2)
    assert lease(journal, key="k3", now=later) == Entry(1, message(1), MessageState.LEASED, 2)


def test_the_fifth_hand_out_is_the_last_then_the_message_is_parked(journal: Journal) -> None:
    """agent-side 4: parked after 5 attempts, still in peek, never dropped."""
    fill(journal, 1)
    now = NOW
    for attempt in range(1, MAX_ATTEMPTS + 1):
        assert lease(journal, now=now).attempt == attempt
        now += 601
    assert journal.lease(session="s1", key="k", until=now + 600, now=now) is None
    assert journal.open_messages(10) == [Entry(1, message(1), MessageState.PARKED, MAX_ATTEMPTS)]
    assert journal.counts() == Counts(parked=1)
    assert journal.handle(message(1).activity_id, now=now) is True


def test_a_cancelled_call_gives_back_what_it_got_and_the_attempt(journal: Journal) -> None:
    """agent-side 5: cancel gives the lease back; nobody saw it, so it does not count."""
    fill(journal, 1, 2)
    lease(journal, key="kept")
    lease(journal, key="cancelled")
    assert journal.give_back(session="other", key="cancelled") is False
    assert journal.give_back(session="s1", key="cancelled") is True
    assert journal.give_back(session="s1", key="cancelled") is False
    assert states(journal) == [("01", "leased", 1), ("02", "new", 0)]


def test_what_a_dead_session_had_in_hand_is_offered_again(journal: Journal) -> None:
    """agent-side 4: given back when the session is gone; the attempt counts, the fifth parks."""
    fill(journal, 1, 2, 3)
    for _ in range(MAX_ATTEMPTS - 1):
        lease(journal, session="dead")
        journal.release_session("dead")
    lease(journal, session="dead")
    lease(journal, session="dead", key="k2")
    lease(journal, session="alive", key="k3")
    assert journal.release_session("dead") == 2
    assert states(journal) == [("01", "parked", 5), ("02", "new", 1), ("03", "leased", 1)]
    assert journal.lease_holders() == {"alive"}


def test_a_pop_is_final_and_may_be_repeated(journal: Journal, path: Path) -> None:
    """agent-side 5: inbox_pop is idempotent and works whoever holds the lease; the text is not kept."""
    fill(journal, 1, 2)
    lease(journal, session="somebody else")
    assert journal.handle(message(1).activity_id, now=NOW) is True
    assert journal.handle(message(1).activity_id, now=NOW) is False
    assert journal.handle("unknown", now=NOW) is False
    assert journal.find(message(1).activity_id) is None
    assert journal.find(message(2).activity_id) == Entry(2, message(2), MessageState.NEW, 0)
    assert journal.release_session("somebody else") == 0
    with closing(sqlite3.connect(path)) as other:
        assert other.execute("SELECT body, lease_session FROM messages WHERE ord = 1").fetchall() == [(None, None)]


def test_peek_shows_the_oldest_up_to_a_limit(journal: Journal) -> None:
    """agent-side 5: inbox_peek leases nothing."""
    fill(journal, *range(1, 8))
    assert [entry.ord for entry in journal.open_messages(3)] == [1, 2, 3]
    assert journal.counts() == Counts(new=7)


def test_handled_ids_are_forgotten_after_their_time_and_not_before(journal: Journal) -> None:
    """agent-side 4: handled ids are kept 7 days, open messages for ever."""
    fill(journal, 1, 2)
    journal.handle(message(1).activity_id, now=NOW)
    assert fill(journal, 1, 3, now=NOW + HANDLED_KEPT_S) == [message(3).activity_id]
    fill(journal, 4, now=NOW + HANDLED_KEPT_S + 1)
    assert fill(journal, 1, 2, now=NOW + HANDLED_KEPT_S + 1) == [message(1).activity_id]


def test_what_an_owner_signs_is_read_by_all(journal: Journal) -> None:
    """agent-side 4, Owners: one signs, stamps and tells; whose epoch has passed does neither."""
    assert journal.owner("beat") is None
    assert journal.begin_epoch("beat", session="a", pid=1, now=NOW, after=0) == 1
    assert journal.renew("beat", session="a", epoch=1, now=NOW + 1)
    journal.describe("beat", session="a", detail={"state": "online"})
    assert journal.owner("beat") == Owner("beat", "a", 1, 1, NOW + 1, {"state": "online"})
    assert journal.begin_epoch("beat", session="b", pid=2, now=NOW + 2, after=0) is None
    assert journal.begin_epoch("beat", session="b", pid=2, now=NOW + 2, after=1) == 2
    assert not journal.renew("beat", session="a", epoch=1, now=NOW + 3)
    journal.describe("beat", session="a", detail={"state": "stopped"})
    assert journal.owner("beat") == Owner("beat", "b", 2, 2, NOW + 2, {})
    assert journal.owner("inbox") is None


def test_processes_that_lease_at_once_get_each_message_once(journal: Journal, path: Path) -> None:
    """agent-side 8: two sessions both got the message."""
    fill(journal, *range(1, 201))
    code = """
import sys
from pathlib import Path
from molecule_runtime.inbox.journal import Journal
journal = Journal.open(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
while (entry := journal.lease(session=sys.argv[2], key="k", until=9e9, now=1.0)) is not None:
    print(entry.ord)
"""
    children = [spawn(code, path, session) for session in ("a", "b")]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    got = [[int(line) for line in child.communicate("go\n", timeout=30)[0].split()] for child in children]
    assert sorted(got[0] + got[1]) == list(range(1, 201))
    assert got == [sorted(got[0]), sorted(got[1])]
    assert journal.counts() == Counts(leased=200)


@pytest.mark.parametrize("damage", ["not a database", "torn page"])
def test_a_damaged_file_is_moved_aside_and_the_backlog_is_read_again(path: Path, damage: str) -> None:
    """design: presence and inbox go on; the old file is kept for whoever wants to look."""
    with closing(Journal.open(path)) as journal:
        for start in range(1, 400, 50):
            fill(journal, *range(start, start + 50))
        journal.handle(message(1).activity_id, now=NOW)
    whole = path.read_bytes()
    torn = whole[:-4096] + b"\xff" * 4096
    path.write_bytes(b"this is not a database" * 100 if damage == "not a database" else torn)

    with closing(Journal.open(path)) as journal:
        assert journal.moved_aside == path.with_name("inbox.sqlite3.damaged-1")
        assert journal.moved_aside.exists()
        assert journal.position() == Position(cursor=None, last_row_at=None, backlog=True)
        assert states(journal) == []
        salvaged = damage == "torn page"
        assert fill(journal, 1, 2) == [message(n).activity_id for n in ((2,) if salvaged else (1, 2))]
        assert journal.position().backlog is False


def test_a_second_damage_does_not_overwrite_the_first_file(path: Path) -> None:
    """Ours: each damaged file is kept under a name of its own."""
    for number in (1, 2):
        path.write_bytes(b"this is not a database" * 100)
        with closing(Journal.open(path)) as journal:
            assert journal.moved_aside == path.with_name(f"inbox.sqlite3.damaged-{number}")


def test_two_processes_do_not_mend_the_same_file_at_once(path: Path) -> None:
    """Ours: the second would move the first one's new journal away."""
    path.write_bytes(b"this is not a database" * 100)
    lock = OwnerLock(path.with_name("inbox.sqlite3.mend.lock"))
    assert lock.try_acquire()
    with pytest.raises(JournalUnusable):
        Journal.open(path)
    lock.release()
    Journal.open(path).close()
    with closing(Journal.open(path)) as journal:
        assert journal.moved_aside is None


def test_the_journal_of_a_newer_version_is_refused_and_untouched(path: Path) -> None:
    """Ours: an older process that would mend it would lose what only the newer one understands."""
    with closing(sqlite3.connect(path)) as newer:
        newer.execute("CREATE TABLE messages (something_else TEXT)")
        newer.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    before = path.read_bytes()
    with pytest.raises(JournalUnusable):
        Journal.open(path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["inbox.sqlite3"]


def test_a_journal_of_the_first_schema_is_carried_on(path: Path) -> None:
    """An upgrade of the package must not lose what was unread."""
    with closing(Journal.open(path)) as journal:
        waiting, taken = fill(journal, 1, 2)
    with closing(sqlite3.connect(path)) as older:
        older.execute("DROP INDEX messages_by_result")
        for column in ("pushed_to", "held_until", "result_of", "works_on"):
            older.execute(f"ALTER TABLE messages DROP COLUMN {column}")
        for table in ("files", "message_files", "sendings", "delegations", "pending_memories"):
            older.execute(f"DROP TABLE {table}")
        older.execute("PRAGMA user_version = 1")
    for session in ("first", "second"):
        with closing(Journal.open(path)) as journal:
            assert [entry.message.activity_id for entry in journal.open_messages(10)] == [waiting, taken]
            assert journal.take_unpushed(session, 1, now=NOW)[0].message.activity_id == waiting
            assert journal.counts().files_pending == 0
            assert journal.delegations.latest(10) == []


def test_jobs_and_results_of_an_older_schema_are_known_for_what_they_are(path: Path) -> None:
    """An upgrade with a job in hand: it is said to be worked on, and a result is not offered while it is awaited."""
    job, end = "55555555-5555-4555-8555-555555555555", "66666666-6666-4666-8666-666666666666"
    with closing(Journal.open(path)) as journal:
        task = message(1, kind=Kind.PEER_AGENT, peer_id=job, delegation_id=job)
        journal.append(
            [task, message(2, kind=Kind.DELEGATION_RESULT, delegation_id=end)], cursor="c", last_row_at=NOW, now=NOW
        )
    with closing(sqlite3.connect(path)) as older:
        older.execute("DROP INDEX messages_by_result")
        for column in ("result_of", "works_on"):
            older.execute(f"ALTER TABLE messages DROP COLUMN {column}")
        for table in ("delegations", "pending_memories"):
            older.execute(f"DROP TABLE {table}")
        older.execute("PRAGMA user_version = 3")
    with closing(Journal.open(path)) as journal:
        lease(journal)
        assert journal.delegations.in_hand("s1") == [job]
    with closing(sqlite3.connect(path)) as now:
        assert now.execute("SELECT result_of FROM messages ORDER BY ord").fetchall() == [(None,), (end,)]


def test_a_session_is_shown_each_new_message_once_and_another_session_again(journal: Journal) -> None:
    """agent-side 6: who takes the inbox over shows what the last host may never have seen."""
    first, second, third = fill(journal, 1, 2, 3)
    lease(journal)

    def shown(session: str, limit: int = 10) -> list[tuple[str, str | None]]:
        return [
            (entry.message.activity_id, entry.pushed_to) for entry in journal.take_unpushed(session, limit, now=NOW)
        ]

    assert shown("s1", 1) == [(second, "s1")]
    assert shown("s1") == [(third, "s1")]
    assert shown("s1") == []
    assert shown("s2") == [(second, "s2"), (third, "s2")]
    journal.release_session("s1")
    assert shown("s2") == [(first, "s2")]
    assert [entry.pushed_to for entry in journal.open_messages(10)] == ["s2"] * 3


def test_a_directory_that_cannot_be_written_is_said_so(tmp_path: Path) -> None:
    """agent-side 2: local state has its own error."""
    with pytest.raises(JournalUnusable) as refused:
        Journal.open(tmp_path / "missing" / "inbox.sqlite3")
    assert refused.value.path == str(tmp_path / "missing" / "inbox.sqlite3")


def test_a_full_disk_refuses_the_page_and_changes_nothing(journal: Journal) -> None:
    """design: nothing of the page was kept and the cursor did not move."""
    fill(journal, 1)
    (pages,) = journal._db.execute("PRAGMA page_count").fetchone()
    journal._db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(JournalUnusable):
        journal.append([message(2, "x" * 100_000)], cursor="cursor 2", last_row_at=NOW, now=NOW)
    assert states(journal) == [("01", "new", 0)]
    assert journal.position().cursor == "cursor 1"
    journal._db.execute(f"PRAGMA max_page_count = {pages + 1000}")
    assert fill(journal, 2) == [message(2).activity_id]


async def test_a_lease_whose_caller_was_cancelled_is_there_before_it_is_given_back(
    journal: Journal, path: Path
) -> None:
    """agent-side 5: a cancel that meets a lease in the making must not leave the message with nobody."""
    fill(journal, 1)
    with closing(sqlite3.connect(path, isolation_level=None)) as other, anyio.fail_after(5):
        other.execute("BEGIN IMMEDIATE")  # holds the lease up in its worker thread
        waiting = asyncio.create_task(journal.off_loop(journal.lease, session="s1", key="k", until=NOW, now=NOW))
        before = threading.active_count()
        while threading.active_count() == before and not journal._in_use.locked():
            await anyio.lowlevel.checkpoint()
        while not journal._in_use.locked():
            await anyio.lowlevel.checkpoint()
        waiting.cancel()
        await asyncio.wait((waiting,))
        giving_back = asyncio.create_task(journal.off_loop(journal.give_back, session="s1", key="k"))
        await anyio.lowlevel.checkpoint()
        other.execute("COMMIT")
        assert await giving_back is True
    assert states(journal) == [("01", "new", 0)]


def test_a_closed_journal_says_so(path: Path) -> None:
    """Ours: a call that comes late is refused like any other, not a crash."""
    journal = Journal.open(path)
    journal.close()
    with pytest.raises(JournalUnusable):
        journal.counts()


def test_opening_many_times_at_once_makes_one_journal(path: Path) -> None:
    """agent-side 2: a one-second life leaves no half-written state."""
    code = """
import sys
from pathlib import Path
from molecule_runtime.inbox.journal import Journal
journal = Journal.open(Path(sys.argv[1]))
print(journal.moved_aside, journal.counts().new)
"""
    children = [spawn(code, path) for _ in range(3)]
    assert [child.communicate(timeout=30)[0] for child in children] == ["None 0\n"] * 3
    assert (
        python(
            "import sqlite3, sys; print(sqlite3.connect(sys.argv[1]).execute('PRAGMA user_version').fetchone())", path
        ).stdout
        == f"({SCHEMA_VERSION},)\n"
    )

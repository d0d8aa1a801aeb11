"""How things stand, told from outside without touching anything (molecule_runtime/survey.py)."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from molecule_runtime.inbox.classify import Kind, Message
from molecule_runtime.inbox.journal import Counts, Journal
from molecule_runtime.state import OwnerLock, StateDir, WorkspaceState
from molecule_runtime.survey import Told, WorkspaceFacts, recent_problems, survey

WORKSPACE = "8c0f7b9e-2f0a-4b6e-9f0f-3f2f6c1d7a55"
SESSION = "a" * 32
SINCE = "2026-01-01T00:00:00.000000Z"


def told(root: Path, **env: str) -> Told:
    return Told.by({"CONFIGS_DIR": str(root)} | env, home=root / "home")


async def look(root: Path, *, now: datetime | None = None) -> WorkspaceFacts:
    (facts,) = await survey(told(root), now=now)
    return facts


def tree(root: Path) -> dict[str, tuple[int, int]]:
    """Every file below: size and time of the last change."""
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in root.rglob("*")}


def pid_of_the_dead() -> int:
    """The id of a process that was."""
    with subprocess.Popen([sys.executable, "-S", "-c", ""]) as dead:
        dead.wait()
    return dead.pid


def sign_and_die(journal: Path) -> None:
    """Open a journal, sign in 2001 and end as kill -9 ends."""
    program = f"""
import os, pathlib
from molecule_runtime.inbox.journal import Journal
journal = Journal.open(pathlib.Path({str(journal)!r}))
journal.begin_epoch("beat", session={SESSION!r}, pid=os.getpid(), now=1e9, after=0)
os._exit(9)
"""
    subprocess.run([sys.executable, "-c", program], check=False)


@pytest.fixture
def state(tmp_path: Path) -> WorkspaceState:
    return StateDir.open(tmp_path, home=tmp_path).workspace(WORKSPACE)


@pytest.fixture
def journal(state: WorkspaceState) -> Iterator[Journal]:
    """An open journal with one message, whose beat and inbox are done by this process."""
    with closing(Journal.open(state.journal)) as journal:
        now = datetime.now(UTC).timestamp()
        message = Message(str(uuid.uuid4()), Kind.CANVAS_USER, "", "hi", SINCE, "message/send")
        journal.append([message], cursor="c", last_row_at=now, now=now)
        for job in ("beat", "inbox"):
            journal.begin_epoch(job, session=SESSION, pid=os.getpid(), now=now, after=0)
        detail = {"state": "online", "since": SINCE, "last_ok_at": SINCE, "last_error": None}
        journal.describe("beat", session=SESSION, detail=detail)
        (state.sessions / f"{SESSION}.lock").touch()
        yield journal


async def test_what_a_living_owner_signed_is_shown_and_nothing_is_touched(
    journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ours: no file is made or written and no lock is tried, beside a process that works."""
    before = tree(tmp_path)
    monkeypatch.setattr(OwnerLock, "try_acquire", lambda self: pytest.fail("a lock was tried"))
    facts = await look(tmp_path)
    assert (facts.id, facts.name, facts.platform_url) == (WORKSPACE, "molecule-mcp-8c0f7b9e", None)
    assert (facts.state, facts.since, facts.last_ok_at) == ("online", SINCE, SINCE)
    assert facts.counts == Counts(new=1)
    assert (facts.beat_pid, facts.inbox_pid) == (os.getpid(), os.getpid())
    assert (facts.platform_status, facts.platform_error) == (None, None)
    assert tree(tmp_path) == before


async def test_an_owner_whose_signature_is_old_counts_as_stopped(journal: Journal, tmp_path: Path) -> None:
    """Agent-side 4: older than 60 s is a process that is stopped or hangs; `since` is its last sign."""
    stamp = journal.owner("beat")
    assert stamp is not None
    signed_at = datetime.fromtimestamp(stamp.stamped_at, UTC)
    assert (await look(tmp_path, now=signed_at + timedelta(seconds=59))).state == "online"
    facts = await look(tmp_path, now=signed_at + timedelta(seconds=61))
    assert (facts.state, facts.beat_pid, facts.inbox_pid) == ("stopped", None, None)
    assert datetime.fromisoformat(str(facts.since)) == signed_at


@pytest.mark.parametrize("end", ["killed", "clean"])
async def test_an_owner_that_is_gone_counts_as_stopped_at_once(
    journal: Journal, state: WorkspaceState, tmp_path: Path, end: str
) -> None:
    """Ours: a killed process leaves its session's file and no process, a clean end takes the file away."""
    if end == "clean":
        (state.sessions / f"{SESSION}.lock").unlink()
    else:
        now = datetime.now(UTC).timestamp()
        journal.begin_epoch("beat", session=SESSION, pid=pid_of_the_dead(), now=now, after=1)
    facts = await look(tmp_path)
    assert (facts.state, facts.beat_pid) == ("stopped", None)


async def test_a_journal_that_nobody_has_open_is_read_without_making_its_index(
    journal: Journal, tmp_path: Path
) -> None:
    """Ours: after a clean end there is one file, and there still is."""
    journal.close()
    before = tree(tmp_path)
    assert not [name for name in before if name.endswith(("-wal", "-shm"))]
    assert (await look(tmp_path)).counts == Counts(new=1)
    assert tree(tmp_path) == before


async def test_a_journal_of_a_killed_process_is_read_as_it_was_left(state: WorkspaceState, tmp_path: Path) -> None:
    """Ours: what stands in the log of writes counts, and nothing is folded back into the file."""
    sign_and_die(state.journal)
    before = tree(tmp_path)
    assert any(name.endswith("-wal") and size for name, (size, _) in before.items())
    facts = await look(tmp_path)
    assert (facts.state, facts.counts, facts.since) == ("stopped", Counts(), "2001-09-09T01:46:40.000000Z")
    assert tree(tmp_path) == before


@pytest.mark.parametrize("flaw", ["newer", "damaged"])
async def test_a_journal_that_cannot_be_read_is_a_fact(state: WorkspaceState, tmp_path: Path, flaw: str) -> None:
    """Ours: it is left as it is, and why is said."""
    if flaw == "newer":
        with closing(sqlite3.connect(state.journal)) as db:
            db.execute("PRAGMA user_version = 99")
    else:
        state.journal.write_bytes(b"not a database" * 100)
    before = tree(tmp_path)
    facts = await look(tmp_path)
    assert (facts.state, facts.counts) == ("stopped", None)
    assert ("newer version" if flaw == "newer" else "not a database") in str(facts.trouble)
    assert tree(tmp_path) == before


async def test_settings_decide_which_workspaces_are_shown(journal: Journal, tmp_path: Path) -> None:
    """Ours: those of the settings; when none of them was ever served from here, also those that were."""
    url = {"PLATFORM_URL": "http://127.0.0.1:9"}
    other = str(uuid.uuid4())
    ours = await survey(told(tmp_path, WORKSPACE_ID=WORKSPACE, **url))
    assert [one.id for one in ours] == [WORKSPACE]
    assert "cannot be reached" in str(ours[0].platform_error)
    both = await survey(told(tmp_path, WORKSPACE_ID=other, **url))
    assert [one.id for one in both] == [other, WORKSPACE]
    assert (both[0].state, both[0].since, both[0].counts) == ("stopped", None, None)
    assert not (tmp_path / other).exists()


@pytest.mark.parametrize(
    ("env", "is_missing"),
    [({}, True), ({"PLATFORM_URL": "http://h"}, True), ({"PLATFORM_URL": "ftp://h"}, False)],
)
def test_settings_that_are_missing_are_told_from_wrong_ones(
    env: dict[str, str], is_missing: bool, tmp_path: Path
) -> None:
    """Ours: an operator's shell seldom has the env block of the host."""
    read = told(tmp_path, **env)
    assert (read.settings, read.is_missing, read.state.root) == (None, is_missing, tmp_path)
    assert read.problems


def test_a_state_directory_that_does_not_exist_is_not_made(tmp_path: Path) -> None:
    """Ours: to look is not to begin."""
    assert told(tmp_path / "new").state.root == tmp_path / "new"
    assert Told.by({}, home=tmp_path).state.root in {tmp_path / ".molecule-workspace", Path("/configs")}
    assert list(tmp_path.iterdir()) == []


def test_the_last_troubles_of_the_log_are_found_across_a_rotation(tmp_path: Path) -> None:
    """Ours: WARNING and ERROR only, oldest first, whatever else stands in the file."""

    def write(file: Path, *numbers: int) -> None:
        lines = [{"level": "warning", "event": f"e{n}", "timestamp": SINCE, "detail": "d"} for n in numbers]
        noise = ['{"level": "info", "event": "fine"}', "torn {", "[]", ""]
        file.write_text("\n".join([*map(json.dumps, lines), *noise]))

    log = tmp_path / "molecule-mcp.log"
    assert recent_problems(log) == []
    write(log, 5, 6)
    write(tmp_path / "molecule-mcp.log.1", 1, 2, 3, 4)
    assert [line.event for line in recent_problems(log)] == ["e2", "e3", "e4", "e5", "e6"]
    write(log, *range(10))
    assert [line.event for line in recent_problems(log)] == ["e5", "e6", "e7", "e8", "e9"]

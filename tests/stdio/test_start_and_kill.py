"""200 lives that end at any moment, several at a time on one state directory, and what they leave: nothing in the way
of the next (agent-side 2)."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import time
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.crew import Crew, Plan
from tests.support.host import Host
from tests.support.platform import PlatformProcess, eventually

EARLY = [("spawned", 0.35)] * 82
"""Killed up to so many seconds after the spawn: before the pipe is claimed, and in the first imports."""
IMPORTING = [("spawned", 1.6)] * 9
SERVING = [("answered", 1.2)] * 9
"""After `initialize` was answered: before and after the registration, with both jobs in hand."""
LIBRARY_LIVES = 100
AT_A_TIME = 3
ENDS = ["SIGKILL"] * 7 + ["SIGTERM"] * 2 + ["EOF"]
NEXT_IS_ONLINE_S = 15.0
"""It takes 4 s on an idle machine; after a lock that is left it would take a minute or for ever."""


def processes_with(mark: str) -> list[int]:
    """Every process that has, or inherited, this variable in its environment."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and mark.encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:  # it ended meanwhile, or belongs to somebody else
            continue
    return found


@pytest.mark.timeout(180)
def test_200_starts_and_kills_leave_nothing_behind(platform_process: PlatformProcess, tmp_path: Path) -> None:
    """Agent-side 2 and 4: no process, no lock that stops the next, no temporary file, and every message is there."""
    settings = platform_process.create_workspace(f"start and kill {uuid.uuid4().hex[:8]}")
    workspace_id = settings["WORKSPACE_ID"]
    state, records, temporary = (tmp_path / name for name in ("state", "records", "temporary"))
    records.mkdir()
    temporary.mkdir()
    mark = uuid.uuid4().hex
    env = {"TMPDIR": str(temporary), "MOLECULE_TEST_MARK": mark, "MOLECULE_MCP_HEARTBEAT_SECS": "1"}
    seed = 2_000_011

    def live_and_die(number: int, since: str, at_most_s: float) -> None:
        chance = random.Random(seed + number)
        platform_process.say(workspace_id, f"during life {number}") if number % 3 == 0 else None
        with Host(settings, state=state, **env) as host:
            host.initialize() if since == "answered" else None
            time.sleep(chance.uniform(0, at_most_s))  # any moment of a life is what is tested
            match chance.choice(ENDS):
                case "EOF":
                    host.close_stdin()
                case name:
                    host.signal(signal.Signals[name])
            host.exit_code(within_s=10)

    def all_of(lives: list[tuple[str, float]], first: int) -> None:
        with ThreadPoolExecutor(AT_A_TIME) as hosts:
            list(hosts.map(lambda life: live_and_die(life[0], *life[1]), enumerate(lives, first)))

    plan = Plan(str(records), size=2, seed=seed, longest_s=0.4, takes_messages=False)
    with Crew(settings, state=state, plan=plan, **env) as crew:
        all_of(EARLY, 0)
        eventually(crew.deaths, within_s=60, until=lambda deaths: deaths >= LIBRARY_LIVES)
    assert [deed for deed in crew.deeds() if deed.what == "failed"] == []
    all_of(IMPORTING + SERVING, len(EARLY))
    assert processes_with(mark) == []

    for file in state.rglob(".*"):  # what a kill left half-written is cleared away once nobody can be writing it
        os.utime(file, (0, 0))
    with Host(settings, state=state, **env) as host:
        assert processes_with(mark) == [host.process.pid]
        host.initialize()
        eventually(
            lambda: host.call("runtime_status")["workspaces"][0]["owner"],
            within_s=NEXT_IS_ONLINE_S - (time.monotonic() - host.spawned_at),
            until=lambda owner: owner == {"beat": True, "inbox": True, "pid": host.process.pid},
        )
        eventually(
            lambda: host.call("runtime_status")["workspaces"][0]["presence"]["state"],
            within_s=NEXT_IS_ONLINE_S - (time.monotonic() - host.spawned_at),
            until=lambda presence: presence == "online",
        )
        eventually(lambda: platform_process.status(workspace_id), within_s=2, until=lambda status: status == "online")
        sent = {f"during life {number}" for number in range(0, 100, 3)}
        heard: Counter[tuple[str, int]] = Counter()
        for _ in sent:
            message = host.call("wait_for_message", timeout_secs=20)["message"]
            heard[message["text"], message["attempt"]] += 1
            host.call("inbox_pop", activity_id=message["activity_id"])
        assert heard == Counter((text, 1) for text in sent)
        assert host.call("wait_for_message", timeout_secs=0.5) == {"timeout": True, "waiting": 0}
        assert host.call("runtime_status")["problems"] == []
        left = sorted(str(path.relative_to(state)).replace(workspace_id, "ID") for path in state.rglob("*"))
        (own_lock,) = [name for name in left if name.startswith("ID/sessions/")]
        assert left == sorted([
            "ID", "ID/beat.lock", "ID/files", "ID/inbox.lock", "ID/inbox.sqlite3", "ID/inbox.sqlite3-shm",
            "ID/inbox.sqlite3-wal", "ID/platform_inbound_secret", "ID/sessions", "ID/sessions.lock", "ID/texts",
            own_lock, "log", "log/molecule-mcp.log",
        ])  # fmt: skip
        host.kill()
    assert processes_with(mark) == []
    assert list(temporary.iterdir()) == []
    with closing(sqlite3.connect(state / workspace_id / "inbox.sqlite3")) as journal:
        assert journal.execute("PRAGMA integrity_check").fetchall() == [("ok",)]

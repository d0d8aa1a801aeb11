"""Several processes on one workspace: each message goes to one, and nothing ends with any of them (agent-side 4)."""

from __future__ import annotations

import signal
import sqlite3
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.support.beats import beats_of
from tests.support.crew import Crew, Deed, Plan
from tests.support.host import Host
from tests.support.platform import PlatformProcess, eventually

Settings = dict[str, str]
TAKEN_OVER_S = 10.0
REPLACED_S = 90.0
ANSWERED_EVERY = 4
"""One message of so many is answered with `reply`, the others are put away."""


@pytest.fixture
def settings(platform_process: PlatformProcess) -> Settings:
    return platform_process.create_workspace(f"sessions {uuid.uuid4().hex[:8]}")


@contextmanager
def session(settings: Settings, state: Path) -> Iterator[Host]:
    with Host(settings, state=state, MOLECULE_MCP_HEARTBEAT_SECS="1") as host:
        host.initialize()
        yield host


def owned_by(host: Host) -> tuple[bool, bool]:
    """Whether this process beats, and whether it reads the feed."""
    owner = host.call("runtime_status")["workspaces"][0]["owner"]
    return owner["beat"], owner["inbox"]


def owns_everything(host: Host, within_s: float) -> None:
    eventually(lambda: owned_by(host), within_s=within_s, until=lambda owned: owned == (True, True))


def open_journal(state: Path, settings: Settings, timeout_s: float = 5) -> sqlite3.Connection:
    return sqlite3.connect(state / settings["WORKSPACE_ID"] / "inbox.sqlite3", isolation_level=None, timeout=timeout_s)


class Worker(threading.Thread):
    """A host that asks for the next message and answers it or puts it away, until it is told to stop."""

    def __init__(self, host: Host) -> None:
        super().__init__(daemon=True)
        self._host = host
        self.heard: list[tuple[str, int]] = []
        """What it was handed, and in which attempt."""
        self.acknowledged = 0
        self.is_to_stop = threading.Event()

    def run(self) -> None:
        while not self.is_to_stop.is_set():
            message = self._host.call("wait_for_message", timeout_secs=1).get("message")
            if message is None:
                continue
            self.heard.append((message["text"], message["attempt"]))
            if len(self.heard) % ANSWERED_EVERY == 1:
                answer = self._host.call("reply", activity_id=message["activity_id"], message=message["text"])
                self.acknowledged += answer["popped"]
            else:
                self.acknowledged += self._host.call("inbox_pop", activity_id=message["activity_id"])["removed"]


@pytest.mark.timeout(150)
def test_two_servers_share_200_messages_and_the_second_goes_on_when_the_first_is_killed(
    platform_process: PlatformProcess, settings: Settings, tmp_path: Path
) -> None:
    """Agent-side 4: each message to one of them; after a kill -9 the other beats and reads within 10 s."""
    workspace_id = settings["WORKSPACE_ID"]
    texts = [f"message {number}" for number in range(200)]
    with session(settings, tmp_path) as first:
        owns_everything(first, within_s=10)
        with session(settings, tmp_path) as second:
            workers = [Worker(host) for host in (first, second)]
            for worker in workers:
                worker.start()
            for text in texts:
                platform_process.say(workspace_id, text)
            eventually(lambda: sum(len(worker.heard) for worker in workers), within_s=60, until=lambda n: n >= 200)
            for worker in workers:
                worker.is_to_stop.set()
            for worker in workers:
                worker.join(20)
                assert not worker.is_alive()
            heard = [each for worker in workers for each in worker.heard]
            assert sorted(heard) == sorted((text, 1) for text in texts)
            assert all(worker.heard for worker in workers)
            assert sum(worker.acknowledged for worker in workers) == 200
            answers = Counter(text for role, text in platform_process.chat(workspace_id) if role == "agent")
            assert set(answers.values()) == {1}
            assert answers.keys() == {text for worker in workers for text, _ in worker.heard[::ANSWERED_EVERY]}
            assert second.call("inbox_peek") == {"messages": [], "total": 0}
            assert owned_by(second) == (False, False)

            platform_process.say(workspace_id, "in hand when it dies")
            assert first.call("wait_for_message", timeout_secs=20)["message"]["attempt"] == 1
            assert second.call("inbox_peek")["messages"][0]["state"] == "leased"
            with beats_of(platform_process, settings) as beats:
                first.kill()
                killed_at, started = datetime.now(UTC), time.monotonic()
                platform_process.say(workspace_id, "after the kill")
                found = [second.call("wait_for_message", timeout_secs=20)["message"] for _ in range(2)]
                beats.first_after(killed_at, within_s=TAKEN_OVER_S)
                assert time.monotonic() - started < TAKEN_OVER_S
            assert {(message["text"], message["attempt"]) for message in found} == {
                ("in hand when it dies", 2),
                ("after the kill", 1),
            }
            assert owned_by(second) == (True, True)


def stop(host: Host, state: Path, settings: Settings) -> None:
    """SIGSTOP, at a moment that is not inside a transaction: a process stopped in one keeps SQLite's lock until it
    goes on or is killed, and no other can write meanwhile."""
    while True:
        host.signal(signal.SIGSTOP)
        eventually(lambda: Path(f"/proc/{host.process.pid}/stat").read_text().rpartition(")")[2].split()[0],
                   within_s=5, until=lambda status: status == "T")  # fmt: skip
        with closing(open_journal(state, settings, timeout_s=0)) as journal:
            try:
                journal.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                host.signal(signal.SIGCONT)
                continue
            journal.execute("ROLLBACK")
            return


@pytest.mark.timeout(180)
def test_a_stopped_owner_is_replaced_and_nothing_is_handed_out_twice_when_it_goes_on(
    platform_process: PlatformProcess, settings: Settings, tmp_path: Path
) -> None:
    """Agent-side 4: within 90 s of a SIGSTOP in the middle of a call, with a message in hand and others on their way;
    after SIGCONT the old owner steps down. Everything that needs the wait of a minute is here; it costs no CPU."""
    workspace_id = settings["WORKSPACE_ID"]
    heard: list[dict[str, Any]] = []

    def take(host: Host, timeout_secs: float = 20) -> bool:
        found = host.call("wait_for_message", timeout_secs + 20, timeout_secs=timeout_secs).get("message")
        heard.extend([found] if found else [])
        return found is not None

    with session(settings, tmp_path) as first:
        owns_everything(first, within_s=10)
        with session(settings, tmp_path) as second, beats_of(platform_process, settings) as beats:
            platform_process.say(workspace_id, "in hand")
            assert take(first)
            (in_hand,) = heard
            in_flight = first.begin("wait_for_message", timeout_secs=50)
            first.ask("ping")
            texts = {"in hand"}

            def say(*more: str) -> None:
                for text in more:
                    platform_process.say(workspace_id, text)
                texts.update(more)

            say(*(f"just before {number}" for number in range(5)))
            stop(first, tmp_path, settings)
            stopped_at, started = datetime.now(UTC), time.monotonic()
            say(*(f"during {number}" for number in range(5)))
            # What the first had read from the feed is in the journal; the rest waits for a new reader.
            while not (heard and heard[-1]["text"].startswith("during")):
                take(second, 50)
                assert time.monotonic() - started < REPLACED_S
            assert time.monotonic() - started > 30  # no healthy owner is replaced that soon: the process was stopped
            beats.first_after(stopped_at, within_s=REPLACED_S - (time.monotonic() - started))
            owns_everything(second, within_s=REPLACED_S - (time.monotonic() - started))
            shown = {message["activity_id"]: message["state"] for message in second.call("inbox_peek")["messages"]}
            assert shown[in_hand["activity_id"]] == "leased"  # its process lives

            say(*(f"before it goes on {number}" for number in range(3)))
            first.signal(signal.SIGCONT)
            say(*(f"after {number}" for number in range(5)))
            heard += [found for found in [first.finish(in_flight).get("message")] if found]
            eventually(lambda: owned_by(first), within_s=10, until=lambda owned: owned == (False, False))
            while len(heard) < len(texts):
                assert take(second) or take(first)
            assert not take(first, 1)
            assert not take(second, 1)
            assert Counter(message["text"] for message in heard) == Counter(texts)
            assert {message["attempt"] for message in heard} == {1}
            assert owned_by(second) == (True, True)
            popped = [first.call("inbox_pop", activity_id=message["activity_id"])["removed"] for message in heard]
            assert all(popped)
            assert second.call("inbox_peek") == {"messages": [], "total": 0}
            assert (tmp_path / "log" / "molecule-mcp.log").read_text().count("ownership.stepped_down") == 2

            second.kill()
            say("for the first again")
            started = time.monotonic()
            assert take(first)
            owns_everything(first, within_s=TAKEN_OVER_S)
            assert time.monotonic() - started < TAKEN_OVER_S


MESSAGES = 1_000
AGENTS = 8


@pytest.mark.timeout(150)
def test_each_of_1000_messages_is_acknowledged_once_by_eight_processes_that_are_killed_all_the_time(
    platform_process: PlatformProcess, settings: Settings, tmp_path: Path
) -> None:
    """Agent-side 4: kills from outside at any moment, and from inside before any statement of SQL: in a page that is
    written, between a lease and its commit, between a pop and its record."""
    workspace_id, state, records = settings["WORKSPACE_ID"], tmp_path / "state", tmp_path / "records"
    records.mkdir()
    plan = Plan(str(records), size=AGENTS, seed=20_261_123, longest_s=2.5)
    with Crew(settings, state=state, plan=plan) as crew:
        with ThreadPoolExecutor(4) as canvas:
            list(canvas.map(lambda n: platform_process.say(workspace_id, f"message {n}"), range(MESSAGES)))
        crew.be_gentle()

        def counts() -> dict[str, int]:
            with closing(open_journal(state, settings)) as journal:
                return dict(journal.execute("SELECT state, COUNT(*) FROM messages GROUP BY state").fetchall())

        eventually(counts, within_s=60, until=lambda found: found == {"handled": MESSAGES})
    deeds, lives = crew.deeds(), crew.lives()
    assert sum(life.died is not None for life in lives.values()) == len(lives) > 2 * AGENTS
    assert [deed for deed in deeds if deed.what == "failed"] == []
    gots: dict[str, list[Deed]] = {}
    for deed in deeds:
        if deed.what == "got":
            gots.setdefault(deed.activity_id, []).append(deed)
    last_deed = {deed.life: deed for deed in deeds}
    acknowledged = Counter(deed.activity_id for deed in deeds if deed.what == "popped" and deed.value is True)
    assert set(acknowledged.values()) == {1}
    assert not [deed for deed in deeds if deed.what == "popped" and deed.value is False]

    # Killed after the pop and before its record: handled all the same, and then it is the last thing that life did.
    unrecorded = gots.keys() - acknowledged.keys()
    assert len(gots) == len(acknowledged) + len(unrecorded) == MESSAGES
    for activity_id in unrecorded:
        assert last_deed[gots[activity_id][-1].life] == gots[activity_id][-1]
    # Handed to another only after the first had died, and counted each time.
    for handed in gots.values():
        for earlier, later in pairwise(handed):
            assert earlier.value < later.value
            assert last_deed[earlier.life] == earlier
    with closing(open_journal(state, settings)) as journal:
        assert journal.execute("PRAGMA integrity_check").fetchall() == [("ok",)]

"""Work that goes from server to server while these and the platform are killed, and answers are lost (contract 6)."""

from __future__ import annotations

import asyncio
import random
import threading
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import connect
from websockets.typing import Origin

from molecule_runtime.agent import Agent, Message
from molecule_runtime.inbox.texts import TEXT_CODE_POINTS
from molecule_runtime.settings import Settings as AgentSettings
from molecule_runtime.wire.events import Event
from tests.support.host import Host
from tests.support.link import Exchange, Link
from tests.support.platform import PlatformProcess, eventually

Settings = dict[str, str]
TASK = "数一数星星 🌟, and take your time."
LONG = "世界🌍 and so on. " * 11_000
"""About 200 kB, of every width of code point."""
SEED = 20_261_125
RETRIED_WITHIN_S = 30.0


@contextmanager
def session(settings: Settings, state: Path) -> Iterator[Host]:
    with Host(settings, state=state) as host:
        host.initialize()
        yield host


def next_message(host: Host, timeout_secs: float = 20) -> dict[str, Any]:
    found = host.call("wait_for_message", timeout_secs + 10, timeout_secs=timeout_secs)
    assert "message" in found, found
    message: dict[str, Any] = found["message"]
    return message


def handed_out(platform: PlatformProcess, settings: Settings) -> list[tuple[str, str, str]]:
    """What the platform knows of a workspace's delegations, newest first: task, delegation id, status of the row."""
    query = {"type": "delegation", "limit": 500}
    answer = platform.http.get(f"/workspaces/{settings['WORKSPACE_ID']}/activity", params=query)
    answer.raise_for_status()
    bodies = [(row["request_body"], row["status"]) for row in answer.json() if row["method"] == "delegate"]
    return [(body["task"], body["delegation_id"], status) for body, status in bodies]


def results_in_the_inbox(platform: PlatformProcess, settings: Settings) -> list[str]:
    """The delegations whose result the platform put into a workspace's inbox, newest first."""
    rows = platform.activity(settings["WORKSPACE_ID"])
    brought = [row for row in rows if (row["activity_type"], row["method"]) == ("a2a_receive", "delegate_result")]
    return [row["request_body"]["delegation_id"] for row in brought]


def whole(shown: dict[str, Any]) -> bytes:
    """The bytes of a long text, of which the beginning is shown."""
    assert (shown["text"], shown["text_truncated"]) == (LONG[:TEXT_CODE_POINTS], True)
    return Path(shown["text_path"]).read_bytes()


def the_same(again: Message, first: Message) -> bool:
    """A job that was in hand before; whether it was also pushed to the host is the session's matter."""
    return {**again, "pushed": None} == {**first, "pushed": None, "attempt": 2}


@pytest.mark.timeout(120)
def test_a_job_outlives_its_delegator_its_worker_and_the_platform(tmp_path: Path) -> None:
    """Must hold: all three are killed with -9; one completion, the text byte for byte, delivered once and told when
    asked."""
    database = tmp_path / "platform.sqlite3"
    with PlatformProcess(database) as platform:
        front, worker = platform.create_workspace("front"), platform.create_workspace("worker")
        with session(front, tmp_path / "front") as host:
            handle = host.call("delegate_task", workspace_id=worker["WORKSPACE_ID"], task=TASK, timeout_secs=0)
            assert (handle["status"], handle["peer_id"]) == ("pending", worker["WORKSPACE_ID"])
            host.kill()
        with session(worker, tmp_path / "worker") as host:
            first = next_message(host)
            assert (first["text"], first["delegation_id"], first["attempt"]) == (TASK, handle["task_id"], 1)
            host.kill()
        platform.kill()

    with (
        PlatformProcess(database, port=platform.port) as platform,
        session(worker, tmp_path / "worker") as working,
        session(front, tmp_path / "front") as host,
    ):
        again = next_message(working)
        assert the_same(again, first)
        sent = working.call("reply", activity_id=again["activity_id"], message=LONG)
        assert (sent["to"], sent["popped"]) == ("delegation", True)

        result = next_message(host)
        facts = {key: result[key] for key in ("kind", "outcome", "delegation_id", "peer_id", "attempt")}
        assert facts == {
            "kind": "delegation_result",
            "outcome": "completed",
            "delegation_id": handle["task_id"],
            "peer_id": worker["WORKSPACE_ID"],
            "attempt": 1,
        }
        assert whole(result) == LONG.encode()
        assert host.call("inbox_pop", activity_id=result["activity_id"])["removed"] is True
        told = host.call("check_task_status", task_id=handle["task_id"])
        assert (told["status"], told["peer_id"]) == ("completed", worker["WORKSPACE_ID"])
        assert whole(told) == LONG.encode()

        assert host.call("inbox_peek") == {"messages": [], "total": 0}
        assert working.call("inbox_peek") == {"messages": [], "total": 0}
        assert handed_out(platform, front) == [(TASK, handle["task_id"], "completed")]
        assert results_in_the_inbox(platform, front) == [handle["task_id"]]
        received = [row for row in platform.activity(worker["WORKSPACE_ID"]) if row["activity_type"] == "a2a_receive"]
        assert len(received) == 1  # the job


class Road(Link):
    """A link on which a test can lose the answers to jobs that are handed out, or keep them back."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self.to_lose = 0
        """How many of the next answers never arrive; the platform has written the job."""
        self._is_open = asyncio.Event()
        self._is_open.set()

    def shut(self) -> None:
        self._is_open = asyncio.Event()

    def open(self) -> None:
        self._loop.call_soon_threadsafe(self._is_open.set)

    def asked(self) -> int:
        """How often a job was handed out, repetitions included."""
        return sum(is_delegate(each) for each in list(self.exchanges))

    async def before_answer(self, asked: Exchange) -> None:
        if is_delegate(asked) and self.to_lose:
            self.to_lose -= 1
            raise ConnectionResetError
        if is_delegate(asked):
            await self._is_open.wait()


def is_delegate(asked: Exchange) -> bool:
    return asked.method == "POST" and asked.path.endswith("/delegate")


@pytest.mark.timeout(120)
def test_jobs_whose_answers_are_lost_are_handed_out_once_when_the_same_words_are_tried_again(tmp_path: Path) -> None:
    """Deliver 2: the key of an intent outlives a lost answer and the platform's death between request and answer."""
    database, chance = tmp_path / "platform.sqlite3", random.Random(SEED)
    tasks = [f"task {number}" for number in range(10)]
    with ExitStack() as platforms:
        platform = platforms.enter_context(PlatformProcess(database))
        front, worker = platform.create_workspace("front"), platform.create_workspace("worker")
        given = {"workspace_id": worker["WORKSPACE_ID"], "timeout_secs": 0}
        with (
            Road(platform.port) as road,
            session(front | {"PLATFORM_URL": road.url}, tmp_path / "front") as host,
        ):
            handles, failures = [], 0
            for task in tasks:
                road.to_lose = chance.randint(0, 3)
                call = host.begin("delegate_task", task=task, **given)
                if task == "task 5":
                    killer = threading.Timer(chance.uniform(0, 0.03), platform.kill)
                    killer.start()
                    killer.join()
                    platform = platforms.enter_context(PlatformProcess(database, port=platform.port))
                result = host.answer_to(call)["result"]
                deadline = time.monotonic() + RETRIED_WITHIN_S
                while result.get("isError"):
                    assert time.monotonic() < deadline, result
                    failures += 1
                    result = host.call_raw("delegate_task", task=task, **given)
                handles.append(result["structuredContent"]["task_id"])
            assert failures
            assert road.asked() > len(tasks)
            wanted = [(task, handle, "queued") for task, handle in zip(tasks, handles, strict=True)]
            assert handed_out(platform, front) == wanted[::-1]
            listed = host.call("check_task_status")["tasks"]
            assert [(one["task"], one["task_id"]) for one in listed[::-1]] == list(zip(tasks, handles, strict=True))


AT_ONCE = 10
LONGEST_REQUEST_S = 50.0
HOST_LIMIT_S = 60.0


@asynccontextmanager
async def working(settings: Settings, state: Path) -> AsyncIterator[Agent]:
    """An agent in this process."""
    async with Agent(AgentSettings.from_env(settings | {"CONFIGS_DIR": str(state)})) as agent:
        yield agent


async def taken(agent: Agent) -> Message:
    message = await agent.wait(20)
    assert message is not None
    return message


@pytest.mark.timeout(150)
async def test_a_call_of_ten_minutes_gives_a_handle_and_stands_in_no_other_calls_way(
    platform_process: PlatformProcess, tmp_path: Path
) -> None:
    """Must hold: a handle within the limit, no request open longer than 50 s. The same words ten times at once are one
    job, from one server and from two of a workspace; a call that is cancelled leaves its result to the inbox. All of it
    while the long call waits, which costs no CPU."""
    name = uuid.uuid4().hex[:8]
    front, worker, absent = (platform_process.create_workspace(f"{role} {name}") for role in ("front", "worker", "ab"))
    with Road(platform_process.port) as road:
        front |= {"PLATFORM_URL": road.url}
        async with working(worker, tmp_path / "worker") as agent:
            with session(front, tmp_path / "front") as host, session(front, tmp_path / "front") as second:
                began = time.monotonic()
                call = host.begin("delegate_task", workspace_id=absent["WORKSPACE_ID"], task="x", timeout_secs=600)
                eventually(road.asked, within_s=10)

                await one_job_for_calls_at_once(road, [host], agent, worker, task="from one server")
                await one_job_for_calls_at_once(road, [host, second], agent, worker, task="from two servers")
                await a_cancelled_call_leaves_a_message(host, agent, worker)

                handle = host.finish(call, HOST_LIMIT_S)
                assert time.monotonic() - began < HOST_LIMIT_S
                assert (handle["status"], handle["peer_status"]) == ("pending", "awaiting_agent")
                now = time.time()
                asked = [each for each in road.exchanges if each.path != "/ws"]
                assert max((each.ended or now) - each.began for each in asked) < LONGEST_REQUEST_S
        handed = [task for task, _, _ in handed_out(platform_process, front)]
        assert sorted(handed) == ["cancelled", "cancelled", "from one server", "from two servers", "x"]


async def one_job_for_calls_at_once(
    road: Road, hosts: list[Host], agent: Agent, worker: Settings, *, task: str
) -> None:
    """Every call has asked the platform before the first of them is answered."""
    asked = road.asked()
    road.shut()
    calls = [
        (host, host.begin("delegate_task", workspace_id=worker["WORKSPACE_ID"], task=task, timeout_secs=40))
        for _ in range(AT_ONCE // len(hosts))
        for host in hosts
    ]
    eventually(road.asked, within_s=20, until=lambda now: now == asked + AT_ONCE)
    road.open()
    job = await taken(agent)
    await agent.reply(job, f"done: {job['text']}")
    results = [host.finish(call, 45) for host, call in calls]
    assert {(one["status"], one["text"], one["task_id"]) for one in results} == {
        ("completed", f"done: {task}", job["delegation_id"])
    }
    assert hosts[0].call("inbox_peek") == {"messages": [], "total": 0}
    assert await agent.wait(0.5) is None


async def a_cancelled_call_leaves_a_message(host: Host, agent: Agent, worker: Settings) -> None:
    """Who asks again before it is put away is given the result of the job that there was; who asks later, a new job."""
    given = {"workspace_id": worker["WORKSPACE_ID"], "task": "cancelled"}
    call = host.begin("delegate_task", timeout_secs=40, **given)
    job = await taken(agent)
    cancelled = {"requestId": call, "reason": "the user pressed escape"}
    host.send({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": cancelled})
    host.ask("ping")
    await agent.reply(job, "all the same")
    result = next_message(host)
    assert (result["kind"], result["delegation_id"]) == ("delegation_result", job["delegation_id"])
    assert result["text"] == "all the same"
    again = host.call("delegate_task", timeout_secs=20, **given)
    assert (again["task_id"], again["text"]) == (job["delegation_id"], "all the same")
    assert host.call("inbox_peek") == {"messages": [], "total": 0}
    assert await agent.wait(0.5) is None
    later = host.call("delegate_task", timeout_secs=0, **given)
    assert later["task_id"] == (await taken(agent))["delegation_id"] != job["delegation_id"]


async def test_a_worker_that_dies_is_missed_and_its_successors_answer_still_counts(tmp_path: Path) -> None:
    """Contract 6.7: who sends heartbeats and stops is found out; agent-side 5: a late answer is the result all the
    same."""
    windows = {"DELEGATION_STUCK_THRESHOLD_S": "2", "DELEGATION_SWEEPER_INTERVAL_S": "0.3"}
    with PlatformProcess(tmp_path / "platform.sqlite3", **windows) as platform:
        front, worker = platform.create_workspace("front"), platform.create_workspace("worker")
        async with working(front, tmp_path / "front") as agent:
            with connect(
                f"{platform.url.replace('http', 'ws', 1)}/ws", origin=Origin(platform.url), proxy=None
            ) as canvas:
                handle = await agent.delegate(worker["WORKSPACE_ID"], TASK, timeout_s=0)
                with session(worker, tmp_path / "worker") as host:
                    job = next_message(host)
                    told = heard(canvas, "DELEGATION_STATUS", status="in_progress")
                    assert told["delegation_id"] == handle.delegation_id == job["delegation_id"]
                    host.kill()
                failed = heard(canvas, "DELEGATION_FAILED")
            missed = await taken(agent)
            assert (missed["kind"], missed["outcome"]) == ("delegation_result", "failed")
            assert (missed["delegation_id"], missed["peer_id"]) == (handle.delegation_id, worker["WORKSPACE_ID"])
            assert missed["text"] == failed["error"]
            assert failed["error"].startswith("no heartbeat for ")
            await agent.done(missed)
            assert (await agent.task(str(handle.delegation_id))).status == "stuck"

            async with working(worker, tmp_path / "worker") as successor:
                late = await taken(successor)
                assert the_same(late, job)
                await successor.reply(late, "late, but done")
            result = await taken(agent)
            assert (result["kind"], result["outcome"]) == ("delegation_result", "completed")
            assert (result["delegation_id"], result["text"]) == (handle.delegation_id, "late, but done")
            await agent.done(result)
            done = await agent.task(str(handle.delegation_id))
            assert (done.status, done.text) == ("completed", "late, but done")
            assert await agent.wait(0.5) is None


def heard(canvas: Any, name: str, **fields: str) -> dict[str, Any]:
    """The payload of the next event of this name with these fields, at the canvas's socket."""
    deadline = time.monotonic() + 20
    while True:
        event = Event.model_validate_json(canvas.recv(timeout=deadline - time.monotonic()))
        payload: dict[str, Any] = event.payload
        if event.event == name and fields.items() <= payload.items():
            return payload

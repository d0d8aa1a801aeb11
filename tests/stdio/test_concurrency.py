"""What goes on while a tool waits: everything else (mcp-sdk, recipes; agent-side 5, wait_for_message)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.host import Host
from tests.support.platform import PlatformProcess


@dataclass(frozen=True)
class Agent:
    """A session on a workspace of its own, and the platform that the user writes at."""

    host: Host
    platform: PlatformProcess
    workspace_id: str

    def say(self, text: str) -> None:
        self.platform.say(self.workspace_id, text)

    def cancel(self, request_id: str | int) -> None:
        notice = {"requestId": request_id, "reason": "the user pressed Escape"}
        self.host.send({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": notice})


@pytest.fixture(scope="module")
def agent(platform_process: PlatformProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    settings = platform_process.create_workspace("concurrent")
    state: Path = tmp_path_factory.mktemp("state")
    with Host(settings, state=state, MOLECULE_MCP_PUSH="off") as host:  # pushes have tests of their own
        host.initialize()
        yield Agent(host, platform_process, settings["WORKSPACE_ID"])


@pytest.fixture(autouse=True)
def _an_empty_inbox(agent: Agent) -> Iterator[None]:
    """Each test begins with nothing to read and nothing unasked on the wire."""
    yield
    for message in agent.host.call("inbox_peek", limit=100)["messages"]:
        agent.host.call("inbox_pop", activity_id=message["activity_id"])


def test_ping_and_other_tools_are_answered_while_a_tool_waits(agent: Agent) -> None:
    """Agent-side 8, "server freezes during a wait": half a second is far below any host's patience."""
    waiting = agent.host.begin("wait_for_message", timeout_secs=30)
    started = time.monotonic()
    assert agent.host.ask("ping", timeout_s=0.5)["result"] == {}
    assert agent.host.call("inbox_peek", 2) == {"messages": [], "total": 0}
    assert agent.host.call("send_message_to_user", 5, message="still here")["status"] == "sent"
    assert time.monotonic() - started < 5
    agent.say("go on")
    assert agent.host.finish(waiting)["message"]["text"] == "go on"


def test_a_cancelled_wait_is_not_answered_and_loses_no_message(agent: Agent) -> None:
    """Agent-side 5: cancel gives the lease back; the next wait gets the message as its first hand-out."""
    waiting = agent.host.begin("wait_for_message", timeout_secs=30)
    agent.host.ask("ping")
    agent.cancel(waiting)
    agent.host.receive_nothing(0.3)
    agent.say("after the cancel")
    message = agent.host.call("wait_for_message", timeout_secs=20)["message"]
    assert (message["text"], message["attempt"]) == ("after the cancel", 1)
    assert waiting not in [other.get("id") for other in agent.host.others]


def test_messages_that_race_with_a_cancel_are_handed_out_once(agent: Agent) -> None:
    """Agent-side 5: whether the cancel comes before, with or after the message, nothing is lost and nothing doubled."""
    sent, heard = [], []
    for number in range(10):
        text = f"race {number}"
        waiting = agent.host.begin("wait_for_message", timeout_secs=30)
        agent.say(text)
        sent.append(text)
        time.sleep(number / 500)  # the cancel meets each stage of a delivery
        agent.cancel(waiting)
        agent.host.ask("ping")
        answers = [other for other in agent.host.others if other.get("id") == waiting]
        if answers:  # the answer was on its way already: the host may use or drop it, the message stays leased
            message = answers[0]["result"]["structuredContent"]["message"]
        else:
            message = agent.host.call("wait_for_message", timeout_secs=20)["message"]
            assert message["attempt"] == 1
        heard.append(message["text"])
        agent.host.call("inbox_pop", activity_id=message["activity_id"])
    assert heard == sent


def test_a_cancel_of_a_request_that_was_answered_changes_nothing(agent: Agent) -> None:
    """Clients 2: opencode sends such a notice for each call."""
    request_id = agent.host.begin("inbox_peek")
    assert agent.host.finish(request_id) == {"messages": [], "total": 0}
    agent.cancel(request_id)
    assert agent.host.ask("ping")["result"] == {}
    assert agent.host.call("inbox_peek") == {"messages": [], "total": 0}


def test_two_waits_at_once_get_two_messages(agent: Agent) -> None:
    """Agent-side 4: a lease names one call."""
    first, second = (agent.host.begin("wait_for_message", timeout_secs=30) for _ in range(2))
    agent.host.ask("ping")
    agent.say("one")
    agent.say("two")
    got = [agent.host.finish(request_id)["message"] for request_id in (first, second)]
    assert sorted((message["text"], message["attempt"]) for message in got) == [("one", 1), ("two", 1)]


def test_progress_is_told_to_those_who_ask_for_it(agent: Agent) -> None:
    """Agent-side 5: every 5 s with a token, whatever its type; never without one."""
    call = {"name": "wait_for_message", "arguments": {"timeout_secs": 6}}
    silent = agent.host.request("tools/call", call)
    heard = agent.host.request("tools/call", call | {"_meta": {"progressToken": "mine"}})
    started = time.monotonic()
    told = agent.host.receive()
    after_s = time.monotonic() - started
    assert told == {
        "jsonrpc": "2.0",
        "method": "notifications/progress",
        "params": {"progressToken": "mine", "progress": 5.0, "total": 6.0, "message": told["params"]["message"]},
    }
    assert 4 < after_s < 7
    for request_id in (silent, heard):
        assert agent.host.finish(request_id) == {"timeout": True, "waiting": 0}
    assert [other for other in agent.host.others if other.get("method")] == []


@pytest.mark.parametrize("seconds", [0, -3])
def test_a_wait_of_no_time_only_looks(agent: Agent, seconds: int) -> None:
    """Agent-side 5: an empty inbox is answered at once, a full one gives its message."""
    assert agent.host.call("wait_for_message", 2, timeout_secs=seconds) == {"timeout": True, "waiting": 0}

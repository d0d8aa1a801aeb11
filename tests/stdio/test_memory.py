"""What an agent remembers while its server and the platform are killed and answers are lost (contract 7)."""

from __future__ import annotations

import json
import random
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.host import Host
from tests.support.link import Exchange, Link
from tests.support.platform import PlatformProcess, eventually

SEED = 20_261_126
KILLS = 5
COMMITS = 8
"""In each session, one after the other, as fast as they go."""


class Road(Link):
    """A link on which one answer in `loses_one_in` to a memory never arrives; the platform has it."""

    def __init__(self, port: int, chance: random.Random) -> None:
        super().__init__(port)
        self.loses_one_in = 3
        self._chance = chance
        self.lost = 0

    async def before_answer(self, asked: Exchange) -> None:
        about_memory = asked.path.endswith(("/memories", "/mcp"))
        if asked.method == "POST" and about_memory and self._chance.randrange(self.loses_one_in) == 0:
            self.lost += 1
            raise ConnectionResetError


def everything(platform: PlatformProcess, workspace_id: str) -> list[str]:
    """The contents of all memories of a workspace, by the platform's own routes."""
    found: list[str] = []
    for query in ("v1", "v2"):
        answer = platform.http.get(f"/workspaces/{workspace_id}/memories", params={"q": query, "limit": 50})
        answer.raise_for_status()
        found += [row["content"] for row in answer.json()]
    return sorted(found)


@pytest.mark.timeout(180)
def test_every_memory_is_stored_once_whatever_is_killed(tmp_path: Path) -> None:
    """Deliver 3: what was confirmed or queued is there once; what was cut off in the middle at most once."""
    database, chance = tmp_path / "platform.sqlite3", random.Random(SEED)
    told: set[str] = set()
    tried: set[str] = set()
    with ExitStack() as stack:
        platform = stack.enter_context(PlatformProcess(database, memory=True))
        settings = platform.create_workspace("host")
        workspace_id = settings["WORKSPACE_ID"]
        road = stack.enter_context(Road(platform.port, chance))
        for session in range(KILLS):
            with Host(
                settings | {"PLATFORM_URL": road.url, "MOLECULE_MCP_TOOLS": "full"}, state=tmp_path / "state"
            ) as host:
                host.initialize()
                if session == 2:
                    platform.kill()
                calls = {}
                for number in range(COMMITS):
                    tool, way = chance.choice([("commit_memory", "v1"), ("commit_memory_v2", "v2")])
                    content = f"{way} session{session} number{number}"
                    tried.add(content)
                    calls[content] = host.begin(tool, content=content)
                killer = threading.Timer(chance.uniform(0.01, 0.6), host.kill)
                killer.start()
                killer.join()
                answered = done_before_the_end(host)
                told |= {content for content, call in calls.items() if call in answered}
            if session == 2:
                platform = stack.enter_context(PlatformProcess(database, port=platform.port, memory=True))
        assert told, "every server was killed before its first answer"
        assert told != tried, "no server was killed in the middle"
        assert road.lost
        road.loses_one_in = 1_000_000
        with Host(settings | {"PLATFORM_URL": road.url}, state=tmp_path / "state") as host:
            host.initialize()
            eventually(lambda: told <= set(everything(platform, workspace_id)), within_s=60)
            eventually(lambda: not still_waits(host), within_s=30)
        found = everything(platform, workspace_id)
        assert len(found) == len(set(found))
        assert told <= set(found) <= tried


def done_before_the_end(host: Host) -> set[str | int]:
    """The requests of a killed server that had succeeded by then."""
    lines = [json.loads(line) for line in host.received_lines() if line.endswith(b"}")]
    return {line["id"] for line in lines if "result" in line and not line["result"].get("isError")}


def still_waits(host: Host) -> bool:
    return any(problem["id"] == "memory.waiting" for problem in host.call("runtime_status")["problems"])


@pytest.mark.timeout(60)
def test_a_host_is_told_of_what_it_reads_as_resources(tmp_path: Path) -> None:
    """Deliver 4: lists that can be read, and subscriptions, over the pipe of a real server."""
    with PlatformProcess(tmp_path / "platform.sqlite3", memory=True) as platform:
        settings = platform.create_workspace("host")
        with Host(settings, state=tmp_path / "state") as host:
            capabilities = host.initialize()["capabilities"]
            assert capabilities["resources"]["subscribe"] is True
            listed = host.ask("resources/list")["result"]["resources"]
            assert [one["uri"] for one in listed] == ["molecule://inbox", "molecule://memory"]
            for one in listed:
                host.ask("resources/subscribe", {"uri": one["uri"]})
            eventually(lambda: platform.status(settings["WORKSPACE_ID"]), within_s=10, until="online".__eq__)
            assert read(host, "molecule://memory") == {"memories": []}

            host.call("commit_memory", content="the sea is calm")
            eventually(lambda: "molecule://memory" in updated(host), within_s=10)
            (found,) = read(host, "molecule://memory")["memories"]
            assert (found["content"], found["scope"]) == ("the sea is calm", "LOCAL")

            platform.say(settings["WORKSPACE_ID"], "hello")
            eventually(lambda: "molecule://inbox" in updated(host), within_s=10)
            (message,) = read(host, "molecule://inbox")["messages"]
            assert (message["text"], message["state"]) == ("hello", "new")
            assert host.call("wait_for_message", timeout_secs=5)["message"]["text"] == "hello"


def read(host: Host, uri: str) -> dict[str, Any]:
    (content,) = host.ask("resources/read", {"uri": uri})["result"]["contents"]
    found: dict[str, Any] = json.loads(content["text"])
    return found


def updated(host: Host) -> list[str]:
    """The URIs of the resources that the host was told of so far."""
    host.ask("ping")
    name = "notifications/resources/updated"
    return [one["params"]["uri"] for one in host.others if one.get("method") == name]

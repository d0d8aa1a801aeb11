"""The tools that remember, over real runtimes and a real platform, without and with a memory plugin."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as tried
from hypothesis import strategies as st

from molecule_mcp.tools._base import Tool
from molecule_mcp.tools.memory import CONTENT_CODE_POINTS, TOOLS, fit
from molecule_mcp.tools.messages import MAX_RESULT_BYTES
from tests.support.platform import PlatformProcess

from .support import Host, hosting

COMMIT, RECALL, FORGET, COMMIT_V2, SEARCH, SUMMARY, READABLE, WRITABLE = TOOLS


@pytest.fixture(scope="module", params=["table", "plugin"])
def any_platform(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlatformProcess]:
    """Memories in the platform's own table, or in the plugin beside it."""
    file = tmp_path_factory.mktemp("platform") / "platform.sqlite3"
    with PlatformProcess(file, memory=request.param == "plugin") as platform:
        yield platform


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlatformProcess]:
    """With a memory plugin."""
    with PlatformProcess(tmp_path_factory.mktemp("platform") / "platform.sqlite3", memory=True) as platform:
        yield platform


@pytest.fixture
async def anyone(any_platform: PlatformProcess, tmp_path: Path) -> AsyncIterator[Host]:
    async with hosting(any_platform.create_workspace("anyone"), tmp_path) as host:
        yield host


@pytest.fixture
async def host(platform: PlatformProcess, tmp_path: Path) -> AsyncIterator[Host]:
    async with hosting(platform.create_workspace("host"), tmp_path) as host:
        yield host


@pytest.fixture
async def team(any_platform: PlatformProcess, tmp_path: Path) -> AsyncIterator[tuple[Host, Host, Host]]:
    """A root, its child, and a workspace of nobody's."""
    root = any_platform.create_workspace("root")
    child = any_platform.create_workspace("child", parent_id=root["WORKSPACE_ID"])
    stranger = any_platform.create_workspace("stranger")
    async with (
        hosting(root, tmp_path / "root") as first,
        hosting(child, tmp_path / "child") as second,
        hosting(stranger, tmp_path / "stranger") as third,
    ):
        yield first, second, third


async def contents(host: Host, tool: Tool[Any] = RECALL, **arguments: Any) -> list[str]:
    return [memory["content"] for memory in (await host.ok(tool, **arguments))["memories"]]


async def refused(host: Host, tool: Tool[Any], **arguments: Any) -> str:
    result = await host.call(tool, **arguments)
    assert result.error_text is not None, result.payload
    return result.error_text


async def test_what_is_committed_is_found_and_can_be_forgotten(anyone: Host) -> None:
    """agent-side 5: ids in every result; forget is final, the second time there is nothing."""
    done = await anyone.ok(COMMIT, content="The tide table is in the drawer. 潮汐表在抽屉里")
    assert done == {"id": done["id"], "status": "stored", "scope": "LOCAL"}
    (found,) = (await anyone.ok(RECALL, query="抽屉"))["memories"]
    assert found == {
        "id": done["id"],
        "scope": "LOCAL",
        "content": "The tide table is in the drawer. 潮汐表在抽屉里",
        "created_at": found["created_at"],
    }
    assert await contents(anyone, query="the TIDE") == [found["content"]]
    assert await contents(anyone) == [found["content"]]
    assert await contents(anyone, query="elsewhere") == []
    assert await anyone.ok(FORGET, memory_id=done["id"]) == {"forgotten": True}
    assert await contents(anyone) == []
    assert done["id"] in await refused(anyone, FORGET, memory_id=done["id"])


async def test_scopes_say_who_may_read(team: tuple[Host, Host, Host]) -> None:
    """Contract 7.1: LOCAL oneself, TEAM those beside and above, nobody else; forgetting is for the writer alone."""
    root, child, stranger = team
    await root.ok(COMMIT, content="mine alone")
    shared = await root.ok(COMMIT, content="ours", scope="team")
    assert shared["scope"] == "TEAM"
    assert sorted(await contents(root)) == ["mine alone", "ours"]
    assert await contents(child) == ["ours"]
    assert await contents(child, scope="LOCAL") == []
    assert await contents(stranger) == []
    for other in (child, stranger):
        assert shared["id"] in await refused(other, FORGET, memory_id=shared["id"])
    assert await contents(child) == ["ours"]
    assert await root.ok(FORGET, memory_id=shared["id"]) == {"forgotten": True}
    assert await contents(child) == []


async def test_only_a_root_tells_everybody(team: tuple[Host, Host, Host]) -> None:
    """Contract 7.1; the refusal in the platform's words, and nothing waits to be tried again."""
    _, child, _ = team
    assert "root" in await refused(child, COMMIT, content="all of you", scope="GLOBAL")
    assert await contents(child) == []


async def test_what_is_wrong_is_said_and_nothing_is_written(host: Host) -> None:
    wrong = [
        (COMMIT, {"content": " "}),
        (COMMIT, {"content": "a", "scope": "WORLD"}),
        (COMMIT_V2, {"content": "a", "kind": "rumour"}),
        (COMMIT_V2, {"content": "a", "expires_at": "tomorrow"}),
        (COMMIT_V2, {"content": "a", "namespace": "workspace:another"}),
        (RECALL, {"limit": 0}),
        (RECALL, {"scope": "mine"}),
        (FORGET, {"memory_id": ""}),
        (FORGET, {"memory_id": "../../etc/passwd"}),
        (SEARCH, {"kinds": ["rumour"]}),
    ]
    for tool, arguments in wrong:
        assert await refused(host, tool, **arguments)
    assert await contents(host) == []


async def test_namespaces_kinds_pins_and_expiry(host: Host) -> None:
    """Contract 7.3: the tools of v2 as the platform's own."""
    own = f"workspace:{host.id}"
    assert own in [one["name"] for one in (await host.ok(WRITABLE))["namespaces"]]
    assert {one["name"].split(":")[0] for one in (await host.ok(READABLE))["namespaces"]} == {
        "workspace",
        "team",
        "org",
    }
    fact = await host.ok(COMMIT_V2, content="a fact", pin=True)
    assert fact == {"id": fact["id"], "status": "stored", "namespace": own}
    summary = await host.ok(SUMMARY, content="a summary", namespace=f"team:{host.id}")
    assert summary["namespace"] == f"team:{host.id}"
    assert await contents(host, SEARCH) == ["a fact", "a summary"]
    assert await contents(host, SEARCH, kinds=["summary"]) == ["a summary"]
    assert await contents(host, SEARCH, namespaces=[own]) == ["a fact"]
    assert await contents(host, SEARCH, namespaces=["workspace:another"]) == []
    assert await contents(host, SEARCH, query="summary") == ["a summary"]
    for written in (fact, summary):
        assert await host.ok(FORGET, memory_id=written["id"]) == {"forgotten": True}
    assert await contents(host, SEARCH) == []


async def test_without_a_plugin_the_tools_of_v2_say_what_is_missing(tmp_path: Path) -> None:
    """agent-side 5: an answer to "why does it not work?"."""
    with PlatformProcess(tmp_path / "platform.sqlite3") as platform:
        async with hosting(platform.create_workspace("host"), tmp_path) as host:
            for tool, arguments in ((COMMIT_V2, {"content": "a"}), (SEARCH, {}), (READABLE, {})):
                assert "MEMORY_PLUGIN_URL" in await refused(host, tool, **arguments)


async def test_a_long_memory_is_shown_in_part(host: Host) -> None:
    """A host cuts what is too long; we say that we did, and where."""
    text = "世" * (CONTENT_CODE_POINTS + 1)
    await host.ok(COMMIT, content=text)
    (found,) = (await host.ok(RECALL))["memories"]
    assert (found["content"], found["content_truncated"]) == (text[:-1], True)


def test_as_many_are_shown_as_fit() -> None:
    memories = [{"id": str(number), "content": "x" * 2_000} for number in range(50)]
    shown = fit(memories)
    assert 0 < len(shown["memories"]) < 50
    assert shown["left_out"] == 50 - len(shown["memories"])
    assert sum(len(one["content"]) for one in shown["memories"]) <= MAX_RESULT_BYTES


async def test_any_text_comes_back_equal(anyone: Host) -> None:
    """Must hold: arbitrary Unicode, from the tool to the database and back; NUL, which no JSON text of PostgreSQL
    holds, is left out, and what looks like a secret is not what is tried here."""
    texts = st.text(min_size=1, max_size=30).filter(lambda text: text.strip() and "\0" not in text)
    seen: list[str] = []

    @tried(max_examples=40, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(texts)
    def gather(text: str) -> None:
        seen.append(text)

    gather()
    committed = {(await anyone.ok(COMMIT, content=text))["id"]: text for text in dict.fromkeys(seen)}
    found = (await anyone.ok(RECALL, limit=50))["memories"]
    assert {one["id"]: one["content"] for one in found} == committed


async def test_a_memory_is_kept_while_the_platform_is_away_and_stored_once(tmp_path: Path) -> None:
    """Deliver 3: queued with its own id; found once when the platform is back, and forgotten by that id."""
    file = tmp_path / "platform.sqlite3"
    with PlatformProcess(file, memory=True) as platform:
        settings = platform.create_workspace("host")
        async with hosting(settings, tmp_path / "state") as host:
            before = await host.ok(COMMIT, content="before")
            platform.stop()
            queued = [await host.ok(COMMIT, content=text) for text in ("one", "two", "one")]
            by_v2 = await host.ok(COMMIT_V2, content="by v2", pin=True)
            assert {one["status"] for one in (*queued, by_v2)} == {"queued"}
            assert queued[0]["id"] == queued[2]["id"]
            assert "reached" in await refused(host, RECALL)
            unwanted = await host.ok(COMMIT, content="not after all")
            assert await host.ok(FORGET, memory_id=unwanted["id"]) == {"forgotten": True}
            with PlatformProcess(file, port=platform.port, memory=True):
                expected = {
                    before["id"]: "before",
                    queued[0]["id"]: "one",
                    queued[1]["id"]: "two",
                    by_v2["id"]: "by v2",
                }
                await eventually_recalls(host, expected)
                for memory_id in expected:
                    assert await host.ok(FORGET, memory_id=memory_id) == {"forgotten": True}
                assert await contents(host) == []


async def eventually_recalls(host: Host, expected: dict[str, str]) -> None:
    with anyio.fail_after(60):
        while True:
            result = await host.call(RECALL, limit=50)
            found = (result.payload or {}).get("memories", [])
            if {one["id"]: one["content"] for one in found} == expected and len(found) == len(expected):
                return
            await anyio.sleep(0.1)


async def test_of_several_workspaces_each_remembers_its_own(any_platform: PlatformProcess, tmp_path: Path) -> None:
    """agent-side 5: the id alone is enough to forget; where two could be meant the workspace is asked for."""
    first, second = (any_platform.create_workspace(name) for name in ("first", "second"))
    entries = [{"id": one["WORKSPACE_ID"], "token": one["MOLECULE_WORKSPACE_TOKEN"]} for one in (first, second)]
    settings = {"PLATFORM_URL": any_platform.url, "MOLECULE_WORKSPACES": json.dumps(entries)}
    async with hosting(settings, tmp_path) as host:
        assert "workspace" in await refused(host, COMMIT, content="whose?")
        ids = [
            (await host.ok(COMMIT, content=name, source_workspace_id=one["WORKSPACE_ID"]))["id"]
            for name, one in (("of the first", first), ("of the second", second))
        ]
        assert await contents(host, source_workspace_id=second["WORKSPACE_ID"]) == ["of the second"]
        for memory_id in ids:
            assert await host.ok(FORGET, memory_id=memory_id) == {"forgotten": True}
        assert ids[0] in await refused(host, FORGET, memory_id=ids[0])

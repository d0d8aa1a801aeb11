"""The platform's MCP bridge: the protocol, and that listing, checks and calls come from one record (contract 8.1)."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from molecule_runtime.clock import ManualClock
from molecule_runtime.reference_platform.config import PlatformConfig
from molecule_runtime.reference_platform.routes._mcp_tools import TOOLS

from .memories import a_plugin, recalled, refused, remember, rpc, seen, use
from .support import ADMIN, Platform, SqliteFile, running

MEMORY_TOOLS = {
    "commit_memory_v2",
    "search_memory",
    "commit_summary",
    "list_writable_namespaces",
    "list_readable_namespaces",
    "forget_memory",
    "commit_memory",
    "recall_memory",
}


@pytest.fixture
def database(tmp_path: Path, migrated_file: Path) -> SqliteFile:
    """One kind: the bridge has no statements of its own."""
    return SqliteFile(Path(shutil.copy(migrated_file, tmp_path / "platform.sqlite3")))


@pytest.fixture
def clock() -> ManualClock:
    """Ahead of the plugin's own, which is the machine's: what lasts 30 days from then on has not expired."""
    return ManualClock(datetime(2500, 1, 1, tzinfo=UTC))


@asynccontextmanager
async def with_plugin(config: PlatformConfig, database: SqliteFile, clock: ManualClock) -> AsyncIterator[Platform]:
    async with (
        a_plugin(SqliteFile(Path(f"{database.url}.memory"))) as url,
        running(replace(config, memory_plugin_url=url), clock) as platform,
    ):
        yield platform


@pytest.fixture
async def wired(config: PlatformConfig, database: SqliteFile, clock: ManualClock) -> AsyncIterator[Platform]:
    async with with_plugin(config, database, clock) as platform:
        yield platform


async def test_the_protocol(platform: Platform) -> None:
    """One request, HTTP 200, the figures of the contract (8.1)."""
    member = await platform.create()
    assert (await rpc(platform, member, "initialize"))["result"] == {
        "protocolVersion": "2024-11-05",
        "capabilities": {"tools": {"listChanged": False}},
        "serverInfo": {"name": "molecule-a2a", "version": "1.0.0"},
    }
    assert await rpc(platform, member, "notifications/initialized") == {"jsonrpc": "2.0", "id": 7}
    assert (await rpc(platform, member, "tools/dance"))["error"] == {
        "code": -32601,
        "message": "method not found: tools/dance",
    }
    for params in (
        None,
        {},
        {"name": 7},
        {"name": "list_peers", "arguments": []},
        {"name": "list_peers", "arguments": 1},
    ):
        answer = await rpc(platform, member, "tools/call", params)
        assert answer.get("error", {}).get("code") == (
            None if params == {"name": "list_peers", "arguments": []} else -32602
        )
    wrong = {"name": "search_memory", "arguments": {"limit": "3", "namespaces": "x"}}
    error = (await rpc(platform, member, "tools/call", wrong))["error"]
    assert error == {"code": -32602, "message": "invalid arguments: namespaces, limit"}
    error = await refused(platform, member, "dance")
    assert error == {"code": -32000, "message": "unknown tool: dance", "data": {"status": 404}}


async def test_a_body_that_is_no_request_is_400(platform: Platform) -> None:
    """The only case that is not 200 (contract 8.1)."""
    member = await platform.create()
    for content in (b"{", b"[]", b'"x"', b"\xff"):
        reply = await platform.http.post(f"/workspaces/{member.id}/mcp", content=content, headers=member.headers)
        body = reply.json()
        assert (reply.status_code, body["jsonrpc"], body["id"], body["error"]["code"]) == (400, "2.0", None, -32700)


async def test_the_bridge_has_the_door_of_the_workspace(locked: Platform) -> None:
    """A token of another workspace opens nothing (contract 1.3)."""
    ours, other = await locked.create(), await locked.create("other")
    for headers, status in (
        (ours.headers, 200),
        (other.headers, 401),
        ({}, 401),
        ({"Authorization": f"Bearer {ADMIN}"}, 200),
    ):
        body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
        reply = await locked.http.post(f"/workspaces/{ours.id}/mcp", json=body, headers=headers)
        assert reply.status_code == status


async def test_every_tool_that_is_listed_is_served_as_listed(platform: Platform) -> None:
    """Each required argument is asked for, flat schemas, nothing listed that is unknown (ours)."""
    member = await platform.create()
    tools = (await rpc(platform, member, "tools/list"))["result"]["tools"]
    assert {tool["name"] for tool in tools} == set(TOOLS) - {"send_message_to_user"} >= MEMORY_TOOLS
    for tool in tools:
        schema = tool["inputSchema"]
        assert set(schema) == {"type", "properties", "required"}
        assert "$ref" not in json.dumps(schema)
        assert set(schema["required"]) <= set(schema["properties"])
        assert all(facts["description"] and facts["type"] for facts in schema["properties"].values())
        for missing in schema["required"]:
            given = {name: " " if name == missing else "x" for name in schema["required"]}
            error = await refused(platform, member, tool["name"], **given)
            assert (error["code"], error["message"]) == (-32000, f"{missing} is required")


async def test_messages_to_the_user_need_a_switch(platform: Platform, config: PlatformConfig) -> None:
    """Neither listed nor served without it; with it, through the one writer (contract 4.2, 8.1)."""
    member = await platform.create()
    error = await refused(platform, member, "send_message_to_user", message="hello")
    assert "MOLECULE_MCP_ALLOW_SEND_MESSAGE" in error["message"]
    async with running(replace(config, mcp_allow_send_message=True)) as allowing:
        assert await use(allowing, member, "send_message_to_user", message="hello") == "Message sent."
        (row,) = await allowing.rows(member)
        assert (row["method"], row["response_body"]) == ("notify", {"result": "hello"})


async def test_peers_and_tasks(platform: Platform) -> None:
    """The facts of the contract; a task is a delegation like any other (contract 6, 8.1)."""
    ours, peer = await platform.create("ours"), await platform.join("peer", role="sre")
    (shown,) = json.loads(await use(platform, ours, "list_peers"))
    assert shown == {"id": peer.id, "name": "peer", "role": "sre", "status": "online", "tier": 3}
    assert json.loads(await use(platform, ours, "get_workspace_info"))["name"] == "ours"
    made = json.loads(await use(platform, ours, "delegate_task_async", workspace_id=peer.id, task="check it"))
    assert (made["status"], made["target_id"]) == ("dispatched", peer.id)
    asked = {"workspace_id": peer.id, "task_id": made["task_id"]}
    assert json.loads(await use(platform, ours, "check_task_status", **asked))["status"] == "dispatched"
    update = f"/workspaces/{ours.id}/delegations/{made['task_id']}/update"
    done = {"status": "completed", "response_preview": "all well"}
    await platform.http.post(update, json=done, headers=ours.headers)
    state = json.loads(await use(platform, ours, "check_task_status", **asked))
    assert state == {**made, "status": "completed", "result": "all well"}
    for task_id in (str(uuid.uuid4()), "7"):
        unknown = json.loads(await use(platform, ours, "check_task_status", **(asked | {"task_id": task_id})))
        assert unknown["status"] == "not_found"
    below = await platform.create("below", parent_id=peer.id)
    error = await refused(platform, ours, "delegate_task_async", workspace_id=below.id, task="x")
    assert error["message"] == f"workspace {ours.id} is not authorised to communicate with {below.id}"
    error = await refused(platform, ours, "delegate_task_async", workspace_id=str(uuid.uuid4()), task="x")
    assert error["message"] == "workspace not found"


async def test_the_tools_of_v2(wired: Platform, clock: ManualClock) -> None:
    """Kinds, pins, expiry, the summary's 30 days, redaction, forgetting (contract 7.3)."""
    member = await wired.create()
    home = f"workspace:{member.id}"

    async def found(**arguments: Any) -> list[dict[str, Any]]:
        memories: list[dict[str, Any]] = json.loads(await use(wired, member, "search_memory", **arguments))["memories"]
        return memories

    fact = json.loads(await use(wired, member, "commit_memory_v2", content="A_TOKEN=x fact", pin=True))
    assert fact["namespace"] == home
    await use(wired, member, "commit_summary", content="summary", expires_at="tomorrow")
    until = "2999-01-01T00:00:00Z"
    await use(wired, member, "commit_memory_v2", content="point", kind="checkpoint", expires_at=until)
    pinned, point, summary = await found()
    assert (pinned["content"], pinned["kind"], pinned["source"], pinned["pin"]) == (
        "[REDACTED:TOKEN] fact",
        "fact",
        "agent",
        True,
    )
    assert pinned["propagation"] == {"source_workspace_id": member.id}
    assert (point["kind"], point["expires_at"][:10]) == ("checkpoint", "2999-01-01")
    assert (summary["kind"], summary["expires_at"][:10]) == ("summary", str((clock.now() + timedelta(days=30)).date()))
    assert [each["content"] for each in await found(kinds=["summary", "checkpoint"])] == ["point", "summary"]
    assert len(await found(limit=1)) == 1
    assert await seen(wired, member, kind="checkpoint") == ["point"]
    error = await refused(wired, member, "commit_memory_v2", content="x", expires_at="soon")
    assert error["message"].startswith("invalid expires_at: must be RFC3339")
    assert json.loads(await use(wired, member, "forget_memory", memory_id=fact["id"])) == {"forgotten": True}
    error = await refused(wired, member, "forget_memory", memory_id=fact["id"])
    assert error["message"] == "plugin forget: memory not found in namespace"
    foreign = f"workspace:{uuid.uuid4()}"
    error = await refused(wired, member, "forget_memory", memory_id=fact["id"], namespace=foreign)
    assert error["message"] == f"workspace {member.id} cannot forget memory in namespace {foreign}"
    text = await use(wired, member, "list_readable_namespaces")
    assert text.startswith('[\n  {\n    "name": ')
    (first, *_) = json.loads(text)
    assert first == {
        "name": home,
        "kind": "workspace",
        "description": "Memories of this workspace alone.",
        "writable": True,
        "display_name": "laptop",
    }


async def test_the_legacy_tools_work_on_the_table(platform: Platform) -> None:
    """Empty is one's own; GLOBAL is refused (contract 7.1, 8.1)."""
    assert await legacy_scopes(platform) == {"LOCAL", "TEAM"}


async def test_the_legacy_tools_work_on_the_plugin(wired: Platform) -> None:
    """Empty is all that may be read; GLOBAL is refused (contract 7.3)."""
    assert await legacy_scopes(wired) == {"LOCAL", "TEAM", "GLOBAL"}


async def legacy_scopes(platform: Platform) -> set[str]:
    """Use the two tools; the scopes of what is recalled without one."""
    root = await platform.create("root")
    member = await platform.create(parent_id=root.id)
    assert await use(platform, member, "recall_memory") == "No memories found."
    stored = json.loads(await use(platform, member, "commit_memory", content="mine"))
    assert stored["scope"] == "LOCAL"
    await use(platform, member, "commit_memory", content="ours", scope="TEAM")
    await remember(platform, root, "for all", "GLOBAL")
    (shown,) = json.loads(await use(platform, member, "recall_memory", scope="LOCAL"))
    assert {**shown, "created_at": ""} == {**stored, "content": "mine", "created_at": ""}
    assert len(shown["created_at"]) == len("2026-05-05T10:00:00Z")
    for tool, arguments in (("commit_memory", {"content": "x"}), ("recall_memory", {})):
        error = await refused(platform, member, tool, scope="GLOBAL", **arguments)
        assert (error["code"], error["data"]) == (-32000, {"status": 403})
    assert len(await recalled(platform, member, scope="LOCAL")) == 1
    return {entry["scope"] for entry in json.loads(await use(platform, member, "recall_memory"))}


async def test_the_bridge_has_a_limit_of_its_own_where_requests_are_limited(config: PlatformConfig) -> None:
    """120 a minute by bearer, when RATE_LIMIT is set (contract 0.10, 1.7)."""
    clock = ManualClock()
    async with running(replace(config, rate_limit=10_000), clock) as platform:
        member = await platform.create()
        body = {"jsonrpc": "2.0", "id": 1, "method": "initialize"}
        path = f"/workspaces/{member.id}/mcp"
        for _ in range(120):
            assert (await platform.http.post(path, json=body, headers=member.headers)).status_code == 200
        reply = await platform.http.post(path, json=body, headers=member.headers)
        assert (reply.status_code, reply.json()["error"]) == (429, "MCP rate limit exceeded")
        assert reply.headers["Retry-After"] == str(reply.json()["retry_after"])
        reply = await platform.http.post(path, json=body)
        assert (reply.status_code, reply.json()) == (401, {"error": "missing bearer token"})
        clock.advance(60)
        assert (await platform.http.post(path, json=body, headers=member.headers)).status_code == 200

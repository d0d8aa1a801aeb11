"""The platform and a memory plugin that is away, sick or slow: named answers, a breaker, and everything else works."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from molecule_runtime.clock import ManualClock
from molecule_runtime.reference_platform.config import PlatformConfig
from molecule_runtime.reference_platform.services.memory_plugin import (
    MemoryPlugin,
    PluginRefusal,
    PluginUnavailable,
)
from molecule_runtime.wire.memories import MemoryWrite, NamespaceKind
from tests.support.platform import free_port

from .memories import SickPlugin, a_plugin, forget, recalled, refused, remember, rpc, seen, use
from .support import Member, Platform, SqliteFile, running
from .test_golden import GOLDEN, MEMORY, PEER, WORKSPACE, a_team, differences

HUNG_S = 0.3
"""How long a plugin that never answers is waited for."""
WRITE = MemoryWrite(content="x", kind="fact", source="agent")
WRITTEN = {"id": MEMORY, "namespace": "team:a"}


@pytest.fixture
def database(tmp_path: Path, migrated_file: Path) -> SqliteFile:
    """One kind: what is tested is between the platform and the plugin."""
    return SqliteFile(Path(shutil.copy(migrated_file, tmp_path / "platform.sqlite3")))


@asynccontextmanager
async def wired(config: PlatformConfig, url: str) -> AsyncIterator[Platform]:
    async with running(replace(config, memory_plugin_url=url)) as platform:
        yield platform


async def asked(platform: Platform, member: Member) -> dict[str, tuple[int, Any]]:
    """Every route that needs the plugin, asked once: (status, body)."""
    base, found = f"/workspaces/{member.id}", {}
    for name, verb, path, body in (
        ("commit", "POST", "memories", {"content": "x", "scope": "LOCAL"}),
        ("recall", "GET", "memories", None),
        ("forget", "DELETE", f"memories/{uuid.uuid4()}", None),
        ("search", "GET", "v2/memories", None),
        ("delete", "DELETE", f"v2/memories/{uuid.uuid4()}", None),
    ):
        reply = await platform.http.request(verb, f"{base}/{path}", json=body, headers=member.headers)
        found[name] = (reply.status_code, reply.json())
    return found


@pytest.mark.parametrize("fault", ["away", "hang", "crash", "500", "nonsense"])
async def test_a_plugin_that_fails_has_its_status_and_nothing_else_suffers(config: PlatformConfig, fault: str) -> None:
    """502 with the contract's words, -32000 by the bridge; all else goes on (contract 7.2, 7.3)."""
    sick = SickPlugin()
    answers: dict[str, tuple[int, Any] | str] = {"hang": "hang", "crash": "crash", "nonsense": (200, b"<html>")}
    sick.answers = [answers.get(fault, (500, {"code": "internal", "message": "no luck"}))]
    async with sick.serving():
        url = f"http://127.0.0.1:{free_port()}" if fault == "away" else sick.url
        if fault == "hang":
            config = replace(config, memory_plugin_timeout_s=HUNG_S)
        async with wired(config, url) as platform:
            member = await platform.join()
            with capture_logs() as logs:
                found = await asked(platform, member)
            failed = [log["log_level"] for log in logs if log["event"] == "memory_plugin.failed"]
            # Who is sent away while nobody asks the plugin leaves no line.
            assert failed == ["warning"] * 3 + ["debug"] * (0 if fault == "nonsense" else 2)
            if fault == "nonsense":  # any 2xx says that a memory is forgotten (contract 7.4)
                found = {name: found[name] for name in ("commit", "recall", "search")}
            texts = {"recall": "search", "forget": "delete"}
            assert found == {name: (502, {"error": f"memory plugin {texts.get(name, name)} failed"}) for name in found}
            error = await refused(platform, member, "search_memory")
            assert (error["code"], error["data"]) == (-32000, {"status": 502})
            assert error["message"].startswith("plugin search: ")
            assert (await platform.http.get("/health")).status_code == 200
            namespaces = await platform.http.get(f"/workspaces/{member.id}/v2/namespaces", headers=member.headers)
            assert namespaces.status_code == 200
            await platform.say(member)
            assert await use(platform, member, "list_peers") == "No peers found."


async def test_without_a_plugin_every_route_of_v2_says_how_to_get_one(platform: Platform) -> None:
    """503 with the hint; v1 works on the table (contract 7.2). The bridge's 501 says that trying again is no use."""
    member = await platform.create()
    hint = "memory plugin is not configured (set MEMORY_PLUGIN_URL)"
    for verb, path in (("GET", "namespaces"), ("GET", "memories"), ("DELETE", f"memories/{uuid.uuid4()}")):
        reply = await platform.http.request(verb, f"/workspaces/{member.id}/v2/{path}", headers=member.headers)
        assert (reply.status_code, reply.json()) == (503, {"error": hint})
    for tool, arguments in (
        ("commit_memory_v2", {"content": "x"}),
        ("commit_summary", {"content": "x"}),
        ("search_memory", {}),
        ("forget_memory", {"memory_id": str(uuid.uuid4())}),
        ("list_writable_namespaces", {}),
        ("list_readable_namespaces", {}),
    ):
        error = await refused(platform, member, tool, **arguments)
        assert error == {"code": -32000, "message": hint, "data": {"status": 501}}
    await remember(platform, member, "by the table")
    assert await recalled(platform, member) == ["by the table"]


async def test_the_breaker_opens_after_three_failures_and_tries_once_a_minute(clock: ManualClock) -> None:
    """Nobody waits for a plugin that is known to be gone; a 4xx is no failure (contract 7.4)."""
    async with SickPlugin().serving() as sick:
        plugin = MemoryPlugin(sick.url, clock, timeout_s=5)

        async def ask() -> str:
            try:
                await plugin.search(["workspace:a"], limit=1)
            except PluginUnavailable:
                return "unavailable"
            except PluginRefusal:
                return "refused"
            return "ok"

        sick.answers = [(500, {}), (503, {}), (404, {}), (500, {}), (500, {}), (500, {})]
        assert [await ask() for _ in range(6)] == ["unavailable"] * 2 + ["refused"] + ["unavailable"] * 3
        assert [await ask() for _ in range(3)] == ["unavailable"] * 3
        assert len(sick.asked) == 6
        clock.advance(59.9)
        await ask()
        assert len(sick.asked) == 6
        clock.advance(0.1)
        assert [await ask(), await ask()] == ["unavailable"] * 2
        assert len(sick.asked) == 7
        clock.advance(60)
        sick.answers = [(200, {"memories": None})]
        assert [await ask() for _ in range(3)] == ["ok"] * 3
        assert len(sick.asked) == 10
        await plugin.close()


async def test_a_namespace_is_put_once_and_again_when_it_has_gone(clock: ManualClock) -> None:
    """Before the first write, and after a plugin does not know it any more (contract 7.3, 7.4)."""
    async with SickPlugin().serving() as sick:
        plugin = MemoryPlugin(sick.url, clock, timeout_s=5)
        put, post = "PUT /v1/namespaces/team%3Aa", "POST /v1/namespaces/team%3Aa/memories"
        sick.answers = [(200, {}), (201, WRITTEN)]
        for _ in range(2):
            await plugin.write("team:a", NamespaceKind.TEAM, WRITE)
        assert sick.asked == [put, post, post]
        for status in (404, 500):
            sick.asked.clear()
            sick.answers = [(status, {}), (200, {}), (201, WRITTEN)]
            await plugin.write("team:a", NamespaceKind.TEAM, WRITE)
            assert sick.asked == [post, put, post]
        sick.answers = [(400, {"code": "bad_request", "message": "too long"})]
        with pytest.raises(PluginRefusal, match="too long"):
            await plugin.write("team:a", NamespaceKind.TEAM, WRITE)
        sick.answers = [(200, {}), (201, WRITTEN), "crash"]
        await plugin.write("team:a", NamespaceKind.TEAM, WRITE)
        sick.asked.clear()
        with pytest.raises(PluginUnavailable):  # who does not answer is not asked again: callers wait
            await plugin.write("team:a", NamespaceKind.TEAM, WRITE)
        assert sick.asked == [post]
        await plugin.close()


async def test_a_memory_counts_as_stored_only_when_the_plugin_says_so(clock: ManualClock) -> None:
    """Something else at its address may answer 200 to everything (contract 7.4)."""
    async with SickPlugin().serving() as sick:
        plugin = MemoryPlugin(sick.url, clock, timeout_s=5)
        for body in ({}, [], b"<html>", b""):
            sick.answers = [(200, body)]
            with pytest.raises(PluginUnavailable, match="cannot be read"):
                await plugin.write("team:a", NamespaceKind.TEAM, WRITE)
        await plugin.close()


async def test_what_a_plugin_gives_of_other_namespaces_is_left_out(clock: ManualClock) -> None:
    """A plugin that makes mistakes opens no namespace (ours)."""
    async with SickPlugin().serving() as sick:
        plugin = MemoryPlugin(sick.url, clock, timeout_s=5)
        facts = {"content": "x", "kind": "fact", "source": "agent", "created_at": "2026-01-01T00:00:00Z"}
        sick.answers = [(200, {"memories": [facts | {"id": n, "namespace": f"team:{n}"} for n in "ab"]})]
        assert [memory.id for memory in await plugin.search(["team:a"], limit=10)] == ["a"]
        await plugin.close()


async def test_what_was_written_before_the_cut_over_is_found_after_it(
    config: PlatformConfig, database: SqliteFile
) -> None:
    """Both places are read and forgotten from, new memories go to one; an old row can still be edited (ours)."""
    async with running(config) as platform:
        member = await platform.create()
        old = await remember(platform, member, "old news", namespace="ops")
    async with a_plugin(SqliteFile(Path(f"{database.url}.memory"))) as url, wired(config, url) as platform:
        new = await remember(platform, member, "new news news", namespace="ops")
        assert await recalled(platform, member) == ["new news news", "old news"]
        assert await recalled(platform, member, q="news", namespace="ops") == ["new news news", "old news"]
        assert await recalled(platform, member, namespace="general") == []
        assert await seen(platform, member) == ["new news news"]
        assert database.sql("SELECT count(*) FROM agent_memories") == [(1,)]
        path = f"/workspaces/{member.id}/memories"
        edited = await platform.http.patch(f"{path}/{old}", json={"content": "edited"}, headers=member.headers)
        assert edited.json()["changed"] is True
        refused_edit = await platform.http.patch(f"{path}/{new}", json={"content": "x"}, headers=member.headers)
        assert refused_edit.status_code == 409
        assert [await forget(platform, member, memory_id) for memory_id in (old, new, old, new)] == [200, 200, 404, 404]
        for memory_id in (old, new):
            gone = await platform.http.patch(f"{path}/{memory_id}", json={"content": "x"}, headers=member.headers)
            assert gone.status_code == 404
        assert await recalled(platform, member) == []


async def test_forgetting_is_final_and_only_for_the_writer(config: PlatformConfig, database: SqliteFile) -> None:
    """A team-mate's is not found by v1, the team's not by the canvas; a late repeat does not bring one back (ours)."""
    async with a_plugin(SqliteFile(Path(f"{database.url}.memory"))) as url, wired(config, url) as platform:
        root = await platform.create("root")
        ours, mate = [await platform.create(name, parent_id=root.id) for name in ("ours", "mate")]
        memory_id = str(uuid.uuid4())
        sent = {"content": "told the team", "namespace": f"team:{root.id}", "id": memory_id}
        for _ in range(2):
            assert json.loads(await use(platform, ours, "commit_memory_v2", **sent)) == {
                "id": memory_id,
                "namespace": f"team:{root.id}",
            }
        assert (await refused(platform, mate, "commit_memory_v2", **sent))["data"] == {"status": 409}
        assert await seen(platform, mate) == ["told the team"]
        assert await forget(platform, mate, memory_id) == 404
        told = {"memory_id": memory_id, "namespace": f"team:{root.id}"}
        assert (await refused(platform, mate, "forget_memory", **told))["data"] == {"status": 404}
        assert await forget(platform, ours, memory_id, v2=True) == 404
        assert await seen(platform, mate) == ["told the team"]
        assert await forget(platform, ours, memory_id) == 200
        again = json.loads(await use(platform, ours, "commit_memory_v2", **sent))
        assert again == {"id": memory_id, "namespace": f"team:{root.id}"}
        assert await seen(platform, ours) == []
        await use(platform, ours, "commit_memory_v2", **(sent | {"id": str(uuid.uuid4())}))
        told["memory_id"] = json.loads(await use(platform, ours, "search_memory"))["memories"][0]["id"]
        assert await use(platform, ours, "forget_memory", **told) == '{"forgotten":true}'
        assert await seen(platform, ours) == []
        own = json.loads(await use(platform, ours, "commit_memory_v2", content="own", pin=True))["id"]
        assert await forget(platform, mate, own, v2=True) == 404
        assert [await forget(platform, ours, own, v2=True) for _ in range(2)] == [200, 404]
        assert await forget(platform, ours, "no-uuid", v2=True) == 404


@pytest.mark.parametrize("file", ["memory_v2_namespaces", "memory_v2_memories", "memory_v2_forget"])
async def test_golden_exchanges_of_v2(config: PlatformConfig, database: SqliteFile, file: str) -> None:
    """Status, keys, JSON types and error texts are those of the files (contract 7.2)."""
    document = json.loads((GOLDEN / f"{file}.json").read_text())
    async with a_plugin(SqliteFile(Path(f"{database.url}.memory"))) as url, wired(config, url) as platform:
        ours, peer = await a_team(platform)
        for exchange in document["exchanges"]:
            await remember(platform, ours, "部署在星期五", id=MEMORY)
            method, path = document["endpoint"].split(" ")
            placed = json.dumps([exchange.get("path", path), exchange.get("query", {})])
            path, query = json.loads(placed.replace(WORKSPACE, ours.id).replace(PEER, peer.id))
            reply = await platform.http.request(method, path, params=query, headers=ours.headers)
            assert reply.status_code == exchange["status"], exchange["name"]
            assert differences(exchange["response"], reply.json()) == [], exchange["name"]


async def test_a_repeat_after_a_lost_answer_stores_once(config: PlatformConfig, database: SqliteFile) -> None:
    """The plugin had it, the platform did not hear so: the same id goes on where the first attempt ended (ours).

    Not when it was found and forgotten meanwhile: then the repeat of a writer who does not know stores nothing.
    """
    once, forgotten = [{"content": "once", "scope": "LOCAL", "id": str(uuid.uuid4())} for _ in range(2)]
    async with SickPlugin().serving() as sick:
        sick.answers = [(200, {}), "crash", (200, {}), "crash"]
        async with wired(config, sick.url) as platform:
            member = await platform.create()
            path = f"/workspaces/{member.id}/memories"
            for body in (once, forgotten):
                reply = await platform.http.post(path, json=body, headers=member.headers)
                assert reply.status_code == 502
    async with a_plugin(SqliteFile(Path(f"{database.url}.memory"))) as url, wired(config, url) as platform:
        for body in (once, forgotten):
            had = WRITE.model_copy(update={"id": body["id"], "content": body["content"]})
            await platform.parts.memory_plugin.write(f"workspace:{member.id}", NamespaceKind.WORKSPACE, had)
        assert await seen(platform, member) == ["once", "once"]
        assert await forget(platform, member, forgotten["id"], v2=True) == 200
        for body in (once, once, forgotten):
            reply = await platform.http.post(path, json=body, headers=member.headers)
            assert (reply.status_code, reply.json()["id"]) == (201, body["id"])
        assert await recalled(platform, member) == ["once"]


async def test_an_organisations_memory_is_audited_once(config: PlatformConfig, database: SqliteFile) -> None:
    """By its hash, whichever way it came, and not again by a repeat (contract 7.3)."""
    async with a_plugin(SqliteFile(Path(f"{database.url}.memory"))) as url, wired(config, url) as platform:
        root = await platform.create("root")
        sent = {"content": "for all", "namespace": f"org:{root.id}", "id": str(uuid.uuid4())}
        for _ in range(2):
            await use(platform, root, "commit_memory_v2", **sent)
        await remember(platform, root, "for all too", "GLOBAL")
        rows = await platform.rows(root, type="memory_write")
        assert [row["method"] for row in rows] == ["memory_write_global"] * 2
        assert [row["request_body"]["namespace"] for row in rows] == [f"org:{root.id}"] * 2


async def test_a_purged_workspace_takes_its_own_namespace_along(config: PlatformConfig, database: SqliteFile) -> None:
    """What it told a team that remains stays the team's; a head takes along what only those below it read (ours)."""
    async with a_plugin(SqliteFile(Path(f"{database.url}.memory"))) as url, wired(config, url) as platform:
        root = await platform.create("root")
        child = await platform.create("child", parent_id=root.id)
        await remember(platform, child, "private")
        await remember(platform, child, "told the team", "TEAM")
        await platform.http.delete(f"/workspaces/{child.id}?purge=true", headers=platform.admin)
        assert await seen(platform, root) == ["told the team"]
        plugin = platform.parts.memory_plugin
        assert await plugin.search([f"workspace:{child.id}"], limit=10) == []
        for scope in ("LOCAL", "GLOBAL"):
            await remember(platform, root, "of the root", scope)
        spaces = [f"{kind}:{root.id}" for kind in ("workspace", "team", "org")]
        assert len(await plugin.search(spaces, limit=10)) == 3
        await platform.http.delete(f"/workspaces/{root.id}?purge=true", headers=platform.admin)
        assert await plugin.search(spaces, limit=10) == []


async def test_what_the_plugin_does_not_like_is_the_callers_fault(config: PlatformConfig, database: SqliteFile) -> None:
    """400 with the plugin's sentence, which the writer can act on (ours)."""
    async with a_plugin(SqliteFile(Path(f"{database.url}.memory"))) as url, wired(config, url) as platform:
        member = await platform.create()
        body = {"content": "long " * 40_000, "scope": "LOCAL"}
        reply = await platform.http.post(f"/workspaces/{member.id}/memories", json=body, headers=member.headers)
        assert reply.status_code == 400
        assert "bytes" in reply.json()["error"]
        answer = await rpc(platform, member, "tools/call", {"name": "search_memory", "arguments": {"kinds": ["x"]}})
        assert answer["error"]["data"] == {"status": 400}


async def test_only_what_fails_for_ever_is_the_callers_fault(config: PlatformConfig) -> None:
    """A plugin that is set up wrongly or asked too much gives 502: an agent gives up what is refused by 4xx (ours)."""
    async with SickPlugin().serving() as sick, wired(config, sick.url) as platform:
        member = await platform.create()
        body = {"content": "x", "scope": "LOCAL"}
        for said, status in ((302, 502), (401, 502), (404, 502), (429, 502), (400, 400), (413, 400), (422, 400)):
            sick.answers = [(said, {"code": "x", "message": "no"})]
            reply = await platform.http.post(f"/workspaces/{member.id}/memories", json=body, headers=member.headers)
            error = await refused(platform, member, "commit_memory_v2", content="x")
            assert (reply.status_code, error["data"]) == (status, {"status": status}), said

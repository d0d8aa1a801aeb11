"""Memories: stored once, whatever is lost on the way; kept here while the platform is away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import respx

from molecule_runtime.clock import ManualClock
from molecule_runtime.errors import (
    BadReply,
    InvalidArgument,
    JournalUnusable,
    MemoryUnknown,
    MoleculeError,
    Rejected,
    ToolRefused,
    Unauthorized,
    Unreachable,
)
from molecule_runtime.inbox.journal import Journal
from molecule_runtime.memory import Committed, Memories, merged
from molecule_runtime.state import WorkspaceState
from molecule_runtime.wire.memories import MemoryRow, MemoryScope
from tests.reference_platform.support import BASE_URL

from .support import WORKSPACE, idle, lone_client, pass_time, running, until

MEMORIES = f"{BASE_URL}/workspaces/{WORKSPACE}/memories"
BRIDGE = f"{BASE_URL}/workspaces/{WORKSPACE}/mcp"
ID = "66666666-6666-4666-8666-666666666666"


@pytest.fixture
async def memories(state: WorkspaceState, clock: ManualClock) -> AsyncIterator[Memories]:
    journal = Journal.open(state.journal)
    async with lone_client() as client:
        yield Memories(client, journal, clock=clock)
    journal.close()


def body(call: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(call.request.content)
    return found


def storing(request: httpx.Request) -> httpx.Response:
    """A platform that keeps the id it is given."""
    given = json.loads(request.content)
    return httpx.Response(201, json={"id": given["id"], "scope": given["scope"], "namespace": "general"})


def said(text: str, **reply: Any) -> httpx.Response:
    """An answer of the platform's MCP bridge."""
    result = reply or {"result": {"content": [{"type": "text", "text": text}]}}
    return httpx.Response(200, json={"jsonrpc": "2.0", "id": "1"} | result)


def waiting(memories: Memories) -> list[str]:
    return [memory.memory_id for memory in memories._journal.memories.waiting()]


@respx.mock
async def test_a_memory_is_confirmed_after_it_is_stored(memories: Memories) -> None:
    """Deliver 3: with its id, and nothing stays behind here."""
    route = respx.post(MEMORIES).mock(side_effect=storing)
    done = await memories.commit("the tide table is in the drawer 🌊", MemoryScope.TEAM)
    assert body(route.calls[0]) == {"content": "the tide table is in the drawer 🌊", "scope": "TEAM", "id": done.id}
    assert done == Committed(done.id, is_stored=True, namespace="general")
    assert waiting(memories) == []


@pytest.mark.parametrize(
    "fault",
    [httpx.ConnectError("refused"), httpx.ReadTimeout("late"), httpx.Response(503, json={"error": "no plugin"})],
)
@respx.mock
async def test_a_memory_waits_for_a_platform_that_is_away_and_is_stored_once(
    memories: Memories, clock: ManualClock, fault: httpx.Response | Exception
) -> None:
    """Deliver 3: queued with its own id and written later under it, so that a lost answer does not store it twice."""
    route = respx.post(MEMORIES).mock(side_effect=[fault, fault, fault])
    done = await memories.commit("a")
    assert not done.is_stored
    async with running(memories.send_forever):
        await until(lambda: route.call_count == 2)
        await pass_time(clock, 2)
        await until(lambda: route.call_count == 3)
        assert waiting(memories) == [done.id]
        route.mock(side_effect=storing)
        memories.kick()
        await until(lambda: waiting(memories) == [])
        await pass_time(clock, 3600)
    assert {body(call)["id"] for call in route.calls} == {done.id}
    assert route.call_count == 4


@respx.mock
async def test_the_same_words_are_one_memory_while_they_wait(memories: Memories) -> None:
    """Whoever was told "queued", or nothing at all, and says it again does not mean two; later it is a new one."""
    route = respx.post(MEMORIES).mock(side_effect=httpx.ConnectError("refused"))
    respx.post(BRIDGE).mock(side_effect=httpx.ConnectError("refused"))
    first = await memories.commit("a")
    assert (await memories.commit("a")).id == first.id
    assert (await memories.commit("a", MemoryScope.TEAM)).id != first.id
    assert (await memories.commit_by("commit_memory_v2", {"content": "a", "scope": "LOCAL"})).id != first.id
    assert len(waiting(memories)) == 3
    route.mock(side_effect=storing)
    assert await memories.commit("a") == Committed(first.id, is_stored=True, namespace="general")
    assert first.id not in waiting(memories)
    assert (await memories.commit("a")).id != first.id


@respx.mock
async def test_a_memory_at_which_the_platform_fails_keeps_back_no_other(memories: Memories, clock: ManualClock) -> None:
    """A platform that fails at each is asked no more than three times in a row."""
    route = respx.post(MEMORIES).mock(side_effect=httpx.ConnectError("refused"))
    ids = [(await memories.commit(text)).id for text in "abcdef"]
    failing = httpx.Response(500, json={"error": "failed to store memory"})
    route.mock(return_value=failing)
    before = route.call_count
    async with running(memories.send_forever):
        await until(lambda: route.call_count >= before + 3)
        await idle(clock)
    assert [body(call)["id"] for call in route.calls[before:]] == ids[:3]
    route.mock(side_effect=lambda request: failing if b'"a"' in request.content else storing(request))
    async with running(memories.send_forever):
        await until(lambda: waiting(memories) == ids[:1])


@respx.mock
async def test_a_memory_that_a_call_is_sending_is_sent_by_nobody_else(memories: Memories) -> None:
    """A platform that makes ids of its own would store it twice."""
    let_go = asyncio.Event()
    asked: list[str] = []

    async def slowly(request: httpx.Request) -> httpx.Response:
        asked.append(json.loads(request.content)["id"])
        await let_go.wait()
        return storing(request)

    respx.post(MEMORIES).mock(side_effect=slowly)
    committing = asyncio.create_task(memories.commit("a"))
    await until(lambda: asked == waiting(memories) != [])
    assert await memories._send_waiting() is False
    let_go.set()
    assert (await committing).is_stored
    assert len(asked) == 1
    assert waiting(memories) == []


@respx.mock
async def test_a_memory_survives_the_process(state: WorkspaceState, clock: ManualClock) -> None:
    """kill -9 between the journal and the platform: the next process sends it, in the order of the commits."""
    route = respx.post(MEMORIES).mock(side_effect=httpx.ConnectError("refused"))
    journal = Journal.open(state.journal)
    async with lone_client() as client:
        ids = [(await Memories(client, journal, clock=clock).commit(text)).id for text in "abc"]
    journal.close()
    route.mock(side_effect=storing)
    journal = Journal.open(state.journal)
    async with lone_client() as client:
        again = Memories(client, journal, clock=clock)
        async with running(again.send_forever):
            await until(lambda: waiting(again) == [])
    journal.close()
    sent = [body(call) for call in route.calls[-3:]]
    assert [(one["id"], one["content"]) for one in sent] == list(zip(ids, "abc", strict=True))


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (
            httpx.Response(403, json={"error": "not authorized: only root workspaces can write GLOBAL memories"}),
            Rejected,
        ),
        (httpx.Response(400, json={"error": "scope must be LOCAL, TEAM, or GLOBAL"}), Rejected),
        (httpx.Response(401, json={"error": "invalid workspace auth token"}), Unauthorized),
        (httpx.Response(201, json={}), BadReply),
    ],
)
@respx.mock
async def test_a_memory_that_is_refused_is_not_kept(
    memories: Memories, answer: httpx.Response, kind: type[MoleculeError]
) -> None:
    """The agent is told now: nothing is tried behind its back later."""
    respx.post(MEMORIES).mock(return_value=answer)
    with pytest.raises(kind):
        await memories.commit("a", MemoryScope.GLOBAL)
    assert waiting(memories) == []


@respx.mock
async def test_a_memory_that_is_refused_later_is_shown_until_it_is_forgotten(memories: Memories) -> None:
    """Nothing is lost in silence: what waited and is not taken keeps its reason, and keeps back no other."""
    route = respx.post(MEMORIES).mock(side_effect=httpx.ConnectError("refused"))
    first, second = [(await memories.commit(text)).id for text in "ab"]
    refused = httpx.Response(400, json={"error": "too odd"})
    route.mock(side_effect=lambda request: refused if b'"a"' in request.content else storing(request))
    async with running(memories.send_forever):
        await until(lambda: waiting(memories) == [])
        await until(lambda: len(memories.refused) == 1)
    assert (memories.refused[0].memory_id, "too odd" in str(memories.refused[0].refused)) == (first, True)
    assert body(route.calls[-1])["id"] == second
    respx.delete(f"{MEMORIES}/{first}").mock(return_value=httpx.Response(404, json={"error": "memory not found"}))
    await memories.forget(first)
    assert memories.refused == ()


@respx.mock
async def test_forgetting_a_memory_that_waits_means_that_it_is_never_stored(
    memories: Memories, clock: ManualClock
) -> None:
    """Also while the platform is away: forget is final."""
    route = respx.post(MEMORIES).mock(side_effect=httpx.ConnectError("refused"))
    done = await memories.commit("a")
    respx.delete(f"{MEMORIES}/{done.id}").mock(side_effect=httpx.ConnectError("refused"))
    await memories.forget(done.id)
    route.mock(side_effect=storing)
    async with running(memories.send_forever):
        await idle(clock)
    assert route.call_count == 1


@respx.mock
async def test_forgetting_what_is_not_there_is_said_so(memories: Memories) -> None:
    """Must hold: forget of another's memory is not-found."""
    respx.delete(f"{MEMORIES}/{ID}").mock(
        return_value=httpx.Response(404, json={"error": "memory not found or not owned by this workspace"})
    )
    with pytest.raises(MemoryUnknown):
        await memories.forget(ID)
    respx.delete(f"{MEMORIES}/{ID}").mock(side_effect=httpx.ConnectError("refused"))
    with pytest.raises(Unreachable):
        await memories.forget(ID)


async def test_a_text_that_a_platform_would_cut_is_refused(memories: Memories) -> None:
    """Contract 4.1: 1 MiB of a request is read."""
    with pytest.raises(InvalidArgument) as refused:
        await memories.commit("世" * 333_334)
    assert refused.value.argument == "content"
    assert waiting(memories) == []


@respx.mock
async def test_without_a_journal_nothing_is_sent(memories: Memories) -> None:
    """What cannot be kept cannot be stored once."""
    route = respx.post(MEMORIES).mock(side_effect=storing)
    memories._journal.close()
    with pytest.raises(JournalUnusable):
        await memories.commit("a")
    assert route.call_count == 0


def rows(scope: str, *numbers: int) -> list[dict[str, Any]]:
    return [
        {
            "id": f"m{number}",
            "workspace_id": WORKSPACE,
            "content": f"memory {number}",
            "scope": scope,
            "namespace": "general",
            "created_at": f"2026-01-01T00:00:{number:02d}Z",
        }
        for number in numbers
    ]


@respx.mock
async def test_recall_without_a_scope_looks_into_all(memories: Memories) -> None:
    """agent-side 5: everything the workspace may read; the newest first, and with a query the best of each in turn."""
    found = {"": rows("LOCAL", 5, 1), "TEAM": rows("TEAM", 4, 5), "GLOBAL": rows("GLOBAL", 3)}
    route = respx.get(MEMORIES).mock(
        side_effect=lambda request: httpx.Response(200, json=found[request.url.params.get("scope", "")])
    )
    assert [row.id for row in await memories.recall("", None, 10)] == ["m5", "m4", "m3", "m1"]
    assert [row.id for row in await memories.recall("x", None, 3)] == ["m5", "m4", "m3"]
    assert [row.id for row in await memories.recall("", MemoryScope.TEAM, 10)] == ["m4", "m5"]
    assert route.calls[-1].request.url.params["scope"] == "TEAM"


@respx.mock
async def test_a_platform_that_gives_all_at_once_is_asked_once(memories: Memories) -> None:
    """The order is the platform's, which knows the scores."""
    answer = httpx.Response(200, json=rows("LOCAL", 1, 5, 4), headers={"Molecule-Readable": "true"})
    route = respx.get(MEMORIES).mock(return_value=answer)
    assert [row.id for row in await memories.recall("x", None, 2)] == ["m1", "m5"]
    assert dict(route.calls.last.request.url.params) == {"q": "x", "limit": "2", "readable": "true"}
    assert route.call_count == 1


def test_the_best_of_each_list_comes_first() -> None:
    """Lists without a common score: none of them is put behind the others."""
    lists = [[MemoryRow(**row) for row in rows("LOCAL", *numbers)] for numbers in ((1, 2, 3), (4,), (5, 1))]
    assert [row.id for row in merged(lists, ranked=True)] == ["m1", "m4", "m5", "m2", "m3"]
    assert [row.id for row in merged(lists, ranked=False)] == ["m5", "m4", "m3", "m2", "m1"]


@respx.mock
async def test_a_memory_of_v2_goes_by_the_platforms_own_tool(memories: Memories, clock: ManualClock) -> None:
    """Contract 7.3: the same promise, with the same id; -32000 is a refusal in the platform's words."""
    route = respx.post(BRIDGE).mock(side_effect=httpx.ConnectError("refused"))
    done = await memories.commit_by("commit_summary", {"content": "all done", "namespace": "team:1"})
    assert not done.is_stored
    route.mock(side_effect=lambda request: said(json.dumps({"id": done.id, "namespace": "team:1"})))
    async with running(memories.send_forever):
        await until(lambda: waiting(memories) == [])
    sent = body(route.calls[-1])
    assert (sent["method"], sent["params"]["name"]) == ("tools/call", "commit_summary")
    assert sent["params"]["arguments"] == {"content": "all done", "namespace": "team:1", "id": done.id}

    away = {"error": {"code": -32000, "message": "plugin commit: timeout", "data": {"status": 502}}}
    route.mock(side_effect=None, return_value=said("", **away))
    assert not (await memories.commit_by("commit_memory_v2", {"content": "b"})).is_stored
    assert memories._journal.memories.stored(waiting(memories)[0])

    unwired = {"error": {"code": -32000, "message": "memory plugin is not configured (set MEMORY_PLUGIN_URL)"}}
    route.mock(side_effect=None, return_value=said("", **unwired))
    with pytest.raises(ToolRefused) as refused:
        await memories.commit_by("commit_memory_v2", {"content": "a"})
    assert "memory plugin is not configured (set MEMORY_PLUGIN_URL)" in str(refused.value)
    assert waiting(memories) == []


@pytest.mark.parametrize("answer", [said("no JSON"), httpx.Response(200, text="fine"), said("", error={"code": "x"})])
@respx.mock
async def test_an_odd_answer_of_the_bridge_is_one_of_the_platforms_errors(
    memories: Memories, answer: httpx.Response
) -> None:
    """Every failure is typed."""
    respx.post(BRIDGE).mock(return_value=answer)
    with pytest.raises(BadReply):
        await memories.ask("search_memory", {"query": "a"})


@respx.mock
async def test_changes_are_told(memories: Memories) -> None:
    """Deliver 4: a subscriber of molecule://memory hears of what is stored and forgotten, and of nothing else."""
    told: list[None] = []
    memories._on_change = lambda: told.append(None)
    route = respx.post(MEMORIES).mock(side_effect=storing)
    done = await memories.commit("a")
    assert len(told) == 1
    route.mock(side_effect=httpx.ConnectError("refused"))
    await memories.commit("b")
    assert len(told) == 1
    respx.delete(f"{MEMORIES}/{done.id}").mock(return_value=httpx.Response(200, json={"status": "deleted"}))
    await memories.forget(done.id)
    assert len(told) == 2

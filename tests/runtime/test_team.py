"""Peers through several workspaces: whose lists are asked for, what one that fails takes away, who writes to whom."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import httpx
import pytest

from molecule_runtime import client as client_module
from molecule_runtime.clock import ManualClock
from molecule_runtime.errors import InvalidArgument, Unauthorized, Unreachable
from molecule_runtime.peers import DIRECTORY_TTL_S, PeerView
from molecule_runtime.reference_platform.config import PlatformConfig
from molecule_runtime.runtime import Runtime, said_of
from molecule_runtime.settings import Settings
from molecule_runtime.state import StateDir
from tests.reference_platform.support import NOBODY, Member, Platform
from tests.reference_platform.support import running as running_platform

from .support import TOKEN, Wire, running, ticking, until

HERE, THERE = "http://127.0.0.1:1", "http://127.0.0.1:2"
"""Two platforms in process. They have no socket; at these ports nobody listens, so that a doorbell fails at once."""


@dataclass
class Roads(httpx.AsyncBaseTransport):
    """The way to each platform by its port; notes what is asked.

    A call to an address that holds a word of `closed` is refused, of `silent` never answered.
    """

    ends: dict[int | None, httpx.AsyncBaseTransport]
    closed: set[str] = field(default_factory=set)
    silent: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        address = str(request.url)
        self.asked.append(address)
        if any(word in address for word in self.closed):
            raise httpx.ConnectError("refused") from ConnectionRefusedError()
        if any(word in address for word in self.silent):
            await anyio.sleep_forever()
        return await self.ends[request.url.port].handle_async_request(request)


@dataclass
class Team:
    """`laptop` and `desk` are ours on the platform here, `phone` is ours there; each platform has an `ops`."""

    here: Platform
    there: Platform
    laptop: Member
    desk: Member
    phone: Member
    ops: Member
    other_ops: Member
    docs: Member
    """A child of laptop's: only laptop sees it."""
    leaf: Member
    """A child of docs: laptop may write to it and does not see it."""
    roads: Roads
    directory: Path
    clock: ManualClock = field(default_factory=ManualClock)

    def runtime(self, *members: Member, token: str | None = None) -> Runtime:
        """One that serves these of ours, in this order; `token` is what the last one has instead of its own."""
        entries = [
            {"id": one.id, "token": one.token, "platform_url": THERE if one is self.phone else HERE} for one in members
        ]
        if token is not None:
            entries[-1]["token"] = token
        told = Settings.from_env({"MOLECULE_WORKSPACES": json.dumps(entries)})
        state = StateDir.open(self.directory, home=self.directory)
        return Runtime(told, state_dir=state, clock=self.clock, transport=self.roads)


@pytest.fixture
async def team(platform: Platform, tmp_path: Path) -> AsyncIterator[Team]:
    config = PlatformConfig(database=str(tmp_path / "there.sqlite3"), port=0)
    async with running_platform(config, ManualClock()) as there:
        laptop = await platform.create("laptop", delivery_mode="poll")
        desk = await platform.create("desk", delivery_mode="poll")
        docs = await platform.join("docs", role="writer", parent_id=laptop.id)
        yield Team(
            here=platform,
            there=there,
            laptop=laptop,
            desk=desk,
            phone=await there.create("phone", delivery_mode="poll"),
            ops=await platform.join("ops", role="on call"),
            other_ops=await there.join("Ops"),
            docs=docs,
            leaf=await platform.join("leaf", parent_id=docs.id),
            roads=Roads({1: Wire(platform), 2: Wire(there)}),
            directory=tmp_path / "state",
        )


async def listed(runtime: Runtime, workspace_id: str | None = None, query: str = "") -> list[tuple[str, list[str]]]:
    found, troubles = await runtime.peers(workspace_id, query)
    assert troubles == []
    return [(one.peer.name, list(one.via)) for one in found]


def name_of(peer: PeerView | None) -> str | None:
    return peer.name if peer is not None else None


# the list


async def test_the_peers_of_all_workspaces_are_one_list(team: Team) -> None:
    """agent-side 5, via: each once, in the order of the settings and then of the platform; our own are listed too."""
    runtime = team.runtime(team.desk, team.laptop, team.phone)
    desk, laptop, phone = team.desk.id, team.laptop.id, team.phone.id
    whole = await listed(runtime)
    assert sorted(whole) == [
        ("Ops", [phone]),
        ("desk", [laptop]),
        ("docs", [laptop]),
        ("laptop", [desk]),
        ("ops", [desk, laptop]),
    ]
    in_order = [name for name, _ in whole]
    assert in_order == [name for name, via in whole if desk in via] + ["desk", "docs", "Ops"]
    assert in_order == [name for name, _ in await listed(runtime)]
    assert await listed(runtime, query="OPS") == [("ops", [desk, laptop]), ("Ops", [phone])]
    assert await listed(runtime, phone.upper()) == [("Ops", [phone])]
    with pytest.raises(InvalidArgument):
        await runtime.peers(NOBODY)


async def test_all_are_asked_at_the_same_time(team: Team) -> None:
    """A slow platform must not make the next one wait: nothing is answered before everybody has been asked."""
    runtime = team.runtime(team.laptop, team.desk, team.phone)
    team.roads.silent |= {HERE, THERE}
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(runtime.peers, None)
        await until(lambda: len(team.roads.asked) == 3)
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("how", ["closed", "silent"])
async def test_a_platform_that_fails_keeps_back_only_its_own_peers(
    team: Team, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """One that refuses, or says nothing within the client's own limit, is named with its trouble."""
    monkeypatch.setattr(client_module, "CALL_TIMEOUT_S", 1.0)
    runtime = team.runtime(team.phone, team.laptop)
    getattr(team.roads, how).add(THERE)
    with anyio.fail_after(10):
        found, troubles = await runtime.peers(None)
    assert {one.peer.name for one in found} == {"desk", "ops", "docs"}
    ((workspace, error),) = troubles
    assert (workspace.id, type(error)) == (team.phone.id, Unreachable)
    assert said_of(troubles) == f"{workspace.name} ({team.phone.id}): {error}"


async def test_when_no_platform_answers_the_trouble_of_the_first_is_told(team: Team) -> None:
    """An empty list would say that there is nobody."""
    runtime = team.runtime(team.phone, team.laptop, token=TOKEN)
    team.roads.closed.add(THERE)
    with pytest.raises(Unreachable):
        await runtime.peers(None)
    team.roads.closed.clear()
    found, ((workspace, error),) = await runtime.peers(None)
    assert [one.peer.name for one in found] == ["Ops"]
    assert (workspace.id, type(error)) == (team.laptop.id, Unauthorized)
    assert TOKEN not in str(error)


# the way to a peer


async def test_a_peer_is_written_to_by_the_workspace_that_sees_it(team: Team) -> None:
    """Routing: an id or a name leads to the only way, a named workspace is obeyed, what is shown is fresh."""
    runtime = team.runtime(team.laptop, team.desk, team.phone)

    async def sent(told: str, source: str | None = None) -> tuple[str, str | None]:
        workspace, peer = await runtime.peer(told, source)
        return workspace.id, name_of(peer)

    assert await sent(team.other_ops.id.upper()) == (team.phone.id, "Ops")
    assert await sent(" DOCS ") == (team.laptop.id, "docs")
    assert await sent(team.ops.id, team.desk.id) == (team.desk.id, "ops")
    assert await sent("ops", team.phone.id.upper()) == (team.phone.id, "Ops")
    assert await sent(team.desk.id) == (team.laptop.id, "desk")  # from one of ours to another of ours
    assert await sent(team.docs.id, team.desk.id) == (team.desk.id, None)  # the platform judges
    assert (await runtime.peer(team.docs.id))[1] == PeerView(team.docs.id, "docs", "writer", "online", ("deploy",))
    await team.here.http.patch(f"/workspaces/{team.docs.id}", json={"role": "reader"}, headers=team.docs.headers)
    assert (await runtime.peer(team.docs.id))[1] == PeerView(team.docs.id, "docs", "reader", "online", ("deploy",))


async def test_of_several_ways_the_one_of_the_last_message_is_taken(team: Team) -> None:
    """agent-side 5: default where the last message came from, else an error that lists the choices."""
    runtime = team.runtime(team.laptop, team.desk, team.phone)
    async with running(runtime.run), ticking(team.clock):
        with pytest.raises(InvalidArgument) as refused:
            await runtime.peer(team.ops.id)
        assert refused.value.argument == "source_workspace_id"
        for ours, is_a_choice in ((team.laptop, True), (team.desk, True), (team.phone, False)):
            assert (ours.id in refused.value.reason) is is_a_choice

        async def message_to(target: Member, platform: Platform) -> None:
            await platform.say(target)
            assert await runtime.wait_for_message(target.id, 10_000, key="call") is not None

        await message_to(team.phone, team.there)
        with pytest.raises(InvalidArgument):
            await runtime.peer(team.ops.id)
        await message_to(team.desk, team.here)
        assert (await runtime.peer(team.ops.id))[0].id == team.desk.id
        assert (await runtime.peer("docs"))[0].id == team.laptop.id
        team.roads.closed.add(f"/{team.laptop.id}/peers")
        await team.here.http.patch(f"/workspaces/{team.ops.id}", json={"role": "off duty"}, headers=team.ops.headers)
        _, peer = await runtime.peer(team.ops.id)
        assert (peer.role if peer is not None else None) == "off duty"  # not what laptop remembers of it


async def test_nobody_and_several_are_refused_with_the_choices(team: Team) -> None:
    """Ambiguous cases list the choices; a platform that could not be asked may be why nobody is found."""
    runtime = team.runtime(team.laptop, team.phone)

    async def refusal(told: str) -> str:
        with pytest.raises(InvalidArgument) as refused:
            await runtime.peer(told)
        assert refused.value.argument == "workspace_id"
        return refused.value.reason

    several = await refusal("ops")
    assert team.ops.id in several
    assert team.other_ops.id in several
    assert "on call" in several
    nobody = await refusal("opps")
    for name in ("desk", "ops", "docs", "Ops"):
        assert name in nobody
    assert await refusal(NOBODY) == (
        f"none of your workspaces sees the peer {NOBODY}; list_peers has those that can be reached"
    )
    assert "to itself" in await refusal(team.phone.id)
    team.roads.closed.add(THERE)
    unasked = await refusal(NOBODY)
    assert team.phone.id in unasked
    assert THERE in unasked


async def test_what_cannot_be_meant_is_refused_before_anything_is_asked(team: Team) -> None:
    """Every bad input: a sentence, and nothing is sent."""
    lone, several = team.runtime(team.laptop), team.runtime(team.laptop, team.phone)
    for runtime, told, source, argument in (
        (lone, "", None, "workspace_id"),
        (lone, "\u200b[]", None, "workspace_id"),
        (several, " ", None, "workspace_id"),
        (lone, team.laptop.id.upper(), None, "workspace_id"),
        (several, team.phone.id, team.phone.id, "workspace_id"),
        (several, team.ops.id, NOBODY, "source_workspace_id"),
        (lone, team.ops.id, NOBODY, "source_workspace_id"),
    ):
        with pytest.raises(InvalidArgument) as refused:
            await runtime.peer(told, source)
        assert refused.value.argument == argument
    assert team.roads.asked == []


async def test_the_only_workspace_lets_the_platform_judge_about_an_id(team: Team) -> None:
    """Contract 2.6 and 2.9: a grandchild may be written to and is not listed."""
    runtime = team.runtime(team.laptop)
    assert team.leaf.id not in {one.peer.id for one in (await runtime.peers(None))[0]}
    assert await runtime.peer(f" {team.leaf.id.upper()}") == (runtime.workspaces[0], None)
    with pytest.raises(InvalidArgument) as refused:
        await runtime.peer("leaf")
    assert "docs" in refused.value.reason


async def test_the_memory_stands_in_for_a_platform_that_does_not_answer(team: Team) -> None:
    """Contract 2.7, TTL 5 min: of names and ways, while the platform is away; then its trouble is told."""
    lone, several = team.runtime(team.laptop), team.runtime(team.laptop, team.phone)
    for runtime in (lone, several):
        await runtime.peers(None)
    team.roads.closed |= {HERE, THERE}
    team.clock.advance(DIRECTORY_TTL_S - 1)
    for runtime in (lone, several):
        workspace, peer = await runtime.peer("docs")
        assert (workspace.id, name_of(peer)) == (team.laptop.id, "docs")
        workspace, peer = await runtime.peer(team.ops.id)
        assert (workspace.id, name_of(peer)) == (team.laptop.id, "ops")
        with pytest.raises(Unreachable):
            await runtime.peer("opps")
    team.clock.advance(1)
    assert await lone.peer(team.ops.id) == (lone.workspaces[0], None)
    for runtime, told in ((lone, "docs"), (several, "docs"), (several, team.ops.id)):
        with pytest.raises(Unreachable):
            await runtime.peer(told)
    team.roads.closed.remove(HERE)
    assert (await several.peer(team.ops.id))[0].id == team.laptop.id


async def test_a_way_that_fails_now_is_still_a_way(team: Team) -> None:
    """Ours: one call that fails must not change in whose name work is handed out."""
    runtime = team.runtime(team.laptop, team.desk)
    team.roads.closed.add(team.desk.id)
    assert (await runtime.peer(team.ops.id))[0].id == team.laptop.id  # nothing says that desk sees it too
    team.roads.closed.clear()
    await runtime.peers(None)
    team.roads.closed.add(team.desk.id)
    with pytest.raises(InvalidArgument) as refused:
        await runtime.peer(team.ops.id)
    assert refused.value.argument == "source_workspace_id"
    assert team.desk.id in refused.value.reason

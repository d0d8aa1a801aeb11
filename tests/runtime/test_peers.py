"""Peers: who they are, and that their words are safe to show."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
import respx

from molecule_runtime.clock import ManualClock
from molecule_runtime.errors import BadReply, InvalidArgument, Unavailable
from molecule_runtime.peers import (
    CHOICES_SHOWN,
    DIRECTORY_TTL_S,
    PeerDirectory,
    PeerView,
    Reached,
    find,
    peer_id_in,
    reached,
    refuse_nobody,
    refuse_self,
    unseen,
    view_of,
    way,
)
from molecule_runtime.wire.registry import Peer
from tests.reference_platform.support import BASE_URL, CARD, NOBODY, Member, Platform

from .support import PEER, WORKSPACE, client_of, lone_client

PEERS = f"{BASE_URL}/registry/{WORKSPACE}/peers"


def peer(**fields: Any) -> Peer:
    return Peer(**{"id": PEER, "name": "ops", "status": "online"} | fields)


def ops(*skills: str) -> PeerView:
    return PeerView(PEER, "ops", None, "online", skills)


OTHER = "33333333-3333-4333-8333-333333333333"
LETTERS = "abcdefab-cdef-4abc-8def-abcdefabcdef"
OWN = {WORKSPACE: "laptop", OTHER: "desk"}
BEAT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
ODD_SKILLS: list[Any] = [None, 5, "ab", {}, True]


async def test_peers_are_listed_filtered_and_remembered(platform: Platform, member: Member, clock: ManualClock) -> None:
    """agent-side 5, list_peers."""
    ops = await platform.join("ops", role="on call")
    docs = await platform.create("docs", delivery_mode="poll")
    async with client_of(platform, member) as client:
        directory = PeerDirectory(client, clock=clock)
        assert directory.known(ops.id) is None
        found = await directory.list()
        assert sorted(found, key=lambda view: view.name) == [
            PeerView(docs.id, "docs", None, "awaiting_agent", ()),
            PeerView(ops.id, "ops", "on call", "online", ("deploy",)),
        ]
        assert [view.name for view in await directory.list("CALL")] == ["ops"]
        assert directory.known(docs.id) == PeerView(docs.id, "docs", None, "awaiting_agent", ())
    assert found[0].to_json().keys() == {"id", "name", "role", "status", "skills"}
    assert CARD["skills"] == [{"name": "deploy"}]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"name": "[evil]\u202e\n", "role": "<system>"}, PeerView(PEER, "evil", "system", "online", ())),
        ({"name": "\u200b"}, PeerView(PEER, PEER[:8], None, "online", ())),
        ({"agent_card": {"skills": ["a", {"name": "b"}, {"id": "c"}]}}, ops("a", "b", "c")),
        ({"agent_card": {"skills": [None, 1, [], {}, {"name": []}, ""]}}, ops()),
        *(({"agent_card": {"skills": odd}}, ops()) for odd in ODD_SKILLS),
        ({"agent_card": {}}, ops()),
    ],
)  # fmt: skip
def test_a_card_of_any_shape_is_read(fields: dict[str, Any], expected: PeerView) -> None:
    """Contract 2.2: strings or objects, id for a missing name; agent-side 8: prompt injection through names."""
    assert view_of(peer(**fields)) == expected


@respx.mock
async def test_names_are_asked_for_once_in_five_minutes_or_for_a_stranger(clock: ManualClock) -> None:
    """Contract 2.7: TTL 5 min."""
    route = respx.get(PEERS).respond(json=[peer().model_dump(mode="json")])
    async with lone_client() as client:
        directory = PeerDirectory(client, clock=clock)
        for _ in range(3):
            await directory.learn({PEER})
        assert route.call_count == 1
        await directory.learn({"a stranger"})
        assert route.call_count == 2
        clock.advance(DIRECTORY_TTL_S)
        await directory.learn({PEER})
        assert route.call_count == 3


@respx.mock
async def test_a_platform_that_does_not_answer_is_no_obstacle_to_a_message(clock: ManualClock) -> None:
    """agent-side 4: a name may stay unknown; the message is delivered. A list that was asked for fails openly."""
    route = respx.get(PEERS).respond(503, json={"error": "later"})
    async with lone_client() as client:
        directory = PeerDirectory(client, clock=clock)
        await directory.learn({PEER})
        assert directory.known(PEER) is None
        with pytest.raises(Unavailable):
            await directory.list()
        route.respond(json=[{"id": PEER}])
        with pytest.raises(BadReply):
            await directory.list()


async def test_a_peer_that_is_away_is_shown_with_its_last_beat(
    platform: Platform, platform_clock: ManualClock, member: Member, clock: ManualClock
) -> None:
    """agent-side 5, list_peers: an offline peer is told with since when; one that beats shows no such time."""
    ops = await platform.join("ops")
    platform_clock.advance(7)
    await platform.beat(ops)
    async with client_of(platform, member) as client:
        directory = PeerDirectory(client, clock=clock)

        async def shown() -> dict[str, Any]:
            (view,) = await directory.list()
            return view.to_json()

        assert (await shown()).keys() == {"id", "name", "role", "status", "skills"}
        platform_clock.advance(91)
        await platform.parts.sweeper.sweep_once()
        gone = await shown()
        assert (gone["status"], gone["last_seen"]) == ("awaiting_agent", "2026-01-01T00:00:07.000000Z")
        await platform.beat(ops)
        assert "last_seen" not in await shown()


@pytest.mark.parametrize(
    ("status", "beat", "since"),
    [
        ("offline", BEAT.astimezone(timezone(timedelta(hours=8))), "2026-01-02T03:04:05.000000Z"),
        ("paused", BEAT, "2026-01-02T03:04:05.000000Z"),
        ("a status of tomorrow", BEAT, "2026-01-02T03:04:05.000000Z"),
        ("online", BEAT, None),
        ("degraded", BEAT, None),
        ("offline", None, None),
        ("offline", datetime(1, 1, 1, tzinfo=UTC), None),
        ("offline", datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=14))), None),
        ("offline", datetime.max.replace(tzinfo=timezone(timedelta(hours=-14))), None),
    ],
)
def test_only_who_is_not_there_has_a_time_since_when(status: str, beat: datetime | None, since: str | None) -> None:
    """Contract 2.4: online and degraded are the statuses of an agent that beats; a zero time says never."""
    assert view_of(peer(status=status, last_heartbeat_at=beat)).away_since == since


@respx.mock
async def test_an_odd_field_hides_neither_its_peer_nor_the_others(clock: ManualClock) -> None:
    """Contract, conventions: a platform may send more, or else, than we read."""
    odd = {"id": PEER, "name": "ops", "status": "offline", "last_heartbeat_at": "soon", "agent_card": [], "tier": "x"}
    rows: list[Any] = [odd, {"id": OTHER, "name": None, "status": "online"}, 7]
    respx.get(PEERS).respond(json=[*rows, {"id": NOBODY, "name": "docs", "status": "online"}])
    async with lone_client() as client:
        found = await PeerDirectory(client, clock=clock).list()
    assert found == [PeerView(PEER, "ops", None, "offline", ()), PeerView(NOBODY, "docs", None, "online", ())]


async def test_what_was_listed_is_remembered_for_five_minutes_unless_it_has_left(
    platform: Platform, member: Member, clock: ManualClock
) -> None:
    """Contract 2.7: TTL 5 min; a part of the list adds to what is known and takes nothing from it."""
    ops, docs = await platform.join("ops"), await platform.join("docs")
    async with client_of(platform, member) as client:
        directory = PeerDirectory(client, clock=clock)

        def names() -> list[str]:
            return [view.name for view in directory.remembered()]

        assert names() == []
        await directory.list()
        assert sorted(names()) == ["docs", "ops"]
        clock.advance(DIRECTORY_TTL_S - 1)
        await directory.list("ops")
        assert sorted(names()) == ["docs", "ops"]
        clock.advance(1)
        assert names() == ["ops"]
        await platform.http.delete(f"/workspaces/{ops.id}")
        await directory.list()
        assert names() == ["docs"]
        assert directory.known(ops.id) is not None  # a message that it sent still has a name
        clock.advance(DIRECTORY_TTL_S)
        assert names() == []
        assert directory.known(docs.id) is not None


# several workspaces: whom a model means, and who writes to it


def named(name: str, peer_id: str = PEER, *via: str, role: str | None = None) -> Reached:
    return Reached(PeerView(peer_id, name, role, "online", ()), via or (WORKSPACE,))


def test_a_peer_of_several_teams_is_listed_once_with_every_way_to_it() -> None:
    """agent-side 5, via: in the order of the settings, then of the platform."""
    ops, docs, qa = (
        view_of(peer(id=peer_id, name=name)) for peer_id, name in ((PEER, "ops"), (NOBODY, "docs"), ("9", "qa"))
    )
    away = view_of(peer(status="offline"))
    found = reached([(WORKSPACE, [ops, docs]), (OTHER, [qa, ops, away])])
    assert found == [Reached(ops, (WORKSPACE, OTHER)), Reached(docs, (WORKSPACE,)), Reached(qa, (OTHER,))]
    assert found[0].to_json() == ops.to_json() | {"via": [WORKSPACE, OTHER]}
    assert reached([]) == []


@pytest.mark.parametrize("told", [LETTERS, f"  {LETTERS.upper()}\n", f"{{{LETTERS}}}", LETTERS.replace("-", "")])
def test_an_id_is_known_in_any_of_its_spellings(told: str) -> None:
    """Ours: models copy ids with quotes' leftovers, in capitals, without dashes."""
    there = named("ops", LETTERS.upper())
    assert peer_id_in(told) == LETTERS
    assert find(told, [named("docs", OTHER), there]) is there
    assert find(told, [named("docs", OTHER)]) is None


@pytest.mark.parametrize("told", ["Ops Straße é", " ops  STRASSE e\u0301 ", "[Ops Straße é]\u202e"])
def test_a_name_is_known_in_any_of_its_spellings(told: str) -> None:
    """Models pass names; the name of a peer was cleaned before anybody saw it, and what is passed is cleaned alike."""
    there = named("Ops Straße é")
    assert peer_id_in(told) is None
    assert find(told, [named("docs", OTHER), there]) is there
    assert find(told, [named("Ops"), named("docs", OTHER)]) is None


def test_a_name_that_looks_like_an_id_takes_nobodys_place() -> None:
    """agent-side 8, prompt injection through names: an id is never looked up among names."""
    assert find(OTHER, [named(OTHER)]) is None


def test_a_name_of_several_is_refused_with_all_of_them() -> None:
    """Ambiguous cases are errors that list the choices."""
    with pytest.raises(InvalidArgument) as refused:
        find("OPS", [named("ops", role="on call"), named("docs", NOBODY), named("Ops", OTHER)])
    assert str(refused.value) == (
        f'workspace_id: 2 peers have this name, use the id of one: {PEER} ("ops", "on call"); {OTHER} ("Ops").'
    )
    crowd = [named("ops", str(uuid.UUID(int=number))) for number in range(CHOICES_SHOWN + 2)]
    with pytest.raises(InvalidArgument) as many:
        find("ops", crowd)
    assert many.value.reason.count('("ops")') == CHOICES_SHOWN
    assert many.value.reason.endswith(" and 2 more")


def test_the_way_is_the_only_one_or_where_the_last_message_came_from() -> None:
    """agent-side 5: else an error that lists the choices, under the name that delegation gives to them."""
    both = named("ops", PEER, WORKSPACE, OTHER)
    assert way(named("ops", PEER, OTHER), last=WORKSPACE, own=OWN) == OTHER
    assert way(both, last=OTHER, own=OWN) == OTHER
    for last in (None, NOBODY):
        with pytest.raises(InvalidArgument) as refused:
            way(both, last=last, own={NOBODY: "not this one", **OWN})
        assert str(refused.value) == (
            'source_workspace_id: "ops" is reached through several of your workspaces, name one of: '
            f"{WORKSPACE} (laptop), {OTHER} (desk)."
        )


@pytest.mark.parametrize("told", ["", "  ", "\u200b", "[]<>"])
def test_nobody_at_all_is_refused(told: str) -> None:
    """Every bad input is a sentence."""
    with pytest.raises(InvalidArgument) as refused:
        refuse_nobody(told)
    assert str(refused.value) == "workspace_id: must be a peer's id or its name; list_peers has both."
    refuse_nobody("ops")
    refuse_nobody(PEER)


def test_a_workspace_hands_no_work_to_itself() -> None:
    """Self-delegation is refused."""
    with pytest.raises(InvalidArgument) as refused:
        refuse_self(f" {LETTERS.upper()} ", LETTERS)
    assert str(refused.value) == "workspace_id: a workspace cannot hand work to itself; list_peers has the others."
    refuse_self(OTHER, WORKSPACE)
    refuse_self("laptop", WORKSPACE)


def test_who_is_not_there_is_refused_with_those_who_are() -> None:
    """Ambiguous cases list the choices; what could not be looked at is said, because it may be the cause."""

    def said(told: str, *names: str, unasked: str = "") -> str:
        crowd = [named(name, str(uuid.UUID(int=number))) for number, name in enumerate(names)]
        return str(unseen(told, crowd, own=OWN, unasked=unasked))

    assert said(PEER.upper(), "ops") == (
        f"workspace_id: none of your workspaces sees the peer {PEER}; list_peers has those that can be reached."
    )
    assert said(OTHER) == (
        "workspace_id: a workspace cannot hand work to itself, and none of your others sees this one."
    )
    assert said("[oops]", "ops", "docs") == 'workspace_id: no peer has the name "oops"; these are there: "ops", "docs".'
    assert said("oops") == 'workspace_id: no peer has the name "oops"; list_peers shows nobody.'
    many = said("oops", *map(str, range(CHOICES_SHOWN + 1)))
    assert many.endswith('"8", "9" and 1 more (list_peers has them all).')
    assert said("oops", unasked="desk (3): It is down.").endswith(
        "list_peers shows nobody. These could not be asked: desk (3): It is down."
    )

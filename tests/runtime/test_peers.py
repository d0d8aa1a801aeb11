"""Peers: who they are, and that their words are safe to show."""

from __future__ import annotations

from typing import Any

import pytest
import respx

from molecule_runtime.clock import ManualClock
from molecule_runtime.errors import BadReply, Unavailable
from molecule_runtime.peers import DIRECTORY_TTL_S, PeerDirectory, PeerView, view_of
from molecule_runtime.wire.registry import Peer
from tests.reference_platform.support import BASE_URL, CARD, Member, Platform

from .support import PEER, WORKSPACE, client_of, lone_client

PEERS = f"{BASE_URL}/registry/{WORKSPACE}/peers"


def peer(**fields: Any) -> Peer:
    return Peer(**{"id": PEER, "name": "ops", "status": "online"} | fields)


def ops(*skills: str) -> PeerView:
    return PeerView(PEER, "ops", None, "online", skills)


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

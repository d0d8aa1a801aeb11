"""The agent card: from the settings, until the agent itself sets one."""

from __future__ import annotations

import stat
from typing import Any

import pytest
import respx

from molecule_runtime.cards import MAX_CARD_BYTES, AgentCard, card_from_settings
from molecule_runtime.errors import InvalidArgument, Rejected, StateDirUnwritable
from molecule_runtime.state import WorkspaceState
from tests.reference_platform.support import BASE_URL, Member, Platform

from .support import client_of, lone_client

DEFAULT = card_from_settings("laptop", skills=("deploy",))


async def test_a_card_that_was_set_is_told_to_the_platform_and_registered_again(
    platform: Platform, member: Member, state: WorkspaceState
) -> None:
    """agent-side 3: kept in the state directory; another process of the workspace registers it, too."""
    await platform.register(member)
    ours, others = AgentCard(DEFAULT, state), AgentCard(DEFAULT, state)
    assert others.current() == DEFAULT
    async with client_of(platform, member) as client:
        await ours.update(client, {"name": None, "description": "画家", "skills": ["paint"]})
        new = {"name": "laptop", "description": "画家", "skills": ["paint"]}
        assert (await client.get_workspace()).agent_card == new
        assert (ours.current(), others.current()) == (new, new)
        await client.register(others.current())
        assert (await client.get_workspace()).agent_card == new
    assert stat.S_IMODE(state.agent_card_file.stat().st_mode) == 0o600


@respx.mock
async def test_a_card_that_is_refused_changes_nothing(state: WorkspaceState) -> None:
    """Every bad input changes nothing."""
    respx.post(f"{BASE_URL}/registry/update-card").respond(400, json={"error": "invalid request body"})
    card = AgentCard(DEFAULT, state)
    async with lone_client() as client:
        with pytest.raises(Rejected):
            await card.update(client, {"name": "x"})
        odd: list[dict[str, Any]] = [
            {"name": "x" * MAX_CARD_BYTES},
            {"name": 5},
            {"name": " "},
            {"skills": "paint"},
            {"load": float("inf")},
        ]
        for one in odd:
            with pytest.raises(InvalidArgument):
                await card.update(client, one)
    assert (card.current(), state.agent_card_file.exists()) == (DEFAULT, False)


@respx.mock
async def test_a_card_that_cannot_be_kept_is_said_so(state: WorkspaceState) -> None:
    """The platform has it, the next start would not."""
    respx.post(f"{BASE_URL}/registry/update-card").respond(200, json={"status": "updated"})
    state.agent_card_file.mkdir()
    async with lone_client() as client:
        with pytest.raises(StateDirUnwritable):
            await AgentCard(DEFAULT, state).update(client, {"name": "x"})


@pytest.mark.parametrize("content", [b"[]", b"{", b"\xff", b""])
def test_a_damaged_card_file_gives_way_to_the_settings(state: WorkspaceState, content: bytes) -> None:
    """Presence must not depend on a file."""
    state.agent_card_file.write_bytes(content)
    assert AgentCard(DEFAULT, state).current() == DEFAULT

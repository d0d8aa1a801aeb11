"""Presence: the canvas shows the agent online exactly while its loop runs and the platform hears it."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
import respx
from structlog.testing import capture_logs

from molecule_runtime.cards import card_from_settings
from molecule_runtime.client import PlatformClient
from molecule_runtime.clock import ManualClock
from molecule_runtime.credentials import Credentials
from molecule_runtime.presence import Presence, PresenceSnapshot, PresenceState
from molecule_runtime.reference_platform.services import tokens
from molecule_runtime.state import WorkspaceState
from tests.reference_platform.support import BASE_URL, Member, Platform

from .support import (
    START,
    TOKEN,
    WORKSPACE,
    Wire,
    exchange,
    idle,
    lone_client,
    pass_time,
    running,
    settings,
    workspace_settings,
)

CARD = card_from_settings("laptop", description="keeps the lights on", skills=("deploy",))
REGISTER = f"{BASE_URL}/registry/register"
HEARTBEAT = f"{BASE_URL}/registry/heartbeat"
ROW = f"{BASE_URL}/workspaces/{WORKSPACE}"
REGISTERED = {"status": "registered", "delivery_mode": "poll"}
OK = {"status": "ok"}


def presence_of(client: PlatformClient, clock: ManualClock, **given: Any) -> Presence:
    facts: dict[str, Any] = {
        "clock": clock,
        "credentials": client._credentials,
        "agent_card": lambda: CARD,
        "load": lambda: 0,
    }
    return Presence(client, **facts | given)


@asynccontextmanager
async def on(
    platform: Platform, member: Member, clock: ManualClock, state: WorkspaceState | None = None, **given: Any
) -> AsyncIterator[Presence]:
    """A presence loop that runs, with the member's token, or the one in its state directory."""
    told = settings(member.id, member.token or None)
    credentials = Credentials(told.workspaces[0], state)
    async with PlatformClient(BASE_URL, member.id, credentials, transport=Wire(platform)) as client:
        presence = presence_of(client, clock, credentials=credentials, **given)
        async with running(presence.run):
            yield presence


def events(logs: list[Any]) -> list[str]:
    return [entry["event"] for entry in logs]


def changes(logs: list[Any]) -> list[tuple[str, str]]:
    return [(entry["state_to"], entry["log_level"]) for entry in logs if entry["event"] == "presence.state_changed"]


async def test_nothing_is_sent_in_the_first_second(platform: Platform, member: Member, clock: ManualClock) -> None:
    """agent-side 2: a host's health check must not make an absent agent look online."""
    async with on(platform, member, clock) as presence:
        await pass_time(clock, 0.99)
        assert await platform.status(member) == "awaiting_agent"
        assert presence.snapshot() == PresenceSnapshot(PresenceState.STARTING, since=START)
        await pass_time(clock, 0.01)
        assert await platform.status(member) == "online"
        now = START + timedelta(seconds=1)
        assert presence.snapshot() == PresenceSnapshot(PresenceState.ONLINE, since=now, last_ok_at=now)


async def test_it_registers_then_beats_at_once_and_on_a_fixed_grid(
    platform: Platform, member: Member, clock: ManualClock, platform_clock: ManualClock
) -> None:
    """agent-side 3: every 20 s, absolute deadlines, with real figures."""
    load = 3
    with platform.parts.bus.subscribe() as heard:
        async with on(platform, member, clock, load=lambda: load) as presence:
            await pass_time(clock, 1)
            assert [name for name, _ in await platform.heard(heard)] == ["WORKSPACE_ONLINE", "WORKSPACE_HEARTBEAT"]
            await pass_time(clock, 19.9)
            assert await platform.heard(heard) == []
            load = 5
            await pass_time(clock, 0.1)
            assert await platform.heard(heard) == [("WORKSPACE_HEARTBEAT", {"active_tasks": 5, "uptime_seconds": 21})]
            await pass_time(clock, 23)  # late by 3 s: the next deadline is the grid's
            await platform.heard(heard)
            await pass_time(clock, 16.9)
            assert await platform.heard(heard) == []
            await pass_time(clock, 0.1)
            assert [name for name, _ in await platform.heard(heard)] == ["WORKSPACE_HEARTBEAT"]
            assert presence.snapshot().consecutive_failures == 0
    row = (await platform.http.get(f"/workspaces/{member.id}")).json()
    assert (row["agent_card"], row["delivery_mode"]) == (CARD, "poll")


async def test_a_change_is_logged_once_and_a_beat_is_not(
    platform: Platform, member: Member, clock: ManualClock
) -> None:
    """agent-side 3: one log line per change."""
    with capture_logs() as logs:
        async with on(platform, member, clock):
            await pass_time(clock, 1)
            for _ in range(5):
                await pass_time(clock, 20)
    assert [event for event in events(logs) if event != "presence.registered"] == ["presence.state_changed"] * 2
    assert changes(logs) == [("online", "info"), ("stopped", "info")]


async def test_every_snapshot_is_handed_on_and_the_last_says_stopped(
    platform: Platform, member: Member, clock: ManualClock
) -> None:
    """Ours: other processes read presence from what is handed on here."""
    handed: list[PresenceSnapshot] = []
    async with on(platform, member, clock, on_snapshot=handed.append) as presence:
        await pass_time(clock, 1)
        await pass_time(clock, 20)
    times = [START + timedelta(seconds=seconds) for seconds in (1, 1, 21)]
    assert handed == [
        *(PresenceSnapshot(PresenceState.ONLINE, since=times[0], last_ok_at=at) for at in times),
        PresenceSnapshot(PresenceState.STOPPED, since=times[2], last_ok_at=times[2]),
    ]
    assert presence.snapshot() == handed[-1]


async def test_a_laptop_that_slept_beats_at_once(platform: Platform, member: Member, clock: ManualClock) -> None:
    """agent-side 3: the wall clock jumps, the other one stood still."""
    with platform.parts.bus.subscribe() as heard:
        async with on(platform, member, clock):
            await pass_time(clock, 1)
            await platform.heard(heard)
            clock.suspend(3600)
            await pass_time(clock, 5)
            assert [name for name, _ in await platform.heard(heard)] == ["WORKSPACE_HEARTBEAT"]
            await pass_time(clock, 19)
            assert await platform.heard(heard) == []


async def test_a_process_that_was_stopped_for_hours_beats_once_and_goes_on(
    platform: Platform, member: Member, clock: ManualClock
) -> None:
    """agent-side 3: absolute deadlines; those that were missed are not made up for."""
    with platform.parts.bus.subscribe() as heard:
        async with on(platform, member, clock) as presence:
            await pass_time(clock, 1)
            await platform.heard(heard)
            await pass_time(clock, 3 * 3600 + 7)
            assert [name for name, _ in await platform.heard(heard)] == ["WORKSPACE_HEARTBEAT"]
            await pass_time(clock, 12.9)
            assert await platform.heard(heard) == []
            await pass_time(clock, 0.2)
            assert [name for name, _ in await platform.heard(heard)] == ["WORKSPACE_HEARTBEAT"]
            assert presence.snapshot().state is PresenceState.ONLINE


@pytest.mark.parametrize("jump_s", [-7200, -6, 4])
async def test_a_clock_that_is_set_right_changes_nothing(
    platform: Platform, member: Member, clock: ManualClock, jump_s: float
) -> None:
    """agent-side 3: only a jump ahead is a sleep; beats are timed by the clock that is never set."""
    with platform.parts.bus.subscribe() as heard:
        async with on(platform, member, clock) as presence:
            await pass_time(clock, 1)
            await platform.heard(heard)
            clock.suspend(jump_s)
            await pass_time(clock, 10)
            await pass_time(clock, 9.9)
            assert await platform.heard(heard) == []
            await pass_time(clock, 0.1)
            assert [name for name, _ in await platform.heard(heard)] == ["WORKSPACE_HEARTBEAT"]
            assert presence.snapshot().state is PresenceState.ONLINE


async def test_a_removed_workspace_is_said_to_be_removed_and_left_alone(
    platform: Platform, member: Member, clock: ManualClock
) -> None:
    """agent-side 3: asked after a 401 (contract 3.4); then once in five minutes."""
    async with on(platform, member, clock) as presence:
        await pass_time(clock, 1)
        await platform.http.delete(f"/workspaces/{member.id}")
        with capture_logs() as logs:
            await pass_time(clock, 20)
            removed = presence.snapshot()
            for _ in range(14):
                await pass_time(clock, 20)
    assert (removed.state, removed.consecutive_failures) == (PresenceState.REMOVED, 1)
    assert changes(logs) == [("removed", "warning")]
    assert presence.snapshot().consecutive_failures == 1


async def test_a_token_that_was_rotated_in_time_is_used_by_the_very_call_that_was_refused(
    platform: Platform, member: Member, clock: ManualClock, tmp_path: Path
) -> None:
    """agent-side 1: rotation while running changes no state; the inbox goes on with the new token, too."""
    file = tmp_path / "token"
    file.write_text(member.token)
    credentials = Credentials(workspace_settings(member.id, None, MOLECULE_WORKSPACE_TOKEN_FILE=str(file)), None)
    async with PlatformClient(BASE_URL, member.id, credentials, transport=Wire(platform)) as client:
        presence = presence_of(client, clock, credentials=credentials)
        with capture_logs() as logs:
            async with running(presence.run):
                await pass_time(clock, 1)
                for rotation in (1, 2, 3):
                    await platform.parts.store.write(tokens.revoke_all, [member.id], platform.parts.clock.now())
                    file.write_text(await new_token(platform, member) + "\n")
                    if rotation == 2:
                        assert await client.activity(since_secs=600) == []
                    await pass_time(clock, 20)
                    assert presence.snapshot().consecutive_failures == 0
    assert changes(logs) == [("online", "info"), ("stopped", "info")]
    assert events(logs).count("client.token_reread") == 3
    assert file.read_text().strip() not in json.dumps(logs, default=repr)


async def test_a_token_revoked_by_hand_is_unauthorized_until_a_new_one_is_there(
    platform: Platform, member: Member, clock: ManualClock, tmp_path: Path
) -> None:
    """agent-side 1: the token is re-read after a 401; rotation needs no restart."""
    file = tmp_path / "token"
    file.write_text(member.token)
    told = settings(member.id, None, MOLECULE_WORKSPACE_TOKEN_FILE=str(file))
    credentials = Credentials(told.workspaces[0], None)
    async with PlatformClient(BASE_URL, member.id, credentials, transport=Wire(platform)) as client:
        presence = presence_of(client, clock, credentials=credentials)
        async with running(presence.run):
            await pass_time(clock, 1)
            fresh = (await platform.http.post(f"/workspaces/{member.id}/tokens", headers=member.headers)).json()
            first = fresh.get("auth_token") or await new_token(platform, member)
            await platform.parts.store.write(tokens.revoke_all, [member.id], platform.parts.clock.now())
            second = await new_token(platform, member)
            assert first != second
            await pass_time(clock, 20)
            assert presence.snapshot().state is PresenceState.UNAUTHORIZED
            file.write_text(second)
            await pass_time(clock, 5)
            assert presence.snapshot().state is PresenceState.ONLINE

            file.unlink()
            await platform.parts.store.write(tokens.revoke_all, [member.id], platform.parts.clock.now())
            third = await new_token(platform, member)
            await pass_time(clock, 20)
            assert presence.snapshot().state is PresenceState.UNAUTHORIZED
            file.write_text(third)
            await pass_time(clock, 5)
            assert presence.snapshot().state is PresenceState.ONLINE


async def new_token(platform: Platform, member: Member) -> str:
    return await platform.parts.store.write(tokens.mint, member.id, platform.parts.clock.now())


async def test_a_token_that_register_issues_is_kept_private(
    platform: Platform, member: Member, clock: ManualClock, state: WorkspaceState
) -> None:
    """agent-side 1: saved 0600 and used from then on, by the next life too."""
    await platform.parts.store.write(tokens.revoke_all, [member.id], platform.parts.clock.now())
    async with on(platform, Member(member.id, ""), clock, state) as presence:
        await pass_time(clock, 1)
        await pass_time(clock, 20)
        assert presence.snapshot().state is PresenceState.ONLINE
    assert oct(state.token_file.stat().st_mode & 0o777) == "0o600"
    async with on(platform, Member(member.id, ""), clock, state) as presence:
        await pass_time(clock, 1)
        assert presence.snapshot().state is PresenceState.ONLINE


async def test_the_inbound_secret_of_each_answer_is_handed_on(
    platform: Platform, member: Member, clock: ManualClock
) -> None:
    """agent-side 3: platform_inbound_secret is stored per workspace; register and every beat bring it."""
    kept: list[str] = []
    async with on(platform, member, clock, keep_secret=kept.append):
        await pass_time(clock, 1)
    assert len(kept) == 2
    assert len(set(kept)) == 1


# Faults that the reference platform cannot produce.


@asynccontextmanager
async def alone(clock: ManualClock, **given: Any) -> AsyncIterator[Presence]:
    """A presence loop that runs against the answers of respx."""
    async with lone_client() as client:
        presence = presence_of(client, clock, **given)
        async with running(presence.run):
            yield presence


def answers(register: Any = None, heartbeat: Any = None, row: Any = None) -> dict[str, respx.Route]:
    """Routes that answer well unless told otherwise."""
    routes = {}
    for name, url, given, good in (
        ("register", REGISTER, register, REGISTERED),
        ("heartbeat", HEARTBEAT, heartbeat, OK),
    ):
        routes[name] = respx.post(url).mock(**_mocked(given, good))
    good_row = exchange("get_workspace", "registered")["response"]
    routes["row"] = respx.get(ROW).mock(**_mocked(row, good_row))
    return routes


def _mocked(given: Any, good: Any) -> dict[str, Any]:
    if given is None:
        return {"return_value": httpx.Response(200, json=good)}
    return {"return_value": given} if isinstance(given, httpx.Response) else {"side_effect": given}


@respx.mock
async def test_a_platform_that_is_down_is_asked_ever_more_rarely_up_to_a_minute(clock: ManualClock) -> None:
    """agent-side 2: register is retried with back-off, 1 s doubling to 60 s."""
    routes = answers(register=httpx.ConnectError("refused"))
    with capture_logs() as logs:
        async with alone(clock) as presence:
            await pass_time(clock, 1)
            for full in (1, 2, 4, 8, 16, 32, 60, 60):
                before = routes["register"].call_count
                await pass_time(clock, 0.8 * full - 0.01)
                assert routes["register"].call_count == before
                await pass_time(clock, 0.2 * full + 0.01)
                assert routes["register"].call_count == before + 1
            down = presence.snapshot()
            routes["register"].mock(return_value=httpx.Response(200, json=REGISTERED))
            await pass_time(clock, 60)
            assert presence.snapshot().state is PresenceState.ONLINE
    assert (down.state, down.consecutive_failures, down.last_ok_at) == (PresenceState.UNREACHABLE, 9, None)
    assert changes(logs) == [("unreachable", "warning"), ("online", "info"), ("stopped", "info")]


@respx.mock
async def test_a_beat_that_fails_is_repeated_before_its_time(clock: ManualClock) -> None:
    """agent-side 3: four lost beats are the margin; a short outage must not use it up."""
    routes = answers()
    async with alone(clock) as presence:
        await pass_time(clock, 1)
        routes["heartbeat"].mock(side_effect=httpx.ReadTimeout("slow"))
        await pass_time(clock, 20)
        assert presence.snapshot().state is PresenceState.UNREACHABLE
        before = routes["heartbeat"].call_count
        routes["heartbeat"].mock(return_value=httpx.Response(200, json=OK))
        await pass_time(clock, 1)
        assert routes["heartbeat"].call_count == before + 1
        assert presence.snapshot().state is PresenceState.ONLINE
        assert routes["register"].call_count == 1


def html(status: int, **headers: str) -> httpx.Response:
    return httpx.Response(status, html="<h1>hello</h1>", headers=headers)


@respx.mock
@pytest.mark.parametrize(
    ("fault", "state"),
    [
        pytest.param(html(302, Location="https://login.example"), PresenceState.WRONG_ADDRESS, id="a log-in page"),
        pytest.param(
            httpx.Response(403, json={"error": "origin not allowed"}), PresenceState.WRONG_ADDRESS, id="other address"
        ),
        pytest.param(html(200), PresenceState.DEGRADED, id="a web page"),
    ],
)
async def test_each_failure_leads_to_its_state(
    clock: ManualClock, fault: Exception | httpx.Response, state: PresenceState
) -> None:
    """agent-side 3: what a wrong address may answer, too; tests/runtime/test_faults.py has the table."""
    routes = answers()
    with capture_logs() as logs:
        async with alone(clock) as presence:
            await pass_time(clock, 1)
            routes["heartbeat"].mock(**_mocked(fault, None))
            await pass_time(clock, 20)
            failed = presence.snapshot()
            await pass_time(clock, 30)
            await pass_time(clock, 30)
            assert presence.snapshot().state is state
    begun = START + timedelta(seconds=21)
    assert failed == PresenceSnapshot(
        state,
        since=begun,
        last_ok_at=START + timedelta(seconds=1),
        consecutive_failures=1,
        last_error=failed.last_error,
    )
    assert failed.last_error is not None
    assert changes(logs)[0] == ("online", "info")
    assert changes(logs)[1] == (state.value, "warning")


@respx.mock
async def test_refusals_are_repeated_slowly_and_end_with_a_new_register(clock: ManualClock) -> None:
    """agent-side 2: slow retries after a 401; serve and presence never exit for it."""
    routes = answers()
    async with alone(clock) as presence:
        await pass_time(clock, 1)
        refused = httpx.Response(401, json={"error": "invalid workspace auth token"})
        routes["heartbeat"].mock(return_value=refused)
        routes["register"].mock(return_value=refused)
        await pass_time(clock, 20)
        for full in (5, 10, 20, 40, 60, 60):
            count = routes["register"].call_count
            await pass_time(clock, 0.8 * full - 0.01)
            assert routes["register"].call_count == count
            await pass_time(clock, 0.2 * full + 0.01)
            assert routes["register"].call_count == count + 1
        routes["register"].mock(return_value=httpx.Response(200, json=REGISTERED))
        routes["heartbeat"].mock(return_value=httpx.Response(200, json=OK))
        await pass_time(clock, 60)
        assert presence.snapshot().state is PresenceState.ONLINE


@respx.mock
@pytest.mark.parametrize("status", [429, 503])
async def test_retry_after_is_obeyed(clock: ManualClock, status: int) -> None:
    """agent-side 3: 429 and 503 obey Retry-After, for the register and for a beat."""
    busy = httpx.Response(status, headers={"Retry-After": "47"}, json={"error": "later"})
    routes = answers(register=busy)
    async with alone(clock):
        await pass_time(clock, 1)
        await pass_time(clock, 46.9)
        assert routes["register"].call_count == 1
        routes["register"].mock(return_value=httpx.Response(200, json=REGISTERED))
        routes["heartbeat"].mock(return_value=busy)
        await pass_time(clock, 0.1)
        assert (routes["register"].call_count, routes["heartbeat"].call_count) == (2, 1)
        await pass_time(clock, 46.9)
        assert routes["heartbeat"].call_count == 1
        await pass_time(clock, 0.1)
        assert routes["heartbeat"].call_count == 2


@respx.mock
async def test_a_removal_that_the_beats_do_not_show_is_found_within_five_minutes(clock: ManualClock) -> None:
    """Contract 1.5: an upstream platform answers 200 to a removed workspace's beats."""
    routes = answers(row=httpx.Response(410, json=exchange("get_removed_workspace", "removed")["response"]))
    async with alone(clock) as presence:
        await pass_time(clock, 1)
        for _ in range(14):
            await pass_time(clock, 20)
        assert presence.snapshot().state is PresenceState.ONLINE
        await pass_time(clock, 20)
        assert presence.snapshot().state is PresenceState.REMOVED
        calls = (routes["register"].call_count, routes["heartbeat"].call_count)
        await pass_time(clock, 300)
        assert presence.snapshot().state is PresenceState.REMOVED
        assert (routes["register"].call_count, routes["heartbeat"].call_count) == calls


PURGED = httpx.Response(404, json={"error": "workspace not found"})


@respx.mock
async def test_a_workspace_that_is_purged_after_its_removal_is_not_registered_anew(clock: ManualClock) -> None:
    """Contract 3.4: 410, then 404 once purged; an upstream platform would make a new row of a register (2.1)."""
    gone = httpx.Response(410, json=exchange("get_removed_workspace", "removed")["response"])
    routes = answers(heartbeat=httpx.Response(401, json={"error": "no"}), row=gone)
    async with alone(clock) as presence:
        await pass_time(clock, 1)
        assert presence.snapshot().state is PresenceState.REMOVED
        routes["row"].mock(return_value=PURGED)
        for _ in range(3):
            await pass_time(clock, 300)
            assert presence.snapshot().state is PresenceState.REMOVED
        assert routes["register"].call_count == 1


@respx.mock
async def test_a_workspace_that_is_purged_unseen_is_removed_at_the_next_look(clock: ManualClock) -> None:
    """Contract 3.4: an upstream platform answers 200 to beats for a row that is not there."""
    routes = answers(row=PURGED)
    async with alone(clock) as presence:
        await pass_time(clock, 1)
        for _ in range(15):
            await pass_time(clock, 20)
        assert presence.snapshot().state is PresenceState.REMOVED
        assert routes["row"].call_count == 1


@respx.mock
async def test_an_id_that_no_platform_ever_knew_is_unauthorized(clock: ManualClock) -> None:
    """Contract 0.4: register of an unknown id is a 401; nothing was removed, the id or the token is wrong."""
    refused = httpx.Response(401, json={"error": "no"})
    answers(register=refused, heartbeat=refused, row=PURGED)
    async with alone(clock) as presence:
        await pass_time(clock, 1)
        assert presence.snapshot().state is PresenceState.UNAUTHORIZED


@respx.mock
async def test_a_workspace_that_is_there_again_is_online_at_the_next_look(clock: ManualClock) -> None:
    """agent-side 3: asked every five minutes; a removed row never comes back by itself, a restored one may (2.1)."""
    gone = httpx.Response(410, json=exchange("get_removed_workspace", "removed")["response"])
    routes = answers(heartbeat=httpx.Response(401, json={"error": "no"}), row=gone)
    async with alone(clock) as presence:
        await pass_time(clock, 1)
        routes["row"].mock(return_value=httpx.Response(200, json=exchange("get_workspace", "registered")["response"]))
        routes["heartbeat"].mock(return_value=httpx.Response(200, json=OK))
        await pass_time(clock, 299)
        assert presence.snapshot().state is PresenceState.REMOVED
        await pass_time(clock, 1)
        assert presence.snapshot().state is PresenceState.ONLINE


@respx.mock
async def test_the_third_refusal_in_a_row_is_logged_with_its_cure(clock: ManualClock) -> None:
    """agent-side 3, contract 8.10: from the third refused beat the text names the cure; said once."""
    refused = httpx.Response(401, json={"error": "no"})
    routes = answers(register=refused)
    with capture_logs() as logs:
        async with alone(clock) as presence:
            await pass_time(clock, 1)
            await pass_time(clock, 5)
            routes["register"].mock(return_value=httpx.Response(500, json={"error": "no"}))
            await pass_time(clock, 60)
            routes["register"].mock(return_value=refused)
            for _ in range(2):
                await pass_time(clock, 60)
            assert "presence.keeps_being_refused" not in events(logs)
            for _ in range(5):
                await pass_time(clock, 60)
            assert "Tokens tab" in str(presence.snapshot().last_error)
    said = [entry for entry in logs if entry["event"] == "presence.keeps_being_refused"]
    assert [(entry["log_level"], entry["attempt"], "Tokens tab" in entry["detail"]) for entry in said] == [
        ("warning", 3, True)
    ]


@respx.mock
async def test_a_removal_check_that_fails_says_nothing_about_the_beat(clock: ManualClock) -> None:
    """Ours: the beat was heard, so the state is online."""
    routes = answers(row=httpx.Response(500, json={"error": "query failed"}))
    seen: list[PresenceState] = []
    async with alone(clock, on_snapshot=lambda snapshot: seen.append(snapshot.state)):
        for _ in range(17):
            await pass_time(clock, 20)
        assert routes["row"].call_count == 1
        assert set(seen) == {PresenceState.ONLINE}


@respx.mock
async def test_a_token_issued_to_a_removed_workspace_is_not_kept(clock: ManualClock, state: WorkspaceState) -> None:
    """Contract 1.5: such a token opens nothing; an upstream platform mints it all the same."""
    answers(
        register=httpx.Response(200, json=REGISTERED | {"auth_token": TOKEN}),
        row=httpx.Response(410, json=exchange("get_removed_workspace", "removed")["response"]),
    )
    credentials = Credentials(workspace_settings(token=None), state)
    async with alone(clock, credentials=credentials) as presence:
        await pass_time(clock, 1)
        assert presence.snapshot().state is PresenceState.REMOVED
    assert credentials.current() is None
    assert not state.token_file.exists()


@respx.mock
async def test_an_issued_token_is_kept_when_the_next_call_fails(clock: ManualClock, state: WorkspaceState) -> None:
    """Contract 2.1: it is issued once; lost, it would lock the workspace."""
    answers(register=httpx.Response(200, json=REGISTERED | {"auth_token": TOKEN}), row=httpx.ConnectError("gone again"))
    credentials = Credentials(workspace_settings(token=None), state)
    async with alone(clock, credentials=credentials) as presence:
        await pass_time(clock, 1)
        assert presence.snapshot().state is PresenceState.ONLINE
    assert state.token_file.read_text() == TOKEN + "\n"


@respx.mock
async def test_an_issued_token_that_cannot_be_saved_is_used_for_this_life(
    clock: ManualClock, state: WorkspaceState
) -> None:
    """agent-side 3: presence does not depend on a disk."""
    routes = answers(register=httpx.Response(200, json=REGISTERED | {"auth_token": TOKEN}))
    shutil.rmtree(state.path)
    async with lone_client(token=None) as client:
        presence = presence_of(client, clock, credentials=client._credentials)
        client._credentials._state = state
        with capture_logs() as logs:
            async with running(presence.run):
                await pass_time(clock, 1)
                assert presence.snapshot().state is PresenceState.ONLINE
    assert "presence.token_not_saved" in events(logs)
    assert routes["heartbeat"].calls.last.request.headers["Authorization"] == f"Bearer {TOKEN}"


@respx.mock
async def test_a_bug_in_one_beat_is_logged_counted_and_outlived(clock: ManualClock) -> None:
    """agent-side 3: run never raises; the traceback is in the log."""
    answers()
    loads: list[Callable[[], int]] = [lambda: 1 // 0, lambda: 0]
    with capture_logs() as logs:
        async with alone(clock, load=lambda: loads.pop(0)()) as presence:
            await pass_time(clock, 1)
            failed = presence.snapshot()
            await pass_time(clock, 1)
            assert presence.snapshot().state is PresenceState.ONLINE
    assert (failed.state, failed.consecutive_failures) == (PresenceState.UNREACHABLE, 1)
    bugs = [entry for entry in logs if entry["event"] == "presence.iteration_failed"]
    assert [(entry["log_level"], entry["exc_info"]) for entry in bugs] == [("error", True)]


@respx.mock
async def test_cancelled_in_the_middle_of_a_beat_it_leaves_the_state_stopped(clock: ManualClock) -> None:
    """agent-side 2: no network call on the way out."""
    routes = answers()
    hanging = anyio.Event()

    async def hang(request: httpx.Request) -> httpx.Response:
        hanging.set()
        await anyio.sleep_forever()
        raise AssertionError

    async with alone(clock) as presence:
        routes["heartbeat"].mock(side_effect=hang)
        await idle(clock)
        clock.advance(1)
        with anyio.fail_after(5):
            await hanging.wait()
    assert presence.snapshot() == PresenceSnapshot(
        PresenceState.STOPPED, since=clock.now(), last_ok_at=START + timedelta(seconds=1)
    )
    assert [call.request.url.path for call in respx.calls] == ["/registry/register"]


@respx.mock
async def test_no_token_is_ever_logged(clock: ManualClock) -> None:
    """agent-side 1: never printed, never logged, not even when the platform quotes it."""
    answers(heartbeat=httpx.Response(401, json={"error": f"invalid token {TOKEN}"}))
    with capture_logs() as logs:
        async with alone(clock) as presence:
            await pass_time(clock, 1)
            assert TOKEN not in str(presence.snapshot())
    assert TOKEN not in json.dumps(logs, default=repr)


@pytest.mark.parametrize(
    ("given", "card"),
    [
        ({}, {"name": "a", "skills": []}),
        ({"skills": ("x", "y")}, {"name": "a", "skills": [{"name": "x"}, {"name": "y"}]}),
        ({"description": "d"}, {"name": "a", "skills": [], "description": "d"}),
    ],
)
def test_the_agent_card_has_the_contracts_form(given: dict[str, Any], card: dict[str, Any]) -> None:
    """Contract 2.2: description is left out when empty."""
    assert card_from_settings("a", **given) == card

"""Registering, beating, falling silent and coming back."""

from __future__ import annotations

from dataclasses import replace

import pytest
from structlog.testing import capture_logs

from molecule_runtime.clock import ManualClock
from molecule_runtime.reference_platform.config import PlatformConfig
from molecule_runtime.wire.registry import WorkspaceStatus

from .support import CARD, NOBODY, Database, Platform, bearer, running, until


async def test_creation_register_and_first_beat_announce_themselves_in_order(platform: Platform) -> None:
    """PROVISIONING, AWAITING_AGENT, ONLINE with the card, then a beat after its changes (contract 2, 3.1)."""
    with platform.parts.bus.subscribe() as events:
        member = await platform.create()
        assert await platform.heard(events) == [
            ("WORKSPACE_PROVISIONING", {"name": "laptop", "tier": 3, "runtime": "external"}),
            ("WORKSPACE_AWAITING_AGENT", {"name": "laptop", "external": True}),
        ]
        await platform.register(member)
        assert await platform.heard(events) == [
            ("WORKSPACE_ONLINE", {"url": "", "agent_card": CARD, "delivery_mode": "poll"})
        ]
        await platform.beat(member, active_tasks=2, uptime_seconds=61, current_task="sweeping", error_rate=0.7)
        assert await platform.heard(events) == [
            ("WORKSPACE_DEGRADED", {"error_rate": 0.7, "sample_error": ""}),
            ("TASK_UPDATED", {"current_task": "sweeping", "active_tasks": 2}),
            ("WORKSPACE_HEARTBEAT", {"active_tasks": 2, "uptime_seconds": 61}),
        ]
        await platform.beat(member, active_tasks=1, current_task="sweeping", error_rate=0.3)
        assert await platform.heard(events) == [("WORKSPACE_HEARTBEAT", {"active_tasks": 1, "uptime_seconds": 0})]


async def test_first_beat_brings_awaiting_agent_online(platform: Platform) -> None:
    """A workspace that beats before it registers is online and says where it came from (contract 2.3)."""
    member = await platform.create()
    with platform.parts.bus.subscribe() as events:
        await platform.beat(member)
        assert await platform.heard(events) == [
            ("WORKSPACE_ONLINE", {"recovered_from": "awaiting_agent"}),
            ("WORKSPACE_HEARTBEAT", {"active_tasks": 0, "uptime_seconds": 0}),
        ]
    assert await platform.status(member) == "online"


async def test_beat_overwrites_the_columns_and_spend_is_kept_on_zero(platform: Platform) -> None:
    """A beat states the load anew; monthly_spend 0 means unknown and large values are cut (contract 2.3)."""
    member = await platform.join()
    await platform.beat(member, active_tasks=3, monthly_spend=250, sample_error="boom", current_task="x")
    await platform.beat(member, active_tasks=1)
    row = (await platform.http.get("/workspaces")).json()[0]
    assert (row["active_tasks"], row["monthly_spend"], row["last_sample_error"], row["current_task"]) == (
        1,
        250,
        "",
        "",
    )
    await platform.beat(member, monthly_spend=10**15)
    assert (await platform.http.get("/workspaces")).json()[0]["monthly_spend"] == 10**12


async def test_silent_workspace_awaits_its_agent_and_a_beat_brings_it_back(
    platform: Platform, clock: ManualClock
) -> None:
    """90 s without a beat mean awaiting_agent and WORKSPACE_OFFLINE; any beat mends it (contract 2.4)."""
    member = await platform.join()
    with platform.parts.bus.subscribe() as events:
        clock.advance(90)
        assert await platform.parts.sweeper.sweep_once() == []
        clock.advance(0.001)
        assert await platform.parts.sweeper.sweep_once() == [member.id]
        assert await platform.parts.sweeper.sweep_once() == []
        assert await platform.status(member) == "awaiting_agent"
        assert await platform.heard(events) == [("WORKSPACE_OFFLINE", {})]
        await platform.beat(member)
        assert (await platform.heard(events))[0] == ("WORKSPACE_ONLINE", {"recovered_from": "awaiting_agent"})
    assert await platform.status(member) == "online"


@pytest.mark.parametrize("status", [status for status in WorkspaceStatus if status not in ("online", "degraded")])
async def test_sweep_leaves_other_statuses_alone(
    platform: Platform, clock: ManualClock, database: Database, status: str
) -> None:
    """Only online and degraded workspaces can fall silent (contract 2.4)."""
    member = await platform.join()
    database.sql(f"UPDATE workspaces SET status = '{status}'")
    clock.advance(3600)
    assert await platform.parts.sweeper.sweep_once() == []
    assert await platform.status(member) == status


async def test_sweep_judges_a_workspace_that_never_beat_by_its_last_change(
    platform: Platform, clock: ManualClock, database: Database
) -> None:
    """Without a heartbeat the row's own time counts, and degraded workspaces are swept too (contract 2.4)."""
    reply = await platform.http.post(
        "/workspaces", json={"name": "pushed", "runtime": "external", "url": "https://agent.example/a2a"}
    )
    assert reply.json() == {"id": reply.json()["id"], "external": True, "status": "online"}
    database.sql("UPDATE workspaces SET status = 'degraded'")
    clock.advance(91)
    await platform.parts.sweeper.sweep_once()  # the platform's own loop may have been quicker
    shown = await platform.http.get(f"/workspaces/{reply.json()['id']}")
    assert shown.json()["status"] == "awaiting_agent"


async def test_the_loop_sweeps_by_itself_and_survives_a_failing_store(
    config: PlatformConfig, clock: ManualClock, database: Database
) -> None:
    """A sweep that fails is logged and the next one works (ours, style 3.7)."""
    async with running(replace(config, stale_after_s=20, sweep_interval_s=5), clock) as platform:
        member = await platform.join()

        async def asleep() -> bool:
            return clock.sleepers == 3  # the sweepers of files and delegations sleep for ever

        await until(asleep)
        database.sql("ALTER TABLE workspaces RENAME TO hidden")
        with capture_logs() as logs:
            clock.advance(30)
            await until(asleep)
        assert [entry["event"] for entry in logs] == ["sweeper.failed"]
        database.sql("ALTER TABLE hidden RENAME TO workspaces")
        clock.advance(5)

        async def noticed() -> bool:
            return await platform.status(member) == "awaiting_agent"

        await until(noticed)


async def test_register_of_an_unknown_id_creates_it_and_mints_one_token(platform: Platform) -> None:
    """The first register returns a token, the second does not, the row is named after its id (contract 2.1)."""
    body = {"id": NOBODY, "delivery_mode": "poll", "agent_card": {}}
    first = await platform.http.post("/registry/register", json=body)
    assert set(first.json()) == {"status", "delivery_mode", "auth_token", "platform_inbound_secret"}
    token = first.json()["auth_token"]
    assert len(token) == 43
    second = await platform.http.post("/registry/register", json=body, headers=bearer(token))
    assert set(second.json()) == {"status", "delivery_mode", "platform_inbound_secret"}
    assert second.json()["platform_inbound_secret"] == first.json()["platform_inbound_secret"]
    row = (await platform.http.get(f"/workspaces/{NOBODY}")).json()
    assert (row["name"], row["status"], row["runtime"]) == (NOBODY, "online", "external")


async def test_mode_is_the_payloads_else_the_stored_else_push(platform: Platform) -> None:
    """delivery_mode resolves in this order; a poll register without url clears the stored one (contract 2.1)."""
    member = await platform.create()
    body = {"id": member.id, "agent_card": {}}
    without = await platform.http.post("/registry/register", json=body, headers=member.headers)
    assert (without.status_code, without.json()) == (400, {"error": "url is required for push-mode workspaces"})
    assert await platform.status(member) == "awaiting_agent"
    await platform.register(member, url="remote://no-inbound")
    assert (await platform.http.get(f"/workspaces/{member.id}")).json()["url"] == "remote://no-inbound"
    again = await platform.http.post("/registry/register", json=body | {"delivery_mode": ""}, headers=member.headers)
    assert again.json()["delivery_mode"] == "poll"
    assert (await platform.http.get(f"/workspaces/{member.id}")).json()["url"] == ""


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("ftp://agent.example", "url scheme must be http or https"),
        ("remote://no-inbound", "url scheme must be http or https"),
        ("http://", "url has no host"),
        ("http://[::1", "url is not a valid URL"),
        ("http://127.0.0.1:9000", "url targets a blocked address: loopback"),
        ("http://[::1]/", "url targets a blocked address: loopback"),
        ("http://[::ffff:127.0.0.1]/", "url targets a blocked address: loopback"),
        ("http://169.254.169.254/", "url targets a blocked address: link-local"),
        ("http://10.1.2.3/", "url targets a blocked address: private"),
        ("http://100.64.0.1/", "url targets a blocked address: carrier-grade NAT"),
        ("http://224.0.0.1/", "url targets a blocked address: multicast"),
        ("http://0.0.0.0/", "url targets a blocked address: unspecified"),
        ("http://203.0.113.9/", "url targets a blocked address: private"),
        ("http://localhost:9000/", None),
        ("https://agent.example/a2a", None),
        ("http://93.184.216.34/", None),
    ],
)
async def test_push_url_must_lead_outside(platform: Platform, url: str, error: str | None) -> None:
    """A push-mode workspace cannot name an address inside the platform's own network (contract 2.1)."""
    member = await platform.create()
    body = {"id": member.id, "agent_card": {}, "delivery_mode": "push", "url": url}
    reply = await platform.http.post("/registry/register", json=body, headers=member.headers)
    assert reply.json().get("error") == error
    assert reply.status_code == (200 if error is None else 400)


async def test_store_failures_are_500_and_not_silence(platform: Platform, database: Database) -> None:
    """Register and heartbeat name their failure when the row cannot be written (contract 2.1, 2.3, R22)."""
    member = await platform.join()
    database.refuse("UPDATE", "workspaces")
    body = {"id": member.id, "delivery_mode": "poll", "agent_card": {}}
    register = await platform.http.post("/registry/register", json=body, headers=member.headers)
    assert (register.status_code, register.json()) == (500, {"error": "registration failed"})
    beat = await platform.http.post("/registry/heartbeat", json={"workspace_id": member.id}, headers=member.headers)
    assert (beat.status_code, beat.json()) == (500, {"error": "failed to update"})


async def test_beat_of_an_unknown_workspace_is_200_without_effect(platform: Platform) -> None:
    """By default an unknown id is not told apart on the heartbeat, and nothing is emitted (contract 2.3)."""
    with platform.parts.bus.subscribe() as events:
        reply = await platform.http.post("/registry/heartbeat", json={"workspace_id": NOBODY})
        assert (reply.status_code, reply.json()) == (200, {"status": "ok"})
        assert await platform.heard(events) == []


async def test_ids_compare_without_case(platform: Platform) -> None:
    """An id in capitals is the same workspace (ours)."""
    member = await platform.join()
    reply = await platform.http.post(
        "/registry/heartbeat", json={"workspace_id": member.id.upper()}, headers=member.headers
    )
    assert "platform_inbound_secret" in reply.json()
    assert (await platform.http.get(f"/workspaces/{member.id.upper()}")).json()["id"] == member.id

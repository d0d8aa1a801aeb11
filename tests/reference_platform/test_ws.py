"""The socket: real frames over a real connection, who hears what, and who is kept out."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import anyio
import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from molecule_runtime.reference_platform.config import PlatformConfig
from molecule_runtime.wire.events import EventName

from .support import ADMIN, CARD, Member, bearer, canvas_message, served
from .test_golden import GOLDEN, WORKSPACE, differences


@pytest.fixture
async def url(config: PlatformConfig) -> AsyncIterator[str]:
    async with served(config) as url:
        yield url


@pytest.fixture
async def http(url: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=url) as http:
        yield http


def socket(url: str, headers: dict[str, str] | None = None, **options: Any) -> connect:
    return connect(url.replace("http", "ws", 1) + "/ws", additional_headers=headers, **options)


async def join(http: httpx.AsyncClient, name: str = "laptop", **fields: Any) -> Member:
    made = (await http.post("/workspaces", json={"name": name, "external": True} | fields)).json()
    member = Member(id=made["id"], token=made["connection"]["auth_token"])
    body = {"id": member.id, "delivery_mode": "poll", "agent_card": CARD}
    await http.post("/registry/register", json=body, headers=member.headers)
    return member


async def frames(connection: ClientConnection, last: str, of: Member) -> list[dict[str, Any]]:
    """All frames up to the first `last` of this workspace."""
    found: list[dict[str, Any]] = []
    with anyio.fail_after(5):
        while not found or (found[-1]["event"], found[-1]["workspace_id"]) != (last, of.id):
            found.append(json.loads(await connection.recv()))
    return found


async def test_a_canvas_hears_everything_in_the_golden_form(url: str, http: httpx.AsyncClient) -> None:
    """Each golden frame has a real one of the same shape, workspace and fixed payload (contract 8.2, golden events)."""
    member = (await http.post("/workspaces", json={"name": "laptop", "external": True})).json()
    ours = Member(id=member["id"], token=member["connection"]["auth_token"])
    async with socket(url) as canvas:
        await http.post(
            "/registry/heartbeat", json={"workspace_id": ours.id, "uptime_seconds": 61}, headers=ours.headers
        )
        body = {"id": ours.id, "delivery_mode": "poll", "agent_card": CARD}
        await http.post("/registry/register", json=body, headers=ours.headers)
        body = {"workspace_id": ours.id, "agent_card": {"name": "desk", "skills": []}}
        await http.post("/registry/update-card", json=body, headers=ours.headers)
        message = json.loads((GOLDEN / "a2a_canvas.json").read_text())["exchanges"][0]["request"]
        await http.post(f"/workspaces/{ours.id}/a2a", json=message)
        await http.post(f"/workspaces/{ours.id}/notify", json={"message": "got it"}, headers=ours.headers)
        heard = await frames(canvas, EventName.AGENT_MESSAGE, ours)
    assert [frame["event"] for frame in heard] == [
        "WORKSPACE_ONLINE",
        "WORKSPACE_HEARTBEAT",
        "WORKSPACE_ONLINE",
        "AGENT_CARD_UPDATED",
        "ACTIVITY_LOGGED",
        "AGENT_MESSAGE",
    ]
    real = {frame["event"]: frame for frame in reversed(heard)}
    for golden in json.loads((GOLDEN / "events.json").read_text().replace(WORKSPACE, ours.id))["frames"]:
        assert differences(golden, real[golden["event"]]) == []
        assert golden["workspace_id"] == real[golden["event"]]["workspace_id"]
        if golden["event"] != "ACTIVITY_LOGGED":
            assert golden["payload"] == real[golden["event"]]["payload"]


async def test_a_workspace_hears_itself_whole_and_its_peers_by_status_only(url: str, http: httpx.AsyncClient) -> None:
    """Own payloads; of those it may talk to, changes of status without payload; else nothing (contract 0.5)."""
    ours, sibling = await join(http, "ours"), await join(http, "sibling")
    niece = await join(http, "niece", parent_id=sibling.id)
    for headers in (ours.headers, bearer(ours.token, **{"X-Workspace-ID": ours.id})):
        async with socket(url, headers) as listening:
            for member in (niece, sibling, ours):
                await http.post(f"/workspaces/{member.id}/a2a", json=canvas_message("secret"))
                await http.post(f"/workspaces/{member.id}/notify", json={"message": "x"}, headers=member.headers)
                await http.post(
                    "/registry/heartbeat", json={"workspace_id": member.id, "error_rate": 0.6}, headers=member.headers
                )
                await http.post("/registry/heartbeat", json={"workspace_id": member.id}, headers=member.headers)
            heard = await frames(listening, EventName.WORKSPACE_HEARTBEAT, ours)
            heard += await frames(listening, EventName.WORKSPACE_HEARTBEAT, ours)
        assert {frame["workspace_id"] for frame in heard} == {sibling.id, ours.id}
        of_sibling = [(frame["event"], frame["payload"]) for frame in heard if frame["workspace_id"] == sibling.id]
        assert of_sibling == [("WORKSPACE_DEGRADED", {}), ("WORKSPACE_ONLINE", {})]
        of_ours = [frame["event"] for frame in heard if frame["workspace_id"] == ours.id]
        assert of_ours[:3] == ["ACTIVITY_LOGGED", "AGENT_MESSAGE", "WORKSPACE_DEGRADED"]
        assert "secret" in json.dumps(heard)
        assert heard[2]["payload"]["request_body"]["params"]["message"]["parts"][0]["text"] == "secret"


async def test_removal_ends_the_workspaces_own_socket(url: str, http: httpx.AsyncClient) -> None:
    """The token opens nothing any more, so what it opened is closed, after the word of it (contract 1.3, 0.5)."""
    ours = await join(http, "ours")
    async with socket(url, ours.headers) as listening:
        await http.delete(f"/workspaces/{ours.id}")
        assert [frame["event"] for frame in await frames(listening, "WORKSPACE_REMOVED", ours)] == ["WORKSPACE_REMOVED"]
        with anyio.fail_after(5), pytest.raises(ConnectionClosed) as closed:
            await listening.recv()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1008


async def refused(url: str, headers: dict[str, str], **options: Any) -> int:
    with anyio.fail_after(5), pytest.raises(InvalidStatus) as refusal:
        async with socket(url, headers, **options):
            pass
    assert "error" in json.loads(refusal.value.response.body)
    return refusal.value.response.status_code


async def test_doors_of_the_socket_in_development(
    url: str, http: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    """Wrong, foreign and dead tokens are 401, foreign pages and hosts 403 (contract 8.2, 0.2, 0.3)."""
    ours, other, gone = await join(http, "ours"), await join(http, "other"), await join(http, "gone")
    await http.delete(f"/workspaces/{gone.id}")
    for headers in (
        bearer("wrong"),
        gone.headers,
        {"X-Workspace-ID": ours.id},
        bearer("wrong", **{"X-Workspace-ID": ours.id}),
        bearer(other.token, **{"X-Workspace-ID": ours.id}),
        bearer(ours.token, **{"X-Workspace-ID": "nope"}),
        bearer(gone.token, **{"X-Workspace-ID": gone.id}),
    ):
        assert await refused(url, headers) == 401
    assert await refused(url, {}, origin="https://evil.example") == 403
    with anyio.fail_after(5), pytest.raises(InvalidStatus) as refusal:
        async with connect("ws://evil.example/ws", host="127.0.0.1", port=int(url.rpartition(":")[2])):
            pass
    assert refusal.value.response.status_code == 403
    async with socket(url, origin=url):
        pass
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == []


async def test_doors_of_the_socket_with_admin_token(config: PlatformConfig) -> None:
    """Without a workspace bearer the admin token is needed (contract 0.2)."""
    async with served(replace(config, admin_token=ADMIN)) as url:
        assert await refused(url, {}) == 401
        assert await refused(url, bearer("wrong")) == 401
        async with socket(url, bearer(ADMIN)):
            pass


async def test_open_sockets_are_counted_and_client_frames_ignored(url: str, http: httpx.AsyncClient) -> None:
    """The gauge follows the connections; what a client says changes nothing (contract 8.2, 9.1)."""

    async def gauge() -> str:
        lines = (await http.get("/metrics")).text.splitlines()
        return next(line for line in lines if line.startswith("molecule_websocket_connections_active "))

    async with socket(url) as canvas:
        await canvas.send("hello")
        await canvas.send(b"\x00")
        ours = await join(http)
        await frames(canvas, EventName.WORKSPACE_ONLINE, ours)
        assert await gauge() == "molecule_websocket_connections_active 1.0"
    with anyio.fail_after(5):
        while await gauge() != "molecule_websocket_connections_active 0.0":
            await anyio.lowlevel.checkpoint()

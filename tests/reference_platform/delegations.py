"""What the tests of delegations share: making one, answering it, and looking at it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .support import Database, Member, Platform, bearer

QUEUED = (200, {"status": "queued", "delivery_mode": "poll", "method": "message/send"})
"""What a sender to a polling workspace is told."""
TASK = "帮我 check the deploy"


async def delegate(platform: Platform, delegator: Member, target_id: str, task: str = TASK, **fields: Any) -> Any:
    """Post a delegation; (status, body)."""
    body = {"target_id": target_id, "task": task} | fields
    reply = await platform.http.post(f"/workspaces/{delegator.id}/delegate", json=body, headers=delegator.headers)
    return reply.status_code, reply.json()


async def delegated(platform: Platform, delegator: Member, worker: Member, task: str = TASK, **fields: Any) -> str:
    """Make a delegation; its id."""
    status, body = await delegate(platform, delegator, worker.id, task, **fields)
    assert status == 202, body
    return str(body["delegation_id"])


async def answer(
    platform: Platform, worker: Member, delegator: Member, delegation_id: str, text: str, message_id: str | None = None
) -> tuple[int, Any]:
    """The worker's message to the delegator, as its agent sends it (contract 13.8)."""
    message = {
        "role": "agent",
        "parts": [{"kind": "text", "text": text}],
        "metadata": {"delegation_id": delegation_id},
    } | ({} if message_id is None else {"messageId": message_id})
    reply = await platform.http.post(
        f"/workspaces/{delegator.id}/a2a",
        json={"jsonrpc": "2.0", "id": "1", "method": "message/send", "params": {"message": message}},
        headers=bearer(worker.token, **{"X-Workspace-ID": worker.id}),
    )
    return reply.status_code, reply.json()


async def record(platform: Platform, delegator: Member, body: dict[str, Any]) -> tuple[int, Any]:
    url = f"/workspaces/{delegator.id}/delegations/record"
    reply = await platform.http.post(url, json=body, headers=delegator.headers)
    return reply.status_code, reply.json()


async def update(
    platform: Platform, delegator: Member, delegation_id: str, status: str, **fields: Any
) -> tuple[int, Any]:
    url = f"/workspaces/{delegator.id}/delegations/{delegation_id}/update"
    reply = await platform.http.post(url, json={"status": status} | fields, headers=delegator.headers)
    return reply.status_code, reply.json()


async def beat(platform: Platform, worker: Member, delegation_id: str) -> tuple[int, Any]:
    url = f"/workspaces/{worker.id}/delegations/{delegation_id}/heartbeat"
    reply = await platform.http.post(url, headers=worker.headers)
    return reply.status_code, reply.json()


async def show(platform: Platform, delegator: Member, delegation_id: str) -> Any:
    """What the platform tells the delegator of it."""
    reply = await platform.http.get(
        f"/workspaces/{delegator.id}/delegations/{delegation_id}", headers=delegator.headers
    )
    assert reply.status_code == 200, reply.text
    return reply.json()


async def state(platform: Platform, delegator: Member, delegation_id: str) -> tuple[str, str | None, str | None]:
    """Status, text and error."""
    shown = await show(platform, delegator, delegation_id)
    return shown["status"], shown["text"], shown["error"]


@dataclass(frozen=True)
class Pair:
    """Two workspaces that poll."""

    boss: Member
    worker: Member


async def a_pair(platform: Platform) -> Pair:
    return Pair(await platform.join("boss"), await platform.join("worker"))


async def inbox(platform: Platform, member: Member) -> list[dict[str, Any]]:
    """The rows of the feed that an agent polls, oldest first."""
    return list(reversed(await platform.rows(member, type="a2a_receive")))


async def rows_of(platform: Platform, member: Member) -> list[tuple[str, str]]:
    """(method, status) of the delegation rows, oldest first."""
    rows = await platform.rows(member, type="delegation")
    return [(row["method"], row["status"]) for row in reversed(rows)]


LINE = ("status", "error_detail", "result_preview", "last_heartbeat", "deadline", "updated_at")


def ledger_of(database: Database, delegation_id: str) -> dict[str, Any]:
    """The delegation's line in the ledger."""
    ((*values,),) = database.sql(f"SELECT {', '.join(LINE)} FROM delegations WHERE delegation_id = '{delegation_id}'")
    return dict(zip(LINE, values, strict=True))

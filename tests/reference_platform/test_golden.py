"""The golden exchanges, sent to a real platform: status, shape and error text must be those of the files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from molecule_runtime.reference_platform.services import tokens

from .support import Database, Member, Platform, bearer

GOLDEN = Path(__file__).parents[1] / "golden"
WORKSPACE = "11111111-1111-4111-8111-111111111111"
PEER = "22222222-2222-4222-8222-222222222222"
TOKEN = "77777777-7777-4777-8777-777777777777"
FILE = "44444444-4444-4444-8444-444444444444"
MEMORY = "88888888-8888-4888-8888-888888888888"
DELEGATION = "55555555-5555-4555-8555-555555555555"


def exchanges() -> list[Any]:
    """One parameter for each exchange of each file that a platform answers."""
    found = []
    for path in sorted(GOLDEN.glob("*.json")):
        document = json.loads(path.read_text())
        if document.keys() & {"client_only", "push_agent", "needs_plugin", "of_plugin"}:
            continue
        found += [
            pytest.param(path.stem, document, exchange, id=f"{path.stem}: {exchange['name']}")
            for exchange in document.get("exchanges", [])
        ]
    return found


@pytest.mark.parametrize(("file", "document", "exchange"), exchanges())
async def test_golden_exchange_is_answered_as_recorded(
    platform: Platform, database: Database, file: str, document: dict[str, Any], exchange: dict[str, Any]
) -> None:
    """Every recorded exchange has the same status, keys, JSON types and error text here (contract, each section)."""
    ours, peer = await a_team(platform)
    await prepare(platform, database, file, exchange, ours, peer)

    def placed(value: Any) -> Any:
        text = json.dumps(value).replace(WORKSPACE, ours.id).replace(PEER, peer.id)
        text = text.replace(TOKEN, token_of(database, ours)).replace(FILE, file_of(database))
        return json.loads(text.replace(DELEGATION, delegation_of(database)))

    method, path = document["endpoint"].split(" ")
    token = exchange.get("bearer", ours.token)
    headers = bearer(token)
    if "caller" in exchange:
        headers["X-Workspace-ID"] = placed(exchange["caller"])
    content = exchange.get("raw") or (json.dumps(placed(exchange["request"])) if "request" in exchange else None)
    files = [posted(file) for file in exchange.get("files", ())] or None
    reply = await platform.http.request(
        method,
        placed(exchange.get("path", path)),
        params=exchange.get("query", document.get("query")),
        headers=headers,
        content=content,
        files=files,
    )

    assert reply.status_code == exchange["status"], reply.text
    if "content" in exchange:
        assert reply.text == exchange["content"]
        assert exchange["headers"].items() <= {name.title(): value for name, value in reply.headers.items()}.items()
    else:
        assert differences(exchange["response"], reply.json()) == []


def posted(file: dict[str, Any]) -> tuple[str, tuple[str, bytes, str]]:
    """A part of a form."""
    content = file["content"].encode() * file.get("times", 1)
    return file.get("field", "files"), (file["name"], content, file["mimeType"])


async def a_team(platform: Platform) -> tuple[Member, Member]:
    """The two workspaces that the files speak of, ours registered as its agent would do it."""
    ours = await platform.create("laptop")
    peer = await platform.create("ops-agent", role="sre", delivery_mode="poll")
    await platform.register(ours)
    await platform.beat(ours, uptime_seconds=12)
    return ours, peer


async def prepare(
    platform: Platform, database: Database, file: str, exchange: dict[str, Any], ours: Member, peer: Member
) -> None:
    """Bring about what an exchange takes for granted."""
    if file in ("activity", "chat_history"):
        canvas = json.loads((GOLDEN / "a2a_canvas.json").read_text())["exchanges"][0]["request"]
        await platform.http.post(f"/workspaces/{ours.id}/a2a", json=canvas)
    if file == "chat_history":
        await platform.http.post(
            f"/workspaces/{ours.id}/notify", json={"message": "got it 世界 🌍"}, headers=ours.headers
        )
    if file in ("upload_row", "upload_content", "upload_ack"):
        owner = peer if exchange["name"] == "of another workspace" else ours
        form = {"files": ("a.pdf", b"one", "application/pdf")}
        await platform.http.post(f"/workspaces/{owner.id}/chat/uploads", files=form)
    if exchange["name"].startswith("acked"):
        await platform.http.post(f"/workspaces/{ours.id}/pending-uploads/{file_of(database)}/ack")
    if exchange["name"] == "expired":
        database.sql("UPDATE pending_uploads SET expires_at = '2025-12-31 00:00:00.000000+00'")
    if file.startswith("delegat") and exchange["name"] not in ("none", "accepted", "recorded"):
        delegator, worker = (peer, ours) if file == "delegation_heartbeat" else (ours, peer)
        await a_delegation(platform, database, delegator, worker, exchange["name"])
    if file.endswith(("_memory", "_memories")) and exchange["name"] not in ("local", "with an id of the writer (ours)"):
        memory = {"content": "部署在星期五", "scope": "LOCAL", "id": MEMORY}
        await platform.http.post(f"/workspaces/{ours.id}/memories", json=memory, headers=ours.headers)
    if file == "get_removed_workspace":
        await platform.http.delete(f"/workspaces/{ours.id}")
    if file == "discover" and exchange["name"].startswith("pushed peer"):
        await platform.register(peer, delivery_mode="push", url="https://agent.example/a2a")
        if exchange["name"].endswith("away"):
            database.sql(f"UPDATE workspaces SET status = 'awaiting_agent' WHERE id = '{peer.id}'")
        if exchange["name"].endswith("inside"):
            database.sql(f"UPDATE workspaces SET url = 'http://10.0.0.7/a2a' WHERE id = '{peer.id}'")
    if exchange["name"] == "at the limit":
        for _ in range(tokens.MAX_LIVE - 1):
            await platform.parts.store.write(tokens.mint, ours.id, platform.parts.clock.now())
    if exchange["name"] in ("one workspace", "peer that was removed"):
        await platform.http.delete(f"/workspaces/{peer.id}")
    if exchange["name"] == "first register of a workspace without a token":
        await platform.parts.store.write(tokens.revoke_all, [ours.id], platform.parts.clock.now())


async def a_delegation(platform: Platform, database: Database, delegator: Member, worker: Member, ended: str) -> None:
    """A delegation that is open, or was ended as the exchange's name says."""
    body = {"target_id": worker.id, "task": "check the deploy", "idempotency_key": "a-key"}
    await platform.http.post(f"/workspaces/{delegator.id}/delegate", json=body, headers=delegator.headers)
    updates = {
        "completed": {"status": "completed", "response_preview": "完成 ✅"},
        "closed meanwhile": {"status": "completed"},
        "failed": {"status": "failed", "error": "no luck"},
    }
    if ended in updates:
        url = f"/workspaces/{delegator.id}/delegations/{delegation_of(database)}/update"
        await platform.http.post(url, json=updates[ended], headers=delegator.headers)


def token_of(database: Database, member: Member) -> str:
    """The id of the workspace's first token."""
    query = f"SELECT id FROM workspace_tokens WHERE workspace_id = '{member.id}' ORDER BY created_at LIMIT 1"
    ((token_id,),) = database.sql(query)
    return str(token_id)


def file_of(database: Database) -> str:
    """The id of the file that is staged, if there is one."""
    return next((str(file_id) for (file_id,) in database.sql("SELECT file_id FROM pending_uploads")), FILE)


def delegation_of(database: Database) -> str:
    """The id of the delegation that was made, if there is one."""
    query = "SELECT delegation_id FROM activity_logs WHERE delegation_id IS NOT NULL"
    return next((str(delegation_id) for (delegation_id,) in database.sql(query)), DELEGATION)


def differences(golden: Any, actual: Any, where: str = "$") -> list[str]:
    """Where `actual` departs from the golden shape; a golden null stands for any value, errors must be equal."""
    if golden is None:
        return []
    if isinstance(golden, dict) and isinstance(actual, dict):
        found = [f"{where}: {sorted(golden.keys() ^ actual.keys())}"] if golden.keys() != actual.keys() else []
        if golden.get("error") != actual.get("error") and isinstance(golden.get("error"), str):
            found.append(f"{where}.error: {actual.get('error')!r}")
        for key in golden.keys() & actual.keys():
            found += differences(golden[key], actual[key], f"{where}.{key}")
        return found
    if isinstance(golden, list) and isinstance(actual, list):
        if bool(golden) != bool(actual):
            return [f"{where}: {len(actual)} elements"]
        pattern = golden + golden[-1:] * (len(actual) - len(golden))
        return [
            difference
            for index, (one, other) in enumerate(zip(pattern, actual, strict=False))
            for difference in differences(one, other, f"{where}[{index}]")
        ]
    return [] if kind(golden) == kind(actual) else [f"{where}: {actual!r} is no {kind(golden)}"]


def kind(value: Any) -> str:
    """The JSON type of a value; 1 and 1.0 are both numbers."""
    match value:
        case bool():
            return "boolean"
        case int() | float():
            return "number"
        case str():
            return "string"
        case dict():
            return "object"
        case list():
            return "array"
        case _:
            return "null"


def test_the_comparison_sees_each_kind_of_difference() -> None:
    """A missing key, another type, another error and an empty list are all noticed (ours)."""
    golden = {"error": "no", "count": 1, "rows": [{"id": "x", "gone": None}]}
    assert differences(golden, {"error": "no", "count": 2.5, "rows": [{"id": "y", "gone": 7}] * 2}) == []
    assert differences(golden, {"error": "yes", "count": "1", "rows": []}) != []
    assert len(differences(golden, {"error": "yes", "count": "1", "rows": []})) == 3
    assert differences({"id": "x"}, {"id": None}) == ["$.id: None is no string"]
    assert differences({"id": "x"}, {"id": "x", "more": 1}) == ["$: ['more']"]

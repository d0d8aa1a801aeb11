"""Files of the chat: what is staged, who may read it, and what is refused."""

from __future__ import annotations

from typing import Any

import httpx

from .support import Database, Member, Platform, bearer


async def upload(
    platform: Platform, member: Member, *files: tuple[str, bytes, str], headers: dict[str, str] | None = None
) -> httpx.Response:
    """Upload (name, bytes, type) as the user does it."""
    return await platform.http.post(
        f"/workspaces/{member.id}/chat/uploads", files=[("files", file) for file in files], headers=headers
    )


async def test_an_upload_is_staged_announced_fetched_and_acked(platform: Platform, database: Database) -> None:
    """From the user's drop to the agent's ack: answer, rows, event, bytes (contract 5.1, 5.4, 5.5)."""
    member = await platform.join()
    big = bytes(range(256)) * 6000
    with platform.parts.bus.subscribe() as events:
        reply = await upload(platform, member, ("b 世界.pdf", b"one", "application/pdf"), ("a.bin", big, "x/y; q=1"))
        heard = await platform.heard(events)
    assert reply.status_code == 200, reply.text
    first, second = reply.json()["files"]
    assert (first["name"], first["mimeType"], first["size"]) == ("b___.pdf", "application/pdf", 3)
    assert (second["name"], second["mimeType"], second["size"]) == ("a.bin", "x/y", len(big))
    assert [name for name, _ in heard] == ["ACTIVITY_LOGGED", "ACTIVITY_LOGGED"]
    rows = list(reversed(await platform.rows(member)))
    for row, file in zip(rows, (first, second), strict=True):
        assert row["method"] == "chat_upload_receive"
        assert row["request_body"] == {"file_id": file["uri"].rpartition("/")[2], **file}
    for file, content in ((first, b"one"), (second, big)):
        fetched = await read(platform, member, file)
        assert (fetched.status_code, fetched.content) == (200, content)
    acked = await ack(platform, member, first)
    assert (acked.status_code, acked.json()) == (200, {"acked": True})
    assert (await read(platform, member, first)).status_code == 404


async def read(platform: Platform, member: Member, file: dict[str, Any], token: str | None = "own") -> httpx.Response:
    headers = member.headers if token == "own" else bearer(token)
    return await platform.http.get(f"{path(member, file)}/content", headers=headers)


async def ack(platform: Platform, member: Member, file: dict[str, Any]) -> httpx.Response:
    return await platform.http.post(f"{path(member, file)}/ack", headers=member.headers)


def path(member: Member, file: dict[str, Any]) -> str:
    return f"/workspaces/{member.id}/pending-uploads/{file['uri'].rpartition('/')[2]}"

"""What the tests of uploads share: bodies, and what a platform holds of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx

from .support import Database, Member, Platform

BOUNDARY = "frontier"
FORM = f"multipart/form-data; boundary={BOUNDARY}"
File = tuple[str, bytes, str]
GONE = (404, {"error": "pending upload not found, expired, or already acked"})
NOT_YOURS = (404, {"error": "pending upload not found"})


def part(content: bytes, *headers: str) -> bytes:
    """A part with these headers, as bytes on the wire."""
    return (
        f"--{BOUNDARY}\r\n".encode() + "".join(f"{line}\r\n" for line in headers).encode() + b"\r\n" + content + b"\r\n"
    )


def named(name: str, content: bytes = b"x", kind: str = "text/plain") -> bytes:
    """A part with a file of our field."""
    return part(content, f'Content-Disposition: form-data; name="files"; filename="{name}"', f"Content-Type: {kind}")


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


async def upload(
    platform: Platform, member: Member, *files: File, headers: dict[str, str] | None = None
) -> httpx.Response:
    """Upload (name, bytes, type); without headers as the user does it."""
    return await platform.http.post(
        f"/workspaces/{member.id}/chat/uploads", files=[("files", file) for file in files], headers=headers
    )


async def post(platform: Platform, member: Member, body: Any, content_type: str = FORM) -> tuple[int, Any]:
    """Post any body; the answer's status and JSON."""
    headers = {"Content-Type": content_type} if content_type else {}
    reply = await platform.http.post(f"/workspaces/{member.id}/chat/uploads", content=body, headers=headers)
    return reply.status_code, reply.json()


async def staged(platform: Platform, member: Member, *contents: bytes) -> list[str]:
    """Upload these bytes as the user does it; the files' ids."""
    files = [(f"{number}.bin", content, "") for number, content in enumerate(contents or (b"x",))]
    reply = await upload(platform, member, *files)
    assert reply.status_code == 200, reply.text
    return [file_id(file) for file in reply.json()["files"]]


def file_id(file: dict[str, Any]) -> str:
    return str(file["uri"].rpartition("/")[2])


def path(member: Member, file: str, what: str) -> str:
    return f"/workspaces/{member.id}/pending-uploads/{file}/{what}"


async def read(platform: Platform, member: Member, file: str, *, own: bool = True) -> httpx.Response:
    """Fetch the bytes as the workspace's agent, or as the canvas does it."""
    headers = member.headers if own else platform.admin
    return await platform.http.get(path(member, file, "content"), headers=headers)


async def ack(platform: Platform, member: Member, file: str, *, own: bool = True) -> tuple[int, Any]:
    headers = member.headers if own else platform.admin
    return told(await platform.http.post(path(member, file, "ack"), headers=headers))


def told(reply: httpx.Response) -> tuple[int, Any]:
    return reply.status_code, reply.json()


def stock(database: Database) -> tuple[int, int, int]:
    """How many files, pieces of files and activity rows there are."""
    tables = ("pending_uploads", "pending_upload_chunks", "activity_logs")
    files, chunks, rows = (database.sql(f"SELECT count(*) FROM {table}")[0][0] for table in tables)
    return files, chunks, rows


def times(database: Database, file: str) -> dict[str, bool]:
    """Which of its steps a staged file has behind it."""
    ((fetched, acked),) = database.sql(f"SELECT fetched_at, acked_at FROM pending_uploads WHERE file_id = '{file}'")
    return {"fetched": fetched is not None, "acked": acked is not None}


async def pieces(content: bytes, size: int) -> AsyncIterator[bytes]:
    """The bytes as a stream of pieces."""
    for start in range(0, len(content), size):
        yield content[start : start + size]

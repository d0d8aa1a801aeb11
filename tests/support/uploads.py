"""What a canvas sends when the user drops files into the chat, and where the files are to be afterwards."""

from __future__ import annotations

import hashlib
import random
import re
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tests.support.host import Host
from tests.support.platform import PlatformProcess, eventually

Files = Iterable[tuple[str, bytes]]
"""Name and content of each."""


def form(files: Files, mime_type: str = "application/octet-stream") -> list[tuple[str, tuple[str, bytes, str]]]:
    """The `files` argument of httpx for POST /workspaces/:id/chat/uploads."""
    return [("files", (name, content, mime_type)) for name, content in files]


def message_with(text: str, uploaded: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """A message that names uploaded files, as the canvas posts it after the upload (contract 4.1, 5.1)."""
    parts: list[dict[str, Any]] = [{"kind": "text", "text": text}] if text else []
    parts += [{"kind": "file", "file": dict(file)} for file in uploaded]
    return {"method": "message/send", "params": {"message": {"role": "user", "parts": parts}, "metadata": {}}}


def files_in(content_type: str, body: bytes) -> list[tuple[str, str, bytes]]:
    """(name, type, content) of each file of a multipart form, as a platform that reads it to the letter would."""
    boundary = b"\r\n--" + content_type.partition("boundary=")[2].encode()
    first, *parts, last = (b"\r\n" + body).split(boundary)
    assert (first, last) == (b"", b"--\r\n")
    found = []
    for part in parts:
        head, _, content = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        named = re.fullmatch(
            r'Content-Disposition: form-data; name="files"; filename="([^"]*)"\r\nContent-Type: (.*)', head.decode()
        )
        assert named is not None, head
        found.append((named[1], named[2], content))
    return found


def staged(workspace_id: str, content_type: str, body: bytes) -> list[dict[str, Any]]:
    """What a platform answers to the upload of a form."""
    return [
        {
            "uri": f"platform-pending:{workspace_id}/{uuid.uuid4()}",
            "name": name,
            "mimeType": mime_type,
            "size": len(content),
        }
        for name, mime_type, content in files_in(content_type, body)
    ]


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def noise(size: int, seed: int = 0) -> bytes:
    """So many bytes that no packing makes smaller, other ones for another seed."""
    return random.Random(seed).randbytes(size)


# against a platform process


def raw_form(files: Iterable[tuple[bytes, bytes]]) -> tuple[bytes, str]:
    """A body for POST /workspaces/:id/chat/uploads with names byte by byte as they are given, and its Content-Type."""
    boundary = b"xn3Kq0b7NoFileHasThisLine"
    head = b'--%b\r\nContent-Disposition: form-data; name="files"; filename="%b"\r\nContent-Type: a/b\r\n\r\n'
    parts = [head % (boundary, name) + content + b"\r\n" for name, content in files]
    return b"".join(parts) + b"--" + boundary + b"--\r\n", f"multipart/form-data; boundary={boundary.decode()}"


def upload(platform: PlatformProcess, workspace_id: str, files: Files) -> list[dict[str, Any]]:
    """Upload as the user does; the answer's `files`."""
    reply = platform.http.post(f"/workspaces/{workspace_id}/chat/uploads", files=form(files), timeout=60)
    assert reply.status_code == 200, reply.text
    uploaded: list[dict[str, Any]] = reply.json()["files"]
    return uploaded


def mention(platform: PlatformProcess, workspace_id: str, text: str, uploaded: Iterable[Mapping[str, Any]]) -> None:
    """Post the message that names what was uploaded."""
    platform.http.post(f"/workspaces/{workspace_id}/a2a", json=message_with(text, uploaded)).raise_for_status()


def drop(platform: PlatformProcess, workspace_id: str, files: Files, text: str = "look") -> list[dict[str, Any]]:
    """The user drops files into the chat: upload, then the message that names them; the upload's `files`."""
    uploaded = upload(platform, workspace_id, files)
    mention(platform, workspace_id, text, uploaded)
    return uploaded


def file_id(uploaded: Mapping[str, Any]) -> str:
    return str(uploaded["uri"]).rpartition("/")[2]


def content_status(platform: PlatformProcess, settings: Mapping[str, str], uploaded: Mapping[str, Any]) -> int:
    """What the agent is told that asks for a file's bytes: 200, or 404 once it has acked the file."""
    path = f"/workspaces/{settings['WORKSPACE_ID']}/pending-uploads/{file_id(uploaded)}/content"
    headers = {"Authorization": f"Bearer {settings['MOLECULE_WORKSPACE_TOKEN']}"}
    with platform.http.stream("GET", path, headers=headers) as answer:
        return answer.status_code


def all_acked(
    platform: PlatformProcess, settings: Mapping[str, str], uploaded: Iterable[Mapping[str, Any]], within_s: float = 10
) -> None:
    """AssertionError when the platform would still give one of these files to the agent after `within_s`."""
    for each in uploaded:
        eventually(
            lambda each=each: content_status(platform, settings, each),  # type: ignore[misc]
            within_s=within_s,
            until=lambda status: status == 404,
        )


def files_dir(state: Path, settings: Mapping[str, str]) -> Path:
    return state / settings["WORKSPACE_ID"] / "files"


def stored(state: Path, settings: Mapping[str, str]) -> dict[str, str]:
    """Everything in the agent's directory of files, hidden or not: name and SHA-256."""
    return {path.name: sha256(path.read_bytes()) for path in files_dir(state, settings).iterdir()}


def message_of(host: Host, text: str) -> dict[str, Any]:
    """An open message as a peek shows it; {} when there is none of that text."""
    shown = host.call("inbox_peek", limit=50)["messages"]
    return next((message for message in shown if message["text"] == text), {})


def statuses(message: Mapping[str, Any]) -> list[str]:
    """The standing of each attachment; empty when there is no message."""
    return [attachment["status"] for attachment in message.get("attachments", ())]


def right_on_the_disk(message: Mapping[str, Any], contents: Iterable[bytes], directory: Path) -> None:
    """AssertionError unless each attachment is staged as a private file of its own inside `directory`, byte by byte."""
    contents = list(contents)
    attachments = message["attachments"]
    assert len(attachments) == len(contents)
    for attachment, content in zip(attachments, contents, strict=True):
        assert (attachment["status"], attachment["reason"], attachment["size"]) == ("staged", None, len(content))
        path = Path(attachment["path"])
        assert path.is_file()
        assert not path.is_symlink()
        assert path.resolve().parent == directory.resolve()
        assert re.fullmatch(r"[0-9a-f]{32}-[A-Za-z0-9._-]{1,100}", path.name), path.name
        assert path.stat().st_mode & 0o777 == 0o600
        assert sha256(path.read_bytes()) == sha256(content), path.name
    assert len({attachment["path"] for attachment in attachments}) == len(attachments)

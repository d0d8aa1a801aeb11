"""What a canvas sends when the user drops files into the chat."""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

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

"""What a canvas sends when the user drops files into the chat."""

from __future__ import annotations

import hashlib
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


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()

"""The chat as a canvas shows it: bubbles made from activity rows (contract 4.5)."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, select

from molecule_runtime.reference_platform.identifiers import new_id
from molecule_runtime.reference_platform.store.engine import Store
from molecule_runtime.reference_platform.store.tables import activity_logs
from molecule_runtime.wire.a2a import part_text
from molecule_runtime.wire.activity import ActivityRow, ActivityType
from molecule_runtime.wire.chat import Attachment, ChatHistory, ChatMessage, ChatRole

HIDDEN_PROMPT = "Delegation results are ready"
"""How a prompt begins that a runtime writes to itself; the user did not say it."""
ERROR_PREFIX = "agent error"


class ChatHistories:
    """Reads pages of chat."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def page(self, workspace_id: str, *, limit: int, before: datetime | None) -> ChatHistory:
        """The bubbles of the newest `limit` rows from before `before`, oldest first.

        Raises:
            StoreError: the database failed.
        """
        rows = await self._store.read(_select_rows, workspace_id, limit, before)
        messages = [message for row in reversed(rows) for message in bubbles(row)]
        return ChatHistory(messages=messages, reached_end=len(rows) < limit)


def bubbles(row: ActivityRow) -> Iterator[ChatMessage]:
    """The user's half of a row, then the agent's; a half without text and files makes no bubble."""
    parts = _path(row.request_body, "params", "message", "parts")
    text = _first_text(parts)
    files = _files(parts)
    if text.startswith(HIDDEN_PROMPT):
        text = ""
    if text or files:
        yield _bubble(row, ChatRole.USER, text, files)
    text = _agent_text(row.response_body)
    files = _files(_path(row.response_body, "parts"))
    if text or files:
        failed = row.status == "error" or text.lower().startswith(ERROR_PREFIX)
        yield _bubble(row, ChatRole.SYSTEM if failed else ChatRole.AGENT, text, files)


def _bubble(row: ActivityRow, role: ChatRole, text: str, files: list[Attachment]) -> ChatMessage:
    return ChatMessage(id=new_id(), role=role, content=text, attachments=files or None, timestamp=row.created_at)


def _first_text(parts: object) -> str:
    """The first part with a non-empty `text`, whatever its kind; texts are not joined for the user's half."""
    for part in _dicts(parts):
        text = part.get("text")
        if isinstance(text, str) and text:
            return text
    return ""


def _agent_text(body: object) -> str:
    if not isinstance(body, dict):
        return ""
    result = body.get("result")
    if isinstance(result, str):
        return result
    texts = list(_texts(_path(result, "parts"))) + list(_root_texts(_path(result, "parts")))
    for artifact in _dicts(_path(result, "artifacts")):
        texts += _texts(artifact.get("parts"))
    if texts:
        return "\n".join(texts)
    task = body.get("task")
    return task if isinstance(task, str) else ""


def _texts(parts: object) -> Iterator[str]:
    for part in _dicts(parts):
        text = part_text(part)
        if text:
            yield text


def _root_texts(parts: object) -> Iterator[str]:
    """Parts as some SDKs dump them: the part itself under `root`."""
    for part in _dicts(parts):
        text = _path(part, "root", "text")
        if isinstance(text, str) and text:
            yield text


def _files(parts: object) -> list[Attachment]:
    return [file for part in _dicts(parts) if (file := _file(part)) is not None]


def _file(part: dict[str, Any]) -> Attachment | None:
    """A file part with a uri: nested under `file`, or the flat form with `url`, `filename`, `mediaType`."""
    nested = part.get("file")
    if "file" in (part.get("kind"), part.get("type")) and isinstance(nested, dict):
        uri, name, mime = nested.get("uri"), nested.get("name"), nested.get("mimeType")
        size = nested.get("size")
    else:
        uri, name, mime, size = part.get("url"), part.get("filename"), part.get("mediaType"), None
    if not isinstance(uri, str) or not uri:
        return None
    return Attachment(
        uri=uri,
        name=name if isinstance(name, str) and name else posixpath.basename(uri),
        mimeType=mime if isinstance(mime, str) and mime else None,
        size=size if isinstance(size, int) and not isinstance(size, bool) else None,
    )


def _dicts(items: object) -> list[dict[str, Any]]:
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []


def _path(value: object, *keys: str) -> object:
    """The value under nested keys, or None where a level is missing or of another type."""
    for key in keys:
        if not isinstance(value, dict):
            return None
        value = value.get(key)
    return value


def _select_rows(connection: Connection, workspace_id: str, limit: int, before: datetime | None) -> list[ActivityRow]:
    columns = activity_logs.c
    query = select(activity_logs).where(
        columns.workspace_id == workspace_id,
        columns.activity_type == ActivityType.A2A_RECEIVE,
        columns.source_id.is_(None),
    )
    if before is not None:
        query = query.where(columns.created_at < before)
    found = connection.execute(query.order_by(columns.seq.desc()).limit(limit)).mappings()
    return [ActivityRow.model_validate(dict(row)) for row in found]

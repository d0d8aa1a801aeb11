"""What an activity row is to an inbox: a message, a notice of an upload, or our own voice coming back.

Pure functions over the table "Rows an inbox must filter" of contract 4.3. Nothing is lost on the way: a method we do
not know is delivered as the message it looks like.
"""

from __future__ import annotations

import uuid
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from molecule_runtime.wire._base import rfc3339
from molecule_runtime.wire.a2a import Method, is_queued_text, joined_text
from molecule_runtime.wire.activity import ActivityRow
from molecule_runtime.wire.uploads import MAX_FILES, parse_pending_uri

MAX_SIZE = 2**53 - 1
"""The largest whole number that every reader of JSON agrees on."""


class Kind(StrEnum):
    """Who speaks: the person at the canvas, another agent, or the platform with the result of a delegation."""

    CANVAS_USER = "canvas_user"
    PEER_AGENT = "peer_agent"
    DELEGATION_RESULT = "delegation_result"


@dataclass(frozen=True)
class FilePart:
    """A file that a message names; `size` in bytes when the sender said it, `uri` "" when it names no place.

    `file_id` is there when the file waits on the platform for this very workspace.
    """

    name: str
    uri: str
    mime_type: str | None = None
    size: int | None = None
    file_id: str | None = None


@dataclass(frozen=True)
class Message:
    """Something for the agent. `created_at` is RFC3339; `peer_id` is "" for the user.

    `files_left_out` counts those that it names beyond what a platform takes in one message. `outcome` is "completed" or
    "failed" in the result of a delegation, whose text is then the peer's answer or the reason.
    """

    activity_id: str
    kind: Kind
    peer_id: str
    text: str
    created_at: str
    method: str
    delegation_id: str | None = None
    files: tuple[FilePart, ...] = ()
    files_left_out: int = 0
    outcome: str | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Message:
        files = tuple(FilePart(**part) for part in stored.pop("files", ()))
        return cls(**{**stored, "kind": Kind(stored["kind"])}, files=files)


@dataclass(frozen=True)
class UploadNotice:
    """A file is staged on the platform; the message that names it follows. `file_id` is a canonical UUID."""

    activity_id: str
    file_id: str
    part: FilePart


@dataclass(frozen=True)
class Echo:
    """Our own words or our own report; the cursor passes it, nobody is told."""

    activity_id: str


Classified = Message | UploadNotice | Echo


def classify(row: ActivityRow, *, own_id: str) -> Classified:
    """What `row` is for the inbox of workspace `own_id`."""
    source_id = row.source_id or None  # "" and null both say: the user
    if row.method == Method.NOTIFY and source_id is None:
        return Echo(row.id)
    if row.method == Method.DELEGATE_RESULT:
        return _delegation_result(row)
    if source_id == own_id:
        return Echo(row.id)
    if row.method == Method.CHAT_UPLOAD_RECEIVE and (notice := _upload_notice(row)) is not None:
        return notice
    parts = _parts(row.request_body)
    files = tuple(part for raw in parts if (part := _file_part(raw, own_id)) is not None)
    return Message(
        activity_id=row.id,
        kind=Kind.CANVAS_USER if source_id is None else Kind.PEER_AGENT,
        peer_id=source_id or "",
        # A platform's summary is about the row; beside files it would read like words of the sender.
        text=joined_text(parts) or ("" if files else row.summary or ""),
        created_at=rfc3339(row.created_at),
        method=row.method or "",
        delegation_id=_delegation_id(row.request_body),
        files=files[:MAX_FILES],
        files_left_out=max(0, len(files) - MAX_FILES),
    )


def _delegation_result(row: ActivityRow) -> Message | Echo:
    response = row.response_body if isinstance(row.response_body, dict) else {}
    request = row.request_body if isinstance(row.request_body, dict) else {}
    failed = row.status == "error"
    text = row.error_detail if failed else response.get("text")
    if not failed and row.seq is None and is_queued_text(text):
        # Some platforms (none that numbers its rows) take the note that a peer will be asked for the peer's answer.
        return Echo(row.id)
    delegation_id = request.get("delegation_id") or response.get("delegation_id")
    return Message(
        activity_id=row.id,
        kind=Kind.DELEGATION_RESULT,
        peer_id="",
        text=text if isinstance(text, str) and (text or not failed) else row.summary or "",
        created_at=rfc3339(row.created_at),
        method=Method.DELEGATE_RESULT.value,
        delegation_id=_uuid_or_none(delegation_id),
        outcome="failed" if failed else "completed",
    )


def _upload_notice(row: ActivityRow) -> UploadNotice | None:
    """The notice; None when it names no file that could be asked for, and is shown as the odd message that it is."""
    body = row.request_body if isinstance(row.request_body, dict) else {}
    file_id = _uuid_or_none(body.get("file_id"))
    if file_id is None:
        return None
    size = _int_or_none(body.get("size"))
    part = FilePart(
        name=_text_or_none(body.get("name")) or "file",
        uri=_text_or_none(body.get("uri")) or "",
        mime_type=_text_or_none(body.get("mimeType")),
        size=size if size is not None and 0 <= size <= MAX_SIZE else None,
        file_id=file_id,
    )
    return UploadNotice(activity_id=row.id, file_id=file_id, part=part)


def _parts(body: object) -> list[Any]:
    """The message's parts: `params.message.parts`, else `params.parts`, else `parts`. History is never looked at."""
    if not isinstance(body, dict):
        return []
    params = body.get("params")
    message = params.get("message") if isinstance(params, dict) else None
    for holder in (message, params, body):
        parts = holder.get("parts") if isinstance(holder, dict) else None
        if isinstance(parts, list):
            return parts
    return []


def _delegation_id(body: object) -> str | None:
    try:
        value = body["params"]["message"]["metadata"]["delegation_id"]  # type: ignore[index]
    except (KeyError, TypeError, IndexError):
        return None
    return _uuid_or_none(value)


def _file_part(part: object, own_id: str) -> FilePart | None:
    if not isinstance(part, dict) or (part.get("kind") != "file" and part.get("type") != "file"):
        return None
    file = part.get("file")
    file = file if isinstance(file, dict) else part
    uri = _text_or_none(file.get("uri")) or _text_or_none(file.get("url")) or ""
    name = _text_or_none(file.get("name")) or _text_or_none(file.get("filename"))
    waiting = parse_pending_uri(uri)
    return FilePart(
        name=name or uri.rsplit("/", 1)[-1] or "file",
        uri=uri,
        mime_type=_text_or_none(file.get("mimeType")) or _text_or_none(file.get("mediaType")),
        size=_int_or_none(file.get("size")),
        file_id=waiting[1] if waiting is not None and waiting[0] == own_id else None,
    )


def _uuid_or_none(value: object) -> str | None:
    """An id of a delegation; anything else that stands there is a stranger's text and is not passed on."""
    try:
        return str(uuid.UUID(value)) if isinstance(value, str) else None
    except ValueError:
        return None


def _text_or_none(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _int_or_none(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None

"""`POST /workspaces/:id/a2a`: JSON-RPC message/send, and the several shapes of its answer (contract 4.1)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

from molecule_runtime.wire._base import WireModel


class Method(StrEnum):
    """Values of an activity row's `method` that have a meaning of their own."""

    MESSAGE_SEND = "message/send"
    NOTIFY = "notify"
    CHAT_UPLOAD_RECEIVE = "chat_upload_receive"
    DELEGATE = "delegate"
    DELEGATE_RESULT = "delegate_result"


RESERVED_METHODS = frozenset({Method.NOTIFY, Method.CHAT_UPLOAD_RECEIVE, Method.DELEGATE_RESULT})
"""Written by the platform itself; nobody may send them through /a2a (contract 0.3)."""


class TextPart(WireModel):
    kind: Literal["text"] = "text"
    text: str


class A2AMessage(WireModel):
    role: str
    messageId: str
    parts: list[TextPart]
    metadata: dict[str, Any] = {}


class SendParams(WireModel):
    message: A2AMessage
    metadata: dict[str, Any] = {}


class SendRequest(WireModel):
    """The envelope we send. Canvases send less (no `jsonrpc`, no `id`); platforms fill that in."""

    jsonrpc: Literal["2.0"] = "2.0"
    id: str
    method: Literal[Method.MESSAGE_SEND] = Method.MESSAGE_SEND
    params: SendParams


UNDER_WAY = frozenset({"submitted", "working"})
ENDED_BADLY = frozenset({"failed", "rejected", "canceled"})
"""States of an A2A task in which its result is no answer; in any other the texts in it are."""


@dataclass(frozen=True)
class Queued:
    """The target polls (200) or is busy (202): the message is stored, an answer comes as a message of its own."""

    delivery_mode: str | None = None
    queue_id: str | None = None


@dataclass(frozen=True)
class Answered:
    """A push target answered at once; `text` is the joined text of its parts, `result` the whole result."""

    text: str
    result: Any


@dataclass(frozen=True)
class Refused:
    """The target's own error: an object with a code, or a bare string (code None)."""

    message: str
    code: int | None = None


@dataclass(frozen=True)
class Malformed:
    """None of the known shapes; `excerpt` holds at most 200 characters of it."""

    excerpt: str


SendOutcome = Queued | Answered | Refused | Malformed


def part_text(part: object) -> str | None:
    """The text of a message part named by `kind` (v1) or `type` (v0); None for anything else."""
    if not isinstance(part, dict):
        return None
    if part.get("kind") == "text" or part.get("type") == "text":
        text = part.get("text")
        return text if isinstance(text, str) else None
    return None


def joined_text(parts: object) -> str:
    """The texts of all text parts, joined without a separator (contract 4.3); "" when there are none."""
    if not isinstance(parts, list):
        return ""
    return "".join(text for part in parts if (text := part_text(part)) is not None)


def read_outcome(body: object) -> SendOutcome:
    """Classify the JSON of a 2xx answer of /a2a; both "queued" envelopes are a success (contract 4.1)."""
    if not isinstance(body, dict):
        return Malformed(excerpt=str(body)[:200])
    if body.get("status") == "queued" and body.get("delivery_mode") == "poll":
        return Queued(delivery_mode="poll")
    if body.get("queued") is True:
        return Queued(queue_id=body.get("queue_id"))
    error = body.get("error")
    if isinstance(error, dict):
        message, code = error.get("message"), error.get("code")
        said = message if isinstance(message, str) and message else f"an error without a message (code {code})"
        return Refused(message=said, code=code)
    if error is not None:
        return Refused(message=str(error))
    if "result" in body:
        return _of_task(body["result"]) or Answered(text=_result_text(body["result"]), result=body["result"])
    return Malformed(excerpt=str(body)[:200])


def is_queued_text(text: object) -> bool:
    """Whether what was taken for an answer is the envelope that says that one will come (contract 4.1, 6.1).

    Only the very keys of the two envelopes are one: a peer may answer with JSON of its own that says "queued".
    """
    if not isinstance(text, str) or not text.lstrip().startswith("{") or '"queued"' not in text:
        return False
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        return False
    keys = set(body)
    if {"status", "delivery_mode"} <= keys <= {"status", "delivery_mode", "method"}:
        return bool(body["status"] == "queued" and body["delivery_mode"] == "poll")
    return {"queued", "queue_id"} <= keys <= {"queued", "queue_id", "queue_depth", "message"} and body["queued"] is True


def _of_task(result: object) -> SendOutcome | None:
    """What the state of an A2A task says; None where there is none, or the result says it all."""
    status = result.get("status") if isinstance(result, dict) else None
    state = status.get("state") if isinstance(status, dict) else None
    if state in UNDER_WAY:
        return Queued(queue_id=result.get("id") if isinstance(result, dict) else None)
    if state in ENDED_BADLY:
        return Refused(message=_status_text(status) or f"the task ended as {state}")
    return None


def _status_text(status: object) -> str:
    message = status.get("message") if isinstance(status, dict) else None
    return joined_text(message.get("parts")) if isinstance(message, dict) else ""


def _result_text(result: object) -> str:
    if isinstance(result, str):
        return result
    if not isinstance(result, dict):
        return ""
    message = result.get("message")
    candidates = [result.get("parts"), message.get("parts") if isinstance(message, dict) else None]
    artifacts = result.get("artifacts")
    if isinstance(artifacts, list):
        candidates += [artifact.get("parts") for artifact in artifacts if isinstance(artifact, dict)]
    return "".join(joined_text(parts) for parts in candidates) or _status_text(result.get("status"))

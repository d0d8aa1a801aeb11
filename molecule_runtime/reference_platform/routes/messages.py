"""`/workspaces/:id/a2a`, `/notify` and `/chat-history`: messages in, out, and as the canvas shows them (contract 4)."""

from __future__ import annotations

from typing import Any, assert_never

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from molecule_runtime.reference_platform.parts import parts_of
from molecule_runtime.reference_platform.refusals import Refusal
from molecule_runtime.reference_platform.routes._requests import (
    limit_param,
    path_id,
    positive_int,
    read_json,
    read_object,
    rfc3339_param,
    store_failure,
)
from molecule_runtime.reference_platform.services.forwarding import Forwarded
from molecule_runtime.reference_platform.services.messages import QueuedForPoll
from molecule_runtime.wire.chat import Attachment

DEFAULT_TIMEOUT_S = 300
"""Seconds a pushed agent has to answer when the sender does not say; longer than a canvas waits (120 s)."""


def routes() -> list[Route]:
    return [
        Route("/workspaces/{id}/a2a", _a2a, methods=["POST"]),
        Route("/workspaces/{id}/notify", _notify, methods=["POST"]),
        Route("/workspaces/{id}/chat-history", _chat_history),
    ]


async def _a2a(request: Request) -> Response:
    target_id = path_id(request)
    parts = parts_of(request)
    source_id = await parts.auth.a2a_caller(request)
    posted: Any
    try:
        posted = await read_json(request, error="invalid JSON")
    except Refusal as unreadable:
        posted = unreadable
    with store_failure(500, "lookup failed"):
        done = await parts.inbound.receive(target_id, source_id, posted, timeout_s=_timeout_s(request))
    match done:
        case QueuedForPoll(method=method):
            return JSONResponse({"status": "queued", "delivery_mode": "poll", "method": method})
        case Forwarded(status=status, body=body, retry_after_s=retry_after_s):
            headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
            return JSONResponse(body, status_code=status, headers=headers)
        case _:
            assert_never(done)


def _timeout_s(request: Request) -> float | None:
    """X-Timeout: whole seconds that a pushed agent has to answer; 0 is no deadline, anything else the default."""
    text = request.headers.get("x-timeout", "").strip()
    if text == "0":
        return None
    return float(positive_int(text) or DEFAULT_TIMEOUT_S)


async def _notify(request: Request) -> Response:
    workspace_id = path_id(request)
    parts = parts_of(request)
    await parts.auth.require_workspace(request, workspace_id)
    body = await read_object(request)
    message = body.get("message")
    if not isinstance(message, str) or not message:
        raise Refusal(400, "message is required")
    attachments = _attachments(body.get("attachments"))
    with store_failure(500, "internal error"):
        await parts.agent_messages.send(workspace_id, message, attachments)
    return JSONResponse({"status": "sent"})


def _attachments(posted: object) -> list[Attachment]:
    """The files of a message; each needs a uri and a name, the rest is taken where it has the right type."""
    if posted is None:
        return []
    if not isinstance(posted, list):
        raise Refusal(400, "invalid request body")
    return [_attachment(index, item) for index, item in enumerate(posted)]


def _attachment(index: int, posted: object) -> Attachment:
    fields = posted if isinstance(posted, dict) else {}
    uri, name = fields.get("uri"), fields.get("name")
    if not isinstance(uri, str) or not uri or not isinstance(name, str) or not name:
        raise Refusal(400, f"attachment[{index}]: uri and name are required")
    mime, size = fields.get("mimeType"), fields.get("size")
    return Attachment(
        uri=uri,
        name=name,
        mimeType=mime if isinstance(mime, str) and mime else None,
        size=size if isinstance(size, int) and not isinstance(size, bool) else None,
    )


async def _chat_history(request: Request) -> Response:
    workspace_id = path_id(request, error="workspace id must be a UUID")
    parts = parts_of(request)
    await parts.auth.require_workspace(request, workspace_id)
    before = rfc3339_param(request, "before_ts")
    limit = limit_param(request, default=100, cap=1000)
    with store_failure(502, "chat history unavailable"):
        page = await parts.chat_histories.page(workspace_id, limit=limit, before=before)
    return JSONResponse(page.model_dump(mode="json", exclude_none=True))

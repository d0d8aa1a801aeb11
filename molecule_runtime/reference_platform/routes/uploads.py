"""`/workspaces/:id/chat/uploads` and `/pending-uploads`: files of the chat (contract 5)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import quote

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from molecule_runtime.reference_platform.auth import Access
from molecule_runtime.reference_platform.identifiers import canonical_uuid
from molecule_runtime.reference_platform.parts import Parts, parts_of
from molecule_runtime.reference_platform.refusals import Refusal
from molecule_runtime.reference_platform.routes._requests import path_id, positive_int, store_failure
from molecule_runtime.reference_platform.services.pending_uploads import PendingUpload
from molecule_runtime.reference_platform.services.upload_body import (
    MALFORMED,
    Spool,
    boundary_of,
    capped,
    receive,
    too_long,
)
from molecule_runtime.reference_platform.services.uploads import UNKNOWN_TYPE, hardened_type
from molecule_runtime.text import safe_file_name
from molecule_runtime.wire.registry import DeliveryMode
from molecule_runtime.wire.uploads import UploadLimits, UploadReply

MAX_ATTACHMENTS = 10
"""Files that a canvas should put into one message; advice (contract 5.1)."""


def routes() -> list[Route]:
    return [
        Route("/uploads/limits", _limits),
        Route("/workspaces/{id}/chat/uploads", _upload, methods=["POST"]),
        Route("/workspaces/{id}/pending-uploads/{file_id}/content", _content),
        Route("/workspaces/{id}/pending-uploads/{file_id}/ack", _ack, methods=["POST"]),
    ]


async def _limits(request: Request) -> Response:
    config = parts_of(request).config
    limits = UploadLimits(
        per_file_bytes=config.upload_max_file_bytes,
        per_request_bytes=config.upload_max_request_bytes,
        max_attachments_per_message=MAX_ATTACHMENTS,
    )
    return JSONResponse(limits.model_dump(mode="json"))


async def _upload(request: Request) -> Response:
    """Nothing of the body is read before it is known who sends it, and for whom."""
    workspace_id = path_id(request)
    parts = parts_of(request)
    access = await parts.auth.require_workspace(request, workspace_id)
    with store_failure(500, "delivery_mode lookup failed"):
        target = await parts.uploads.target(workspace_id)
    cap = parts.config.upload_max_request_bytes
    content_type = request.headers.get("content-type", "")
    async with _read_out(request, cap) as body:
        boundary = boundary_of(content_type)
        length = positive_int(request.headers.get("content-length", ""))
        if length is not None and length > cap:
            raise too_long(cap)
        if target["delivery_mode"] != DeliveryMode.POLL:
            with store_failure(500, "delivery_mode lookup failed"):
                reply = await parts.upload_forwarder.forward(target, capped(body, cap), content_type, length)
            return JSONResponse(reply.body, status_code=reply.status)
        with Spool() as spool:
            files = await receive(
                body, boundary, spool, max_file_bytes=parts.config.upload_max_file_bytes, max_request_bytes=cap
            )
            staged = await parts.uploads.stage(workspace_id, files, spool, silent=access is Access.WORKSPACE)
    return JSONResponse(UploadReply(files=staged).model_dump(mode="json"))


@asynccontextmanager
async def _read_out(request: Request, at_most: int) -> AsyncIterator[AsyncIterator[bytes]]:
    """The body. When it is refused the rest of it is read, up to a limit, and dropped.

    A client that is still sending does not look for an answer: it would see a broken connection instead.
    """
    body = request.stream()
    try:
        try:
            yield body
        except Refusal:
            async for data in body:
                at_most -= len(data)
                if at_most < 0:
                    break
            raise
    except ClientDisconnect:
        raise Refusal(400, MALFORMED) from None  # nobody hears it, and nobody need be told


async def _content(request: Request) -> Response:
    workspace_id, file_id = path_id(request), _file_id(request)
    parts = parts_of(request)
    access = await parts.auth.require_workspace(request, workspace_id)
    with store_failure(500, "storage error"):
        upload = await parts.uploads.find(workspace_id, file_id, own=access is Access.WORKSPACE)
        content = parts.pending_uploads.content(upload)
        first = await anext(content)  # before the status goes out
    return StreamingResponse(_sent(parts, upload, first, content), headers=_content_headers(upload))


async def _sent(
    parts: Parts, upload: PendingUpload, first: bytes, content: AsyncIterator[bytes]
) -> AsyncIterator[bytes]:
    """The bytes; when the last were taken the file counts as fetched."""
    yield first
    async for chunk in content:
        yield chunk
    await parts.uploads.mark_fetched(upload)


def _content_headers(upload: PendingUpload) -> dict[str, str]:
    """Whatever is stored: a type of visible characters, and a name that cannot end its header or be taken for a page.

    Both were cleaned before they were stored; a header does not rely on that.
    """
    name = safe_file_name(upload.filename)
    full = quote(upload.filename, safe="", errors="replace")
    return {
        "Content-Type": hardened_type(upload.mimetype) or UNKNOWN_TYPE,
        "Content-Disposition": f"attachment; filename=\"{name}\"; filename*=UTF-8''{full}",
        "Content-Length": str(upload.size_bytes),
    }


async def _ack(request: Request) -> Response:
    workspace_id, file_id = path_id(request), _file_id(request)
    parts = parts_of(request)
    await parts.auth.require_workspace(request, workspace_id)
    with store_failure(500, "storage error"):
        reply = await parts.uploads.ack(workspace_id, file_id)
    return JSONResponse(reply.model_dump(mode="json", exclude_none=True))


def _file_id(request: Request) -> str:
    file_id = canonical_uuid(request.path_params["file_id"])
    if file_id is None:
        raise Refusal(400, "invalid file_id")
    return file_id

"""`/workspaces/:id/chat/uploads` and `/pending-uploads`: files of the chat (contract 5)."""

from __future__ import annotations

from urllib.parse import quote

from starlette.background import BackgroundTask
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from molecule_runtime.reference_platform.auth import Access
from molecule_runtime.reference_platform.identifiers import canonical_uuid
from molecule_runtime.reference_platform.parts import parts_of
from molecule_runtime.reference_platform.refusals import Refusal
from molecule_runtime.reference_platform.routes._requests import path_id, store_failure
from molecule_runtime.reference_platform.services.upload_body import MALFORMED, Spool, receive
from molecule_runtime.reference_platform.services.uploads import UNKNOWN_TYPE
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
    workspace_id = path_id(request)
    parts = parts_of(request)
    access = await parts.auth.require_workspace(request, workspace_id)
    with store_failure(500, "delivery_mode lookup failed"):
        await parts.uploads.target(workspace_id)
    with Spool() as spool:
        try:
            files = await receive(
                request.stream(),
                request.headers.get("content-type", ""),
                spool,
                max_file_bytes=parts.config.upload_max_file_bytes,
                max_request_bytes=parts.config.upload_max_request_bytes,
            )
        except ClientDisconnect:
            raise Refusal(400, MALFORMED) from None
        staged = await parts.uploads.stage(workspace_id, files, spool, silent=access is Access.WORKSPACE)
    return JSONResponse(UploadReply(files=staged).model_dump(mode="json"))


async def _content(request: Request) -> Response:
    workspace_id, file_id = path_id(request), _file_id(request)
    parts = parts_of(request)
    access = await parts.auth.require_workspace(request, workspace_id)
    with store_failure(500, "storage error"):
        upload = await parts.uploads.find(workspace_id, file_id, own=access is Access.WORKSPACE)
    headers = {
        "Content-Type": upload.mimetype or UNKNOWN_TYPE,
        "Content-Disposition": f"attachment; filename=\"{upload.filename}\"; filename*=UTF-8''{quote(upload.filename)}",
        "Content-Length": str(upload.size_bytes),
    }
    return StreamingResponse(
        parts.pending_uploads.content(upload),
        headers=headers,
        background=BackgroundTask(parts.uploads.mark_fetched, upload),
    )


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

"""`/registry/*`: register, heartbeat, the card, peers and where they are (contract 2.1, 2.3, 2.5-2.8)."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from molecule_runtime.reference_platform.identifiers import canonical_uuid
from molecule_runtime.reference_platform.parts import parts_of
from molecule_runtime.reference_platform.refusals import Refusal
from molecule_runtime.reference_platform.routes._requests import (
    INVALID_BODY,
    path_id,
    read_model,
    read_object,
    store_failure,
)
from molecule_runtime.wire.registry import (
    CheckAccessReply,
    CheckAccessRequest,
    DeliveryMode,
    HeartbeatReply,
    HeartbeatRequest,
    RegisterReply,
    RegisterRequest,
    UpdateCardReply,
    UpdateCardRequest,
)


def routes() -> list[Route]:
    return [
        Route("/registry/register", _register, methods=["POST"]),
        Route("/registry/heartbeat", _heartbeat, methods=["POST"]),
        Route("/registry/update-card", _update_card, methods=["POST"]),
        Route("/registry/check-access", _check_access, methods=["POST"]),
        Route("/registry/discover/{id}", _discover),
        Route("/registry/{id}/peers", _peers),
    ]


async def _register(request: Request) -> Response:
    wanted = read_model(RegisterRequest, await read_object(request))
    workspace_id = _body_id(wanted.id)
    if wanted.delivery_mode and wanted.delivery_mode not in set(DeliveryMode):
        raise Refusal(400, "delivery_mode must be 'push' or 'poll'")
    parts = parts_of(request)
    await parts.auth.require_self(request, workspace_id, creates=True)
    with store_failure(500, "registration failed"):
        done = await parts.presence.register(workspace_id, wanted)
    reply = RegisterReply(
        status="registered",
        delivery_mode=done.delivery_mode,
        auth_token=done.auth_token,
        platform_inbound_secret=done.inbound_secret,
    )
    return JSONResponse(reply.model_dump(mode="json", exclude_none=True))


async def _heartbeat(request: Request) -> Response:
    beat = read_model(HeartbeatRequest, await read_object(request))
    workspace_id = _body_id(beat.workspace_id)
    parts = parts_of(request)
    claim = parts.auth.claim_self(request, workspace_id)
    with store_failure(500, "failed to update"):
        secret = await parts.heartbeats.note(workspace_id, beat, claim.bearer, claim.judge)
    # An unknown workspace gets the same 200: agents of a purged workspace learn it from GET /workspaces/:id.
    reply = HeartbeatReply(status="ok", platform_inbound_secret=secret)
    return JSONResponse(reply.model_dump(mode="json", exclude_none=True))


async def _update_card(request: Request) -> Response:
    wanted = read_model(UpdateCardRequest, await read_object(request))
    workspace_id = _body_id(wanted.workspace_id)
    parts = parts_of(request)
    await parts.auth.require_self(request, workspace_id)
    with store_failure(500, "failed to update card"):
        await parts.presence.update_card(workspace_id, wanted.agent_card)
    return JSONResponse(UpdateCardReply(status="updated").model_dump(mode="json"))


async def _check_access(request: Request) -> Response:
    asked = read_model(CheckAccessRequest, await read_object(request))
    caller_id, target_id = canonical_uuid(asked.caller_id), canonical_uuid(asked.target_id)
    # What is no id names nobody, and nobody may talk to nobody; a failing store counts as no (contract 2.9).
    allowed = False
    if caller_id is not None and target_id is not None:
        allowed = await parts_of(request).peers.can_communicate(caller_id, target_id)
    return JSONResponse(CheckAccessReply(allowed=allowed).model_dump(mode="json"))


async def _discover(request: Request) -> Response:
    target_id = path_id(request)
    named = request.headers.get("x-workspace-id")
    if not named:
        raise Refusal(400, "X-Workspace-ID header is required")
    caller_id = canonical_uuid(named) or named
    parts = parts_of(request)
    await parts.auth.require_reader(request, caller_id)
    with store_failure(500, "lookup failed"):
        found = await parts.discovery.discover(caller_id, target_id)
    return JSONResponse(found.model_dump(mode="json"))


async def _peers(request: Request) -> Response:
    workspace_id = path_id(request)
    parts = parts_of(request)
    await parts.auth.require_reader(request, workspace_id)
    with store_failure(500, "lookup failed"):
        found = await parts.peers.list_peers(workspace_id, request.query_params.get("q", ""))
    return JSONResponse([peer.model_dump(mode="json") for peer in found])


def _body_id(text: str) -> str:
    workspace_id = canonical_uuid(text)
    if workspace_id is None:
        raise Refusal(400, INVALID_BODY)
    return workspace_id

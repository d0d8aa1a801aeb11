"""`/workspaces/:id/delegate` and `/delegations`: jobs that one workspace hands to another (contract 6, 0.9)."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from molecule_runtime.reference_platform.identifiers import canonical_uuid
from molecule_runtime.reference_platform.parts import parts_of
from molecule_runtime.reference_platform.refusals import Refusal
from molecule_runtime.reference_platform.routes._requests import path_id, read_model, read_object, store_failure
from molecule_runtime.wire.delegations import DelegateRequest

INVALID = "invalid delegation request"
LONGEST_KEY = 512
"""Characters of an idempotency key; a database cannot look up texts of any length."""


def routes() -> list[Route]:
    return [
        Route("/workspaces/{id}/delegate", _delegate, methods=["POST"]),
        Route("/workspaces/{id}/delegations/{delegation_id}", _get),
        Route("/workspaces/{id}/delegations/{delegation_id}/heartbeat", _heartbeat, methods=["POST"]),
    ]


async def _delegate(request: Request) -> Response:
    delegator_id = path_id(request)
    parts = parts_of(request)
    await parts.auth.require_workspace(request, delegator_id)
    body = await read_object(request, error=INVALID)
    wanted = read_model(DelegateRequest, body, error=INVALID)
    if not wanted.target_id or not wanted.task or len(wanted.idempotency_key or "") > LONGEST_KEY:
        raise Refusal(400, INVALID)
    wanted = wanted.model_copy(update={"target_id": _uuid(wanted.target_id, "target_id")})
    with store_failure(500, "failed to create delegation"):
        reply = await parts.delegations.delegate(delegator_id, wanted)
    return _json(reply.model_dump(mode="json", exclude_none=True), status=200 if reply.idempotent_hit else 202)


async def _get(request: Request) -> Response:
    delegator_id = path_id(request)
    parts = parts_of(request)
    await parts.auth.require_workspace(request, delegator_id)
    with store_failure(500, "query failed"):
        found = await parts.delegations.get(delegator_id, _delegation_id(request))
    return _json(found.model_dump(mode="json"))


async def _heartbeat(request: Request) -> Response:
    """`:id` is the worker."""
    worker_id = path_id(request)
    parts = parts_of(request)
    await parts.auth.require_workspace(request, worker_id)
    with store_failure(500, "failed to record heartbeat"):
        reply = await parts.delegations.heartbeat(worker_id, _delegation_id(request))
    return _json(reply.model_dump(mode="json"))


def _json(body: Any, *, status: int = 200) -> Response:
    return JSONResponse(body, status_code=status)


def _delegation_id(request: Request) -> str:
    return _uuid(request.path_params["delegation_id"], "delegation_id")


def _uuid(text: str, name: str) -> str:
    found = canonical_uuid(text)
    if found is None:
        raise Refusal(400, f"{name} must be a valid UUID")
    return found

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
from molecule_runtime.reference_platform.services.delegation_records import Ending
from molecule_runtime.wire.delegations import (
    DelegateRequest,
    DelegationStatus,
    RecordRequest,
    UpdateReply,
    UpdateRequest,
)

INVALID = "invalid delegation request"
LONGEST_KEY = 512
"""Characters of an idempotency key; a database cannot look up texts of any length."""


def routes() -> list[Route]:
    return [
        Route("/workspaces/{id}/delegate", _delegate, methods=["POST"]),
        Route("/workspaces/{id}/delegations", _list),
        Route("/workspaces/{id}/delegations/record", _record, methods=["POST"]),
        Route("/workspaces/{id}/delegations/{delegation_id}", _get),
        Route("/workspaces/{id}/delegations/{delegation_id}/update", _update, methods=["POST"]),
        Route("/workspaces/{id}/delegations/{delegation_id}/heartbeat", _heartbeat, methods=["POST"]),
    ]


async def _delegate(request: Request) -> Response:
    delegator_id = path_id(request)
    parts = parts_of(request)
    await parts.auth.require_workspace(request, delegator_id)
    body = await read_object(request, error=INVALID)
    wanted = read_model(DelegateRequest, body, error=INVALID)
    if not wanted.target_id or not wanted.task.strip() or len(wanted.idempotency_key or "") > LONGEST_KEY:
        raise Refusal(400, INVALID)
    wanted = wanted.model_copy(update={"target_id": _uuid(wanted.target_id, "target_id")})
    with store_failure(500, "failed to create delegation"):
        reply = await parts.delegations.delegate(delegator_id, wanted)
    return _json(reply.model_dump(mode="json", exclude_none=True), status=200 if reply.idempotent_hit else 202)


async def _list(request: Request) -> Response:
    delegator_id = path_id(request)
    parts = parts_of(request)
    await parts.auth.require_workspace(request, delegator_id)
    with store_failure(500, "query failed"):
        rows = await parts.delegations.list_rows(delegator_id)
    return _json([row.model_dump(mode="json", exclude_none=True) for row in rows])


async def _record(request: Request) -> Response:
    delegator_id = path_id(request)
    parts = parts_of(request)
    await parts.auth.require_workspace(request, delegator_id)
    wanted = read_model(RecordRequest, await read_object(request, error=INVALID), error=INVALID)
    if not wanted.target_id or not wanted.task.strip() or not wanted.delegation_id:
        raise Refusal(400, INVALID)
    ids = {name: _uuid(getattr(wanted, name), name) for name in ("target_id", "delegation_id")}
    with store_failure(500, "failed to record delegation"):
        reply = await parts.delegations.record(delegator_id, wanted.model_copy(update=ids))
    return _json(reply.model_dump(mode="json"), status=202)


async def _update(request: Request) -> Response:
    """`:id` is the delegator; what it does not know, or is closed already, is answered like everything else."""
    delegator_id = path_id(request)
    parts = parts_of(request)
    await parts.auth.require_workspace(request, delegator_id)
    delegation_id = _delegation_id(request)
    posted = read_model(UpdateRequest, await read_object(request))
    if posted.status not in (DelegationStatus.COMPLETED, DelegationStatus.FAILED):
        raise Refusal(400, "status must be 'completed' or 'failed'")
    ending = Ending(DelegationStatus(posted.status), posted.response_preview or "", posted.error)
    with store_failure(500, "failed to update delegation"):
        await parts.delegations.update(delegator_id, delegation_id, ending)
    return _json(UpdateReply(status=posted.status, delegation_id=delegation_id).model_dump(mode="json"))


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

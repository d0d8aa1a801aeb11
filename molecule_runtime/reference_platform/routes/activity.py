"""`GET /workspaces/:id/activity`: the feed that inboxes poll (contract 4.3)."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from molecule_runtime.reference_platform.identifiers import canonical_uuid
from molecule_runtime.reference_platform.parts import parts_of
from molecule_runtime.reference_platform.refusals import Refusal
from molecule_runtime.reference_platform.routes._requests import (
    limit_param,
    path_id,
    positive_int,
    rfc3339_param,
    store_failure,
)
from molecule_runtime.reference_platform.services.activity import ActivityQuery


def routes() -> list[Route]:
    return [Route("/workspaces/{id}/activity", _query)]


async def _query(request: Request) -> Response:
    workspace_id = path_id(request)
    parts = parts_of(request)
    await parts.auth.require_workspace(request, workspace_id)
    query = _parse(request)
    with store_failure(500, "query failed"):
        rows = await parts.activity.query(workspace_id, query)
    return JSONResponse([row.to_wire() for row in rows])


def _parse(request: Request) -> ActivityQuery:
    """The filters, judged in the contract's order: peer_id, before_ts, since_secs; the service judges the others."""
    params = request.query_params
    peer_id = canonical_uuid(params.get("peer_id"))
    if params.get("peer_id") and peer_id is None:
        raise Refusal(400, "peer_id must be a UUID")
    before = rfc3339_param(request, "before_ts")
    since_s = positive_int(params.get("since_secs", ""))
    if params.get("since_secs") and since_s is None:
        raise Refusal(400, "since_secs must be a positive integer")
    return ActivityQuery(
        activity_type=params.get("type") or None,
        source=params.get("source") or None,
        peer_id=peer_id,
        before=before,
        since_s=since_s,
        since_id=params.get("since_id") or None,
        limit=limit_param(request, default=100, cap=500),
    )

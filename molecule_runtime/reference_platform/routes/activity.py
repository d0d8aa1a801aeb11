"""`/workspaces/:id/activity`: the feed that inboxes poll, and what agents report of themselves (contract 4.3, 4.4)."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from molecule_runtime.reference_platform.identifiers import canonical_uuid
from molecule_runtime.reference_platform.parts import parts_of
from molecule_runtime.reference_platform.refusals import Refusal
from molecule_runtime.reference_platform.routes._requests import (
    INVALID_BODY,
    limit_param,
    path_id,
    positive_int,
    read_model,
    read_object,
    rfc3339_param,
    store_failure,
)
from molecule_runtime.reference_platform.services.activity import ActivityQuery
from molecule_runtime.wire.activity import REPORTABLE, ActivityLogged, ActivityReport

INVALID_TYPE = f"invalid activity_type, must be one of: {', '.join(REPORTABLE)}"
STATUS_CHARS = 32
"""Width of the column; the statuses of the contract are short words."""


def routes() -> list[Route]:
    return [
        Route("/workspaces/{id}/activity", _query),
        Route("/workspaces/{id}/activity", _report, methods=["POST"]),
    ]


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


async def _report(request: Request) -> Response:
    workspace_id = path_id(request)
    parts = parts_of(request)
    await parts.auth.require_workspace(request, workspace_id)
    report = _checked(read_model(ActivityReport, await read_object(request)), workspace_id)
    await parts.activity.report(workspace_id, report)
    return JSONResponse(ActivityLogged(status="logged").model_dump(mode="json"))


def _checked(report: ActivityReport, workspace_id: str) -> ActivityReport:
    """The report with canonical ids and a status. Nobody reports in another's name, not even an administrator."""
    if report.activity_type not in REPORTABLE:
        raise Refusal(400, INVALID_TYPE)
    if report.source_id and canonical_uuid(report.source_id) != workspace_id:
        raise Refusal(403, "source_id must match authenticated workspace")
    target_id = canonical_uuid(report.target_id)
    if (report.target_id and target_id is None) or len(report.status) > STATUS_CHARS:
        raise Refusal(400, INVALID_BODY)
    return report.model_copy(update={"target_id": target_id, "status": report.status or "ok"})

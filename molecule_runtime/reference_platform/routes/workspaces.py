"""`/workspaces`: create, list, read, state, change, remove (contract 3.1, 3.3-3.7)."""

from __future__ import annotations

from sqlalchemy import RowMapping
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from molecule_runtime.reference_platform.parts import Parts, parts_of
from molecule_runtime.reference_platform.refusals import workspace_not_found
from molecule_runtime.reference_platform.routes._requests import (
    flag_param,
    path_id,
    read_model,
    read_object,
    store_failure,
)
from molecule_runtime.reference_platform.services.workspaces import HasChildren
from molecule_runtime.wire.registry import WorkspaceStatus
from molecule_runtime.wire.workspaces import (
    Connection,
    CreateWorkspaceReply,
    CreateWorkspaceRequest,
    UpdateWorkspaceReply,
    UpdateWorkspaceRequest,
    Workspace,
    WorkspaceGone,
    WorkspaceListRow,
    WorkspaceState,
)

REMOVED_HINT = "Regenerate workspace + token from the canvas → Tokens tab"
INVALID_PAYLOAD = "invalid workspace payload"


def routes() -> list[Route]:
    return [
        Route("/workspaces", _create, methods=["POST"]),
        Route("/workspaces", _list),
        Route("/workspaces/{id}", _read),
        Route("/workspaces/{id}", _update, methods=["PATCH"]),
        Route("/workspaces/{id}", _remove, methods=["DELETE"]),
        Route("/workspaces/{id}/state", _state),
    ]


async def _create(request: Request) -> Response:
    parts = parts_of(request)
    await parts.auth.require_admin(request)
    body = await read_object(request, error=INVALID_PAYLOAD)
    wanted = read_model(CreateWorkspaceRequest, body, error=INVALID_PAYLOAD)
    with store_failure(500, "failed to create workspace"):
        created = await parts.workspaces.create(wanted)
    connection = None
    if created.auth_token is not None:
        base = _public_url(request, parts)
        connection = Connection(
            workspace_id=created.id,
            platform_url=base,
            auth_token=created.auth_token,
            registry_endpoint=f"{base}/registry/register",
            heartbeat_endpoint=f"{base}/registry/heartbeat",
        )
    reply = CreateWorkspaceReply(id=created.id, external=True, status=created.status, connection=connection)
    return JSONResponse(reply.model_dump(mode="json", exclude_none=True), status_code=201)


async def _list(request: Request) -> Response:
    parts = parts_of(request)
    await parts.auth.require_admin(request)
    with store_failure(500, "query failed"):
        rows = await parts.workspaces.list_all()
    found = [WorkspaceListRow.model_validate(dict(row)) for row in rows]
    return JSONResponse([row.model_dump(mode="json", exclude={"last_outbound_at"}) for row in found])


async def _read(request: Request) -> Response:
    workspace_id = path_id(request)
    with store_failure(500, "query failed"):
        row = await parts_of(request).workspaces.find(workspace_id)
    if row is None:
        raise workspace_not_found()
    if row["status"] == WorkspaceStatus.REMOVED and not flag_param(request, "include_removed"):
        return _gone(row)
    return JSONResponse(Workspace.model_validate(dict(row)).model_dump(mode="json"))


def _gone(row: RowMapping) -> Response:
    body = WorkspaceGone(error="workspace removed", id=row["id"], hint=REMOVED_HINT, removed_at=row["removed_at"])
    return JSONResponse(body.model_dump(mode="json"), status_code=410)


async def _state(request: Request) -> Response:
    workspace_id = path_id(request)
    parts = parts_of(request)
    await parts.auth.require_workspace(request, workspace_id)
    with store_failure(500, "query failed"):
        row = await parts.workspaces.find(workspace_id)
    if row is None:
        return JSONResponse({"workspace_id": workspace_id, "deleted": True}, status_code=404)
    if row["status"] == WorkspaceStatus.REMOVED:
        gone = {"workspace_id": workspace_id, "deleted": True, "status": row["status"]}
        return JSONResponse(gone, status_code=404)
    paused = row["status"] == WorkspaceStatus.PAUSED
    state = WorkspaceState(workspace_id=workspace_id, status=row["status"], paused=paused)
    return JSONResponse(state.model_dump(mode="json"))


async def _update(request: Request) -> Response:
    workspace_id = path_id(request)
    parts = parts_of(request)
    await parts.auth.require_workspace(request, workspace_id)
    # Null is a value of these two: no parent, no directory.
    body = await read_object(request, nullable=("parent_id", "workspace_dir"))
    with store_failure(500, "failed to update workspace"):
        await parts.workspace_edits.update(workspace_id, read_model(UpdateWorkspaceRequest, body))
    return JSONResponse(UpdateWorkspaceReply(status="updated").model_dump(mode="json", exclude_none=True))


async def _remove(request: Request) -> Response:
    workspace_id = path_id(request)
    parts = parts_of(request)
    await parts.auth.require_admin(request)
    purge = flag_param(request, "purge")
    try:
        with store_failure(500, "failed to remove workspace"):
            done = await parts.workspaces.remove(workspace_id, confirmed=flag_param(request, "confirm"), purge=purge)
    except HasChildren as blocked:
        return _confirmation_required(blocked)
    await parts.plugin_memories.purge(done.purged)
    status = "purged" if purge else "removed"
    return JSONResponse({"status": status, "cascade_deleted": len(done.descendants)})


def _confirmation_required(blocked: HasChildren) -> Response:
    count = len(blocked.children)
    body = {
        "status": "confirmation_required",
        "message": f"{count} workspace(s) below this one would be removed with it; repeat with confirm=true",
        "children": [{"id": child_id, "name": name} for child_id, name in blocked.children],
        "children_count": count,
    }
    return JSONResponse(body, status_code=409)


def _public_url(request: Request, parts: Parts) -> str:
    """The address that agents shall use: configured, else as the proxy in front says, else as the request came."""
    if parts.config.external_url:
        return parts.config.external_url
    scheme = request.headers.get("x-forwarded-proto", request.url.scheme)
    host = request.headers.get("x-forwarded-host", request.url.netloc)
    return f"{scheme}://{host}".rstrip("/")

"""`/workspaces/:id/tokens` and the tokens for tests (contract 3.8, 1.8)."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from molecule_runtime.reference_platform.identifiers import canonical_uuid
from molecule_runtime.reference_platform.parts import parts_of
from molecule_runtime.reference_platform.refusals import Refusal
from molecule_runtime.reference_platform.routes._requests import limit_param, path_id, positive_int, store_failure
from molecule_runtime.wire.workspaces import IssuedToken, TokenList, TokenRevoked

SHOWN_ONCE = "Keep this token now: it is not shown again."


def routes() -> list[Route]:
    return [
        Route("/workspaces/{id}/tokens", _list),
        Route("/workspaces/{id}/tokens", _issue, methods=["POST"]),
        Route("/workspaces/{id}/tokens/{token_id}", _revoke, methods=["DELETE"]),
        Route("/admin/workspaces/{id}/test-token", _test_token),
    ]


async def _list(request: Request) -> Response:
    workspace_id = path_id(request)
    parts = parts_of(request)
    await parts.auth.require_workspace(request, workspace_id)
    limit = limit_param(request, default=50, cap=200)
    offset = positive_int(request.query_params.get("offset", "")) or 0
    with store_failure(500, "query failed"):
        found = await parts.tokens.page(workspace_id, limit=limit, offset=offset)
    return JSONResponse(TokenList(tokens=found, count=len(found)).model_dump(mode="json"))


async def _issue(request: Request) -> Response:
    workspace_id = path_id(request)
    parts = parts_of(request)
    await parts.auth.require_workspace(request, workspace_id)
    with store_failure(500, "failed to create token"):
        token = await parts.tokens.issue(workspace_id)
    reply = IssuedToken(auth_token=token, workspace_id=workspace_id, message=SHOWN_ONCE)
    return JSONResponse(reply.model_dump(mode="json"), status_code=201)


async def _revoke(request: Request) -> Response:
    workspace_id = path_id(request)
    parts = parts_of(request)
    await parts.auth.require_workspace(request, workspace_id)
    token_id = canonical_uuid(request.path_params["token_id"])
    with store_failure(500, "failed to revoke token"):
        if token_id is None or not await parts.tokens.revoke(workspace_id, token_id):
            raise Refusal(404, "token not found or already revoked")
    return JSONResponse(TokenRevoked(status="revoked").model_dump(mode="json"))


async def _test_token(request: Request) -> Response:
    """A token for a test, checked in the contract's order: switched on, administrator, workspace."""
    parts = parts_of(request)
    if not parts.config.test_tokens:
        raise Refusal(404, "not found")
    parts.auth.require_admin_token(request)
    workspace_id = path_id(request)
    with store_failure(500, "failed to create token"):
        token = await parts.tokens.issue(workspace_id)
    reply = IssuedToken(auth_token=token, workspace_id=workspace_id)
    return JSONResponse(reply.model_dump(mode="json", exclude_none=True))

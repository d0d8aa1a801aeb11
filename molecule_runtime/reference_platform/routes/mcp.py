"""POST `/workspaces/:id/mcp`: the platform's tools over JSON-RPC, one request at a time (contract 8.1).

Always HTTP 200 save for a body that is no request. A tool that fails is an error of code -32000 whose message says why;
`data.status` (ours) is the HTTP status that a route would have answered, so that a client can tell never from later.
"""

from __future__ import annotations

import hashlib
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from molecule_runtime.reference_platform.auth import bearer_of
from molecule_runtime.reference_platform.parts import Parts, parts_of
from molecule_runtime.reference_platform.refusals import Refusal
from molecule_runtime.reference_platform.routes._mcp_tools import (
    SEND_MESSAGE,
    TOOLS,
    InvalidArguments,
    Tool,
    failure_text,
)
from molecule_runtime.reference_platform.routes._requests import path_id, read_json, store_failure
from molecule_runtime.reference_platform.services.memory_plugin import PluginFailure
from molecule_runtime.reference_platform.services.plugin_memories import NOT_CONFIGURED, status_of

PROTOCOL = "2024-11-05"
SERVER = {"name": "molecule-a2a", "version": "1.0.0"}
PARSE_ERROR = -32700
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
TOOL_FAILED = -32000
MAX_NAME_CHARS = 100
"""Characters of an unknown name that are repeated in the answer."""


class RpcError(Exception):
    """The `error` of an answer."""

    def __init__(self, code: int, message: str, *, status: int | None = None) -> None:
        super().__init__(code, message)
        self.body: dict[str, Any] = {"code": code, "message": message}
        if status is not None:
            self.body["data"] = {"status": status}


def routes() -> list[Route]:
    return [Route("/workspaces/{id}/mcp", _serve, methods=["POST"])]


async def _serve(request: Request) -> Response:
    workspace_id = path_id(request)
    parts = parts_of(request)
    await parts.auth.require_workspace(request, workspace_id)
    limited = _limited(request, parts)
    if limited is not None:
        return limited
    try:
        posted = await read_json(request, error="parse error: the body is no JSON")
        if not isinstance(posted, dict):
            raise Refusal(400, "parse error: the body is no object")
    except Refusal as refusal:
        return _answer(None, status=400, error={"code": PARSE_ERROR, "message": refusal.text})
    request_id = posted.get("id")
    result: dict[str, Any]
    try:
        match posted.get("method"):
            case "initialize":
                capabilities = {"tools": {"listChanged": False}}
                result = {"protocolVersion": PROTOCOL, "capabilities": capabilities, "serverInfo": SERVER}
            case "notifications/initialized":
                return _answer(request_id)
            case "tools/list":
                result = {"tools": [tool.listing() for tool in _offered(parts)]}
            case "tools/call":
                result = {"content": [{"type": "text", "text": await _call(parts, workspace_id, posted)}]}
            case other:
                raise RpcError(METHOD_NOT_FOUND, f"method not found: {str(other)[:MAX_NAME_CHARS]}")
    except RpcError as error:
        return _answer(request_id, error=error.body)
    return _answer(request_id, result=result)


async def _call(parts: Parts, workspace_id: str, posted: dict[str, Any]) -> str:
    params = posted.get("params")
    name = params.get("name") if isinstance(params, dict) else None
    arguments = params.get("arguments") if isinstance(params, dict) else None
    if not isinstance(name, str) or not isinstance(arguments or {}, dict):
        raise RpcError(INVALID_PARAMS, "invalid params: name must be a text and arguments an object")
    tool = next((tool for tool in _offered(parts) if tool.name == name), None)
    if tool is None:
        raise RpcError(TOOL_FAILED, _unknown(name), status=404)
    try:
        with store_failure(503, "platform datastore unavailable — retry shortly"):
            return await tool.call(parts, workspace_id, arguments or {})
    except InvalidArguments as wrong:
        raise RpcError(INVALID_PARAMS, str(wrong)) from None
    except Refusal as refusal:
        # What is not set up does not come by itself: a caller that may try 5xx again must not try this.
        status = 501 if refusal.text == NOT_CONFIGURED else refusal.status
        raise RpcError(TOOL_FAILED, refusal.text, status=status) from None
    except PluginFailure as failure:
        raise RpcError(TOOL_FAILED, failure_text(tool, failure), status=status_of(failure)) from None


def _offered(parts: Parts) -> list[Tool]:
    return [tool for tool in TOOLS.values() if tool.name != SEND_MESSAGE or parts.config.mcp_allow_send_message]


def _unknown(name: str) -> str:
    if name == SEND_MESSAGE:
        return f"{SEND_MESSAGE} is not enabled (set MOLECULE_MCP_ALLOW_SEND_MESSAGE=true)"
    return f"unknown tool: {name[:MAX_NAME_CHARS]}"


def _limited(request: Request, parts: Parts) -> Response | None:
    """The refusal of a bearer that is over the bridge's own limit; None without RATE_LIMIT (contract 0.10, 1.7)."""
    if parts.mcp_window is None:
        return None
    bearer = bearer_of(request)
    if not bearer:
        return JSONResponse({"error": "missing bearer token"}, status_code=401)
    verdict = parts.mcp_window.take(hashlib.sha256(bearer.encode("utf-8", "surrogatepass")).hexdigest())
    if verdict.allowed:
        return None
    body = {"error": "MCP rate limit exceeded", "retry_after": verdict.reset_s}
    return JSONResponse(body, status_code=429, headers={"Retry-After": str(verdict.reset_s)})


def _answer(request_id: Any, *, status: int = 200, **outcome: Any) -> Response:
    return JSONResponse({"jsonrpc": "2.0", "id": request_id, **outcome}, status_code=status)

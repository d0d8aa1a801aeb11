"""The routes of the plugin's HTTP API, version 1 (contract 7.4): thin, the rules are in `namespaces` and `memories`."""

from __future__ import annotations

import anyio
import structlog
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from molecule_runtime.memory_plugin.memories import not_in_namespace
from molecule_runtime.memory_plugin.parts import Parts
from molecule_runtime.memory_plugin.requests import (
    namespace_changes,
    namespace_kind,
    namespace_name,
    new_memory,
    search_for,
)
from molecule_runtime.reference_platform.identifiers import canonical_uuid
from molecule_runtime.reference_platform.refusals import Refusal
from molecule_runtime.reference_platform.routes._requests import read_object, store_failure
from molecule_runtime.wire.memories import PluginHealth, SearchReply

VERSION = "1.0.0"
"""Of the schema, not of the program."""
CAPABILITIES = ["fts", "ttl", "pin", "propagation"]
"""Not "embedding": no database that this plugin was tested with can compare vectors."""
HEALTH_TIMEOUT_S = 1.5
"""Callers wait 2 s (contract 7.4)."""
OUT_OF_ORDER = "the database of the memories cannot be used"

log = structlog.get_logger(__name__)


def routes() -> list[Route]:
    return [
        Route("/v1/health", _health),
        Route("/v1/namespaces/{name}", _put_namespace, methods=["PUT"]),
        Route("/v1/namespaces/{name}", _patch_namespace, methods=["PATCH"]),
        Route("/v1/namespaces/{name}", _delete_namespace, methods=["DELETE"]),
        Route("/v1/namespaces/{name}/memories", _write, methods=["POST"]),
        Route("/v1/search", _search, methods=["POST"]),
        Route("/v1/memories/{id}", _forget, methods=["DELETE"]),
    ]


async def _health(request: Request) -> Response:
    with anyio.move_on_after(HEALTH_TIMEOUT_S):
        if await _parts(request).is_healthy():
            return _answer(PluginHealth(status="ok", version=VERSION, capabilities=CAPABILITIES))
    return _answer(PluginHealth(status="degraded", version=VERSION, capabilities=CAPABILITIES), status=503)


async def _put_namespace(request: Request) -> Response:
    name = _name(request)
    body = await read_object(request, nullable=("expires_at", "metadata"))
    kind, changes = namespace_kind(body), namespace_changes(body)
    with store_failure(503, OUT_OF_ORDER):
        return _answer(await _parts(request).namespaces.put(name, kind, changes))


async def _patch_namespace(request: Request) -> Response:
    name = _name(request)
    changes = namespace_changes(await read_object(request, nullable=("expires_at", "metadata")))
    if not changes:
        raise Refusal(400, "give expires_at, metadata or both")
    with store_failure(503, OUT_OF_ORDER):
        return _answer(await _parts(request).namespaces.patch(name, changes))


async def _delete_namespace(request: Request) -> Response:
    name = _name(request)
    with store_failure(503, OUT_OF_ORDER):
        await _parts(request).namespaces.delete(name)
    return Response(status_code=204)


async def _write(request: Request) -> Response:
    name = _name(request)
    memory = new_memory(await read_object(request))
    with store_failure(503, OUT_OF_ORDER):
        return _answer(await _parts(request).memories.write(name, memory), status=201)


async def _search(request: Request) -> Response:
    wanted = search_for(await read_object(request))
    with store_failure(503, OUT_OF_ORDER):
        found = await _parts(request).memories.search(wanted.namespaces, wanted.query, wanted.kinds, wanted.limit)
    return _answer(SearchReply(memories=found))


async def _forget(request: Request) -> Response:
    body = await read_object(request)
    namespace = namespace_name(body.get("requested_by_namespace"), field="requested_by_namespace")
    memory_id = canonical_uuid(request.path_params["id"])
    if memory_id is None:  # no memory has such an id
        raise not_in_namespace()
    with store_failure(503, OUT_OF_ORDER):
        await _parts(request).memories.forget(memory_id, namespace)
    return Response(status_code=204)


def _parts(request: Request) -> Parts:
    parts: Parts = request.app.state.parts
    return parts


def _name(request: Request) -> str:
    return namespace_name(request.path_params["name"])


def _answer(model: BaseModel, *, status: int = 200) -> Response:
    return Response(model.model_dump_json(exclude_none=True), status_code=status, media_type="application/json")

"""`/workspaces/:id/memories` and `/v2`: what agents remember (contract 7.1, 7.2)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

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
    read_model,
    read_object,
    store_failure,
)
from molecule_runtime.reference_platform.services.agent_memories import TableQuery
from molecule_runtime.reference_platform.services.memory_plugin import PluginFailure
from molecule_runtime.reference_platform.services.memory_rules import DEFAULT_LABEL, LABEL_CHARS, memory_not_owned
from molecule_runtime.reference_platform.services.plugin_memories import SOURCE, refuse_as_sent
from molecule_runtime.wire.memories import (
    READABLE_HEADER,
    READABLE_PARAM,
    CommitMemoryRequest,
    MemoryDeleted,
    MemoryKind,
    MemoryScope,
    MemoryView,
    MemoryViews,
    Namespaces,
    PluginMemory,
    UpdateMemoryRequest,
)

LISTED = 50
LISTED_V2 = 100
"""Memories of one answer at most (contract 7.1, 7.2)."""
BAD_SCOPE = "scope must be LOCAL, TEAM, or GLOBAL"
BAD_LABEL = f"namespace must be <= {LABEL_CHARS} characters"


def routes() -> list[Route]:
    return [
        Route("/workspaces/{id}/memories", _commit, methods=["POST"]),
        Route("/workspaces/{id}/memories", _recall),
        Route("/workspaces/{id}/memories/{memory_id}", _change, methods=["PATCH"]),
        Route("/workspaces/{id}/memories/{memory_id}", _forget, methods=["DELETE"]),
        Route("/workspaces/{id}/v2/namespaces", _namespaces),
        Route("/workspaces/{id}/v2/memories", _search),
        Route("/workspaces/{id}/v2/memories/{memory_id:path}", _delete, methods=["DELETE"]),
    ]


async def _commit(request: Request) -> Response:
    workspace_id = path_id(request)
    parts = parts_of(request)
    await parts.auth.require_workspace(request, workspace_id)
    posted = read_model(CommitMemoryRequest, await read_object(request))
    if not posted.content or not posted.scope:
        raise Refusal(400, INVALID_BODY)
    scope = _scope(posted.scope)
    label = posted.namespace or DEFAULT_LABEL
    if len(label) > LABEL_CHARS:
        raise Refusal(400, BAD_LABEL)
    memory_id = None if posted.id is None else canonical_uuid(posted.id)
    if posted.id is not None and memory_id is None:
        raise Refusal(400, "id must be a valid UUID")
    with store_failure(500, "failed to store memory"):
        reply = await parts.memories.commit(workspace_id, scope, posted.content, label, memory_id)
    return JSONResponse(reply.model_dump(mode="json"), status_code=201)


async def _recall(request: Request) -> Response:
    workspace_id = path_id(request)
    parts = parts_of(request)
    await parts.auth.require_workspace(request, workspace_id)
    scope = request.query_params.get("scope", "")
    query = TableQuery(
        scope=_scope(scope) if scope else None,
        text=_text_param(request, "q"),
        namespace=_text_param(request, "namespace"),
        limit=limit_param(request, default=LISTED, cap=LISTED),
    )
    wants_readable = query.scope is None and request.query_params.get(READABLE_PARAM) == "true"
    recall = parts.memories.recall_readable if wants_readable else parts.memories.recall
    with store_failure(500, "search failed"):
        rows = await recall(workspace_id, query)
    headers = {READABLE_HEADER: "true"} if wants_readable else {}
    return JSONResponse([row.model_dump(mode="json", exclude_none=True) for row in rows], headers=headers)


async def _change(request: Request) -> Response:
    workspace_id = path_id(request)
    parts = parts_of(request)
    await parts.auth.require_workspace(request, workspace_id)
    posted = read_model(UpdateMemoryRequest, await read_object(request))
    if posted.content is None and posted.namespace is None:
        raise Refusal(400, "at least one of content or namespace must be set")
    if posted.content is not None and not posted.content.replace("\x00", "").strip():
        raise Refusal(400, "content cannot be empty")
    if posted.namespace is not None and not posted.namespace:
        raise Refusal(400, "namespace cannot be empty")
    if posted.namespace is not None and len(posted.namespace) > LABEL_CHARS:
        raise Refusal(400, BAD_LABEL)
    with store_failure(500, "failed to update memory"):
        reply = await parts.memories.change(
            workspace_id, _memory_id(request), content=posted.content, label=posted.namespace
        )
    return JSONResponse(reply.model_dump(mode="json"))


async def _forget(request: Request) -> Response:
    workspace_id = path_id(request)
    parts = parts_of(request)
    await parts.auth.require_workspace(request, workspace_id)
    with store_failure(500, "delete failed"):
        await parts.memories.forget(workspace_id, _memory_id(request))
    return JSONResponse(MemoryDeleted().model_dump())


async def _namespaces(request: Request) -> Response:
    workspace_id = path_id(request)
    parts = parts_of(request)
    await parts.auth.require_workspace(request, workspace_id)
    parts.plugin_memories.require_wired()
    with store_failure(500, "failed to resolve readable/writable namespaces"):
        reach = await parts.plugin_memories.reach(workspace_id)
    reply = Namespaces(
        readable=[namespace.view() for namespace in reach.readable],
        writable=[namespace.view() for namespace in reach.writable],
    )
    return JSONResponse(reply.model_dump(mode="json"))


async def _search(request: Request) -> Response:
    workspace_id = path_id(request)
    parts = parts_of(request)
    await parts.auth.require_workspace(request, workspace_id)
    parts.plugin_memories.require_wired()
    namespace, kind = request.query_params.get("namespace", ""), request.query_params.get("kind", "")
    if kind and kind not in set(MemoryKind):
        raise Refusal(400, "kind must be fact, summary, or checkpoint")
    with store_failure(500, "failed to resolve namespaces"), _plugin_failure("memory plugin search failed"):
        found = await parts.plugin_memories.search(
            workspace_id,
            namespaces=[namespace] if namespace else (),
            query=_text_param(request, "q"),
            kinds=[kind] if kind else (),
            limit=limit_param(request, default=LISTED, cap=LISTED_V2),
        )
    reply = MemoryViews(memories=[_view(memory) for memory in found])
    return JSONResponse(reply.model_dump(mode="json", exclude_none=True))


async def _delete(request: Request) -> Response:
    workspace_id = path_id(request)
    parts = parts_of(request)
    await parts.auth.require_workspace(request, workspace_id)
    parts.plugin_memories.require_wired()
    memory_id: str = request.path_params["memory_id"].strip("/")
    if not memory_id:
        raise Refusal(400, "memoryId is required")
    # What is no UUID no plugin has; some answer it with 500 (contract 7.4).
    canonical = canonical_uuid(memory_id)
    with store_failure(500, "failed to resolve namespaces"), _plugin_failure("memory plugin delete failed"):
        deleted = canonical is not None and await parts.plugin_memories.forget(workspace_id, canonical)
    if not deleted:
        raise Refusal(404, "memory not found")
    return JSONResponse(MemoryDeleted().model_dump())


@contextmanager
def _plugin_failure(text: str) -> Iterator[None]:
    try:
        yield
    except PluginFailure as failure:
        refuse_as_sent(failure, text)


def _view(memory: PluginMemory) -> MemoryView:
    source = (memory.propagation or {}).get(SOURCE)
    facts = memory.model_dump(exclude={"propagation"})
    return MemoryView(**facts, source_workspace_id=source if isinstance(source, str) else None)


def _scope(text: str) -> MemoryScope:
    if text not in set(MemoryScope):
        raise Refusal(400, BAD_SCOPE)
    return MemoryScope(text)


def _memory_id(request: Request) -> str:
    memory_id = canonical_uuid(request.path_params["memory_id"])
    if memory_id is None:  # no memory has such an id
        raise memory_not_owned()
    return memory_id


def _text_param(request: Request, name: str) -> str:
    """A text from the query, without what no stored text holds."""
    return request.query_params.get(name, "").replace("\x00", "").strip()

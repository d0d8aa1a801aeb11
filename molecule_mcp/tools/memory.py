"""The tools that remember (agent-side 5, contract 7.3)."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from molecule_mcp.tools._base import Arguments, Hints, Tool, ToolContext
from molecule_mcp.tools.inbox import NonBlank
from molecule_mcp.tools.messages import MAX_RESULT_BYTES, _time_text
from molecule_runtime.memory import MAX_RECALLED, Committed
from molecule_runtime.runtime import Runtime
from molecule_runtime.settings import ToolSet
from molecule_runtime.wire._base import rfc3339
from molecule_runtime.wire.memories import MemoryKind, MemoryRow, MemoryScope

CONTENT_CODE_POINTS = 2_000
MAX_SEARCHED = 100
NARROWER = "a query finds the others"


def _scope(text: str) -> str:
    wanted = text.strip().upper()
    if wanted and wanted not in set(MemoryScope):
        raise ValueError("must be LOCAL, TEAM or GLOBAL")
    return wanted


def _kind(text: str) -> str:
    wanted = text.strip().lower()
    if wanted not in set(MemoryKind):
        raise ValueError("must be fact, summary or checkpoint")
    return wanted


Content = Annotated[NonBlank, Field(description="What to remember.")]
Scope = Annotated[str, AfterValidator(_scope)]
Kind = Annotated[str, AfterValidator(_kind)]
MemoryId = Annotated[NonBlank, Field(description="The memory's id.")]
Expiry = Annotated[str, AfterValidator(_time_text)]


class CommitArguments(Arguments):
    content: Content
    scope: Scope = Field("LOCAL", description="Who may read it: LOCAL, TEAM or GLOBAL.")


class RecallArguments(Arguments):
    query: str = Field("", description="Words in it; without them, the newest.")
    scope: Scope = Field("", description="LOCAL, TEAM or GLOBAL; without it, all.")
    limit: int = Field(10, description=f"How many, 1 to {MAX_RECALLED}.", ge=1, le=MAX_RECALLED)


class ForgetArguments(Arguments):
    memory_id: MemoryId


class CommitV2Arguments(Arguments):
    content: Content
    namespace: str = Field("", description="One of list_writable_namespaces; without it, your own.")
    kind: Kind = Field("fact", description="fact, summary or checkpoint.")
    expires_at: Expiry = Field("", description="When it is forgotten by itself, RFC3339.")
    pin: bool = Field(False, description="Show it before others.")


class SearchArguments(Arguments):
    query: str = Field("", description="Words that it holds.")
    namespaces: list[str] | None = Field(None, description="Only these; see list_readable_namespaces.")
    kinds: list[Kind] | None = Field(None, description="Only these: fact, summary, checkpoint.")
    limit: int = Field(20, description=f"How many, 1 to {MAX_SEARCHED}.", ge=1, le=MAX_SEARCHED)


class SummaryArguments(Arguments):
    content: Content
    namespace: str = Field("", description="One of list_writable_namespaces; without it, your own.")
    expires_at: Expiry = Field("", description="When it is forgotten by itself, RFC3339; without it, in 30 days.")


class NamespacesArguments(Arguments):
    """Nothing to say."""


async def commit_memory(context: ToolContext, args: CommitArguments) -> dict[str, Any]:
    async def commit(runtime: Runtime) -> Committed:
        memories = await runtime.route(context.workspace_id).memories()
        return await memories.commit(args.content, MemoryScope(args.scope or "LOCAL"))

    done = await context.bridge.call(commit, to_the_end=True)
    return _committed(done) | {"scope": args.scope or "LOCAL"}


async def recall_memory(context: ToolContext, args: RecallArguments) -> dict[str, Any]:
    async def recall(runtime: Runtime) -> list[MemoryRow]:
        memories = await runtime.route(context.workspace_id).memories()
        return await memories.recall(args.query.strip(), MemoryScope(args.scope) if args.scope else None, args.limit)

    return fit([_shown(row) for row in await context.bridge.call(recall)])


async def forget_memory(context: ToolContext, args: ForgetArguments) -> dict[str, Any]:
    memory_id = args.memory_id.strip()
    await context.bridge.call(lambda runtime: runtime.forget_memory(memory_id, context.workspace_id), to_the_end=True)
    return {"forgotten": True}


async def commit_memory_v2(context: ToolContext, args: CommitV2Arguments) -> dict[str, Any]:
    given = {"content": args.content, "kind": args.kind} | ({"pin": True} if args.pin else {})
    return await _commit_by(context, "commit_memory_v2", given, args.namespace, args.expires_at)


async def commit_summary(context: ToolContext, args: SummaryArguments) -> dict[str, Any]:
    return await _commit_by(context, "commit_summary", {"content": args.content}, args.namespace, args.expires_at)


async def search_memory(context: ToolContext, args: SearchArguments) -> dict[str, Any]:
    wanted: dict[str, Any] = {"query": args.query.strip(), "limit": args.limit}
    wanted |= {"namespaces": args.namespaces} if args.namespaces else {}
    wanted |= {"kinds": list(args.kinds)} if args.kinds else {}
    found = await _ask(context, "search_memory", wanted)
    memories = found.get("memories") if isinstance(found, dict) else None
    return fit([_with_content_cut(one) for one in memories or [] if isinstance(one, dict)])


async def list_readable_namespaces(context: ToolContext, _args: NamespacesArguments) -> dict[str, Any]:
    return {"namespaces": await _ask(context, "list_readable_namespaces", {})}


async def list_writable_namespaces(context: ToolContext, _args: NamespacesArguments) -> dict[str, Any]:
    return {"namespaces": await _ask(context, "list_writable_namespaces", {})}


async def _commit_by(
    context: ToolContext, tool: str, given: dict[str, Any], namespace: str, expires_at: str
) -> dict[str, Any]:
    given |= {"namespace": namespace.strip()} if namespace.strip() else {}
    given |= {"expires_at": expires_at} if expires_at else {}

    async def commit(runtime: Runtime) -> Committed:
        return await (await runtime.route(context.workspace_id).memories()).commit_by(tool, given)

    done = await context.bridge.call(commit, to_the_end=True)
    return _committed(done) | ({"namespace": done.namespace or namespace.strip()} if done.is_stored else {})


async def _ask(context: ToolContext, tool: str, arguments: dict[str, Any]) -> Any:
    async def ask(runtime: Runtime) -> Any:
        return await (await runtime.route(context.workspace_id).memories()).ask(tool, arguments)

    return await context.bridge.call(ask)


def _committed(done: Committed) -> dict[str, Any]:
    if done.is_stored:
        return {"id": done.id, "status": "stored"}
    return {
        "id": done.id,
        "status": "queued",
        "note": "The platform is away: this is kept here and stored, once, when it is back.",
    }


def _shown(row: MemoryRow) -> dict[str, Any]:
    shown = {"id": row.id, "scope": row.scope, "content": row.content, "created_at": rfc3339(row.created_at)}
    return _with_content_cut(shown)


def _with_content_cut(memory: dict[str, Any]) -> dict[str, Any]:
    content = memory.get("content")
    if not isinstance(content, str) or len(content) <= CONTENT_CODE_POINTS:
        return memory
    return memory | {"content": content[:CONTENT_CODE_POINTS], "content_truncated": True}


def fit(memories: list[dict[str, Any]]) -> dict[str, Any]:
    """As many as a host shows whole, from the first, and how many are left out."""
    size, count = 0, 0
    for memory in memories:
        size += len(json.dumps(memory, ensure_ascii=False).encode())
        if size > MAX_RESULT_BYTES and count:
            break
        count += 1
    left = len(memories) - count
    return {"memories": memories[:count]} | ({"left_out": left, "hint": NARROWER} if left else {})


_WRITES = Hints(read_only=False, destructive=False, idempotent=False, open_world=True)
_READS = Hints(read_only=True, destructive=False, idempotent=True, open_world=True)

TOOLS = (
    Tool(
        name="commit_memory",
        title="Remember",
        description="Remember something beyond this session.",
        arguments=CommitArguments,
        hints=_WRITES,
        handler=commit_memory,
    ),
    Tool(
        name="recall_memory",
        title="Recall",
        description="Find what you or your team remembered before.",
        arguments=RecallArguments,
        hints=_READS,
        handler=recall_memory,
    ),
    Tool(
        name="forget_memory",
        title="Forget",
        description="Delete a memory that you wrote, for good.",
        arguments=ForgetArguments,
        hints=Hints(read_only=False, destructive=True, idempotent=True, open_world=True),
        handler=forget_memory,
    ),
    Tool(
        name="commit_memory_v2",
        title="Remember in a namespace",
        description="Remember something in a namespace, with a kind, an expiry or a pin.",
        arguments=CommitV2Arguments,
        hints=_WRITES,
        handler=commit_memory_v2,
        set=ToolSet.FULL,
    ),
    Tool(
        name="search_memory",
        title="Search memories",
        description="Search the namespaces that you may read.",
        arguments=SearchArguments,
        hints=_READS,
        handler=search_memory,
        set=ToolSet.FULL,
    ),
    Tool(
        name="commit_summary",
        title="Remember a summary",
        description="Remember a summary of what was done; it lasts 30 days.",
        arguments=SummaryArguments,
        hints=_WRITES,
        handler=commit_summary,
        set=ToolSet.FULL,
    ),
    Tool(
        name="list_readable_namespaces",
        title="Namespaces to read",
        description="List the namespaces that you may search.",
        arguments=NamespacesArguments,
        hints=_READS,
        handler=list_readable_namespaces,
        set=ToolSet.FULL,
    ),
    Tool(
        name="list_writable_namespaces",
        title="Namespaces to write",
        description="List the namespaces that you may write to.",
        arguments=NamespacesArguments,
        hints=_READS,
        handler=list_writable_namespaces,
        set=ToolSet.FULL,
    ),
)

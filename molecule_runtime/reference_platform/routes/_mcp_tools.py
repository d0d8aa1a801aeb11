"""The tools of the platform's MCP bridge (contract 7.3, 8.1): one record makes the listing, the checks and the call.

A tool gives text. What it refuses is a `Refusal` or a `PluginFailure`; `mcp.py` puts both into the protocol's words.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, timedelta
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from molecule_runtime.reference_platform.identifiers import canonical_uuid
from molecule_runtime.reference_platform.parts import Parts
from molecule_runtime.reference_platform.refusals import Refusal, workspace_not_found
from molecule_runtime.reference_platform.routes._requests import parse_rfc3339
from molecule_runtime.reference_platform.services.agent_memories import TableQuery
from molecule_runtime.reference_platform.services.memory_namespaces import Namespace, Reach
from molecule_runtime.reference_platform.services.memory_plugin import PluginFailure
from molecule_runtime.reference_platform.services.memory_rules import marked_org
from molecule_runtime.reference_platform.services.plugin_memories import NewMemory
from molecule_runtime.wire.delegations import DelegateRequest
from molecule_runtime.wire.memories import MemoryKind, MemoryRow, MemoryScope, NamespaceKind, PluginMemory
from molecule_runtime.wire.registry import WorkspaceStatus

SUMMARY_LASTS = timedelta(days=30)
RECALLED = 50
SEARCHED = 20
SEARCHED_AT_MOST = 100
"""Memories of an answer (contract 7.3)."""
BAD_EXPIRY = "invalid expires_at: must be RFC3339 (e.g. 2026-05-05T10:00:00Z)"
DESCRIPTIONS = {
    NamespaceKind.WORKSPACE: "Memories of this workspace alone.",
    NamespaceKind.TEAM: "Memories that the team shares: its head and those directly below.",
    NamespaceKind.ORG: "Memories for the whole organisation; only its root writes here.",
}
NO_GLOBAL = "GLOBAL scope is not available here; use LOCAL or TEAM"

A = TypeVar("A", bound="Arguments")
Handler = Callable[[Parts, str, Any], Awaitable[str]]


class Arguments(BaseModel):
    """What a tool takes; unknown arguments are ignored, types are not guessed."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)


class InvalidArguments(Exception):
    """An argument is of another type than the schema says."""


@dataclass(frozen=True)
class Tool:
    """`required` arguments are texts that must not be blank; `step` names the plugin's part in a failure."""

    name: str
    description: str
    arguments: type[Arguments]
    handler: Handler
    required: tuple[str, ...] = ()
    step: str = ""

    def listing(self) -> dict[str, Any]:
        """The tool as tools/list shows it."""
        schema = self.arguments.model_json_schema()
        properties = {
            name: {key: value for key, value in facts.items() if key not in ("title", "default")}
            for name, facts in schema.get("properties", {}).items()
        }
        shape = {"type": "object", "properties": properties, "required": list(self.required)}
        return {"name": self.name, "description": self.description, "inputSchema": shape}

    async def call(self, parts: Parts, workspace_id: str, given: dict[str, Any]) -> str:
        """The text of the result.

        Raises:
            InvalidArguments: of a wrong type.
            Refusal, PluginFailure, StoreError: the tool failed.
        """
        try:
            arguments = self.arguments.model_validate({key: value for key, value in given.items() if value is not None})
        except ValidationError as error:
            wrong = ", ".join(str(each["loc"][0]) for each in error.errors())
            raise InvalidArguments(f"invalid arguments: {wrong}") from None
        for name in self.required:
            if not getattr(arguments, name).strip():
                raise Refusal(400, f"{name} is required")
        return await self.handler(parts, workspace_id, arguments)


class NoArguments(Arguments):
    pass


class CommitArguments(Arguments):
    content: str = Field("", description="What to remember.")
    scope: str = Field("LOCAL", description="LOCAL: this workspace; TEAM: its team.")


class RecallArguments(Arguments):
    query: str = Field("", description="Words that the memory holds; without it, the newest.")
    scope: str = Field("", description="LOCAL, TEAM, or empty for all.")


class CommitV2Arguments(Arguments):
    content: str = Field("", description="What to remember.")
    namespace: str = Field("", description="One of list_writable_namespaces; default: this workspace's own.")
    kind: str = Field("fact", description="fact, summary or checkpoint.")
    expires_at: str = Field("", description="RFC3339 time after which it is forgotten.")
    pin: bool = Field(False, description="Show it before others.")
    id: str = Field("", description="A UUID of your choice: sent again with it, the memory is stored once.")


class SummaryArguments(Arguments):
    content: str = Field("", description="The summary.")
    namespace: str = Field("", description="One of list_writable_namespaces; default: this workspace's own.")
    expires_at: str = Field("", description="RFC3339 time after which it is forgotten; default: in 30 days.")
    id: str = Field("", description="A UUID of your choice: sent again with it, the summary is stored once.")


class SearchArguments(Arguments):
    query: str = Field("", description="Words that the memory holds; without it, pinned first, then the newest.")
    namespaces: list[str] = Field([], description="Only these; default: all of list_readable_namespaces.")
    kinds: list[str] = Field([], description="Only these of fact, summary, checkpoint.")
    limit: int = Field(SEARCHED, description=f"1 to {SEARCHED_AT_MOST}.")


class ForgetArguments(Arguments):
    memory_id: str = Field("", description="The memory's id.")
    namespace: str = Field("", description="The namespace it is in; default: this workspace's own.")


class MessageArguments(Arguments):
    message: str = Field("", description="What to tell the user.")


class DelegateArguments(Arguments):
    workspace_id: str = Field("", description="The peer's id, from list_peers.")
    task: str = Field("", description="What the peer shall do.")


class TaskArguments(Arguments):
    workspace_id: str = Field("", description="The peer that has the task.")
    task_id: str = Field("", description="The id from delegate_task_async.")


async def _commit_memory(parts: Parts, workspace_id: str, args: CommitArguments) -> str:
    scope = _scope(args.scope) or MemoryScope.LOCAL
    stored = await parts.memories.commit(workspace_id, scope, args.content)
    return _compact({"id": stored.id, "scope": stored.scope})


async def _recall_memory(parts: Parts, workspace_id: str, args: RecallArguments) -> str:
    query = TableQuery(scope=_scope(args.scope), text=args.query.strip(), limit=RECALLED)
    rows = await parts.memories.recall(workspace_id, query)
    return _compact([_recalled(row) for row in rows]) if rows else "No memories found."


def _recalled(row: MemoryRow) -> dict[str, str]:
    created_at = row.created_at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"id": row.id, "content": row.content, "scope": row.scope, "created_at": created_at}


def _scope(text: str) -> MemoryScope | None:
    if text == MemoryScope.GLOBAL:
        raise Refusal(403, NO_GLOBAL)
    if text not in ("", MemoryScope.LOCAL, MemoryScope.TEAM):
        raise Refusal(400, "scope must be LOCAL or TEAM")
    return MemoryScope(text) if text else None


async def _commit_memory_v2(parts: Parts, workspace_id: str, args: CommitV2Arguments) -> str:
    expires_at = parse_rfc3339(args.expires_at) if args.expires_at else None
    if args.expires_at and expires_at is None:
        raise Refusal(400, BAD_EXPIRY)
    if args.kind and args.kind not in set(MemoryKind):
        raise Refusal(400, "kind must be fact, summary, or checkpoint")
    memory = NewMemory(
        content=args.content,
        namespace=args.namespace.strip(),
        kind=MemoryKind(args.kind or MemoryKind.FACT),
        expires_at=expires_at,
        pin=args.pin,
        id=_own_id(args.id),
    )
    return await _commit(parts, workspace_id, memory)


async def _commit_summary(parts: Parts, workspace_id: str, args: SummaryArguments) -> str:
    memory = NewMemory(
        content=args.content,
        namespace=args.namespace.strip(),
        kind=MemoryKind.SUMMARY,
        expires_at=parse_rfc3339(args.expires_at) or parts.clock.now() + SUMMARY_LASTS,
        id=_own_id(args.id),
    )
    return await _commit(parts, workspace_id, memory)


async def _commit(parts: Parts, workspace_id: str, memory: NewMemory) -> str:
    commit = await parts.plugin_memories.commit(workspace_id, memory)
    return _compact({"id": commit.id, "namespace": commit.namespace})


def _own_id(text: str) -> str | None:
    canonical = canonical_uuid(text)
    if text and canonical is None:
        raise Refusal(400, "id must be a valid UUID")
    return canonical


async def _search_memory(parts: Parts, workspace_id: str, args: SearchArguments) -> str:
    found = await parts.plugin_memories.search(
        workspace_id,
        namespaces=args.namespaces,
        query=args.query.strip(),
        kinds=args.kinds,
        limit=min(args.limit, SEARCHED_AT_MOST) if args.limit > 0 else SEARCHED,
    )
    return _compact({"memories": [_searched(memory) for memory in found]})


def _searched(memory: PluginMemory) -> dict[str, Any]:
    shown = memory.model_dump(mode="json", exclude_none=True)
    if memory.namespace.startswith(f"{NamespaceKind.ORG}:"):
        shown["content"] = marked_org(memory.id, memory.namespace, memory.content)
    return shown


async def _list_writable(parts: Parts, workspace_id: str, _args: NoArguments) -> str:
    reach = await _reach(parts, workspace_id)
    return _namespaces(reach, reach.writable)


async def _list_readable(parts: Parts, workspace_id: str, _args: NoArguments) -> str:
    reach = await _reach(parts, workspace_id)
    return _namespaces(reach, reach.readable)


async def _reach(parts: Parts, workspace_id: str) -> Reach:
    parts.plugin_memories.require_wired()
    return await parts.plugin_memories.reach(workspace_id)


def _namespaces(reach: Reach, namespaces: Iterable[Namespace]) -> str:
    shown = []
    for namespace in namespaces:
        facts: dict[str, Any] = {
            "name": namespace.name,
            "kind": namespace.kind,
            "description": DESCRIPTIONS[namespace.kind],
            "writable": namespace in reach.writable,
        }
        shown.append(facts | ({"display_name": namespace.owner_name} if namespace.owner_name else {}))
    return json.dumps(shown, ensure_ascii=False, indent=2)


async def _forget_memory(parts: Parts, workspace_id: str, args: ForgetArguments) -> str:
    canonical = canonical_uuid(args.memory_id.strip())
    parts.plugin_memories.require_wired()
    # What is no UUID no plugin has; some answer it with 500 (contract 7.4).
    if canonical is None or not await parts.plugin_memories.forget(workspace_id, canonical, args.namespace.strip()):
        raise Refusal(404, "plugin forget: memory not found in namespace")
    return _compact({"forgotten": True})


async def _list_peers(parts: Parts, workspace_id: str, _args: NoArguments) -> str:
    peers = await parts.peers.list_peers(workspace_id)
    shown = [peer.model_dump(mode="json", include={"id", "name", "role", "status", "tier"}) for peer in peers]
    return _compact(shown) if shown else "No peers found."


async def _get_workspace_info(parts: Parts, workspace_id: str, _args: NoArguments) -> str:
    row = await parts.workspaces.find(workspace_id)
    if row is None or row["status"] == WorkspaceStatus.REMOVED:
        raise workspace_not_found()
    facts = {name: row[name] for name in ("id", "name", "role", "tier", "status")}
    return _compact(facts | ({"parent_id": row["parent_id"]} if row["parent_id"] else {}))


async def _send_message_to_user(parts: Parts, workspace_id: str, args: MessageArguments) -> str:
    await parts.agent_messages.send(workspace_id, args.message)
    return "Message sent."


async def _delegate_task_async(parts: Parts, workspace_id: str, args: DelegateArguments) -> str:
    target_id = canonical_uuid(args.workspace_id.strip())
    if target_id is None or await parts.workspaces.find(target_id) is None:
        raise workspace_not_found()
    if not await parts.peers.can_communicate(workspace_id, target_id):
        raise Refusal(403, f"workspace {workspace_id} is not authorised to communicate with {target_id}")
    made = await parts.delegations.delegate(workspace_id, DelegateRequest(target_id=target_id, task=args.task))
    return _compact({"task_id": made.delegation_id, "status": "dispatched", "target_id": target_id})


async def _check_task_status(parts: Parts, workspace_id: str, args: TaskArguments) -> str:
    task_id, target_id = canonical_uuid(args.task_id.strip()), args.workspace_id.strip()
    try:
        if task_id is None:
            raise Refusal(404, "no such id")
        found = await parts.delegations.get(workspace_id, task_id)
    except Refusal:
        note = "no task of this id was delegated by this workspace"
        return _compact({"task_id": args.task_id, "status": "not_found", "target_id": target_id, "note": note})
    facts = {"task_id": found.delegation_id, "status": found.status, "target_id": found.target_id}
    more = {"error": found.error, "result": found.text}
    return _compact(facts | {name: text for name, text in more.items() if text})


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


SEND_MESSAGE = "send_message_to_user"
TOOLS = {
    tool.name: tool
    for tool in (
        Tool("list_peers", "Lists the workspaces that this one can talk to.", NoArguments, _list_peers),
        Tool("get_workspace_info", "Shows this workspace.", NoArguments, _get_workspace_info),
        Tool(
            "delegate_task_async",
            "Hands a task to a peer and returns at once; check_task_status tells what became of it.",
            DelegateArguments,
            _delegate_task_async,
            required=("workspace_id", "task"),
        ),
        Tool(
            "check_task_status",
            "Shows what became of a delegated task.",
            TaskArguments,
            _check_task_status,
            required=("workspace_id", "task_id"),
        ),
        Tool(SEND_MESSAGE, "Tells the user something.", MessageArguments, _send_message_to_user, required=("message",)),
        Tool(
            "commit_memory",
            "Remembers something beyond this session.",
            CommitArguments,
            _commit_memory,
            required=("content",),
        ),
        Tool("recall_memory", "Finds what was remembered.", RecallArguments, _recall_memory),
        Tool(
            "commit_memory_v2",
            "Remembers something in a namespace, for a time or for good.",
            CommitV2Arguments,
            _commit_memory_v2,
            required=("content",),
            step="commit",
        ),
        Tool(
            "search_memory",
            "Searches memories of all readable namespaces, best first.",
            SearchArguments,
            _search_memory,
            step="search",
        ),
        Tool(
            "commit_summary",
            "Remembers the summary of a session, for 30 days unless told otherwise.",
            SummaryArguments,
            _commit_summary,
            required=("content",),
            step="commit",
        ),
        Tool("list_writable_namespaces", "Lists where memories can be written.", NoArguments, _list_writable),
        Tool("list_readable_namespaces", "Lists where memories can be read.", NoArguments, _list_readable),
        Tool(
            "forget_memory",
            "Deletes a memory for good.",
            ForgetArguments,
            _forget_memory,
            required=("memory_id",),
            step="forget",
        ),
    )
}


def failure_text(tool: Tool, failure: PluginFailure) -> str:
    """The plugin's failure as the tool reports it (contract 7.3)."""
    return f"plugin {tool.step}: {failure.reason}"

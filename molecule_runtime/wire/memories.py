"""Memories: v1 of the platform, v2 of the canvas, and the plugin's own HTTP (contract 7)."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal

from molecule_runtime.wire._base import Timestamp, WireModel


class MemoryScope(StrEnum):
    """Who may read a memory of v1: its own workspace, the team, everybody (contract 7.1)."""

    LOCAL = "LOCAL"
    TEAM = "TEAM"
    GLOBAL = "GLOBAL"


class MemoryKind(StrEnum):
    FACT = "fact"
    SUMMARY = "summary"
    CHECKPOINT = "checkpoint"


class MemorySource(StrEnum):
    AGENT = "agent"
    RUNTIME = "runtime"
    USER = "user"


class NamespaceKind(StrEnum):
    WORKSPACE = "workspace"
    TEAM = "team"
    ORG = "org"
    CUSTOM = "custom"


class MemoryAudit(StrEnum):
    """The `method` of an activity row that holds the SHA-256 of what everybody can read (contract 7.1)."""

    WRITE_GLOBAL = "memory_write_global"
    EDIT_GLOBAL = "memory_edit_global"


# v1


class CommitMemoryRequest(WireModel):
    """POST /workspaces/:id/memories. `id`, a UUID that the writer made, is ours: it makes a repeat harmless."""

    content: str
    scope: str
    namespace: str | None = None
    id: str | None = None


class CommitMemoryReply(WireModel):
    """201."""

    id: str
    scope: str
    namespace: str = ""


class MemoryRow(WireModel):
    """One element of GET /workspaces/:id/memories; the score only where a query was ranked by embeddings."""

    id: str
    workspace_id: str | None = None
    content: str
    scope: str
    namespace: str = ""
    created_at: Timestamp
    similarity_score: float | None = None


READABLE_PARAM, READABLE_HEADER = "readable", "Molecule-Readable"
"""Ours: `?readable=true` without a scope asks GET …/memories for all that the workspace may read, and the header with
the value "true" says that it was given. Any other platform gives what it gives without a scope (contract 7.1)."""


class UpdateMemoryRequest(WireModel):
    """PATCH …/memories/:memoryId; at least one of the two."""

    content: str | None = None
    namespace: str | None = None


class UpdateMemoryReply(WireModel):
    id: str
    scope: str
    namespace: str
    changed: bool


class MemoryDeleted(WireModel):
    """DELETE, v1 and v2."""

    status: Literal["deleted"] = "deleted"


# v2


class NamespaceView(WireModel):
    """`label` is for people: "Workspace (abc-1234)" (contract 7.2)."""

    name: str
    kind: str
    label: str


class Namespaces(WireModel):
    """GET /workspaces/:id/v2/namespaces."""

    readable: list[NamespaceView]
    writable: list[NamespaceView]


class MemoryView(WireModel):
    """One memory of GET /workspaces/:id/v2/memories."""

    id: str
    namespace: str
    content: str
    kind: str
    source: str
    pin: bool = False
    created_at: Timestamp
    expires_at: Timestamp | None = None
    score: float | None = None
    source_workspace_id: str | None = None


class MemoryViews(WireModel):
    memories: list[MemoryView]


# the platform's MCP bridge (contract 8.1), by which v2 is written


class BridgeText(WireModel):
    type: str = "text"
    text: str = ""


class BridgeResult(WireModel):
    content: list[BridgeText] = []


class BridgeError(WireModel):
    """-32000: the tool failed, `message` says how; ours adds the HTTP status that the failure would have had."""

    code: int
    message: str = ""
    data: Any = None

    @property
    def status(self) -> int | None:
        status = self.data.get("status") if isinstance(self.data, dict) else None
        return status if isinstance(status, int) else None


class BridgeReply(WireModel):
    """The answer to tools/call, always with HTTP 200."""

    result: BridgeResult | None = None
    error: BridgeError | None = None


# the plugin


class PluginHealth(WireModel):
    """GET /v1/health; 503 with `degraded` when its database is dead."""

    status: str
    version: str
    capabilities: list[str] = []


class PutNamespaceRequest(WireModel):
    kind: str
    expires_at: Timestamp | None = None
    metadata: dict[str, Any] | None = None


class PluginNamespace(WireModel):
    name: str
    kind: str
    expires_at: Timestamp | None = None
    metadata: dict[str, Any] | None = None
    created_at: Timestamp


class MemoryWrite(WireModel):
    """POST /v1/namespaces/{name}/memories. With an `id` it is written once, however often it is sent."""

    content: str
    kind: str
    source: str
    id: str | None = None
    expires_at: Timestamp | None = None
    propagation: dict[str, Any] | None = None
    pin: bool | None = None
    embedding: list[float] | None = None


class MemoryWritten(WireModel):
    """201."""

    id: str
    namespace: str


class SearchRequest(WireModel):
    """POST /v1/search."""

    namespaces: list[str]
    query: str | None = None
    kinds: list[str] | None = None
    limit: int | None = None
    embedding: list[float] | None = None


class PluginMemory(WireModel):
    id: str
    namespace: str
    content: str
    kind: str
    source: str
    created_at: Timestamp
    expires_at: Timestamp | None = None
    propagation: dict[str, Any] | None = None
    pin: bool = False
    score: float | None = None


class SearchReply(WireModel):
    """No hits may come as null."""

    memories: list[PluginMemory] | None = None


class ForgetRequest(WireModel):
    """DELETE /v1/memories/{id}: only from the namespace that asks."""

    requested_by_namespace: str


class PluginError(WireModel):
    """Every error of the plugin."""

    code: str
    message: str
    details: dict[str, Any] | None = None

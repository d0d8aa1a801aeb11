"""PlatformClient: one pooled HTTP client for one workspace, one method for each endpoint, every status an error type.

With `connections` the only module that calls httpx; `answers` says what comes back. The transport is the seam for tests
(`httpx.ASGITransport` of the reference platform, respx for faults). Nothing is retried here, but for two cases: after a
401 the token is read again, and if it has changed the call, which was refused unread, is made once more; and a call
that may be repeated is made again when its connection had died idle (`connections`). All else the loops and tools
decide from the error's row in `errors.OUTCOMES`.
"""

from __future__ import annotations

import asyncio
import ssl
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, urlsplit

import httpx
import structlog
from pydantic import TypeAdapter

from molecule_runtime import __version__
from molecule_runtime.answers import Answers, delegation_row, memory_row, peer
from molecule_runtime.connections import Connections, Journey
from molecule_runtime.credentials import Credentials
from molecule_runtime.errors import (
    AttachmentRefused,
    BadReply,
    NotFound,
    PlatformError,
    Problem,
    SettingsError,
    TooLarge,
    ToolRefused,
    Unavailable,
    Unreachable,
)
from molecule_runtime.upload_body import UploadBody, UploadProgress, UploadSource, file_too_large
from molecule_runtime.wire._base import rfc3339
from molecule_runtime.wire.a2a import A2AMessage, SendOutcome, SendParams, SendRequest, TextPart, read_outcome
from molecule_runtime.wire.activity import ActivityReport, ActivityRow, ActivityType
from molecule_runtime.wire.chat import Attachment, ChatHistory, NotifyReply, NotifyRequest
from molecule_runtime.wire.delegations import (
    DelegateReply,
    DelegateRequest,
    Delegation,
    DelegationRow,
    UpdateRequest,
)
from molecule_runtime.wire.memories import (
    READABLE_HEADER,
    READABLE_PARAM,
    BridgeReply,
    CommitMemoryReply,
    CommitMemoryRequest,
    MemoryRow,
)
from molecule_runtime.wire.registry import (
    HeartbeatReply,
    HeartbeatRequest,
    Peer,
    RegisterReply,
    RegisterRequest,
    UpdateCardRequest,
)
from molecule_runtime.wire.uploads import (
    MAX_FILE_BYTES,
    MAX_FILES,
    MAX_REQUEST_BYTES,
    UploadedFile,
    UploadLimits,
    UploadReply,
)
from molecule_runtime.wire.workspaces import Workspace

CALL_TIMEOUT_S = 10.0
"""agent-side 3: a beat that takes longer counts as failed; a longer limit would hide an outage from the canvas."""
SEND_TIMEOUT_S = 45.0
"""A push peer may answer within the call; below every host's limit for a tool (clients.md 1.4)."""
REPORT_TIMEOUT_S = 2.0
"""A report is written after the fact, while somebody waits for the result of the deed."""
STALL_S = 10.0
"""A file's bytes may take long, but not come to a standstill."""
FILE_CONNECTIONS = 8
"""Four files and their acks at a time (agent-side 8), beside the connections of loops and tools."""
FILE_PIECE_BYTES = 256 * 1024
UPLOAD_STALL_S = 30.0
"""An upload of which nothing moves for so long has failed; a platform stores it all before it answers."""
UPLOAD_BASE_S = 30.0
UPLOAD_BYTES_PER_S = 50_000
"""The slowest line that an upload is given time for, beside its base: 25 MB in nine minutes."""
TOOL_CONNECTIONS = 32
"""A bound on what an agent's tools may open at once, within the 256 files of a macOS process; more calls wait."""
LOOPBACK_HOSTS = frozenset({"127.0.0.1", "localhost", "::1"})
LOOPBACK_PATTERNS = ("all://127.0.0.1", "all://localhost", "all://[::1]")
"""A platform on this machine is never asked through a proxy: HTTP_PROXY is about the world outside."""

_USUAL_LIMITS = UploadLimits(
    per_file_bytes=MAX_FILE_BYTES, per_request_bytes=MAX_REQUEST_BYTES, max_attachments_per_message=MAX_FILES
)

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Download:
    """A file on its way. `size` is what the platform announced, in bytes, None when it did not."""

    size: int | None
    pieces: AsyncIterator[bytes]


class PlatformClient:
    """Calls one platform for one workspace. Use as an async context manager, in one event loop.

    The loops (presence, feed) have connections of their own, so that no number of slow tool calls stands before a beat.
    Every method raises a leaf of `PlatformError`, or `CredentialError` when the token cannot be read.
    """

    def __init__(
        self,
        base_url: str,
        workspace_id: str,
        credentials: Credentials,
        *,
        org_id: str = "",
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.base_url = base_url
        self.workspace_id = workspace_id
        self._credentials = credentials
        self._answers = Answers(base_url, workspace_id)
        self._org_id = org_id
        self._limits: UploadLimits | None = None
        try:
            options: dict[str, Any] = {
                "tls": _tls_context(base_url),
                "transport": transport,
                "timeout": CALL_TIMEOUT_S,
                "mounts": dict.fromkeys(LOOPBACK_PATTERNS),
                "headers": {"User-Agent": f"molecule-mcp/{__version__}"},
            }
            self._loops = Connections(base_url, **options)
            self._tools = Connections(base_url, max_connections=TOOL_CONNECTIONS, **options)
            self._files = Connections(base_url, max_connections=FILE_CONNECTIONS, **options)
        except (ImportError, ValueError, httpx.InvalidURL):
            summary = "HTTP_PROXY, HTTPS_PROXY or ALL_PROXY names a proxy of a kind that cannot be used"
            raise SettingsError((Problem("settings.proxy", summary, "Use an http:// or https:// proxy."),)) from None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._loops.aclose()
        await self._tools.aclose()
        await self._files.aclose()

    # presence

    async def register(self, agent_card: Mapping[str, Any]) -> RegisterReply:
        """Announce a polling agent; safe to repeat (contract 2.1)."""
        request = RegisterRequest(id=self.workspace_id, url="", delivery_mode="poll", agent_card=dict(agent_card))
        answer = await self._call(
            "POST", "/registry/register", json=request.model_dump(), is_repeatable=True, by=self._loops
        )
        return self._answers.read(TypeAdapter(RegisterReply), answer)

    async def heartbeat(self, *, active_tasks: int, uptime_seconds: int) -> HeartbeatReply:
        """One sign of life (contract 2.3)."""
        beat = HeartbeatRequest(
            workspace_id=self.workspace_id, active_tasks=active_tasks, uptime_seconds=uptime_seconds
        )
        sent = {"workspace_id", "error_rate", "sample_error", "active_tasks", "uptime_seconds"}
        answer = await self._call(
            "POST", "/registry/heartbeat", json=beat.model_dump(include=sent), is_repeatable=True, by=self._loops
        )
        return self._answers.read(TypeAdapter(HeartbeatReply), answer)

    async def get_workspace(self) -> Workspace:
        """The workspace's public row.

        Raises:
            WorkspaceRemoved: 410, the one sure sign of a removal (contract 3.4).
        """
        path = f"/workspaces/{self.workspace_id}"
        answer = await self._call("GET", path, pattern="/workspaces/:id", by=self._loops)
        return self._answers.read(TypeAdapter(Workspace), answer)

    async def update_card(self, agent_card: Mapping[str, Any]) -> None:
        """Replace the agent card that peers and canvas read (contract 2.5)."""
        request = UpdateCardRequest(workspace_id=self.workspace_id, agent_card=dict(agent_card))
        await self._call("POST", "/registry/update-card", json=request.model_dump(), is_repeatable=True)

    # messages

    async def activity(
        self,
        *,
        since_id: str | None = None,
        since_secs: int | None = None,
        before: datetime | None = None,
        limit: int = 100,
    ) -> list[ActivityRow]:
        """Inbox rows: oldest first with `since_id`, else newest first (contract 4.3).

        A field of a row that cannot be read is left out, so that one odd row does not keep back all others.

        Raises:
            CursorExpired: `since_id` is not known there any more.
            BadReply: also when a row has no id or no time, which nothing can replace.
        """
        params: dict[str, Any] = {"type": ActivityType.A2A_RECEIVE.value, "limit": limit}
        if since_id is not None:
            params["since_id"] = since_id
        if since_secs is not None:
            params["since_secs"] = since_secs
        if before is not None:
            params["before_ts"] = rfc3339(before)
        path = f"/workspaces/{self.workspace_id}/activity"
        answer = await self._call("GET", path, pattern="/workspaces/:id/activity", params=params, by=self._loops)
        return self._answers.read_list(self._answers.row, answer)

    async def conversation(
        self, peer_id: str, *, limit: int = 100, before: datetime | None = None
    ) -> list[ActivityRow]:
        """Rows of this workspace's log that a peer sent or was sent, newest first (contract 4.3)."""
        params: dict[str, Any] = {"peer_id": peer_id, "limit": limit}
        if before is not None:
            params["before_ts"] = rfc3339(before)
        path = f"/workspaces/{self.workspace_id}/activity"
        answer = await self._call("GET", path, pattern="/workspaces/:id/activity", params=params)
        return self._answers.read_list(self._answers.row, answer)

    async def chat_history(self, *, limit: int = 100, before: datetime | None = None) -> ChatHistory:
        """The newest lines of the chat with the user, oldest first (contract 4.5)."""
        params: dict[str, Any] = {"limit": limit}
        if before is not None:
            params["before_ts"] = rfc3339(before)
        path = f"/workspaces/{self.workspace_id}/chat-history"
        answer = await self._call("GET", path, pattern="/workspaces/:id/chat-history", params=params)
        return self._answers.read(TypeAdapter(ChatHistory), answer)

    async def report(self, report: ActivityReport) -> None:
        """Leave a row about what this workspace did in its own log (contract 4.4)."""
        path = f"/workspaces/{self.workspace_id}/activity"
        sent = report.model_dump(mode="json", exclude_none=True)
        await self._call("POST", path, pattern="/workspaces/:id/activity", json=sent, timeout=REPORT_TIMEOUT_S)

    async def notify(self, message: str, *, attachments: Sequence[Attachment] = ()) -> NotifyReply:
        """Say something to the user, with files that `upload` has staged (contract 4.2)."""
        request = NotifyRequest(message=message, attachments=list(attachments) or None)
        path = f"/workspaces/{self.workspace_id}/notify"
        answer = await self._call(
            "POST", path, pattern="/workspaces/:id/notify", json=request.model_dump(exclude_none=True)
        )
        return self._answers.read(TypeAdapter(NotifyReply), answer)

    async def send_message(self, peer_id: str, text: str, *, metadata: Mapping[str, Any] | None = None) -> SendOutcome:
        """message/send to a peer as this workspace; a queued envelope is an outcome, not an error (contract 4.1)."""
        message = A2AMessage(
            role="agent", messageId=str(uuid.uuid4()), parts=[TextPart(text=text)], metadata=dict(metadata or {})
        )
        request = SendRequest(id=str(uuid.uuid4()), params=SendParams(message=message))
        answer = await self._call(
            "POST",
            f"/workspaces/{quote(peer_id, safe='')}/a2a",
            pattern="/workspaces/:id/a2a",
            json=request.model_dump(mode="json"),
            as_caller=True,
            timeout=SEND_TIMEOUT_S,
        )
        return read_outcome(self._answers.json(answer))

    async def peers(self, query: str = "") -> list[Peer]:
        """Siblings, children and parent; `query` is matched on name and role (contract 2.6)."""
        path = f"/registry/{self.workspace_id}/peers"
        params = {"q": query} if query else None
        answer = await self._call("GET", path, pattern="/registry/:id/peers", params=params, as_caller=True)
        return self._answers.read_list(peer, answer)

    # delegations

    async def delegate(self, target_id: str, task: str, *, key: str) -> DelegateReply:
        """Hand a job to a peer (contract 6.1). Safe to repeat with the same key: it is handed out once.

        Raises:
            Rejected: the platform takes no such job (itself as the target, for one).
        """
        path = f"/workspaces/{self.workspace_id}/delegate"
        request = DelegateRequest(target_id=target_id, task=task, idempotency_key=key)
        answer = await self._call(
            "POST", path, pattern="/workspaces/:id/delegate", json=request.model_dump(), is_repeatable=True
        )
        return self._answers.read(TypeAdapter(DelegateReply), answer)

    async def delegation(self, delegation_id: str) -> Delegation:
        """One delegation of this workspace with its whole text, where the platform has this route (contract 0.9).

        Raises:
            NotFound: there is none of this id.
            NotThePlatform: there is no such route.
        """
        path = f"/workspaces/{self.workspace_id}/delegations/{quote(delegation_id, safe='')}"
        answer = await self._call("GET", path, pattern="/workspaces/:id/delegations/:delegation_id")
        return self._answers.read(TypeAdapter(Delegation), answer)

    async def delegations(self) -> list[DelegationRow]:
        """The latest rows about this workspace's delegations, newest first, previews only (contract 6.2)."""
        path = f"/workspaces/{self.workspace_id}/delegations"
        answer = await self._call("GET", path, pattern="/workspaces/:id/delegations")
        return self._answers.read_list(delegation_row, answer)

    async def update_delegation(self, delegation_id: str, status: str, *, response_preview: str = "") -> None:
        """Tell the platform how a delegation of this workspace ended, "completed" or "failed" (contract 6.4)."""
        path = f"/workspaces/{self.workspace_id}/delegations/{quote(delegation_id, safe='')}/update"
        sent = UpdateRequest(status=status, response_preview=response_preview or None).model_dump(exclude_none=True)
        pattern = "/workspaces/:id/delegations/:delegation_id/update"
        await self._call("POST", path, pattern=pattern, json=sent, is_repeatable=True)

    async def delegation_heartbeat(self, delegation_id: str) -> None:
        """Say that this workspace works on a job that it was handed (contract 6.5).

        Raises:
            NotFound, NotThePlatform: the platform has no such job, or no such route.
        """
        path = f"/workspaces/{self.workspace_id}/delegations/{quote(delegation_id, safe='')}/heartbeat"
        pattern = "/workspaces/:id/delegations/:delegation_id/heartbeat"
        await self._call("POST", path, pattern=pattern, is_repeatable=True, by=self._loops)

    # memories

    async def commit_memory(self, request: CommitMemoryRequest) -> CommitMemoryReply:
        """Store a memory (contract 7.1). Safe to repeat with the same `id` where the platform keeps it."""
        path = f"/workspaces/{self.workspace_id}/memories"
        sent = request.model_dump(exclude_none=True)
        answer = await self._call("POST", path, pattern="/workspaces/:id/memories", json=sent, is_repeatable=True)
        return self._answers.read(TypeAdapter(CommitMemoryReply), answer)

    async def memories(self, *, scope: str = "", query: str = "", limit: int = 50) -> list[MemoryRow]:
        """The memories of a scope that this workspace may read, best first with a query, else newest first."""
        path = f"/workspaces/{self.workspace_id}/memories"
        params = {key: value for key, value in (("scope", scope), ("q", query), ("limit", limit)) if value}
        answer = await self._call("GET", path, pattern="/workspaces/:id/memories", params=params)
        return self._answers.read_list(memory_row, answer)

    async def readable_memories(self, *, query: str = "", limit: int = 50) -> tuple[list[MemoryRow], bool]:
        """The memories that this workspace may read, as `memories` gives them; False when they are only its own ones.

        A platform other than ours gives those: the scopes TEAM and GLOBAL are to be asked for, too.
        """
        path = f"/workspaces/{self.workspace_id}/memories"
        params = {key: value for key, value in (("q", query), ("limit", limit)) if value} | {READABLE_PARAM: "true"}
        answer = await self._call("GET", path, pattern="/workspaces/:id/memories", params=params)
        return self._answers.read_list(memory_row, answer), answer.headers.get(READABLE_HEADER) == "true"

    async def forget_memory(self, memory_id: str) -> None:
        """Delete a memory of this workspace.

        Raises:
            NotFound: there is none of this id, or it is another's.
        """
        path = f"/workspaces/{self.workspace_id}/memories/{quote(memory_id, safe='')}"
        await self._call("DELETE", path, pattern="/workspaces/:id/memories/:memory_id", is_repeatable=True)

    async def use_tool(self, tool: str, arguments: Mapping[str, Any]) -> str:
        """The text that a tool of the platform's own MCP bridge gives (contract 8.1).

        Raises:
            ToolRefused: the platform does not know it or is not set up for it, or it failed there for good.
            Unavailable: it failed there for now.
        """
        path, pattern = f"/workspaces/{self.workspace_id}/mcp", "/workspaces/:id/mcp"
        params = {"name": tool, "arguments": dict(arguments)}
        request = {"jsonrpc": "2.0", "id": str(uuid.uuid4()), "method": "tools/call", "params": params}
        answer = await self._call("POST", path, pattern=pattern, json=request, is_repeatable=True)
        reply = self._answers.read(TypeAdapter(BridgeReply), answer)
        if reply.error is not None and (reply.error.status or 0) >= 500 and reply.error.status != 501:
            raise self._answers.error(Unavailable, f"POST {pattern}", reply.error.status, reply.error.message)
        if reply.error is not None:
            raise ToolRefused(tool=tool, base_url=self.base_url, reason=reply.error.message or str(reply.error.code))
        return "".join(part.text for part in reply.result.content) if reply.result is not None else ""

    # files

    @asynccontextmanager
    async def download(self, file_id: str) -> AsyncIterator[Download]:
        """The bytes of a file that waits on the platform (contract 5.4); read them inside the `with`.

        Raises:
            NotFound: there is none of this id, it has expired, or it was acked.
            TransferFailed: the bytes broke off or came to a standstill; raised where they are read.
        """
        path = f"/workspaces/{self.workspace_id}/pending-uploads/{file_id}/content"
        endpoint = "GET /workspaces/:id/pending-uploads/:file_id/content"

        @asynccontextmanager
        async def ask() -> AsyncIterator[httpx.Response]:
            journey = Journey()
            try:
                async with self._files.stream(
                    "GET",
                    path,
                    is_repeatable=True,
                    journey=journey,
                    # Bytes as they are: a packed body could unpack to any size.
                    headers=self.headers() | {"Accept-Encoding": "identity"},
                    timeout=STALL_S,
                ) as response:
                    if not response.is_success:
                        await response.aread()
                    yield response
            except httpx.HTTPError as error:
                if journey.has_answer:
                    raise self._answers.broken_off(error, endpoint, STALL_S) from None
                raise self._answers.none_came(error, endpoint, journey, STALL_S, is_repeatable=True) from None

        async with ask() as response:
            if response.status_code != 401 or not self._credentials.reread():
                yield self._opened(response, endpoint)
                return
        log.info("client.token_reread", endpoint=endpoint)
        async with ask() as response:
            yield self._opened(response, endpoint)

    def _opened(self, response: httpx.Response, endpoint: str) -> Download:
        if not response.is_success:
            raise self._answers.refusal(response, endpoint)
        announced = response.headers.get("Content-Length", "")
        size = int(announced) if announced.isascii() and announced.isdigit() else None
        return Download(size, response.aiter_raw(FILE_PIECE_BYTES))

    async def ack(self, file_id: str) -> None:
        """Tell the platform that a file has arrived here (contract 5.5); safe to repeat.

        A 404 says that it was acked before, or has expired, and is as good.
        """
        path = f"/workspaces/{self.workspace_id}/pending-uploads/{file_id}/ack"
        pattern = "/workspaces/:id/pending-uploads/:file_id/ack"
        try:
            await self._call("POST", path, pattern=pattern, is_repeatable=True, by=self._files)
        except NotFound:
            log.debug("client.acked_before", file_id=file_id)

    async def upload_limits(self) -> UploadLimits:
        """What the platform takes, asked once; where it does not say, what such a platform takes (contract 5.1)."""
        if self._limits is None:
            told = _USUAL_LIMITS
            try:
                told = self._answers.read(TypeAdapter(UploadLimits), await self._call("GET", "/uploads/limits"))
            except Unreachable:
                raise
            except Unavailable:
                return _USUAL_LIMITS  # it is asked again the next time
            except PlatformError as odd:  # most platforms have no such route
                log.debug("client.no_upload_limits", status=odd.status, error=type(odd).__name__)
            self._limits = told if min(told.per_file_bytes, told.per_request_bytes) > 0 else _USUAL_LIMITS
        return self._limits

    async def upload(
        self, files: Sequence[UploadSource], *, progress: UploadProgress | None = None
    ) -> list[UploadedFile]:
        """Stage files in one batch, all or none, for `notify` (contract 5.1); in their order.

        They are streamed: no more than a piece is in memory. What was staged for nothing expires on the platform.

        Raises:
            AttachmentRefused: a file changed meanwhile, or is larger than the platform turned out to take.
        """
        body = UploadBody(files, progress or UploadProgress())
        path = f"/workspaces/{self.workspace_id}/chat/uploads"
        try:
            answer = await self._call(
                "POST",
                path,
                pattern="/workspaces/:id/chat/uploads",
                body=body,
                timeout=UPLOAD_BASE_S + body.length / UPLOAD_BYTES_PER_S,
                stall_s=UPLOAD_STALL_S,
            )
        except TooLarge as refused:
            raise self._learned_from(refused, files) from None
        except Unreachable as lost:
            lost.may_have_arrived = False  # nobody sees a file that no message names: the call may be made again
            raise
        staged = self._answers.read(TypeAdapter(UploadReply), answer).files
        if [one.size for one in staged] != [file.size for file in files]:
            odd = "it does not name the files that were sent"
            raise self._answers.error(BadReply, answer.extensions["endpoint"], answer.status_code, odd)
        return staged

    def _learned_from(self, refused: TooLarge, files: Sequence[UploadSource]) -> AttachmentRefused | TooLarge:
        """Keep the limit that a 413 names; the refusal of the first file above it, or the 413 when there is none."""
        limit = refused.max_bytes
        if limit is None:
            return refused
        above = next((file for file in files if file.size > limit), None)
        learned = "per_request_bytes" if above is None else "per_file_bytes"
        self._limits = (self._limits or _USUAL_LIMITS).model_copy(update={learned: limit})
        return file_too_large(above.path, above.size, limit) if above is not None else refused

    def headers(self, *, as_caller: bool = False) -> dict[str, str]:
        """The headers of every call, the doorbell's included. `Origin` is what edges tell a client by (contract 1.1).

        Raises:
            CredentialError: the token cannot be read.
        """
        headers = {"Origin": self.base_url}
        credential = self._credentials.current()
        if credential is not None:
            headers["Authorization"] = f"Bearer {credential.token.get_secret_value()}"
        if as_caller:
            headers["X-Workspace-ID"] = self.workspace_id
        if self._org_id:
            headers["X-Molecule-Org-Id"] = self._org_id
        return headers

    async def _call(
        self,
        method: str,
        path: str,
        *,
        pattern: str | None = None,
        json: Any = None,
        params: Mapping[str, Any] | None = None,
        as_caller: bool = False,
        is_repeatable: bool = False,
        by: Connections | None = None,
        timeout: float | None = None,
        body: UploadBody | None = None,
        stall_s: float | None = None,
    ) -> httpx.Response:
        """The 2xx answer, or the error that its status means.

        `is_repeatable` says of a POST what is true of every GET: made twice it does no more than once. `body` is
        streamed instead of `json`; within `timeout` no step may take longer than `stall_s`.
        """
        endpoint = f"{method} {pattern or path}"
        is_repeatable = is_repeatable or method == "GET"
        limit_s = CALL_TIMEOUT_S if timeout is None else timeout

        async def ask() -> httpx.Response:
            headers = self.headers(as_caller=as_caller)
            content: dict[str, Any] = {"json": json}
            if body is not None:
                headers |= body.headers
                content = {"content": body.pieces()}
            journey = Journey()
            try:
                async with asyncio.timeout(limit_s):  # httpx bounds each read; an answer that drips would take for ever
                    return await (by or self._tools).request(
                        method,
                        path,
                        is_repeatable=is_repeatable,
                        journey=journey,
                        params=params,
                        headers=headers,
                        timeout=stall_s or limit_s,
                        **content,
                    )
            except (httpx.HTTPError, TimeoutError) as error:
                waited_s = stall_s if stall_s and isinstance(error, httpx.TimeoutException) else limit_s
                raise self._answers.none_came(error, endpoint, journey, waited_s, is_repeatable=is_repeatable) from None

        response = await ask()
        if response.status_code == 401 and self._credentials.reread():
            log.info("client.token_reread", endpoint=endpoint)
            response = await ask()
        if response.is_success:
            response.extensions["endpoint"] = endpoint
            return response
        raise self._answers.refusal(response, endpoint)


def is_loopback(base_url: str) -> bool:
    """Whether the platform is on this machine."""
    return urlsplit(base_url).hostname in LOOPBACK_HOSTS


def _tls_context(base_url: str) -> ssl.SSLContext:
    """What certificates are checked with. One that trusts nobody where there is no TLS: reading the authorities' file
    costs 50 ms of CPU, and a platform on this machine is called without TLS and without a proxy.
    """
    if is_loopback(base_url) and urlsplit(base_url).scheme == "http":
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    return httpx.create_ssl_context()

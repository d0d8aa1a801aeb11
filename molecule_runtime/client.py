"""PlatformClient: one pooled HTTP client for one workspace, one method for each endpoint, every status an error type.

With `connections` the only module that calls httpx. The transport is the seam for tests (`httpx.ASGITransport` of the
reference platform, respx for faults). Nothing is retried here, but for two cases: after a 401 the token is read again,
and if it has changed the call, which was refused unread, is made once more; and a call that may be repeated is made
again when its connection had died idle (`connections`). All else the loops and tools decide from the error's row in
`errors.OUTCOMES`.
"""

from __future__ import annotations

import asyncio
import json
import math
import socket
import ssl
import uuid
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote, urlsplit

import httpx
import structlog
from pydantic import TypeAdapter, ValidationError

from molecule_runtime import __version__
from molecule_runtime.connections import Connections, Journey
from molecule_runtime.credentials import Credentials
from molecule_runtime.errors import (
    BadReply,
    CursorExpired,
    NotFound,
    NotThePlatform,
    PlatformError,
    Problem,
    Rejected,
    SettingsError,
    Unauthorized,
    Unavailable,
    Unreachable,
    WhyUnreachable,
    WorkspaceRemoved,
)
from molecule_runtime.text import redact, well_formed
from molecule_runtime.wire._base import rfc3339
from molecule_runtime.wire.a2a import A2AMessage, SendOutcome, SendParams, SendRequest, TextPart, read_outcome
from molecule_runtime.wire.activity import ActivityReport, ActivityRow, ActivityType
from molecule_runtime.wire.chat import ChatHistory, NotifyReply, NotifyRequest
from molecule_runtime.wire.registry import (
    HeartbeatReply,
    HeartbeatRequest,
    Peer,
    RegisterReply,
    RegisterRequest,
    UpdateCardRequest,
)
from molecule_runtime.wire.workspaces import Workspace, WorkspaceGone

CALL_TIMEOUT_S = 10.0
"""agent-side 3: a beat that takes longer counts as failed; a longer limit would hide an outage from the canvas."""
SEND_TIMEOUT_S = 45.0
"""A push peer may answer within the call; below every host's limit for a tool (clients.md 1.4)."""
REPORT_TIMEOUT_S = 2.0
"""A report is written after the fact, while somebody waits for the result of the deed."""
TOOL_CONNECTIONS = 32
"""A bound on what an agent's tools may open at once, within the 256 files of a macOS process; more calls wait."""
DETAIL_CODE_POINTS = 200
MAX_INT_DIGITS = 300
RETRY_AFTER_CAP_S = 3_600.0
"""A longer Retry-After is a mistake: obeyed, it would keep an agent offline long after the platform is back."""
LOOPBACK_HOSTS = frozenset({"127.0.0.1", "localhost", "::1"})
LOOPBACK_PATTERNS = ("all://127.0.0.1", "all://localhost", "all://[::1]")
"""A platform on this machine is never asked through a proxy: HTTP_PROXY is about the world outside."""

T = TypeVar("T")
_ROW = TypeAdapter(ActivityRow)
_LIST = TypeAdapter(list[Any])
_PEER = TypeAdapter(Peer)

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


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
        self._org_id = org_id
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

    # presence

    async def register(self, agent_card: Mapping[str, Any]) -> RegisterReply:
        """Announce a polling agent; safe to repeat (contract 2.1)."""
        request = RegisterRequest(id=self.workspace_id, url="", delivery_mode="poll", agent_card=dict(agent_card))
        answer = await self._call(
            "POST", "/registry/register", json=request.model_dump(), is_repeatable=True, by=self._loops
        )
        return self._read(TypeAdapter(RegisterReply), answer)

    async def heartbeat(self, *, active_tasks: int, uptime_seconds: int) -> HeartbeatReply:
        """One sign of life (contract 2.3)."""
        beat = HeartbeatRequest(
            workspace_id=self.workspace_id, active_tasks=active_tasks, uptime_seconds=uptime_seconds
        )
        sent = {"workspace_id", "error_rate", "sample_error", "active_tasks", "uptime_seconds"}
        answer = await self._call(
            "POST", "/registry/heartbeat", json=beat.model_dump(include=sent), is_repeatable=True, by=self._loops
        )
        return self._read(TypeAdapter(HeartbeatReply), answer)

    async def get_workspace(self) -> Workspace:
        """The workspace's public row.

        Raises:
            WorkspaceRemoved: 410, the one sure sign of a removal (contract 3.4).
        """
        path = f"/workspaces/{self.workspace_id}"
        answer = await self._call("GET", path, pattern="/workspaces/:id", by=self._loops)
        return self._read(TypeAdapter(Workspace), answer)

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
        return self._readable(self._read_row, answer)

    async def conversation(
        self, peer_id: str, *, limit: int = 100, before: datetime | None = None
    ) -> list[ActivityRow]:
        """Rows of this workspace's log that a peer sent or was sent, newest first (contract 4.3)."""
        params: dict[str, Any] = {"peer_id": peer_id, "limit": limit}
        if before is not None:
            params["before_ts"] = rfc3339(before)
        path = f"/workspaces/{self.workspace_id}/activity"
        answer = await self._call("GET", path, pattern="/workspaces/:id/activity", params=params)
        return self._readable(self._read_row, answer)

    async def chat_history(self, *, limit: int = 100, before: datetime | None = None) -> ChatHistory:
        """The newest lines of the chat with the user, oldest first (contract 4.5)."""
        params: dict[str, Any] = {"limit": limit}
        if before is not None:
            params["before_ts"] = rfc3339(before)
        path = f"/workspaces/{self.workspace_id}/chat-history"
        answer = await self._call("GET", path, pattern="/workspaces/:id/chat-history", params=params)
        return self._read(TypeAdapter(ChatHistory), answer)

    async def report(self, report: ActivityReport) -> None:
        """Leave a row about what this workspace did in its own log (contract 4.4)."""
        path = f"/workspaces/{self.workspace_id}/activity"
        sent = report.model_dump(mode="json", exclude_none=True)
        await self._call("POST", path, pattern="/workspaces/:id/activity", json=sent, timeout=REPORT_TIMEOUT_S)

    async def notify(self, message: str) -> NotifyReply:
        """Say something to the user (contract 4.2)."""
        request = NotifyRequest(message=message)
        path = f"/workspaces/{self.workspace_id}/notify"
        answer = await self._call(
            "POST", path, pattern="/workspaces/:id/notify", json=request.model_dump(exclude_none=True)
        )
        return self._read(TypeAdapter(NotifyReply), answer)

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
        return read_outcome(self._json(answer))

    async def peers(self, query: str = "") -> list[Peer]:
        """Siblings, children and parent; `query` is matched on name and role (contract 2.6)."""
        path = f"/registry/{self.workspace_id}/peers"
        params = {"q": query} if query else None
        answer = await self._call("GET", path, pattern="/registry/:id/peers", params=params, as_caller=True)
        return self._readable(_peer, answer)

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
    ) -> httpx.Response:
        """The 2xx answer, or the error that its status means.

        `is_repeatable` says of a POST what is true of every GET: made twice it does no more than once.
        """
        endpoint = f"{method} {pattern or path}"
        is_repeatable = is_repeatable or method == "GET"
        limit_s = CALL_TIMEOUT_S if timeout is None else timeout

        async def ask() -> httpx.Response:
            headers = self.headers(as_caller=as_caller)
            journey = Journey()
            try:
                async with asyncio.timeout(limit_s):  # httpx bounds each read; an answer that drips would take for ever
                    return await (by or self._tools).request(
                        method,
                        path,
                        is_repeatable=is_repeatable,
                        journey=journey,
                        json=json,
                        params=params,
                        headers=headers,
                        timeout=limit_s,
                    )
            except (httpx.HTTPError, TimeoutError) as error:
                why, detail = _why_unreachable(error, journey, limit_s)
                unreachable = self._error(Unreachable, endpoint, detail=detail)
                unreachable.why = why
                unreachable.may_have_arrived = journey.was_sent and not is_repeatable
                raise unreachable from None

        response = await ask()
        if response.status_code == 401 and self._credentials.reread():
            log.info("client.token_reread", endpoint=endpoint)
            response = await ask()
        if response.is_success:
            response.extensions["endpoint"] = endpoint
            return response
        raise self._refusal(response, endpoint)

    def _refusal(self, response: httpx.Response, endpoint: str) -> PlatformError:
        """The status table of the contract: what each refusal is for us."""
        status = response.status_code
        body = _json_object(response)
        detail = str(body.get("error", ""))[:DETAIL_CODE_POINTS] if body is not None else ""
        if 300 <= status < 400 or (status in {404, 405, 410} and body is None) or detail in _FOREIGN_PAGE:
            return self._error(NotThePlatform, endpoint, status=status)
        if status in {401, 403}:
            refused = self._error(Unauthorized if status == 401 else _forbidden(detail), endpoint, status, detail)
            if isinstance(refused, Unauthorized):
                refused.has_token = "Authorization" in response.request.headers
            return refused
        if status == 404:
            return self._error(NotFound, endpoint, status, detail or "not found")
        if status == 410 and endpoint.endswith("/activity"):
            return self._error(CursorExpired, endpoint, status, detail)
        if status == 410:
            removed = self._error(WorkspaceRemoved, endpoint, status, detail)
            gone = _gone(body or {})
            if gone is not None:
                removed.removed_at, removed.hint = gone.removed_at, gone.hint
            return removed
        if status == 429 or status >= 500:
            unavailable = self._error(Unavailable, endpoint, status, detail)
            unavailable.retry_after_s = retry_after_s(response.headers)
            return unavailable
        return self._error(Rejected, endpoint, status, detail or f"HTTP {status}")

    def _error(
        self, kind: type[PlatformErrorT], endpoint: str, status: int | None = None, detail: str = ""
    ) -> PlatformErrorT:
        return kind(
            endpoint=endpoint,
            base_url=self.base_url,
            workspace_id=self.workspace_id,
            status=status,
            detail=redact(detail),  # a platform may quote the very token that it refuses
        )

    def _json(self, response: httpx.Response) -> Any:
        try:
            return _parsed(response)
        except (ValueError, RecursionError):
            raise self._error(
                BadReply, response.extensions["endpoint"], response.status_code, "it is not JSON"
            ) from None

    def _readable(self, read: Callable[[Any], T | None], answer: httpx.Response) -> list[T]:
        """The elements of a list that can be read; BadReply when it has elements and none of them can."""
        raws = self._read(_LIST, answer)
        found = [one for raw in raws if (one := read(raw)) is not None]
        if raws and not found:
            raise self._error(BadReply, answer.extensions["endpoint"], answer.status_code, "unexpected shape at 0")
        return found

    def _read_row(self, raw: Any) -> ActivityRow | None:
        """A row, without the fields that cannot be read; None for one that cannot even be named.

        One odd row must not keep the rows beside it from their reader: the next poll would meet it again.
        """
        if not isinstance(raw, dict) or not isinstance(raw.get("id"), str) or not raw["id"]:
            log.error("client.unreadable_row", detail=type(raw).__name__)
            return None
        try:
            return _ROW.validate_python(raw)
        except ValidationError as invalid:
            odd = {str(error["loc"][0]) for error in invalid.errors() if error["loc"]}
        log.warning("client.odd_row", activity_id=raw["id"], detail=", ".join(sorted(odd)))
        needed = {"workspace_id": self.workspace_id, "activity_type": "", "created_at": datetime.now(UTC)}
        return _ROW.validate_python(needed | {key: value for key, value in raw.items() if key not in odd})

    def _read(self, shape: TypeAdapter[T], response: httpx.Response, body: Any = None) -> T:
        """The answer, or the given part of it, as `shape`."""
        body = self._json(response) if body is None else body
        try:
            return shape.validate_python(body)
        except ValidationError as invalid:
            where = ".".join(str(part) for part in invalid.errors()[0]["loc"])
            raise self._error(
                BadReply, response.extensions["endpoint"], response.status_code, f"unexpected shape at {where or 'top'}"
            ) from None


PlatformErrorT = TypeVar("PlatformErrorT", bound=PlatformError)


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


_FOREIGN_PAGE = frozenset({"origin not allowed", "host not allowed"})
"""How the reference platform refuses an address that is not its own (contract 0.2)."""
_NOT_ABOUT_THE_TOKEN = ("access denied", "not authorized", "invalid caller", "talk_to_user_disabled")


def _forbidden(detail: str) -> type[PlatformError]:
    """403 about who may talk to whom is the caller's business; any other 403 is about the token."""
    return Rejected if detail.startswith(_NOT_ABOUT_THE_TOKEN) else Unauthorized


def _why_unreachable(error: Exception, journey: Journey, limit_s: float) -> tuple[WhyUnreachable, str]:
    """The cause of a failed call and the words for it: those of the deepest cause, which httpx hides."""
    if isinstance(error, httpx.TimeoutException | TimeoutError):
        return WhyUnreachable.TIMEOUT, f"no answer within {limit_s:g} s"
    chain = list(_causes(error))
    for cause in chain:
        match cause:
            case socket.gaierror():
                return WhyUnreachable.NAME, "its host name is not known here"
            case ssl.SSLCertVerificationError():
                return WhyUnreachable.TLS, f"its certificate is not trusted: {cause.verify_message}"
            case ssl.SSLError():
                return WhyUnreachable.TLS, f"no TLS there: {(cause.reason or str(cause)).replace('_', ' ').lower()}"
            case ConnectionRefusedError():
                return WhyUnreachable.REFUSED, "connection refused"
            case ConnectionResetError():
                return WhyUnreachable.CUT, "connection reset"
    if isinstance(error, httpx.RemoteProtocolError) and len(chain) > 2 and not journey.has_answer:  # h11's complaint
        return WhyUnreachable.FOREIGN, "what answers there does not speak HTTP"
    said = str(chain[-1]) or str(error) or type(error).__name__
    why = WhyUnreachable.OTHER if isinstance(error, httpx.ConnectError | httpx.ProxyError) else WhyUnreachable.CUT
    return why, said[:DETAIL_CODE_POINTS].rstrip(".")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what lies below it, an exception group's first member included."""
    below: BaseException | None = error
    for _ in range(16):
        if below is None:
            return
        yield below
        below = below.exceptions[0] if isinstance(below, BaseExceptionGroup) else below.__cause__ or below.__context__


def _peer(raw: Any) -> Peer | None:
    """A peer; None for one that cannot be read, which must not hide the others."""
    try:
        return _PEER.validate_python(raw)
    except ValidationError:
        log.warning("client.unreadable_peer")
        return None


def _whole_number(text: str) -> int | None:
    """An integer of JSON; None for one longer than any we read, which Python would refuse to parse."""
    return int(text) if len(text) <= MAX_INT_DIGITS else None


def _json_object(response: httpx.Response) -> dict[str, Any] | None:
    try:
        body = _parsed(response)
    except (ValueError, RecursionError):
        return None
    return body if isinstance(body, dict) else None


def _parsed(response: httpx.Response) -> Any:
    """The JSON of an answer, every text in it valid Unicode: a lone surrogate could be neither stored nor sent on."""
    body = response.json(parse_int=_whole_number)
    if b"\\ud" not in response.content.lower():
        return body
    return json.loads(well_formed(json.dumps(body, ensure_ascii=False)))


def _gone(body: dict[str, Any]) -> WorkspaceGone | None:
    try:
        return WorkspaceGone.model_validate(body)
    except ValidationError:
        return None


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds from Retry-After, given as a number or as an HTTP date; None when absent or unreadable.

    A date is read by the platform's own clock, its `Date` header: ours may go wrong by hours.
    """
    header = headers.get("Retry-After")
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        moment, now = _http_date(header), _http_date(headers.get("Date", "")) or datetime.now(UTC)
        if moment is None:
            return None
        seconds = (moment - now).total_seconds()
    return min(max(0.0, seconds), RETRY_AFTER_CAP_S) if math.isfinite(seconds) else None


def _http_date(text: str) -> datetime | None:
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)  # "-0000": UTC without saying where

"""What a platform's answer means: its body as a wire model, its refusal as the error of the contract's status table.

Also what a call means that got no answer: where it came to its end, and whether the platform may have read it.
"""

from __future__ import annotations

import json
import math
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import httpx
import structlog
from pydantic import TypeAdapter, ValidationError

from molecule_runtime.connections import Journey
from molecule_runtime.errors import (
    BadReply,
    CursorExpired,
    NotFound,
    NotThePlatform,
    PlatformError,
    Rejected,
    TooLarge,
    TransferFailed,
    Unauthorized,
    Unavailable,
    Unreachable,
    WhyUnreachable,
    WorkspaceRemoved,
)
from molecule_runtime.text import redact, well_formed
from molecule_runtime.wire.activity import ActivityRow
from molecule_runtime.wire.delegations import DelegationRow
from molecule_runtime.wire.memories import MemoryRow
from molecule_runtime.wire.registry import Peer
from molecule_runtime.wire.workspaces import WorkspaceGone

DETAIL_CODE_POINTS = 200
MAX_INT_DIGITS = 300
RETRY_AFTER_CAP_S = 3_600.0
"""A longer Retry-After is a mistake: obeyed, it would keep an agent offline long after the platform is back."""

T = TypeVar("T")
PlatformErrorT = TypeVar("PlatformErrorT", bound=PlatformError)
_ROW = TypeAdapter(ActivityRow)
_LIST = TypeAdapter(list[Any])
_PEER = TypeAdapter(Peer)
_DELEGATION = TypeAdapter(DelegationRow)
_MEMORY = TypeAdapter(MemoryRow)

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Answers:
    """Reads the answers that one platform gives one workspace. `endpoint` is "GET /workspaces/:id/activity"."""

    def __init__(self, base_url: str, workspace_id: str) -> None:
        self._base_url = base_url
        self._workspace_id = workspace_id

    def none_came(
        self, error: Exception, endpoint: str, journey: Journey, limit_s: float, *, is_repeatable: bool
    ) -> Unreachable:
        """A call without an answer: why, and whether it may have done what it was to do."""
        why, detail = _why_unreachable(error, journey, limit_s)
        unreachable = self.error(Unreachable, endpoint, detail=detail)
        unreachable.why = why
        unreachable.may_have_arrived = journey.was_sent and not is_repeatable
        return unreachable

    def broken_off(self, error: Exception, endpoint: str, stall_s: float) -> TransferFailed:
        """A body that did not come to its end."""
        why, detail = _why_unreachable(error, Journey(), stall_s)
        if why is WhyUnreachable.TIMEOUT:
            detail = f"nothing came for {stall_s:g} s"
        return self.error(TransferFailed, endpoint, detail=detail)

    def refusal(self, response: httpx.Response, endpoint: str) -> PlatformError:
        """The status table of the contract: what each refusal is for us."""
        status = response.status_code
        body = _json_object(response)
        detail = str(body.get("error", ""))[:DETAIL_CODE_POINTS] if body is not None else ""
        if 300 <= status < 400 or (status in {404, 405, 410} and body is None) or detail in _FOREIGN_PAGE:
            return self.error(NotThePlatform, endpoint, status=status)
        if status in {401, 403}:
            refused = self.error(Unauthorized if status == 401 else _forbidden(detail), endpoint, status, detail)
            if isinstance(refused, Unauthorized):
                refused.has_token = "Authorization" in response.request.headers
            return refused
        if status == 404:
            return self.error(NotFound, endpoint, status, detail or "not found")
        if status == 410 and endpoint.endswith("/activity"):
            return self.error(CursorExpired, endpoint, status, detail)
        if status == 410:
            removed = self.error(WorkspaceRemoved, endpoint, status, detail)
            gone = _gone(body or {})
            if gone is not None:
                removed.removed_at, removed.hint = gone.removed_at, gone.hint
            return removed
        if status == 413:
            too_large = self.error(TooLarge, endpoint, status, detail or "too large")
            limit = (body or {}).get("max")
            too_large.max_bytes = limit if type(limit) is int and limit > 0 else None
            return too_large
        if status == 429 or status >= 500:
            unavailable = self.error(Unavailable, endpoint, status, detail)
            unavailable.retry_after_s = retry_after_s(response.headers)
            return unavailable
        return self.error(Rejected, endpoint, status, detail or f"HTTP {status}")

    def error(
        self, kind: type[PlatformErrorT], endpoint: str, status: int | None = None, detail: str = ""
    ) -> PlatformErrorT:
        """An error with the facts of this platform and workspace; no token in it."""
        return kind(
            endpoint=endpoint,
            base_url=self._base_url,
            workspace_id=self._workspace_id,
            status=status,
            detail=redact(detail),  # a platform may quote the very token that it refuses
        )

    def json(self, response: httpx.Response) -> Any:
        try:
            return _parsed(response)
        except (ValueError, RecursionError):
            raise self.error(
                BadReply, response.extensions["endpoint"], response.status_code, "it is not JSON"
            ) from None

    def read_list(self, read: Callable[[Any], T | None], answer: httpx.Response) -> list[T]:
        """The elements of a list that can be read; BadReply when it has elements and none of them can."""
        raws = self.read(_LIST, answer)
        found = [one for raw in raws if (one := read(raw)) is not None]
        if raws and not found:
            raise self.error(BadReply, answer.extensions["endpoint"], answer.status_code, "unexpected shape at 0")
        return found

    def row(self, raw: Any) -> ActivityRow | None:
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
        needed = {"workspace_id": self._workspace_id, "activity_type": "", "created_at": datetime.now(UTC)}
        return _ROW.validate_python(needed | {key: value for key, value in raw.items() if key not in odd})

    def read(self, shape: TypeAdapter[T], response: httpx.Response, body: Any = None) -> T:
        """The answer, or the given part of it, as `shape`."""
        body = self.json(response) if body is None else body
        try:
            return shape.validate_python(body)
        except ValidationError as invalid:
            where = ".".join(str(part) for part in invalid.errors()[0]["loc"])
            raise self.error(
                BadReply, response.extensions["endpoint"], response.status_code, f"unexpected shape at {where or 'top'}"
            ) from None


_FOREIGN_PAGE = frozenset({"origin not allowed", "host not allowed"})
"""How the reference platform refuses an address that is not its own (contract 0.2)."""
_NOT_ABOUT_THE_TOKEN = ("access denied", "not authorized", "invalid caller", "talk_to_user_disabled", "only root")


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


def peer(raw: Any) -> Peer | None:
    """A peer, without the fields that cannot be read; None for one without id, name or status.

    What is odd about one must not hide it, nor the others.
    """
    try:
        return _PEER.validate_python(raw)
    except ValidationError as invalid:
        odd = {str(error["loc"][0]) if error["loc"] else "" for error in invalid.errors()}
    if odd & {"", "id", "name", "status"}:
        log.warning("client.unreadable_peer")
        return None
    log.warning("client.odd_peer", peer_id=raw["id"], detail=", ".join(sorted(odd)))
    return _PEER.validate_python({key: value for key, value in raw.items() if key not in odd})


def delegation_row(raw: Any) -> DelegationRow | None:
    """A row about a delegation; None for one that cannot be read."""
    try:
        return _DELEGATION.validate_python(raw)
    except ValidationError:
        log.warning("client.unreadable_delegation")
        return None


def memory_row(raw: Any) -> MemoryRow | None:
    """A memory; None for one that cannot be read."""
    try:
        return _MEMORY.validate_python(raw)
    except ValidationError:
        log.warning("client.unreadable_memory")
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

"""What the routes share of reading a request and reporting a failing store."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, TypeVar

import structlog
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request

from molecule_runtime.reference_platform import strict_json
from molecule_runtime.reference_platform.identifiers import canonical_uuid
from molecule_runtime.reference_platform.refusals import Refusal
from molecule_runtime.reference_platform.store.engine import StoreError

MAX_BODY_BYTES = 1_048_576
"""Bytes of a JSON body that are read; the rest is cut off, which makes the JSON invalid (contract 4.1)."""
INVALID_BODY = "invalid request body"
_RFC3339 = re.compile(r"(\d{4}-\d\d-\d\d)[Tt](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?([Zz]|[+-]\d\d:\d\d)", re.ASCII)

log = structlog.get_logger(__name__)

M = TypeVar("M", bound=BaseModel)


def path_id(request: Request, *, error: str = "invalid workspace ID") -> str:
    """The canonical `:id` of the path.

    Raises:
        Refusal: 400, not a UUID.
    """
    workspace_id = canonical_uuid(request.path_params["id"])
    if workspace_id is None:
        raise Refusal(400, error)
    return workspace_id


async def read_json(request: Request, *, error: str = INVALID_BODY) -> Any:
    """The parsed body: finite numbers of at most 64 bits, text that is valid Unicode.

    Raises:
        Refusal: 400, no JSON, or more than 1 MiB of it.
    """
    body = bytearray()
    try:
        async for chunk in request.stream():
            # What lies beyond the limit is read and dropped: an unread rest would spoil the connection for later calls.
            body += chunk[: MAX_BODY_BYTES - len(body)]
        return strict_json.parse(body)
    except (ValueError, ClientDisconnect):  # who went away inside the body hears nothing, and nobody need be told
        raise Refusal(400, error) from None


async def read_object(request: Request, *, error: str = INVALID_BODY, nullable: Collection[str] = ()) -> dict[str, Any]:
    """The parsed body, an object, without its null values: null and absent mean the same, save in `nullable` fields.

    Raises:
        Refusal: 400, not a JSON object.
    """
    parsed = await read_json(request, error=error)
    if not isinstance(parsed, dict):
        raise Refusal(400, error)
    return {key: value for key, value in parsed.items() if value is not None or key in nullable}


def read_model(model: type[M], body: dict[str, Any], *, error: str = INVALID_BODY) -> M:
    """The body as a wire model; types are not guessed ("3" is no number).

    Raises:
        Refusal: 400, a field is missing or of another type.
    """
    try:
        return model.model_validate(body, strict=True)
    except ValidationError:
        raise Refusal(400, error) from None


def rfc3339_param(request: Request, name: str) -> datetime | None:
    """An aware UTC instant from the query; digits beyond microseconds are cut.

    Raises:
        Refusal: 400, not RFC3339.
    """
    text = request.query_params.get(name)
    if not text:
        return None
    moment = parse_rfc3339(text)
    if moment is None:
        raise Refusal(400, f"{name} must be an RFC3339 timestamp (e.g. 2026-05-05T10:00:00Z)")
    return moment


def limit_param(request: Request, *, default: int, cap: int) -> int:
    """The page size: anything that is not a positive number means the default, anything above the cap the cap."""
    limit = positive_int(request.query_params.get("limit", ""))
    return default if limit is None else min(limit, cap)


def positive_int(text: str) -> int | None:
    """The number that the text spells in ASCII digits, or None."""
    if not re.fullmatch(r"\+?[0-9]{1,18}", text):
        return None
    return int(text) or None


def flag_param(request: Request, name: str) -> bool:
    """Whether a query parameter says true."""
    return request.query_params.get(name, "").lower() in ("true", "1")


@contextmanager
def store_failure(status: int, error: str) -> Iterator[None]:
    """Answer a failing store with this status and text, and log why: it is never "not found" (requirement R22)."""
    try:
        yield
    except StoreError:
        log.exception("store.failed", status=status)
        raise Refusal(status, error) from None


def parse_rfc3339(text: str) -> datetime | None:
    """An aware UTC instant; digits beyond microseconds are cut. None when it is no RFC3339 timestamp."""
    match = _RFC3339.fullmatch(text)
    if match is None:
        return None
    date, time, fraction, zone = match.groups()
    digits = (fraction or "0")[:6].ljust(6, "0")
    try:
        return datetime.fromisoformat(f"{date}T{time}.{digits}{'+00:00' if zone in 'Zz' else zone}").astimezone(UTC)
    except (ValueError, OverflowError):
        return None

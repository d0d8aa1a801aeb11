"""What callers send, checked: every refusal is a sentence that names the field (contract 7.4)."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, TypeVar

from molecule_runtime.memory_plugin.memories import NewMemory
from molecule_runtime.reference_platform.identifiers import canonical_uuid
from molecule_runtime.reference_platform.refusals import Refusal
from molecule_runtime.reference_platform.routes._requests import parse_rfc3339
from molecule_runtime.wire.memories import MemoryKind, MemorySource, NamespaceKind

MAX_NAME_CHARS = 256
MAX_CONTENT_BYTES = 131_072
"""Bytes of one memory in UTF-8. A text of so many Chinese characters still takes its place in the index in 0.1 s."""
MAX_QUERY_BYTES = 16_384
MAX_OBJECT_BYTES = 65_536
"""Bytes of `metadata` and of `propagation` as JSON."""
MAX_NAMESPACES = 100
"""Namespaces of one search: each is read by itself."""
DEFAULT_LIMIT = 20
MAX_LIMIT = 100
_NAME = re.compile(r"[a-z]+:[A-Za-z0-9_:.\-]+")

E = TypeVar("E", bound=StrEnum)


@dataclass(frozen=True)
class SearchFor:
    """A search as it was asked for; an empty query asks for everything, no kinds for all."""

    namespaces: tuple[str, ...]
    query: str
    kinds: tuple[MemoryKind, ...]
    limit: int


def namespace_name(name: Any, *, field: str = "the namespace's name") -> str:
    """The name, if it is one.

    Raises:
        Refusal: 400.
    """
    if not isinstance(name, str) or len(name) > MAX_NAME_CHARS or not _NAME.fullmatch(name):
        form = "a kind in small letters, a colon, then letters, digits and _ : . -"
        raise _bad(f"{field} must be {form}, such as team:a1, in at most {MAX_NAME_CHARS} characters")
    return name


def new_memory(body: Mapping[str, Any]) -> NewMemory:
    """A memory to write. NUL characters are left out of its content: PostgreSQL cannot store them.

    Raises:
        Refusal: 400.
    """
    memory_id = body.get("id")
    canonical = None if memory_id is None else canonical_uuid(memory_id)
    if memory_id is not None and canonical is None:
        raise _bad("id must be a UUID")
    content = body.get("content")
    if not isinstance(content, str):
        raise _bad("content is missing or not a text")
    content = content.replace("\x00", "")
    if not content.strip():
        raise _bad("content must not be blank")
    size = len(content.encode())
    if size > MAX_CONTENT_BYTES:
        raise _bad(f"content has {size} bytes; a memory may have {MAX_CONTENT_BYTES}")
    pin = body.get("pin", False)
    if not isinstance(pin, bool):
        raise _bad("pin must be true or false")
    _check_embedding(body)
    return NewMemory(
        id=canonical,
        content=content,
        kind=_word(MemoryKind, body.get("kind"), "kind"),
        source=_word(MemorySource, body.get("source"), "source"),
        pin=pin,
        propagation=_object(body.get("propagation"), "propagation"),
        expires_at=_instant(body.get("expires_at"), "expires_at"),
    )


def search_for(body: Mapping[str, Any]) -> SearchFor:
    """A search.

    Raises:
        Refusal: 400.
    """
    names = body.get("namespaces")
    if not isinstance(names, list) or not 1 <= len(names) <= MAX_NAMESPACES:
        raise _bad(f"namespaces must be a list of 1 to {MAX_NAMESPACES} names")
    query = body.get("query", "")
    if not isinstance(query, str):
        raise _bad("query must be a text")
    if len(query.encode()) > MAX_QUERY_BYTES:
        raise _bad(f"query may have {MAX_QUERY_BYTES} bytes")
    kinds = body.get("kinds", [])
    if not isinstance(kinds, list):
        raise _bad("kinds must be a list")
    limit = body.get("limit", 0)
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 0:
        raise _bad(f"limit must be a whole number from 0 to {MAX_LIMIT}")
    _check_embedding(body)
    return SearchFor(
        namespaces=tuple(dict.fromkeys(namespace_name(name, field="each of namespaces") for name in names)),
        query=query.replace("\x00", "").strip(),
        kinds=tuple(dict.fromkeys(_word(MemoryKind, kind, "each of kinds") for kind in kinds)),
        limit=min(limit or DEFAULT_LIMIT, MAX_LIMIT),
    )


def namespace_kind(body: Mapping[str, Any]) -> NamespaceKind:
    """The kind of a namespace.

    Raises:
        Refusal: 400.
    """
    return _word(NamespaceKind, body.get("kind"), "kind")


def namespace_changes(body: Mapping[str, Any]) -> dict[str, Any]:
    """`expires_at` and `metadata`, those that are given; null takes away what was there.

    Raises:
        Refusal: 400.
    """
    changes: dict[str, Any] = {}
    if "expires_at" in body:
        changes["expires_at"] = _instant(body["expires_at"], "expires_at")
    if "metadata" in body:
        changes["metadata"] = _object(body["metadata"], "metadata")
    return changes


def _word(words: type[E], value: Any, field: str) -> E:
    if not isinstance(value, str) or value not in set(words):
        *others, last = words
        raise _bad(f"{field} must be {', '.join(others)} or {last}")
    return words(value)


def _instant(value: Any, field: str) -> datetime | None:
    if value is None:
        return None
    moment = parse_rfc3339(value) if isinstance(value, str) else None
    if moment is None:
        raise _bad(f"{field} must be an RFC3339 timestamp (e.g. 2026-05-05T10:00:00Z)")
    return moment


def _object(value: Any, field: str) -> dict[str, Any] | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise _bad(f"{field} must be an object")
    if len(json.dumps(value, ensure_ascii=False).encode()) > MAX_OBJECT_BYTES:
        raise _bad(f"{field} may have {MAX_OBJECT_BYTES} bytes")
    return value


def _check_embedding(body: Mapping[str, Any]) -> None:
    """It is a vector; the capability is not announced, so nothing more is done with it."""
    vector = body.get("embedding", [])
    if not isinstance(vector, list) or not all(isinstance(x, int | float) and math.isfinite(x) for x in vector):
        raise _bad("embedding must be a list of numbers")


def _bad(sentence: str) -> Refusal:
    return Refusal(400, sentence)

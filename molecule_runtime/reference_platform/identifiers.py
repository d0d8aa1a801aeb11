"""Workspace and row ids: UUIDs in their one canonical spelling."""

from __future__ import annotations

import re
import uuid

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def canonical_uuid(text: object) -> str | None:
    """The id in lower case, or None when `text` is not a UUID of the form 8-4-4-4-12 (ids compare without case)."""
    if not isinstance(text, str):
        return None
    lowered = text.lower()
    return lowered if _UUID.fullmatch(lowered) else None


def new_id() -> str:
    """A fresh random UUID in canonical spelling."""
    return str(uuid.uuid4())

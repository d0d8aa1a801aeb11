"""The platform's word for "no": one exception that carries the status and the body of the answer.

Services and auth raise it, `app.py` turns it into `{"error": ...}` in one place. A refusal is an expected outcome and
is not logged; a failing store is a `StoreError` instead and is (contract, conventions; requirement R22).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Refusal(Exception):
    """`status` is the HTTP status, `text` the value of `error`, `extra` further keys of the body."""

    def __init__(self, status: int, text: str, *, extra: Mapping[str, Any] | None = None) -> None:
        super().__init__(status, text)
        self.status = status
        self.text = text
        self.extra = dict(extra or {})

    def body(self) -> dict[str, Any]:
        """The JSON object of the answer."""
        return {"error": self.text, **self.extra}


def workspace_not_found() -> Refusal:
    return Refusal(404, "workspace not found")


def platform_unavailable() -> Refusal:
    """The store cannot say whether a credential is good, so no door opens (contract 0.6, 1.3)."""
    return Refusal(503, "platform datastore unavailable — retry shortly", extra={"code": "platform_unavailable"})

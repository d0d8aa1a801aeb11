"""The base of every wire model, and the two scalar forms that every endpoint shares."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, PlainSerializer


class WireModel(BaseModel):
    """Frozen, and deaf to keys it does not know: a newer peer may send more than we read."""

    model_config = ConfigDict(extra="ignore", frozen=True, populate_by_name=True)


def rfc3339(moment: datetime) -> str:
    """`2026-05-05T10:00:00.123456Z`: UTC, always six sub-second digits, so that text order is time order."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


Timestamp = Annotated[datetime, PlainSerializer(rfc3339, return_type=str, when_used="json")]
"""An aware UTC instant; RFC3339 with `Z` on the wire (contract, conventions)."""

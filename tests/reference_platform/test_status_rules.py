"""What a heartbeat does to a status: the contract's table, row by row."""

from __future__ import annotations

from typing import Any

import pytest

from molecule_runtime.reference_platform.services.presence import Transition, next_status
from molecule_runtime.wire.events import EventName
from molecule_runtime.wire.registry import HeartbeatRequest, WorkspaceStatus

from .support import NOBODY

MANAGED = {"capabilities": {"status_mgmt": True}}
ONLINE, DEGRADED = WorkspaceStatus.ONLINE, WorkspaceStatus.DEGRADED


def back(payload: dict[str, Any]) -> Transition:
    return Transition(ONLINE, EventName.WORKSPACE_ONLINE, payload)


def worse(payload: dict[str, Any]) -> Transition:
    return Transition(DEGRADED, EventName.WORKSPACE_DEGRADED, payload)


TABLE: list[tuple[str, dict[str, Any], Transition | None]] = [
    ("online", {}, None),
    ("online", {"error_rate": 0.49}, None),
    ("online", {"error_rate": 0.5, "sample_error": "x"}, worse({"error_rate": 0.5, "sample_error": "x"})),
    ("online", {"error_rate": 0.9, "runtime_metadata": MANAGED}, None),
    (
        "online",
        {"runtime_state": "wedged", "error_rate": 0.9, "runtime_metadata": MANAGED, "sample_error": "x"},
        worse({"runtime_state": "wedged", "sample_error": "x"}),
    ),
    ("online", {"runtime_state": "dizzy"}, None),
    ("degraded", {"error_rate": 0.09}, back({})),
    ("degraded", {"error_rate": 0.1}, None),
    ("degraded", {"error_rate": 0.0, "runtime_state": "wedged"}, None),
    ("degraded", {"error_rate": 0.0, "runtime_metadata": MANAGED}, None),
    ("offline", {}, back({})),
    ("offline", {"error_rate": 0.9}, back({})),
    ("provisioning", {}, back({"recovered_from": "provisioning"})),
    ("awaiting_agent", {}, back({"recovered_from": "awaiting_agent"})),
    ("removed", {}, None),
    ("paused", {}, None),
    ("hibernated", {}, None),
    ("failed", {}, None),
]


@pytest.mark.parametrize(("status", "beat", "expected"), TABLE)
def test_heartbeat_moves_the_status_as_the_table_says(
    status: str, beat: dict[str, Any], expected: Transition | None
) -> None:
    """Each row of the table: from, condition, to, event (contract 2.3)."""
    assert next_status(status, HeartbeatRequest(workspace_id=NOBODY, **beat)) == expected


def test_the_table_covers_every_status() -> None:
    """A status that is added needs a row here (ours)."""
    assert {status for status, _, _ in TABLE} == set(WorkspaceStatus)

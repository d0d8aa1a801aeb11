"""Event names: 29, typed, and written down in one place only."""

from __future__ import annotations

import ast
from pathlib import Path

import molecule_runtime.reference_platform
from molecule_runtime.wire.events import EventName

PACKAGE = Path(molecule_runtime.reference_platform.__file__).parent

NAMES = [
    "AGENT_MESSAGE",
    "A2A_RESPONSE",
    "ACTIVITY_LOGGED",
    "CHANNEL_MESSAGE",
    "WORKSPACE_PROVISIONING",
    "WORKSPACE_PROVISION_FAILED",
    "WORKSPACE_ONLINE",
    "WORKSPACE_OFFLINE",
    "WORKSPACE_DEGRADED",
    "WORKSPACE_HIBERNATED",
    "WORKSPACE_PAUSED",
    "WORKSPACE_REMOVED",
    "WORKSPACE_AWAITING_AGENT",
    "WORKSPACE_HEARTBEAT",
    "AGENT_ASSIGNED",
    "AGENT_REPLACED",
    "AGENT_REMOVED",
    "AGENT_MOVED",
    "AGENT_CARD_UPDATED",
    "DELEGATION_SENT",
    "DELEGATION_STATUS",
    "DELEGATION_COMPLETE",
    "DELEGATION_FAILED",
    "TASK_UPDATED",
    "CRON_EXECUTED",
    "CRON_SKIPPED",
    "APPROVAL_REQUESTED",
    "APPROVAL_ESCALATED",
    "EXTERNAL_CREDENTIALS_ROTATED",
]


def trees() -> list[tuple[str, ast.Module]]:
    """Every module of the platform, parsed."""
    return [
        (str(path.relative_to(PACKAGE)), ast.parse(path.read_text(encoding="utf-8")))
        for path in sorted(PACKAGE.rglob("*.py"))
    ]


def test_there_are_29_names_and_no_others() -> None:
    """The list of names is pinned, in its order (contract 8.3, R5)."""
    assert list(EventName) == NAMES
    assert [name.name for name in EventName] == NAMES
    assert len(NAMES) == 29


def test_no_event_name_is_spelled_outside_the_vocabulary() -> None:
    """A string that is an event's name stands nowhere in the platform: emits use the constants (R5)."""
    spelled = [
        (module, node.lineno, node.value)
        for module, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and node.value in set(NAMES)
    ]
    assert spelled == []


def test_every_emit_names_a_constant() -> None:
    """The first argument of `emit` is `EventName.X` or a value typed as one, and only the bus builds events (R5)."""
    odd = []
    for module, tree in trees():
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called == "emit" and isinstance(node.args[0], ast.Constant | ast.JoinedStr | ast.BinOp):
                odd.append((module, node.lineno))
            wakes_a_task = ast.unparse(node.func) in ("asyncio.Event", "threading.Event")
            if called == "Event" and not wakes_a_task and module != "bus.py":
                odd.append((module, node.lineno))
    assert odd == []


def test_only_the_message_writer_emits_agent_messages() -> None:
    """AGENT_MESSAGE is mentioned in services/messages.py alone, once (contract 4.2, R3)."""
    mentions = [
        module
        for module, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr == "AGENT_MESSAGE"
    ]
    assert mentions == ["services/messages.py"]

"""How things stand, seen from outside: what the state directory, the settings and the platforms tell about each
workspace, for a process that takes no part (`molecule-mcp status`, `doctor`).

Strictly for reading: no directory, file or lock is made or taken. A session's lock is not tried either, because whoever
holds one for a moment to see that it is free makes a dead session look alive to the others, and a live one that is just
taking it fail. Whether an owner lives is told by its signature in the journal (not older than 60 s), its session's file
(removed at a clean end) and its process id.
"""

from __future__ import annotations

import asyncio
import json
import os
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from molecule_runtime.client import PlatformClient
from molecule_runtime.credentials import Credentials
from molecule_runtime.errors import JournalUnusable, MoleculeError, Problem, SettingsError, Unreachable, advice
from molecule_runtime.inbox.journal import Counts, Journal, Owner
from molecule_runtime.ownership import STALE_S
from molecule_runtime.presence import PresenceState
from molecule_runtime.settings import Settings, WorkspaceSettings
from molecule_runtime.state import StateDir, WorkspaceState
from molecule_runtime.wire._base import rfc3339

ASK_LIMIT_S = 5.0
"""A person waits for this: a platform that takes longer has said enough."""
LOG_TAIL_BYTES = 262_144
PROBLEMS_SHOWN = 5
_TROUBLE = frozenset({"warning", "error", "critical"})


@dataclass(frozen=True)
class Told:
    """What the environment says: the settings, or the problems that keep it from being any.

    `is_missing` when nothing is wrong but that the variables of a host's env block are not set here.
    """

    settings: Settings | None
    problems: tuple[Problem, ...]
    is_missing: bool
    state: StateDir

    @classmethod
    def by(cls, env: Mapping[str, str], *, home: Path) -> Told:
        """Read a mapping such as `os.environ`; never raises."""
        try:
            settings = Settings.from_env(env)
        except SettingsError as error:
            names = [problem.id.removeprefix("settings.") for problem in error.problems]
            is_missing = not any(env.get(name, "").strip() for name in names)
            configured = env.get("CONFIGS_DIR", "").strip()
            usable = configured.startswith(("/", "~"))
            state = StateDir.to_look(Path(configured) if usable else None, home=home)
            return cls(None, error.problems, is_missing, state)
        return cls(settings, settings.problems, False, StateDir.to_look(settings.configs_dir, home=home))


@dataclass(frozen=True)
class WorkspaceFacts:
    """One workspace. `state` is a presence state; times are RFC3339; a pid is None when no living process does the job.

    `counts` None: there is no inbox that can be read, `trouble` says why if it should be there. `platform_status` is
    the platform's word, `platform_error` why there is none; both None: it was not asked.
    """

    id: str
    name: str
    platform_url: str | None
    state: str
    since: str | None = None
    last_ok_at: str | None = None
    last_error: str | None = None
    counts: Counts | None = None
    trouble: str | None = None
    beat_pid: int | None = None
    inbox_pid: int | None = None
    platform_status: str | None = None
    platform_error: str | None = None


@dataclass(frozen=True)
class LogLine:
    """A line of the log that tells of trouble."""

    time: str
    level: str
    event: str
    workspace_id: str | None
    text: str


async def survey(
    told: Told, *, now: datetime | None = None, transport: httpx.AsyncBaseTransport | None = None
) -> list[WorkspaceFacts]:
    """The workspaces of the settings, and where none of them has been served here, every one that has.

    The platforms are asked at the same time; what they do not answer in `ASK_LIMIT_S` is a fact, not an error.
    """
    settings = told.settings
    told_of = settings.workspaces if settings is not None else ()
    known = {one.id for one in told_of}
    found = sorted(_served_here(told.state.root))
    if known.isdisjoint(found):
        known |= set(found)
    moment = now or datetime.now(UTC)
    by_id = {one.id: one for one in told_of}
    listed = [one.id for one in told_of] + [one for one in found if one in known and one not in by_id]
    asked = [by_id.get(one) for one in listed]
    answers = await asyncio.gather(*(_ask(settings, one, told.state, transport) for one in asked))
    return [
        _facts(told, one, by_id.get(one), moment, status, error)
        for one, (status, error) in zip(listed, answers, strict=True)
    ]


def recent_problems(log_file: Path, limit: int = PROBLEMS_SHOWN) -> list[LogLine]:
    """The last lines of the log (and of the one rotated before it) that tell of trouble, oldest first."""
    found: list[LogLine] = []
    for file in (log_file, log_file.with_name(f"{log_file.name}.1")):
        earlier = [line for raw in _tail(file) if (line := _log_line(raw)) is not None]
        found = earlier[-(limit - len(found)) :] + found if len(found) < limit else found
    return found


def log_file_of(state: StateDir) -> Path:
    """Where the log is, without making its directory."""
    return state.root / "log" / "molecule-mcp.log"


def _served_here(root: Path) -> Iterable[str]:
    """The ids of workspaces that have a directory."""
    try:
        names = [entry.name for entry in os.scandir(root) if entry.is_dir()]
    except OSError:
        return []
    return [name for name in names if _is_workspace_id(name)]


def _is_workspace_id(name: str) -> bool:
    try:
        return str(uuid.UUID(name)) == name
    except ValueError:
        return False


def _facts(
    told: Told,
    workspace_id: str,
    settings: WorkspaceSettings | None,
    now: datetime,
    platform_status: str | None,
    platform_error: str | None,
) -> WorkspaceFacts:
    name = told.settings.agent_name if told.settings is not None and settings is not None else ""
    state = WorkspaceState(told.state.root / workspace_id)
    counts, beat, reader, trouble = _look_into(state)
    presence: dict[str, Any] = {"state": PresenceState.STOPPED.value, "since": None}
    if beat is not None:
        signed_at = rfc3339(datetime.fromtimestamp(beat.stamped_at, UTC))
        presence = {"state": PresenceState.STARTING.value, "since": signed_at} | beat.detail
        if not _lives(beat, state, now) and presence["state"] != PresenceState.STOPPED:
            presence |= {"state": PresenceState.STOPPED.value, "since": signed_at}
    return WorkspaceFacts(
        id=workspace_id,
        name=name or f"molecule-mcp-{workspace_id[:8]}",
        platform_url=settings.platform_url if settings is not None else None,
        state=str(presence["state"]),
        since=presence.get("since"),
        last_ok_at=presence.get("last_ok_at"),
        last_error=presence.get("last_error"),
        counts=counts,
        trouble=trouble,
        beat_pid=beat.pid if beat is not None and _lives(beat, state, now) else None,
        inbox_pid=reader.pid if reader is not None and _lives(reader, state, now) else None,
        platform_status=platform_status,
        platform_error=platform_error,
    )


def _look_into(state: WorkspaceState) -> tuple[Counts | None, Owner | None, Owner | None, str | None]:
    """The counts, who beats, who reads the feed, and why that cannot be told."""
    if not state.journal.exists():
        return None, None, None, None
    try:
        journal = Journal.open_to_look(state.journal)
        try:
            return journal.counts(), journal.owner("beat"), journal.owner("inbox"), None
        finally:
            journal.close()
    except JournalUnusable as error:
        return None, None, None, error.reason


def _lives(owner: Owner, state: WorkspaceState, now: datetime) -> bool:
    """Whether the process that signed is there: see the top of the module."""
    if now.timestamp() - owner.stamped_at > STALE_S:
        return False
    if not (state.sessions / f"{owner.session}.lock").exists():
        return False
    try:
        os.kill(owner.pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True  # another user's
    return True


async def _ask(
    settings: Settings | None,
    told: WorkspaceSettings | None,
    state: StateDir,
    transport: httpx.AsyncBaseTransport | None,
) -> tuple[str | None, str | None]:
    """What the platform shows for a workspace: (status, None) or (None, why it is not known)."""
    if settings is None or told is None:
        return None, None
    credentials = Credentials(told, WorkspaceState(state.root / told.id))
    try:
        async with PlatformClient(
            told.platform_url, told.id, credentials, org_id=settings.org_id, transport=transport
        ) as client:
            try:
                async with asyncio.timeout(ASK_LIMIT_S):
                    return (await client.get_workspace()).status, None
            except TimeoutError:
                detail = f"no answer within {ASK_LIMIT_S:g} s"
                raise Unreachable(endpoint="GET /workspaces/:id", base_url=told.platform_url, detail=detail) from None
    except MoleculeError as error:
        return None, str(advice(error))


def _tail(file: Path) -> list[bytes]:
    """The whole lines at the end of a file; none of one that cannot be read."""
    try:
        with file.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - LOG_TAIL_BYTES))
            lines = stream.read().splitlines()
    except OSError:
        return []
    return lines[1:] if size > LOG_TAIL_BYTES else lines


def _log_line(raw: bytes) -> LogLine | None:
    """A line that tells of trouble, or None."""
    try:
        entry = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    if not isinstance(entry, dict) or entry.get("level") not in _TROUBLE:
        return None
    said = [entry.get("detail"), entry.get("error")]
    if entry.get("state_to"):
        said.insert(0, f"{entry.get('state_from')} → {entry['state_to']}")
    return LogLine(
        time=str(entry.get("timestamp", "")),
        level=str(entry["level"]),
        event=str(entry.get("event", "")),
        workspace_id=entry["workspace_id"] if isinstance(entry.get("workspace_id"), str) else None,
        text=": ".join(str(part) for part in said if part),
    )

"""How a process of ours begins: settings, state directory, logs; and how wrong settings are told to a person.

What `serve` and the commands share. Light: no HTTP client and no MCP is imported here.
"""

from __future__ import annotations

from pathlib import Path

import structlog

from molecule_runtime import logs
from molecule_runtime.errors import InvalidArgument, MoleculeError, SettingsError, StateDirUnwritable, advice
from molecule_runtime.settings import Settings, WorkspaceSettings
from molecule_runtime.state import StateDir
from molecule_runtime.text import cut_code_points

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


def open_state(settings: Settings | None) -> StateDir | StateDirUnwritable:
    """The state directory, or why there is none: presence does not need it."""
    try:
        return StateDir.open(settings.configs_dir if settings else None, home=Path.home())
    except StateDirUnwritable as error:
        return error


def configure_logs(
    settings: Settings | None, state_dir: StateDir | StateDirUnwritable, *, level: str | None = None
) -> Path | None:
    """Set logging up; the log file, or None when there is no place for one (stderr has everything then).

    `level` is what stderr gets instead of what the settings say, provided that the file gets the rest.
    """
    told = settings.effective_log_level if settings else "WARNING"
    if isinstance(state_dir, StateDir):
        try:
            logs.configure(stderr_level=level or told, file=state_dir.log_file)
        except OSError as error:
            logs.configure(stderr_level=told, file=None)
            log.warning("serve.no_log_file", error=type(error).__name__, detail=error.strerror)
        else:
            return state_dir.log_file
    else:
        logs.configure(stderr_level=told, file=None)
    return None


def choose_workspace(settings: Settings, named: str | None) -> WorkspaceSettings:
    """The workspace that a command acts for: the named one, else the only one.

    Raises:
        InvalidArgument: no such workspace in the settings, or several and none named.
    """
    known = {told.id: told for told in settings.workspaces}
    listing = ", ".join(known)
    if named is not None:
        found = known.get(named.strip().lower())
        if found is None:
            reason = f"no workspace {cut_code_points(named)} in the settings; these are: {listing}"
            raise InvalidArgument(argument="--workspace", reason=reason)
        return found
    if len(known) > 1:
        raise InvalidArgument(argument="--workspace", reason=f"there are several, name one of: {listing}")
    return settings.workspaces[0]


def note_ignored_settings(settings: Settings | None) -> None:
    """Leave word in the log of what was wrong in the settings and got over."""
    for problem in settings.problems if settings is not None else ():
        log.warning("serve.setting_ignored", detail=f"{problem.summary}. {problem.fix}")


def explanation(error: MoleculeError) -> str:
    """What a person in a terminal is told: every problem of wrong settings on a line, else what happened and what to
    do next."""
    if isinstance(error, SettingsError):
        lines = [f"  - {problem.summary}. {problem.fix}" for problem in error.problems]
        return "\n".join(["molecule-mcp is not set up:", *lines])
    said = advice(error)
    return f"{said.what}\n{said.next}"

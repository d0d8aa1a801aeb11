"""One process that serves a host: pipe first, runtime second, the SDK last; then out, with the right exit code.

The order is what hosts feel: a host that only looks is answered by the pipe's end within milliseconds, presence begins
while the SDK is still being imported, and wrong settings become an answer of every tool, because hosts hide stderr.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from pathlib import Path

import structlog

from molecule_mcp.pipe import End, Pipe
from molecule_runtime import logs
from molecule_runtime.credentials import Credentials
from molecule_runtime.errors import CredentialError, MoleculeError, SettingsError, StateDirUnwritable, advice, outcome
from molecule_runtime.settings import Settings, environment
from molecule_runtime.state import StateDir
from molecule_runtime.workspace import Roles

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


def serve(*, strict: bool, roles: Roles | None = None) -> int:
    """Serve MCP on stdin and stdout; the exit code (agent-side 2).

    Wrong settings end the process (2) in a terminal or with `strict`; spawned by a host they become the answer of
    every tool.
    """
    settings, trouble = _settings()
    if trouble is not None and (strict or sys.stdin.isatty()):
        _explain(trouble)
        return outcome(trouble).exit_code
    pipe = Pipe.claim_stdio()
    pipe.take_signals()
    pipe.start()
    gc.disable()  # the imports make objects that live to the end: walking them at exit costs 0.4 s
    state_dir = _open_state(settings)
    log_file = _configure_logs(settings, state_dir)
    for problem in settings.problems if settings is not None else ():
        log.warning("serve.setting_ignored", detail=f"{problem.summary}. {problem.fix}")
    end = _serve(pipe, settings, trouble, state_dir, roles, log_file)
    return end.exit_code


def _serve(
    pipe: Pipe,
    settings: Settings | None,
    trouble: MoleculeError | None,
    state_dir: StateDir | StateDirUnwritable,
    roles: Roles | None,
    log_file: Path | None,
) -> End:
    from molecule_runtime.runtime import Runtime, RuntimeThread

    bridge = None
    if settings is not None:
        bridge = RuntimeThread(lambda: Runtime(settings, state_dir=state_dir, roles=roles, log_file=log_file))
        bridge.start()

    from molecule_mcp.server import build_server, serve_pipe

    server = build_server(settings, bridge, trouble=trouble)
    gc.enable()
    gc.freeze()

    async def main() -> End:
        pipe.serve_from(asyncio.get_running_loop())
        return await serve_pipe(server, pipe)

    try:
        end = asyncio.run(main())
    finally:
        if bridge is not None and not bridge.stop():
            log.debug("serve.runtime_cut_off")
        pipe.ignore_signals()
    log.info("serve.ended", detail=end.name)
    return end


def _settings() -> tuple[Settings | None, MoleculeError | None]:
    """The settings and what keeps all of them from working: one workspace that works is reason enough to serve.

    A token that cannot be read is told at the start, too.
    """
    try:
        settings = Settings.from_env(environment())
    except SettingsError as error:
        return None, error
    unreadable: list[CredentialError] = []
    for told in settings.workspaces:
        try:
            Credentials(told, None).current()
        except CredentialError as error:
            unreadable.append(error)
    return settings, unreadable[0] if len(unreadable) == len(settings.workspaces) else None


def _open_state(settings: Settings | None) -> StateDir | StateDirUnwritable:
    try:
        return StateDir.open(settings.configs_dir if settings else None, home=Path.home())
    except StateDirUnwritable as error:
        return error


def _configure_logs(settings: Settings | None, state_dir: StateDir | StateDirUnwritable) -> Path | None:
    """Set logging up; the log file, or None when there is no place for one (stderr has everything then)."""
    level = settings.effective_log_level if settings else "WARNING"
    if isinstance(state_dir, StateDir):
        try:
            logs.configure(stderr_level=level, file=state_dir.log_file)
        except OSError as error:
            logs.configure(stderr_level=level, file=None)
            log.warning("serve.no_log_file", error=type(error).__name__, detail=error.strerror)
        else:
            return state_dir.log_file
    else:
        logs.configure(stderr_level=level, file=None)
    return None


def _explain(error: MoleculeError) -> None:
    said = advice(error)
    if isinstance(error, SettingsError):
        lines = ["molecule-mcp is not set up:"]
        lines += [f"  - {problem.summary}. {problem.fix}" for problem in error.problems]
    else:
        lines = [said.what, said.next]
    sys.stderr.write("\n".join(lines) + "\n")

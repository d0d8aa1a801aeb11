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
from molecule_mcp.startup import configure_logs, explanation, note_ignored_settings, open_state
from molecule_runtime.credentials import Credentials
from molecule_runtime.errors import CredentialError, MoleculeError, SettingsError, StateDirUnwritable, outcome
from molecule_runtime.settings import Settings, environment
from molecule_runtime.state import StateDir
from molecule_runtime.workspace import Roles

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


def serve(pipe: Pipe | None, *, strict: bool, roles: Roles | None = None) -> int:
    """Serve MCP on `pipe`, or, when that is None (in a terminal), on stdin and stdout; the exit code (agent-side 2).

    Wrong settings end the process (2) in a terminal or with `strict`; spawned by a host they become the answer of
    every tool.
    """
    settings, trouble = _settings()
    if trouble is not None and (strict or pipe is None):
        sys.stderr.write(explanation(trouble) + "\n")
        return outcome(trouble).exit_code
    if pipe is None:
        pipe = Pipe.claim_stdio()
        pipe.take_signals()
        pipe.start()
    gc.disable()  # the imports make objects that live to the end: walking them at exit costs 0.4 s
    state_dir = open_state(settings)
    log_file = configure_logs(settings, state_dir)
    note_ignored_settings(settings)
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

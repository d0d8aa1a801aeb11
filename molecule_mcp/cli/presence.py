"""`molecule-mcp presence`: heartbeat and inbox in the foreground, without MCP; for systemd, launchd, a shell.

It ends when it is told to (SIGINT, SIGTERM) and for nothing else: a refused token, a platform that is down, a shell
that goes, a terminal or a reader that goes are all survived. One line is printed for each change.
"""

from __future__ import annotations

import asyncio
import io
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from molecule_mcp.cli import _output

if TYPE_CHECKING:
    from molecule_runtime.runtime import Runtime
    from molecule_runtime.settings import Settings

LOOK_EVERY_S = 1.0
LEAVE_WITHIN_S = 0.3
"""Gone within 0.5 s of a signal (agent-side 2); what is left then is cut off: every file of ours survives a kill."""

UNWRITTEN_LINES = 1_000


def presence(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line for each change.")] = False,
) -> None:
    """Stay online and collect messages in the foreground, without MCP."""
    _keep_standard_descriptors()
    stop = _Stop()
    from molecule_mcp.startup import configure_logs, note_ignored_settings, open_state
    from molecule_runtime.settings import Settings, environment

    settings = Settings.from_env(environment())
    sys.stdout, sys.stderr = stdout, stderr = _Aside(sys.stdout), _Aside(sys.stderr)
    state_dir = open_state(settings)
    # What a person wants to know is printed; said once more by the log it would only be in the way.
    asked_for_logs = bool(settings.model_fields_set & {"log_level", "verbose"})
    log_file = configure_logs(settings, state_dir, level=None if asked_for_logs else "ERROR")
    note_ignored_settings(settings)
    reporter = _Reporter(settings, as_json=as_json)

    async def main() -> None:
        from molecule_runtime.runtime import Runtime

        stop.take(asyncio.get_running_loop(), asyncio.current_task())
        runtime = Runtime(settings, state_dir=state_dir, log_file=log_file)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(runtime.run())
            tasks.create_task(reporter.run(runtime, log_file))

    try:
        asyncio.run(main())
    except asyncio.CancelledError:
        stdout.drain()
        stderr.drain()
        os._exit(stop.exit_code)  # the interpreter's own way out would take longer than is left
    raise AssertionError("it ends only when told to")


class _Stop:
    """The signals that end the process, from the first moment on; the loss of the terminal is none of them."""

    def __init__(self) -> None:
        self.exit_code = 0
        self._cancel: Callable[[], object] | None = None
        self._bell, self._rope = os.pipe()
        threading.Thread(target=self._cut, name="molecule-cut", daemon=True).start()
        signal.signal(signal.SIGINT, self._on_signal)
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def take(self, loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any] | None) -> None:
        """From here on a signal cancels `task`."""
        assert task is not None
        self._cancel = lambda: loop.call_soon_threadsafe(task.cancel)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self.exit_code:
            return  # it is on its way out already
        self.exit_code = 128 + number
        if self._cancel is None:
            os._exit(self.exit_code)
        os.write(self._rope, b"!")  # a handler may take no lock, so it starts no thread either
        self._cancel()

    def _cut(self) -> None:
        """Wait for a signal, then for as long as the way out may take."""
        os.read(self._bell, 1)
        time.sleep(LEAVE_WITHIN_S)
        os._exit(self.exit_code)


class _Aside(io.TextIOBase):
    """A stream that is written by a thread of its own and never fails or blocks: a terminal that is held (Ctrl-S), a
    reader that has gone or a full disk must not hold the beats. What cannot be kept is dropped."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._waiting: queue.Queue[str] = queue.Queue(maxsize=UNWRITTEN_LINES)
        threading.Thread(target=self._write_on, name="molecule-aside", daemon=True).start()

    def write(self, text: str) -> int:
        with suppress(queue.Full):
            self._waiting.put_nowait(text)
        return len(text)

    def isatty(self) -> bool:
        return self._stream.isatty()

    def drain(self, timeout_s: float = 0.1) -> None:
        """Wait a moment for what is still to be written."""
        deadline = time.monotonic() + timeout_s
        while self._waiting.unfinished_tasks and time.monotonic() < deadline:
            time.sleep(0.005)

    def _write_on(self) -> None:
        while True:
            text = self._waiting.get()
            with suppress(OSError, ValueError):
                self._stream.write(text)
                self._stream.flush()
            self._waiting.task_done()


class _Reporter:
    """Prints what changes."""

    def __init__(self, settings: Settings, *, as_json: bool) -> None:
        self._settings = settings
        self._as_json = as_json
        self._shown: dict[str, tuple[object, ...]] = {}
        self._problems: set[tuple[str, str]] = set()

    async def run(self, runtime: Runtime, log_file: Path | None) -> None:
        if not self._as_json:
            _output.line(self._greeting(log_file))
        while True:
            facts = await runtime.snapshot()
            for workspace in facts["workspaces"]:
                self._show_workspace(workspace)
            self._show_problems(facts["problems"])
            await asyncio.sleep(LOOK_EVERY_S)

    def _show_workspace(self, facts: dict[str, Any]) -> None:
        presence, owner = facts["presence"], facts["owner"]
        other_pid = owner["pid"] if not owner["beat"] else None
        waiting = facts["inbox"]["new"]
        now = (presence["state"], waiting, other_pid)
        if self._shown.get(facts["id"]) == now:
            return
        self._shown[facts["id"]] = now
        if self._as_json:
            said = {
                "time": _utc(),
                "workspace_id": facts["id"],
                "name": facts["name"],
                "state": presence["state"],
                "since": presence["since"],
                "error": _error(presence),
                "waiting": waiting,
                "beats": owner["beat"],
                "beat_pid": owner["pid"],
            }
            _output.json_line(said)
            return
        parts = [presence["state"]]
        if waiting:
            parts.append(f"{waiting} message{'s' if waiting > 1 else ''} waiting")
        if other_pid is not None:
            parts.append(f"another process (pid {other_pid}) beats")
        error = _error(presence)
        self._print_line(facts, ", ".join(parts) + (f". {error}" if error else ""))

    def _show_problems(self, problems: list[dict[str, str]]) -> None:
        """Each problem once; those of presence are told with its state."""
        known, self._problems = self._problems, set()
        for problem in problems:
            key = (problem.get("workspace_id", ""), problem["summary"])
            if problem["id"].startswith("presence."):
                continue
            self._problems.add(key)
            if key in known:
                continue
            if self._as_json:
                _output.json_line({"time": _utc(), "problem": problem})
            else:
                where = {"id": key[0], "name": ""} if key[0] else None
                self._print_line(where, f"problem: {problem['summary']} {problem['fix']}")

    def _print_line(self, facts: dict[str, Any] | None, text: str) -> None:
        whose = f"{facts['id'][:8]}  " if facts is not None and len(self._settings.workspaces) > 1 else ""
        _output.line(f"{datetime.now():%H:%M:%S}  {whose}{text}")

    def _greeting(self, log_file: Path | None) -> str:
        lines = ["Keeping online, until Ctrl-C:"]
        for told in self._settings.workspaces:
            name = self._settings.agent_name or told.default_agent_name
            lines.append(f"  {name}  {told.id}  on {told.platform_url}")
        if self._settings.disable_heartbeat:
            lines.append("MOLECULE_MCP_DISABLE_HEARTBEAT is set: this process does not beat.")
        if self._settings.disable_inbox:
            lines.append("MOLECULE_MCP_DISABLE_INBOX is set: this process does not read the inbox.")
        lines.append(f"Log: {log_file or 'none but stderr'}")
        return "\n".join(lines)


def _error(presence: dict[str, Any]) -> str | None:
    return presence["last_error"] if presence["state"] not in {"starting", "online"} else None


def _utc() -> str:
    from datetime import UTC

    from molecule_runtime.wire._base import rfc3339

    return rfc3339(datetime.now(UTC))


def _keep_standard_descriptors() -> None:
    """Give 0, 1 and 2 to /dev/null where they are closed: a journal that got one of them would be written to."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    sys.stdout, sys.stderr = sys.stdout or _null(), sys.stderr or _null()


def _null() -> Any:
    return open(os.devnull, "w", encoding="utf-8")

"""The runtime: all workspaces in one task group, on a thread of its own.

A thread of its own, because presence must not depend on tools: the heartbeat keeps its pace while a tool blocks the
MCP loop, while a large import holds the interpreter, and while the host is silent. Everything else reaches it through
one bridge, `RuntimeThread.call`.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import httpx
import structlog

from molecule_runtime import __version__
from molecule_runtime.clock import Clock, SystemClock
from molecule_runtime.errors import LocalStateError, StateDirUnwritable
from molecule_runtime.settings import Settings
from molecule_runtime.state import StateDir, WorkspaceState
from molecule_runtime.workspace import Roles, Workspace

STOP_TIMEOUT_S = 0.3
"""A process must be gone within 0.5 s of its signal (agent-side 2); what is left is cut off, as a kill would."""

T = TypeVar("T")
log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Runtime:
    """The workspaces of one process. Make it in the event loop that runs it."""

    def __init__(
        self,
        settings: Settings,
        *,
        state_dir: StateDir | StateDirUnwritable,
        clock: Clock | None = None,
        roles: Roles | None = None,
        log_file: Path | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """`state_dir` may be the error that opening it raised: the runtime then lives without an inbox."""
        allowed = roles or Roles()
        effective = Roles(
            beats=allowed.beats and not settings.disable_heartbeat,
            reads_inbox=allowed.reads_inbox and not settings.disable_inbox,
        )
        state, trouble = _workspace_state(state_dir, settings.workspace_id)
        self.workspace = Workspace(
            settings,
            state=state,
            state_problem=trouble,
            clock=clock or SystemClock(),
            roles=effective,
            transport=transport,
        )
        self._log_file = log_file

    async def run(self) -> None:
        """Keep the workspaces going until cancelled."""
        await self.workspace.run()

    async def snapshot(self) -> dict[str, Any]:
        """What `runtime_status` and `molecule-mcp status` show (agent-side 5)."""
        problems = self.workspace.problems()
        return {
            "workspaces": [await self.workspace.snapshot()],
            "version": __version__,
            "log_file": str(self._log_file) if self._log_file else None,
            "problems": [{"id": p.id, "summary": p.summary, "fix": p.fix} for p in problems],
        }


def _workspace_state(
    opened: StateDir | StateDirUnwritable, workspace_id: str
) -> tuple[WorkspaceState | None, LocalStateError | None]:
    if isinstance(opened, StateDirUnwritable):
        return None, opened
    try:
        return opened.workspace(workspace_id), opened.fallback_from
    except StateDirUnwritable as error:
        return None, error


class RuntimeEnded(RuntimeError):
    """The runtime's loop is gone; a bug, since it ends only when told to."""


class RuntimeThread:
    """Runs a `Runtime` on a daemon thread with its own event loop, and is the only bridge to it."""

    def __init__(self, make_runtime: Callable[[], Runtime]) -> None:
        self._make_runtime = make_runtime
        self._thread = threading.Thread(target=self._run, name="molecule-runtime", daemon=True)
        self._started: Future[tuple[asyncio.AbstractEventLoop, Runtime]] = Future()
        self._started.set_running_or_notify_cancel()  # a caller that is cancelled while it waits must not cancel this
        self._task: asyncio.Task[None] | None = None
        self._pending: set[Future[Any]] = set()
        self._has_ended = False
        self._is_to_stop = threading.Event()

    def start(self) -> None:
        self._thread.start()

    async def call(self, work: Callable[[Runtime], Awaitable[T]], *, to_the_end: bool = False) -> T:
        """Run `work(runtime)` in the runtime's loop and await it here; a cancellation here cancels it there.

        With `to_the_end` it does not: what has begun to leave this machine (an answer, and the mark that it was given)
        is finished, whoever still waits for it.
        """
        loop, runtime = await asyncio.wrap_future(self._started)

        async def step() -> T:
            return await work(runtime)

        done = asyncio.wrap_future(self._submit(step(), loop))
        return await (asyncio.shield(done) if to_the_end else done)

    def glance(self, read: Callable[[Runtime], T]) -> T | None:
        """Read something immutable of the runtime from this thread, without waiting; None before it has started."""
        if not self._started.done() or self._started.exception() is not None:
            return None
        return read(self._started.result()[1])

    def cast(self, work: Callable[[Runtime], Awaitable[object]]) -> None:
        """Run `work(runtime)` in the runtime's loop without waiting; what a cancelled caller leaves to be tidied."""
        if not self._started.done() or self._started.exception() is not None:
            return
        loop, runtime = self._started.result()

        async def step() -> None:
            await work(runtime)

        with suppress(RuntimeEnded):
            self._submit(step(), loop)

    def _submit(self, work: Coroutine[Any, Any, T], loop: asyncio.AbstractEventLoop) -> Future[T]:
        """Hand work to the runtime's loop; whoever waits for it is told should that loop end without an answer."""
        try:
            future = asyncio.run_coroutine_threadsafe(work, loop)
        except RuntimeError:
            work.close()
            raise RuntimeEnded("the runtime has ended") from None
        self._pending.add(future)
        future.add_done_callback(self._pending.discard)
        if self._has_ended:
            self._give_up()
        return future

    def _give_up(self) -> None:
        for future in list(self._pending):
            with suppress(InvalidStateError):
                future.set_exception(RuntimeEnded("the runtime has ended"))

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> bool:
        """Cancel the runtime and wait for its thread; False when it did not end in time."""
        self._is_to_stop.set()
        if self._started.done() and self._started.exception() is None and self._task is not None:
            loop, _ = self._started.result()
            try:
                loop.call_soon_threadsafe(self._task.cancel)
            except RuntimeError:
                return True  # the loop has ended by itself
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except asyncio.CancelledError:
            pass
        except Exception as bug:
            log.exception("runtime.ended", error=type(bug).__name__)
            if not self._started.done():
                self._started.set_exception(bug)
        finally:
            self._has_ended = True
            self._give_up()

    async def _main(self) -> None:
        runtime = self._make_runtime()
        self._task = asyncio.current_task()
        self._started.set_result((asyncio.get_running_loop(), runtime))
        if not self._is_to_stop.is_set():  # told before there was a task to cancel
            await runtime.run()

"""The runtime: all workspaces in one task group, on a thread of its own.

A thread of its own, because presence must not depend on tools: the heartbeat keeps its pace while a tool blocks the
MCP loop, while a large import holds the interpreter, and while the host is silent. Everything else reaches it through
one bridge, `RuntimeThread.call`.
"""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import anyio
import httpx
import structlog

from molecule_runtime import __version__
from molecule_runtime.clock import Clock, SystemClock, wait_for_event
from molecule_runtime.delegation import Call, Delegator
from molecule_runtime.errors import (
    CallerError,
    InvalidArgument,
    LocalStateError,
    MemoryUnknown,
    MessageUnknown,
    MoleculeError,
    Problem,
    StateDirUnwritable,
    TaskUnknown,
)
from molecule_runtime.inbox.delegations import DelegationRecord
from molecule_runtime.inbox.mailbox import Arrivals, Mailbox, wait_for_any
from molecule_runtime.peers import PeerView, Reached, find, peer_id_in, reached, refuse_nobody, refuse_self, unseen, way
from molecule_runtime.settings import Settings, WorkspaceSettings
from molecule_runtime.state import StateDir, WorkspaceState
from molecule_runtime.text import cut_code_points
from molecule_runtime.workspace import Roles, Workspace

PUSH_AFTER_S = 0.2
PUSH_CHECK_S = 60.0
"""Everything that makes something to push is announced; this is for what nobody thought of."""
PUSHED_AT_ONCE = 20
REVIVE_AFTER_S = 5.0
"""How long a workspace that a defect ended stays down; it counts as gone only after 90 s (contract 2.4)."""
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
        self._settings = settings
        self._state_dir = state_dir
        self._clock = clock or SystemClock()
        self._roles = Roles(
            beats=allowed.beats and not settings.disable_heartbeat,
            reads_inbox=allowed.reads_inbox and not settings.disable_inbox,
        )
        self._log_file = log_file
        self._transport = transport
        self._arrivals = Arrivals()
        self._memory_changes = Arrivals()
        self._workspaces = {told.id: self._make(told) for told in settings.workspaces}
        self._last_served: str | None = None

    def _make(self, told: WorkspaceSettings) -> Workspace:
        state, trouble = _workspace_state(self._state_dir, told.id)
        return Workspace(
            told,
            self._settings,
            state=state,
            state_problem=trouble,
            clock=self._clock,
            roles=self._roles,
            arrivals=self._arrivals,
            memory_changes=self._memory_changes,
            transport=self._transport,
        )

    @property
    def workspaces(self) -> tuple[Workspace, ...]:
        """All of them, in the order of the settings."""
        return tuple(self._workspaces.values())

    def route(self, workspace_id: str | None = None, *, argument: str = "workspace_id") -> Workspace:
        """The workspace that a call acts for: the named one, else the only one, else where the last message came from.

        `argument` is the name under which the caller was asked for it.

        Raises:
            InvalidArgument: no workspace of that id is served here, or several are and nothing says which.
        """
        if workspace_id is not None:
            found = self._workspaces.get(workspace_id.strip().lower())
            if found is None:
                reason = f"no workspace {cut_code_points(workspace_id)} is served here; these are: {self._listing()}"
                raise InvalidArgument(argument=argument, reason=reason)
            return found
        if len(self._workspaces) == 1:
            return self.workspaces[0]
        if self._last_served is None:
            raise InvalidArgument(
                argument=argument, reason=f"several workspaces are served here, name one of: {self._listing()}"
            )
        return self._workspaces[self._last_served]

    def chosen(self, workspace_id: str | None) -> tuple[Workspace, ...]:
        """The workspaces a look into the inbox is about: the named one, or all.

        Raises:
            InvalidArgument: no workspace of that id is served here.
        """
        return self.workspaces if workspace_id is None else (self.route(workspace_id),)

    async def run(self) -> None:
        """Keep the workspaces going until cancelled."""
        async with anyio.create_task_group() as tasks:
            for told in self._settings.workspaces:
                tasks.start_soon(self._keep, told)

    async def _keep(self, told: WorkspaceSettings) -> None:
        """Run one workspace; a defect that ends it is logged, and it begins anew without touching the others."""
        while True:
            try:
                await self._workspaces[told.id].run()
            except Exception as bug:
                log.exception("runtime.workspace_ended", workspace_id=told.id, error=type(bug).__name__)
            await self._clock.sleep(REVIVE_AFTER_S)
            self._workspaces[told.id] = self._make(told)

    # the inboxes

    async def wait_for_message(self, workspace_id: str | None, timeout_s: float, *, key: str) -> dict[str, Any] | None:
        """Lease the next message of the named workspace or of all, waiting up to `timeout_s`; None when none came.

        After one workspace has been served the others come first, so that a busy one cannot keep them waiting. `key`
        names this call for `give_back`.

        Raises:
            LocalStateError: none of the inboxes can be opened.
            InvalidArgument: no such workspace.
        """
        mailboxes = await self._mailboxes(self.chosen(workspace_id))
        found = await wait_for_any(mailboxes, timeout_s, key=key, arrivals=self._arrivals, clock=self._clock)
        if found is not None:
            self._last_served = found["workspace_id"]
        return found

    async def give_back(self, key: str) -> None:
        """A call of `wait_for_message` that was cancelled returns what it leased."""
        for workspace in self.workspaces:
            with suppress(LocalStateError):
                await (await workspace.mailbox()).give_back(key)

    async def holder(self, activity_id: str, workspace_id: str | None = None) -> Workspace:
        """The workspace in whose inbox a message is open; where it is open nowhere, the one that `route` names.

        Raises:
            LocalStateError: its inbox cannot be opened.
            InvalidArgument: no such workspace.
        """
        candidates = self.chosen(workspace_id)
        for workspace in candidates if len(candidates) > 1 else ():
            with suppress(MessageUnknown, LocalStateError):
                await (await workspace.mailbox()).find(activity_id)
                return workspace
        return candidates[0]

    async def fetch_attachments(
        self, activity_id: str, name: str, workspace_id: str | None = None, *, within_s: float
    ) -> list[dict[str, Any]]:
        """Try the files of a message that are not here, in whichever inbox it is or was (`Workspace`).

        Raises:
            LocalStateError, MessageUnknown, InvalidArgument
        """
        candidates = self.chosen(workspace_id)
        for workspace in candidates[:-1]:
            with suppress(MessageUnknown, LocalStateError):
                return await workspace.fetch_attachments(activity_id, name, within_s=within_s)
        return await candidates[-1].fetch_attachments(activity_id, name, within_s=within_s)

    async def next_to_push(self) -> list[dict[str, Any]]:
        """Wait until there are messages to push, and give them, oldest first; no message twice to one process.

        A call of `wait_for_message` that is under way comes first: what it takes is not pushed as well.
        """
        while True:
            arrival = self._arrivals.next
            await self._clock.sleep(PUSH_AFTER_S)
            found: list[dict[str, Any]] = []
            for workspace in self.workspaces:
                try:
                    found += await workspace.take_unpushed(PUSHED_AT_ONCE)
                except LocalStateError as error:
                    log.debug("runtime.push_skipped", workspace_id=workspace.id, detail=str(error))
            if found:
                self._last_served = found[-1]["workspace_id"]
                return found
            await wait_for_event(arrival, PUSH_CHECK_S, self._clock)

    async def inbox_changed(self, since: int | None) -> int:
        """Wait until a message came, was given back or was handled here; what to pass the next time. None: at once."""
        return await self._arrivals.after(since)

    async def forget_memory(self, memory_id: str, workspace_id: str | None) -> None:
        """Delete a memory of the named workspace, or of whichever of several wrote it.

        Raises:
            MemoryUnknown: none of them has it.
            PlatformError: one of them cannot be asked, and no other has it.
            LocalStateError
        """
        failed: MoleculeError = MemoryUnknown(memory_id=memory_id)
        for workspace in self.chosen(workspace_id):
            try:
                await (await workspace.memories()).forget(memory_id)
            except MemoryUnknown:
                continue
            except (CallerError, LocalStateError):
                raise
            except MoleculeError as error:
                failed = error
                continue
            return
        raise failed

    async def memories_changed(self, since: int | None) -> int:
        """Wait until this process has stored or forgotten a memory; `since` as in `inbox_changed`."""
        return await self._memory_changes.after(since)

    def feed_troubles(self, workspace_id: str | None) -> list[tuple[Workspace, MoleculeError]]:
        """Which of the chosen workspaces cannot be sent a message now, and why."""
        return [
            (workspace, error)
            for workspace in self.chosen(workspace_id)
            if (error := workspace.feed_error()) is not None
        ]

    def waiting(self) -> int:
        """Messages that nobody has been handed yet, of all workspaces."""
        return sum(workspace.waiting() for workspace in self.workspaces)

    async def _mailboxes(self, workspaces: Sequence[Workspace]) -> list[Mailbox]:
        """The open inboxes of these workspaces, the one served last at the end.

        Raises:
            LocalStateError: there is none.
        """
        found, errors = [], []
        for workspace in sorted(workspaces, key=lambda one: one.id == self._last_served):
            try:
                found.append(await workspace.mailbox())
            except LocalStateError as error:
                errors.append(error)
        if not found:
            raise errors[0]
        return found

    # the team

    async def peers(
        self, workspace_id: str | None, query: str = ""
    ) -> tuple[list[Reached], list[tuple[Workspace, MoleculeError]]]:
        """The peers of the named workspace or of all, each once; and which of them could not be asked, and why.

        All are asked side by side, so that this takes no longer than the slowest platform's call.

        Raises:
            MoleculeError: none of them could be asked; it is what the first one met.
            InvalidArgument: no such workspace.
        """
        lists, troubles = await self._ask_for_peers(self.chosen(workspace_id), query)
        if not lists:
            raise troubles[0][1]
        return reached(lists), troubles

    async def peer(self, told: str, source_workspace_id: str | None = None) -> tuple[Workspace, PeerView | None]:
        """Who is meant by an id or a name, and the workspace that writes to it; only lists are asked for.

        That is the named workspace, else one that lists the peer: the only one, or where the last message came from.
        For a workspace whose platform does not answer its memory stands in, with the statuses of then. The peer is
        None when it has an id and the only workspace does not list it: a grand-parent may be written to.

        Raises:
            InvalidArgument: nobody is meant, or several, or the workspace itself; or several workspaces can write.
            MoleculeError: no platform answered, and nothing is remembered.
        """
        refuse_nobody(told)
        candidates = self.workspaces
        if source_workspace_id is not None or len(candidates) == 1:
            candidates = (self.route(source_workspace_id, argument="source_workspace_id"),)
            refuse_self(told, candidates[0].id)
        fresh, troubles = await self._ask_for_peers(candidates)
        among = reached([*fresh, *((workspace.id, workspace.directory.remembered()) for workspace, _ in troubles)])
        own = {workspace.id: workspace.name for workspace in self.workspaces}
        found = find(told, among)
        if found is not None:
            return self.route(way(found, last=self._last_served, own=own)), found.peer
        if len(candidates) == 1 and peer_id_in(told) is not None:
            return candidates[0], None
        if not fresh:
            raise troubles[0][1]
        raise unseen(told, among, own=own, unasked=said_of(troubles))

    async def task(self, task_id: str, workspace_id: str | None = None) -> tuple[Workspace, DelegationRecord]:
        """A job as it stands, and the workspace that handed it out; of several the one that remembers it is asked.

        Raises:
            TaskUnknown: neither the journals nor the platforms know it.
            MoleculeError: none knows it, and one could not be asked.
        """
        chosen, remembering = self.chosen(workspace_id), []
        for one in chosen:
            with suppress(LocalStateError):
                if await (await one.delegator()).remembers(task_id):
                    remembering.append(one)
        unknown: MoleculeError = TaskUnknown(task_id=task_id)
        for workspace in remembering or chosen:
            try:
                return workspace, await (await workspace.delegator()).status(task_id)
            except TaskUnknown:
                continue
            except MoleculeError as error:
                unknown = error
        raise unknown

    async def tasks(
        self, limit: int, workspace_id: str | None = None
    ) -> tuple[list[tuple[Workspace, DelegationRecord]], list[tuple[Workspace, MoleculeError]]]:
        """The newest jobs that were handed out from here, newest first, each with the workspace that did; and whose
        journal cannot be read.

        Raises:
            LocalStateError: none can be read.
        """
        found: list[tuple[Workspace, DelegationRecord]] = []
        troubles: list[tuple[Workspace, MoleculeError]] = []
        chosen = self.chosen(workspace_id)
        for workspace in chosen:
            try:
                found += [(workspace, record) for record in await (await workspace.delegator()).latest(limit)]
            except LocalStateError as error:
                troubles.append((workspace, error))
        if len(troubles) == len(chosen):
            raise troubles[0][1]
        return sorted(found, key=lambda one: one[1].created_at, reverse=True)[:limit], troubles

    async def delegate(
        self,
        peer: str,
        task: str,
        timeout_s: float,
        workspace_id: str | None,
        call: Call,
        began: Callable[[Delegator], None],
    ) -> tuple[Workspace, PeerView | None, Delegator, DelegationRecord]:
        """Hand a job to whoever is meant and wait up to `timeout_s` for its end; looking for the peer counts, too.

        `began` is told whose `take_back` is for `call`. Raises as `peer` and `Delegator.hand_over`.
        """
        deadline = self._clock.monotonic() + timeout_s
        workspace, view = await self.peer(peer, workspace_id)
        delegator = await workspace.delegator()
        began(delegator)
        peer_id = view.id if view is not None else str(uuid.UUID(peer.strip()))
        return workspace, view, delegator, await delegator.delegate(peer_id, task, deadline, call)

    async def _ask_for_peers(
        self, workspaces: Sequence[Workspace], query: str = ""
    ) -> tuple[list[tuple[str, list[PeerView]]], list[tuple[Workspace, MoleculeError]]]:
        """(Workspace's id, its peers) of those that answered and (workspace, error) of the others, in their order."""

        async def ask(workspace: Workspace) -> list[PeerView] | MoleculeError:
            try:
                return await workspace.directory.list(query)
            except MoleculeError as error:
                return error

        answers = await asyncio.gather(*map(ask, workspaces))
        both = list(zip(workspaces, answers, strict=True))
        return (
            [(workspace.id, answer) for workspace, answer in both if not isinstance(answer, MoleculeError)],
            [(workspace, answer) for workspace, answer in both if isinstance(answer, MoleculeError)],
        )

    # facts

    def presence_sentence(self, workspace_id: str | None = None) -> str | None:
        """What to add to a failure: which of the workspaces concerned is not heard; None when all are."""
        several = len(self._workspaces) > 1
        said = [
            f"Presence of {workspace.name} ({workspace.id}): {state}." if several else f"Presence: {state}."
            for workspace in self.workspaces
            if workspace_id in (None, workspace.id) and (state := workspace.absent_state()) is not None
        ]
        return " ".join(said) or None

    async def snapshot(self) -> dict[str, Any]:
        """What `runtime_status` and `molecule-mcp status` show (agent-side 5).

        A problem that is one workspace's names it (`workspace_id`) when several are served.
        """
        several = len(self._workspaces) > 1
        problems = [_problem_json(problem) for problem in self._settings.problems]
        for workspace in self.workspaces:
            at = {"workspace_id": workspace.id} if several else {}
            problems += [_problem_json(problem) | at for problem in workspace.problems()]
        return {
            "workspaces": [await workspace.snapshot() for workspace in self.workspaces],
            "version": __version__,
            "log_file": str(self._log_file) if self._log_file else None,
            "problems": problems,
        }

    def _listing(self) -> str:
        return ", ".join(f"{workspace.id} ({workspace.name})" for workspace in self.workspaces)


def said_of(troubles: Sequence[tuple[Workspace, MoleculeError]]) -> str:
    """One sentence for each workspace that something is wrong with; "" for none."""
    return " ".join(f"{workspace.name} ({workspace.id}): {error}" for workspace, error in troubles)


def _problem_json(problem: Problem) -> dict[str, str]:
    return {"id": problem.id, "summary": problem.summary, "fix": problem.fix}


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

"""The tools that hand work to peers (agent-side 5)."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, Field

from molecule_mcp.tools._base import Arguments, Hints, Tool, ToolContext
from molecule_mcp.tools.inbox import PROGRESS_EVERY_S, NonBlank
from molecule_runtime.delegation import Call, Delegator, headed, shown
from molecule_runtime.inbox.delegations import DelegationRecord
from molecule_runtime.inbox.texts import Texts
from molecule_runtime.peers import THERE, PeerView, quoted
from molecule_runtime.runtime import Runtime, said_of
from molecule_runtime.settings import WAIT_CAP_SECS
from molecule_runtime.wire._base import rfc3339

LATEST = 10
COMES_BY_ITSELF = "The result comes as a message of kind delegation_result, and check_task_status has it too."
TO_BE_ASKED_FOR = "The inbox is switched off here: ask check_task_status for the result."
NOT_AGAIN = "To call this again with the same task would hand it out a second time."

T = TypeVar("T")


def _task_id(text: str) -> str:
    if text.strip():
        try:
            return str(uuid.UUID(text.strip()))
        except ValueError:
            raise ValueError("must be a task_id that delegate_task gave, a UUID") from None
    return ""


Peer = Annotated[NonBlank, Field(description="The peer's id, or its name.")]
Task = Annotated[NonBlank, Field(description="The whole job; the peer sees nothing else.")]


class DelegateArguments(Arguments):
    workspace_id: Peer
    task: Task
    timeout_secs: float = Field(
        45, description=f"Seconds to wait, 0 to {WAIT_CAP_SECS}; more counts as 50.", allow_inf_nan=False
    )


class DelegateAsyncArguments(Arguments):
    workspace_id: Peer
    task: Task


class TaskStatusArguments(Arguments):
    task_id: Annotated[str, AfterValidator(_task_id)] = Field("", description=f"Without it, the last {LATEST}.")


async def delegate_task(context: ToolContext, args: DelegateArguments) -> dict[str, Any]:
    seconds = min(max(args.timeout_secs, 0.0), float(WAIT_CAP_SECS))
    return await _delegate(context, args.workspace_id, args.task, seconds)


async def delegate_task_async(context: ToolContext, args: DelegateAsyncArguments) -> dict[str, Any]:
    return await _delegate(context, args.workspace_id, args.task, 0.0)


async def check_task_status(context: ToolContext, args: TaskStatusArguments) -> dict[str, Any]:
    if args.task_id:
        return await context.bridge.call(lambda runtime: _one(runtime, context.workspace_id, args.task_id))
    return await context.bridge.call(lambda runtime: _latest(runtime, context.workspace_id))


async def _delegate(context: ToolContext, peer: str, task: str, seconds: float) -> dict[str, Any]:
    """Hand the job out and wait for its end. A caller that goes away has seen nothing: the result stays a message."""
    call, delegators = Call(), list[Delegator]()

    async def work(runtime: Runtime) -> dict[str, Any]:
        workspace, view, delegator, record = await runtime.delegate(
            peer, task, seconds, context.workspace_id, call, delegators.append
        )
        comes = COMES_BY_ITSELF if workspace.reads_inbox else TO_BE_ASKED_FOR
        return _view(record, delegator.texts, view, comes)

    async def take_back(_: Runtime) -> None:
        for delegator in delegators:
            await delegator.take_back(call)

    try:
        return await _with_progress(context, work, seconds)
    except asyncio.CancelledError:
        context.bridge.cast(take_back)
        raise


async def _with_progress(context: ToolContext, work: Callable[[Runtime], Awaitable[T]], seconds: float) -> T:
    """Work in the runtime, and tell the host every few seconds that it goes on."""
    working = asyncio.ensure_future(context.bridge.call(work))
    waited = 0.0
    try:
        while not (await asyncio.wait((working,), timeout=PROGRESS_EVERY_S))[0]:
            waited += PROGRESS_EVERY_S
            await context.progress(waited, max(seconds, waited), "the peer is at it")
        return working.result()
    finally:
        working.cancel()


def _view(record: DelegationRecord, texts: Texts, peer: PeerView | None, comes: str) -> dict[str, Any]:
    """What the call says: the result, or the handle, and whether the peer is there to do it."""
    view = shown(record, texts, peer)
    if record.status.is_final:
        return view
    if peer is not None and peer.status not in THERE:
        since = f" since {peer.away_since}" if peer.away_since else ""
        view["peer_status"] = peer.status
        view["warning"] = f"{quoted(peer.name)} is not there now ({peer.status}{since}); the job waits for it."
    return view | {"next": f"{comes} {NOT_AGAIN}"}


async def _one(runtime: Runtime, workspace_id: str | None, task_id: str) -> dict[str, Any]:
    workspace, record = await runtime.task(task_id, workspace_id)
    return shown(record, (await workspace.delegator()).texts, workspace.directory.known(record.peer_id))


async def _latest(runtime: Runtime, workspace_id: str | None) -> dict[str, Any]:
    found, troubles = await runtime.tasks(LATEST, workspace_id)
    tasks = [
        headed(record, workspace.directory.known(record.peer_id))
        | {"task": record.task, "handed_out_at": rfc3339(datetime.fromtimestamp(record.created_at, UTC))}
        for workspace, record in found
    ]
    return {"tasks": tasks} | ({"warning": said_of(troubles)} if troubles else {})


TOOLS = (
    Tool(
        name="delegate_task",
        title="Hand a job to a peer",
        description="Hand a job to a peer and wait for its result. If it takes longer, the result comes as a message.",
        arguments=DelegateArguments,
        hints=Hints(read_only=False, destructive=False, idempotent=False, open_world=True),
        handler=delegate_task,
        acts_for="source_workspace_id",
    ),
    Tool(
        name="delegate_task_async",
        title="Hand out a job",
        description="Hand a job to a peer without waiting. The result comes as a message.",
        arguments=DelegateAsyncArguments,
        hints=Hints(read_only=False, destructive=False, idempotent=False, open_world=True),
        handler=delegate_task_async,
        acts_for="source_workspace_id",
    ),
    Tool(
        name="check_task_status",
        title="How a job stands",
        description="Show how a job that you handed out stands, with its whole result.",
        arguments=TaskStatusArguments,
        hints=Hints(read_only=True, destructive=False, idempotent=True, open_world=True),
        handler=check_task_status,
    ),
)

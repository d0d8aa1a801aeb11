"""The tools of the inbox: wait, look, answer, put away (agent-side 5)."""

from __future__ import annotations

import asyncio
import uuid
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from molecule_mcp.tools._attachments import Attachments, send_with_progress
from molecule_mcp.tools._base import Arguments, Hints, Tool, ToolContext
from molecule_runtime import messages
from molecule_runtime.errors import LocalStateError
from molecule_runtime.runtime import Runtime
from molecule_runtime.settings import WAIT_CAP_SECS
from molecule_runtime.upload_body import UploadProgress

PROGRESS_EVERY_S = 5.0
NOT_ANSWERED = "This was a job that a peer handed out: it hears nothing of it, and waits until it counts as failed."
MAX_PEEK = 100


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be empty")
    return text


def _uuid_text(text: str) -> str:
    try:
        uuid.UUID(text.strip())
    except ValueError:
        raise ValueError("must be the activity_id of a message, a UUID") from None
    return text.strip()


NonBlank = Annotated[str, AfterValidator(_not_blank)]
ActivityId = Annotated[str, AfterValidator(_uuid_text), Field(description="The message's activity_id.")]


class WaitArguments(Arguments):
    timeout_secs: float | None = Field(
        None, description=f"Seconds, 0 to {WAIT_CAP_SECS}; larger values count as 50.", allow_inf_nan=False
    )


class PeekArguments(Arguments):
    limit: int = Field(10, description=f"How many, 1 to {MAX_PEEK}.", ge=1, le=MAX_PEEK)


class PopArguments(Arguments):
    activity_id: ActivityId


class ReplyArguments(Arguments):
    activity_id: ActivityId
    message: NonBlank = Field(description="Your whole answer.")
    attachments: Attachments = None


async def wait_for_message(context: ToolContext, args: WaitArguments) -> dict[str, Any]:
    """Lease the next message; a call that is cancelled meanwhile gives back what it got."""
    asked = context.settings.poll_timeout_secs if args.timeout_secs is None else args.timeout_secs
    total = min(max(asked, 0.0), float(WAIT_CAP_SECS))
    key = uuid.uuid4().hex
    waited = 0.0
    try:
        while True:
            step = min(PROGRESS_EVERY_S, total - waited)
            found = await context.bridge.call(lambda runtime, step=step: _wait(runtime, context, step, key))  # type: ignore[misc]
            if found is not None:
                return {"message": found}
            waited += step
            if waited >= total:
                break
            await context.progress(waited, total, "no message yet")
    except asyncio.CancelledError:
        context.bridge.cast(lambda runtime: runtime.give_back(key))
        raise
    return await context.bridge.call(lambda runtime: _nothing_came(runtime, context))


async def inbox_peek(context: ToolContext, args: PeekArguments) -> dict[str, Any]:
    return await context.bridge.call(lambda runtime: _peek(runtime, context, args.limit))


async def inbox_pop(context: ToolContext, args: PopArguments) -> dict[str, Any]:
    return await context.bridge.call(lambda runtime: _pop(runtime, context, args.activity_id))


async def reply(context: ToolContext, args: ReplyArguments) -> dict[str, Any]:
    progress = UploadProgress()
    sent = await send_with_progress(context, lambda runtime: _reply(runtime, context, args, progress), progress)
    result: dict[str, Any] = {"status": "sent", "to": sent.to, "popped": sent.popped}
    if args.attachments:
        result["attachments"] = messages.listing(sent.attachments)
    return result


async def _wait(runtime: Runtime, context: ToolContext, seconds: float, key: str) -> dict[str, Any] | None:
    return await runtime.wait_for_message(context.workspace_id, seconds, key=key)


async def _nothing_came(runtime: Runtime, context: ToolContext) -> dict[str, Any]:
    """A quiet inbox and a feed that cannot be read are two different answers."""
    troubles = runtime.feed_troubles(context.workspace_id)
    if len(troubles) == len(runtime.chosen(context.workspace_id)):
        raise troubles[0][1]
    result: dict[str, Any] = {"timeout": True, "waiting": runtime.waiting()}
    if troubles:
        result["warning"] = " ".join(f"{workspace.name} ({workspace.id}): {error}" for workspace, error in troubles)
    return result


async def _peek(runtime: Runtime, context: ToolContext, limit: int) -> dict[str, Any]:
    shown: list[dict[str, Any]] = []
    total = 0
    warnings = []
    workspaces = runtime.chosen(context.workspace_id)
    for workspace in workspaces:
        try:
            mailbox = await workspace.mailbox()
            shown += await mailbox.peek(limit)
        except LocalStateError as error:
            if len(workspaces) == 1:
                raise
            warnings.append(f"{workspace.name}: {error}")
            continue
        counts = mailbox.counts()
        total += counts.new + counts.leased + counts.parked
    if len(workspaces) > 1:
        shown.sort(key=lambda message: str(message["created_at"]))
    result: dict[str, Any] = {"messages": shown[:limit], "total": total}
    warnings += [
        f"{error} Only what had arrived before is shown." for _, error in runtime.feed_troubles(context.workspace_id)
    ]
    if warnings:
        result["warning"] = " ".join(warnings)
    return result


async def _pop(runtime: Runtime, context: ToolContext, activity_id: str) -> dict[str, Any]:
    mailbox = await (await runtime.holder(activity_id, context.workspace_id)).mailbox()
    is_job = await mailbox.brings_a_job(activity_id)
    removed = await mailbox.pop(activity_id)
    result: dict[str, Any] = {"removed": removed, "activity_id": activity_id}
    return result | {"note": NOT_ANSWERED} if removed and is_job else result


async def _reply(
    runtime: Runtime, context: ToolContext, args: ReplyArguments, progress: UploadProgress
) -> messages.Replied:
    workspace = await runtime.holder(args.activity_id, context.workspace_id)
    mailbox = await workspace.mailbox()
    files = await workspace.enclosed(args.attachments or (), progress)
    return await messages.reply(workspace.client, mailbox, args.activity_id, args.message, files)


TOOLS = (
    Tool(
        name="wait_for_message",
        title="Wait for a message",
        description="Wait for the next message from the user or a peer and take it. "
        "Answer with reply or put it away with inbox_pop, else it comes back. A second call gives the next message.",
        arguments=WaitArguments,
        hints=Hints(read_only=False, destructive=False, idempotent=False, open_world=True),
        handler=wait_for_message,
    ),
    Tool(
        name="inbox_peek",
        title="Look into the inbox",
        description="List the messages that are not handled yet, without taking any.",
        arguments=PeekArguments,
        hints=Hints(read_only=True, destructive=False, idempotent=True, open_world=False),
        handler=inbox_peek,
    ),
    Tool(
        name="reply",
        title="Answer a message",
        description="Answer a message where it came from, the user or a peer, and mark it handled. "
        "If sending fails it stays open.",
        arguments=ReplyArguments,
        hints=Hints(read_only=False, destructive=False, idempotent=False, open_world=True),
        handler=reply,
    ),
    Tool(
        name="inbox_pop",
        title="Mark a message handled",
        description="Mark a message as handled without answering it; it never comes back.",
        arguments=PopArguments,
        hints=Hints(read_only=False, destructive=True, idempotent=True, open_world=False),
        handler=inbox_pop,
    ),
)

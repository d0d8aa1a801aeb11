"""The tools of the inbox: wait, look, answer, put away (agent-side 5)."""

from __future__ import annotations

import asyncio
import uuid
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from molecule_mcp.tools._base import Arguments, Hints, Tool, ToolContext
from molecule_runtime import messages
from molecule_runtime.runtime import Runtime
from molecule_runtime.settings import WAIT_CAP_SECS

PROGRESS_EVERY_S = 5.0
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


async def wait_for_message(context: ToolContext, args: WaitArguments) -> dict[str, Any]:
    """Lease the next message; a call that is cancelled meanwhile gives back what it got."""
    asked = context.settings.poll_timeout_secs if args.timeout_secs is None else args.timeout_secs
    total = min(max(asked, 0.0), float(WAIT_CAP_SECS))
    key = uuid.uuid4().hex
    waited = 0.0
    try:
        while True:
            step = min(PROGRESS_EVERY_S, total - waited)
            found = await context.bridge.call(lambda runtime, step=step: _wait(runtime, step, key))  # type: ignore[misc]
            if found is not None:
                return {"message": found}
            waited += step
            if waited >= total:
                break
            await context.progress(waited, total, "no message yet")
    except asyncio.CancelledError:
        context.bridge.cast(lambda runtime: _give_back(runtime, key))
        raise
    return await context.bridge.call(_nothing_came)


async def inbox_peek(context: ToolContext, args: PeekArguments) -> dict[str, Any]:
    return await context.bridge.call(lambda runtime: _peek(runtime, args.limit))


async def inbox_pop(context: ToolContext, args: PopArguments) -> dict[str, Any]:
    return await context.bridge.call(lambda runtime: _pop(runtime, args.activity_id))


async def reply(context: ToolContext, args: ReplyArguments) -> dict[str, Any]:
    return await context.bridge.call(lambda runtime: _reply(runtime, args.activity_id, args.message), to_the_end=True)


async def _wait(runtime: Runtime, seconds: float, key: str) -> dict[str, Any] | None:
    mailbox = await runtime.workspace.mailbox()
    return await mailbox.wait(seconds, key=key)


async def _give_back(runtime: Runtime, key: str) -> None:
    mailbox = await runtime.workspace.mailbox()
    await mailbox.give_back(key)


async def _nothing_came(runtime: Runtime) -> dict[str, Any]:
    """A quiet inbox and a feed that cannot be read are two different answers."""
    error = runtime.workspace.feed_error()
    if error is not None:
        raise error
    return {"timeout": True, "waiting": runtime.workspace.waiting()}


async def _peek(runtime: Runtime, limit: int) -> dict[str, Any]:
    mailbox = await runtime.workspace.mailbox()
    shown = await mailbox.peek(limit)
    counts = mailbox.counts()
    result: dict[str, Any] = {"messages": shown, "total": counts.new + counts.leased + counts.parked}
    error = runtime.workspace.feed_error()
    if error is not None:
        result["warning"] = f"{error} Only what had arrived before is shown."
    return result


async def _pop(runtime: Runtime, activity_id: str) -> dict[str, Any]:
    mailbox = await runtime.workspace.mailbox()
    return {"removed": await mailbox.pop(activity_id), "activity_id": activity_id}


async def _reply(runtime: Runtime, activity_id: str, text: str) -> dict[str, Any]:
    workspace = runtime.workspace
    recipient, popped = await messages.reply(workspace.client, await workspace.mailbox(), activity_id, text)
    return {"status": "sent", "to": recipient, "popped": popped}


TOOLS = (
    Tool(
        name="wait_for_message",
        title="Wait for a message",
        description="Wait for the next message from the user or a peer and take it. "
        "Call it at the start of each turn. Answer with reply, or put it away with inbox_pop: until then it is yours "
        "and comes back later. A second call gives the next message.",
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

"""The inbox's tools over a real runtime, where a subprocess could not hit the moment that matters."""

from __future__ import annotations

import asyncio
from pathlib import Path

import anyio
import pytest

from molecule_mcp.tools._base import ToolContext, run_tool
from molecule_mcp.tools.inbox import TOOLS
from molecule_runtime.inbox.journal import Counts, Journal
from tests.mcp.conftest import Running
from tests.runtime.rows import message
from tests.support.platform import eventually

WAIT = next(tool for tool in TOOLS if tool.name == "wait_for_message")


async def no_progress(_done: float, _total: float | None, _text: str) -> None:
    return None


async def test_a_message_leased_for_a_call_that_is_cancelled_at_that_moment_goes_to_the_next(
    running: Running, tmp_path: Path
) -> None:
    """agent-side 5: cancel gives the lease back, also of a message just found; the attempt is not counted."""
    context = ToolContext(running.settings, running.bridge, no_progress)
    waiting = asyncio.create_task(run_tool(WAIT, context, {"timeout_secs": 30}))
    await anyio.sleep(0.05)  # the call is on its way to the runtime's thread; when it arrives does not matter
    (served,) = running.settings.workspaces
    journal = await asyncio.to_thread(lambda: Journal.open(tmp_path / served.id / "inbox.sqlite3"))
    journal.append([message(1)], cursor=None, last_row_at=None, now=1.0)
    # This loop stands still until the runtime's thread has leased the message: nobody here can have seen it.
    eventually(journal.counts, within_s=5, until=lambda counts: counts.leased == 1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await asyncio.to_thread(
        lambda: eventually(journal.counts, within_s=5, until=lambda counts: counts == Counts(new=1))
    )
    again = await run_tool(WAIT, context, {"timeout_secs": 5})
    assert again.payload["message"]["attempt"] == 1
    journal.close()

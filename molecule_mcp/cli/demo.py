"""`molecule-mcp demo`: the main job for real, step by step, in half a minute.

A platform process and an agent process are started as an operator's host would start them; a real MCP client drives
the agent. Times are measured; the first step that is not as it should be ends the demo with a non-zero code. The
platform's stale window is shortened to 3 s, so that the last step need not wait a minute and a half.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from molecule_mcp.cli import _output

STALE_AFTER_S = 3
STEP_LIMIT_S = 20.0
USER_TEXT = "Hello agent, can you hear me? 你好 👋"
REPLY_TEXT = "Loud and clear. 听得很清楚 ✅"


class StepFailed(Exception):
    """A step did not show what it should."""


class Report:
    """The steps as they happen, for a person or as JSON lines."""

    def __init__(self, *, as_json: bool) -> None:
        from rich.console import Console

        self.failed = False
        self._as_json = as_json
        self._console = Console(highlight=False, soft_wrap=True, quiet=as_json)

    @asynccontextmanager
    async def step(self, name: str) -> AsyncIterator[Callable[[str], None]]:
        """Time one step; the yielded function adds a detail to its line.

        Raises:
            StepFailed: the step failed or took longer than `STEP_LIMIT_S`; its line says so.
        """
        details: list[str] = []
        began = time.perf_counter()
        try:
            with self._console.status(name):
                async with asyncio.timeout(STEP_LIMIT_S):
                    yield details.append
        except Exception as error:
            self._show(name, time.perf_counter() - began, [_reason(error)], ok=False)
            raise StepFailed(name) from error
        self._show(name, time.perf_counter() - began, details, ok=True)

    def end(self, seconds: float) -> None:
        """The last line."""
        if self.failed:
            self._console.print("The demo stopped at the step marked ✗.", style="red")
        else:
            self._console.print(f"All of it worked, in {seconds:.1f} s.")

    def _show(self, name: str, seconds: float, details: list[str], *, ok: bool) -> None:
        self.failed |= not ok
        detail = "; ".join(details)
        if self._as_json:
            _output.json_line({"step": name, "ok": ok, "seconds": round(seconds, 3), "detail": detail})
            return
        from rich.text import Text

        mark = ("✓ ", "green") if ok else ("✗ ", "red")
        shown = Text.assemble(mark, (f"{seconds:6.2f} s  ", "dim"), name, (f"  {detail}" if detail else "", "cyan"))
        self._console.print(shown)


def demo(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line for each step.")] = False,
) -> None:
    """Show the whole main job: platform, agent online, a message, its answer, the end."""
    try:
        import uvloop  # noqa: F401 - only to name the extra before anything starts

        import molecule_runtime.reference_platform.app  # noqa: F401
    except ModuleNotFoundError as missing:
        raise typer.Exit(_output.missing_extra("platform", missing.name)) from None
    report = Report(as_json=as_json)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="molecule-demo-") as directory:
        try:
            asyncio.run(_play(report, Path(directory)))
        except StepFailed:
            pass  # the step's own line has said it
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
    report.end(time.perf_counter() - began)
    raise typer.Exit(1 if report.failed else 0)


async def _play(report: Report, directory: Path) -> None:
    from molecule_mcp.cli._canvas import Canvas, next_agent_message

    async with AsyncExitStack() as stack:
        async with report.step("platform started") as note:
            url = await stack.enter_async_context(_platform(directory))
            canvas = await stack.enter_async_context(Canvas(url))
            events = await stack.enter_async_context(canvas.listen())
            note(url)
        async with report.step("workspace created") as note:
            workspace_id, token = await canvas.create_workspace("demo agent")
            await canvas.expect_status("awaiting_agent")
            note(f"{workspace_id}, awaiting_agent")
        agent = await stack.enter_async_context(AsyncExitStack())
        async with report.step("agent online") as note:
            client = await agent.enter_async_context(_agent(url, workspace_id, token, directory))
            await canvas.expect_status("online")
            note(f"MCP {client.protocol_version}, {len((await client.list_tools()).tools)} tools")
        async with report.step("user's message in the agent") as note:
            waiting = asyncio.create_task(client.call_tool("wait_for_message", {"timeout_secs": 15}))
            await canvas.say(USER_TEXT)
            message = _payload(await waiting)["message"]
            _expect(message["text"] == USER_TEXT, f"the agent got {message['text']!r}")
            note(message["text"])
        async with report.step("reply live on /ws") as note:
            answer = {"activity_id": message["activity_id"], "message": REPLY_TEXT}
            sent = _payload(await client.call_tool("reply", answer))
            _expect(sent == {"status": "sent", "to": "user", "popped": True}, f"reply said {sent}")
            live = await next_agent_message(events)
            _expect(live == REPLY_TEXT, f"the canvas heard {live!r}")
            note(live)
        async with report.step("the same reply after a reload") as note:
            bubbles = await canvas.chat()
            _expect(bubbles == [("user", USER_TEXT), ("agent", REPLY_TEXT)], f"chat-history shows {bubbles}")
            note("from /chat-history")
        async with report.step("agent ended"):
            await agent.aclose()
        async with report.step("awaiting_agent") as note:
            await canvas.expect_status("awaiting_agent")
            note(f"stale window of {STALE_AFTER_S} s")


@asynccontextmanager
async def _platform(directory: Path) -> AsyncIterator[str]:
    """The platform as a process of its own; its URL once it answers."""
    from molecule_mcp.cli._canvas import read_json_line
    from molecule_runtime.settings import environment

    env = environment() | {"REMOTE_LIVENESS_STALE_AFTER": str(STALE_AFTER_S), "REMOTE_LIVENESS_SWEEP_S": "0.5"}
    env.pop("ADMIN_TOKEN", None)
    env.pop("MOLECULE_ENV", None)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "molecule_mcp", "platform", "--port", "0", "--json"),
        *("--db", str(directory / "platform.sqlite3")),
        env=env,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield (await read_json_line(process))["url"]
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


@asynccontextmanager
async def _agent(url: str, workspace_id: str, token: str, directory: Path) -> AsyncIterator[Any]:
    """`molecule-mcp` as a host spawns it, behind the MCP SDK's own client."""
    from mcp import Client, StdioServerParameters

    parameters = StdioServerParameters(
        command=sys.executable,
        args=["-m", "molecule_mcp"],
        env={
            "PLATFORM_URL": url,
            "WORKSPACE_ID": workspace_id,
            "MOLECULE_WORKSPACE_TOKEN": token,
            "CONFIGS_DIR": str(directory / "state"),
            "MOLECULE_MCP_HEARTBEAT_SECS": "1",
        },
    )
    async with Client(parameters) as client:
        yield client


def _payload(result: Any) -> dict[str, Any]:
    _expect(not result.is_error, result.content[0].text if result.content else "a tool failed")
    return dict(result.structured_content)


def _expect(condition: bool, otherwise: str) -> None:
    if not condition:
        raise ValueError(otherwise)


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"nothing within {STEP_LIMIT_S:.0f} s"
    return str(error) or type(error).__name__

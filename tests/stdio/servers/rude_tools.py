"""`python -m tests.stdio.servers.rude_tools`: the real server and runtime with tools that do what tools should not."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from molecule_mcp.pipe import Pipe
from molecule_mcp.server import build_server, serve_pipe
from molecule_mcp.tools import ALL_TOOLS
from molecule_mcp.tools._base import Arguments, Hints, Tool, ToolContext
from molecule_runtime import logs
from molecule_runtime.runtime import Runtime, RuntimeThread
from molecule_runtime.settings import Settings, environment
from molecule_runtime.state import StateDir

SECRET = "the words of a crash that nobody outside may read"


class Nothing(Arguments):
    pass


class Seconds(Arguments):
    seconds: float


class Size(Arguments):
    bytes: int


class Text(Arguments):
    text: str


async def shout(_context: ToolContext, _args: Nothing) -> dict[str, Any]:
    """Write to stdout in each way a handler can, without a line end and with half a JSON object."""
    print("stray print")  # noqa: T201
    sys.stdout.write('{"jsonrpc": "2.0", "half":')
    sys.stdout.flush()
    os.write(1, b"stray bytes without an end")
    return {"child_stdin": _children()}


def _children() -> str:
    """A child that prints where we would, and one that reads what we would."""
    subprocess.run([sys.executable, "-c", "print('stray child')"], check=True)
    return subprocess.run(["cat"], capture_output=True, check=True).stdout.decode()


async def block(_context: ToolContext, args: Seconds) -> dict[str, Any]:
    time.sleep(args.seconds)  # noqa: ASYNC251  # blocking the loop is what this tool is for
    return {"blocked": args.seconds}


async def large(_context: ToolContext, args: Size) -> dict[str, Any]:
    return {"text": "x" * args.bytes}


async def measure(_context: ToolContext, args: Text) -> dict[str, Any]:
    return {"length": len(args.text), "head": args.text[:40]}


async def half(_context: ToolContext, _args: Nothing) -> dict[str, Any]:
    """Text that UTF-8 cannot hold, as it might come from a broken peer."""
    return {"text": "half a pair: \ud83d"}


async def crash(_context: ToolContext, _args: Nothing) -> dict[str, Any]:
    raise ZeroDivisionError(SECRET)


HINTS = Hints(read_only=True, destructive=False, idempotent=True, open_world=False)
RUDE_TOOLS = tuple(
    Tool(name=handler.__name__, title=handler.__name__, description="For tests.", arguments=arguments, hints=HINTS,
         handler=handler)
    for handler, arguments in ((shout, Nothing), (block, Seconds), (large, Size), (measure, Text), (crash, Nothing),
                               (half, Nothing))
)  # fmt: skip


def main() -> int:
    logs.configure(stderr_level="WARNING", file=None)
    settings = Settings.from_env(environment())
    pipe = Pipe.claim_stdio()
    pipe.take_signals()
    pipe.start()
    state_dir = StateDir.open(settings.configs_dir, home=Path.home())
    bridge = RuntimeThread(lambda: Runtime(settings, state_dir=state_dir))
    bridge.start()
    server = build_server(settings, bridge, tools=(*ALL_TOOLS, *RUDE_TOOLS))

    async def serve() -> int:
        pipe.serve_from(asyncio.get_running_loop())
        return (await serve_pipe(server, pipe)).exit_code

    try:
        return asyncio.run(serve())
    finally:
        bridge.stop()


if __name__ == "__main__":
    sys.exit(main())

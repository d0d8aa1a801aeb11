"""An agent as its tools see it: a runtime thread at a real platform, and calls of tools by name."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from molecule_mcp.tools._base import ToolContext, ToolResult, run_tool
from molecule_mcp.tools.inbox import TOOLS as INBOX_TOOLS
from molecule_runtime.runtime import Runtime, RuntimeThread
from molecule_runtime.settings import Settings
from molecule_runtime.state import StateDir
from tests.support.platform import eventually

WAIT = INBOX_TOOLS[0]


@dataclass
class Host:
    """An agent with tools. `told` is the progress that its calls have reported."""

    settings: dict[str, str]
    bridge: RuntimeThread
    told: list[tuple[float, float | None]] = field(default_factory=list)

    @property
    def id(self) -> str:
        return self.settings["WORKSPACE_ID"]

    async def call(self, tool: Any, **arguments: Any) -> ToolResult:
        async def progress(done: float, total: float | None, _text: str) -> None:
            self.told.append((done, total))

        return await run_tool(tool, ToolContext(Settings.from_env(self.settings), self.bridge, progress), arguments)

    async def ok(self, tool: Any, **arguments: Any) -> dict[str, Any]:
        result = await self.call(tool, **arguments)
        assert result.payload is not None, result.error_text
        return result.payload

    async def take(self) -> dict[str, Any]:
        found = await self.ok(WAIT, timeout_secs=20)
        message: dict[str, Any] = found["message"]
        return message


@asynccontextmanager
async def hosting(settings: dict[str, str], directory: Path) -> AsyncIterator[Host]:
    told = Settings.from_env(settings)
    bridge = RuntimeThread(lambda: Runtime(told, state_dir=StateDir.open(directory, home=directory)))
    bridge.start()
    try:
        eventually(lambda: bridge.glance(lambda runtime: runtime), within_s=10)
        yield Host(settings, bridge)
    finally:
        assert bridge.stop(5)

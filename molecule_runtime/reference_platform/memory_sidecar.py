"""The memory plugin as a process beside the platform: started before the platform answers, gone when the platform is.

The platform holds the other end of the plugin's stdin. It closes when the platform ends, even by SIGKILL, and then the
plugin ends by itself. A plugin that dies earlier is started again, after a pause that grows while it keeps dying; until
then memories are answered with 502 and everything else works. It has a session of its own, so that a Ctrl-C at the
terminal reaches the platform alone, which then ends the plugin in order.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

import anyio
import structlog

from molecule_runtime.clock import Clock
from molecule_runtime.reference_platform.config import SidecarConfig
from molecule_runtime.reference_platform.services.memory_plugin import MemoryPlugin

GATE_S = 30.0
"""How long the platform's start waits for a healthy plugin (contract 7.5)."""
LOOK_S = 0.05
"""Seconds between two looks at its health."""
STOP_S = 2.5
"""Seconds that it is given to end after its pipe was closed; its own limit is 2."""
PAUSE_FIRST_S = 1.0
PAUSE_LONGEST_S = 30.0
"""Pauses before it is started again, doubling."""
STEADY_S = 60.0
"""One that has lived so long died by accident: the next pause is the first again."""
PLUGIN_COMMAND = (sys.executable, "-m", "molecule_mcp", "memory-plugin", "--parent-pipe", "--json")

log = structlog.get_logger(__name__)


class SidecarFailed(Exception):
    """The plugin did not come up; the text says why."""


class MemorySidecar:
    """Keeps one plugin process running for one platform process."""

    def __init__(
        self,
        config: SidecarConfig | None,
        plugin: MemoryPlugin,
        clock: Clock,
        *,
        command: Sequence[str] = PLUGIN_COMMAND,
        gate_s: float = GATE_S,
    ) -> None:
        self._config = config
        self._plugin = plugin
        self._clock = clock
        self._command = tuple(command)
        self._gate_s = gate_s
        self._has_address = plugin.is_wired
        self._process: asyncio.subprocess.Process | None = None
        self._keeping: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """The plugin's process, while there is one."""
        return None if self._process is None else self._process.pid

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Have a plugin, if one is asked for: the one that serves at the configured address, else one of our own.

        Raises:
            SidecarFailed: it does not come up.
        """
        if self._config is not None and not (self._has_address and await self._plugin.is_healthy()):
            try:
                await self._start(self._config)
            except BaseException:
                await self.stop()
                raise
            self._keeping = asyncio.create_task(self._keep(self._config))
        try:
            yield
        finally:
            await self.stop()

    async def stop(self) -> None:
        """End the plugin, if it is ours and still there."""
        keeping, self._keeping = self._keeping, None
        if keeping is not None:
            keeping.cancel()
            await asyncio.wait((keeping,))
        await self._end()

    async def _start(self, config: SidecarConfig) -> None:
        """Start the process and wait until it is healthy."""
        if config.database is None:
            raise SidecarFailed(
                "its database is not known: beside a platform whose database is a URL, "
                "MEMORY_PLUGIN_DATABASE_URL is required"
            )
        command = [*self._command, *(("--db", config.database) if config.database else ())]
        env = {**config.environment, "MEMORY_PLUGIN_LISTEN_ADDR": config.listen_addr}
        self._process = await asyncio.create_subprocess_exec(
            *command,
            env=env,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        try:
            # Real time, not the platform's clock: it bounds a process.
            with anyio.fail_after(self._gate_s):
                url = await self._announced(self._process)
                if not self._has_address:
                    self._plugin.connect(url)
                while not await self._plugin.is_healthy():
                    if self._process.returncode is not None:
                        raise SidecarFailed(f"it ended with code {self._process.returncode}")
                    await asyncio.sleep(LOOK_S)
        except TimeoutError:
            raise SidecarFailed(f"it is not healthy after {self._gate_s:g} s") from None
        self._plugin.begin_anew()  # what failed at this address before it was there does not count against it
        log.info("memory.sidecar_started", pid=self._process.pid)

    async def _announced(self, process: asyncio.subprocess.Process) -> str:
        """The address from the line that the plugin prints when it answers."""
        assert process.stdout is not None
        line = await process.stdout.readline()
        if not line:
            raise SidecarFailed(f"it ended with code {await process.wait()}")
        try:
            return str(json.loads(line)["url"])
        except (ValueError, KeyError, TypeError):
            raise SidecarFailed("what it prints is not its address") from None

    async def _keep(self, config: SidecarConfig) -> None:
        """Start it again whenever it has died; until cancelled."""
        pause_s = PAUSE_FIRST_S
        while True:
            started = self._clock.monotonic()
            if self._process is not None:
                code = await self._process.wait()
                log.error("memory.sidecar_ended", exit_code=code, retry_s=pause_s)
                if self._clock.monotonic() - started >= STEADY_S:
                    pause_s = PAUSE_FIRST_S
            await self._clock.sleep(pause_s)
            pause_s = min(2 * pause_s, PAUSE_LONGEST_S)
            try:
                await self._start(config)
            except Exception as failure:  # the edge of the loop: whatever it was, the next attempt may succeed
                log.exception("memory.sidecar_failed", detail=str(failure), retry_s=pause_s)
                await self._end()

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        process.stdin.close()
        with anyio.CancelScope(shield=True):
            with anyio.move_on_after(STOP_S):
                await process.wait()
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.kill()
                await process.wait()

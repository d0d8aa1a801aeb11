"""What the agent side's tests share: settings, clients, rows, and ways to wait for a loop without sleeping."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import httpx

from molecule_runtime.client import PlatformClient
from molecule_runtime.clock import ManualClock
from molecule_runtime.credentials import Credentials
from molecule_runtime.settings import Settings, WorkspaceSettings
from molecule_runtime.state import StateDir, WorkspaceState
from tests.reference_platform.support import BASE_URL, Member, Platform
from tests.support.platform import clean_env

from .rows import START, WORKSPACE, message, row

__all__ = ["START", "WORKSPACE", "message", "row"]

GOLDEN = Path(__file__).parents[1] / "golden"
ROOT = Path(__file__).parents[2]
PEER = "22222222-2222-4222-8222-222222222222"
TOKEN = "Canary0123456789-abcdefghijklmnopqrstuvwxyz"
"""43 characters, as platforms make them; no test may find it in a log or in an error."""


def golden(name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((GOLDEN / f"{name}.json").read_text())
    return document


def exchange(name: str, which: str) -> dict[str, Any]:
    """One exchange of a golden file by its name."""
    found: dict[str, Any] = next(one for one in golden(name)["exchanges"] if one["name"] == which)
    return found


def settings(workspace_id: str = WORKSPACE, token: str | None = TOKEN, **env: str) -> Settings:
    """Settings of an agent; `env` adds or replaces variables."""
    given = {"PLATFORM_URL": BASE_URL, "WORKSPACE_ID": workspace_id, **env}
    if token is not None:
        given["MOLECULE_WORKSPACE_TOKEN"] = token
    return Settings.from_env(given)


def workspace_settings(workspace_id: str = WORKSPACE, token: str | None = TOKEN, **env: str) -> WorkspaceSettings:
    """The one workspace of such settings."""
    return settings(workspace_id, token, **env).workspaces[0]


def state_in(directory: Path, workspace_id: str = WORKSPACE) -> WorkspaceState:
    return StateDir.open(directory, home=directory).workspace(workspace_id)


@asynccontextmanager
async def lone_client(
    token: str | None = TOKEN, state: WorkspaceState | None = None, **env: str
) -> AsyncIterator[PlatformClient]:
    """A client without a platform behind it: respx answers."""
    known = settings(token=token, **env)
    (told,) = known.workspaces
    async with PlatformClient(told.platform_url, WORKSPACE, Credentials(told, state), org_id=known.org_id) as client:
        yield client


class Wire(httpx.AsyncBaseTransport):
    """A platform in process, as far away as a socket would make it: a call given up here still ends over there."""

    def __init__(self, platform: Platform) -> None:
        self._there = httpx.ASGITransport(app=platform.app)
        self._running: set[asyncio.Task[httpx.Response]] = set()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        answering = asyncio.create_task(self._there.handle_async_request(request))
        self._running.add(answering)
        answering.add_done_callback(self._running.discard)
        return await asyncio.shield(answering)

    async def aclose(self) -> None:
        if self._running:
            await asyncio.wait(self._running)


@asynccontextmanager
async def client_of(platform: Platform, member: Member, token: str | None = None) -> AsyncIterator[PlatformClient]:
    """The member's client, talking to a platform in process."""
    told = workspace_settings(member.id, token or member.token)
    async with PlatformClient(BASE_URL, member.id, Credentials(told, None), transport=Wire(platform)) as client:
        yield client


async def until(condition: Callable[[], bool | Awaitable[bool]], within_s: float = 5) -> None:
    """Wait until a condition holds, letting everything else run meanwhile."""
    with anyio.fail_after(within_s):
        while True:
            held = condition()
            if held is True or (not isinstance(held, bool) and await held):
                return
            await anyio.lowlevel.checkpoint()


async def idle(clock: ManualClock, sleepers: int = 1) -> None:
    """Wait until so many tasks wait on the clock: the loop under test has done all it does now."""
    for _ in range(10):  # whoever was woken by an event, and not by the clock, gets to run first
        await anyio.lowlevel.checkpoint()
    await until(lambda: clock.sleepers >= sleepers)


async def pass_time(clock: ManualClock, seconds: float, sleepers: int = 1) -> None:
    """Move the clock and wait until the loop under test waits on it again."""
    await idle(clock, sleepers)
    clock.advance(seconds)
    await idle(clock, sleepers)


@asynccontextmanager
async def running(work: Callable[[], Awaitable[None]]) -> AsyncIterator[asyncio.Task[None]]:
    """A loop under test as a task, cancelled at the end; its failure is the test's."""

    async def run() -> None:
        await work()

    task = asyncio.create_task(run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait((task,))
        if not task.cancelled() and task.exception() is not None:
            raise task.exception()  # type: ignore[misc]


@asynccontextmanager
async def ticking(clock: ManualClock, step_s: float = 0.25) -> AsyncIterator[None]:
    """Let the clock run: a step whenever somebody waits on it."""

    async def tick() -> None:
        while True:
            if clock.sleepers:
                clock.advance(step_s)
            for _ in range(20):
                await anyio.lowlevel.checkpoint()

    async with running(tick):
        yield


def python(code: str, *arguments: object, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a program of a few lines in a process of its own; AssertionError with its stderr when it fails."""
    done = spawn(code, *arguments, **env)
    stdout, stderr = done.communicate(timeout=30)
    assert done.returncode == 0, stderr
    return subprocess.CompletedProcess(done.args, done.returncode, stdout, stderr)


def spawn(code: str, *arguments: object, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT,
        env=clean_env(PYTHONPATH=str(ROOT), **env),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )

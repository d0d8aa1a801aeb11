"""The runtime on its thread, and the one bridge to it."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
import respx

from molecule_runtime import __version__
from molecule_runtime.clock import ManualClock
from molecule_runtime.errors import StateDirUnwritable
from molecule_runtime.runtime import Runtime, RuntimeThread
from molecule_runtime.state import StateDir
from molecule_runtime.workspace import Roles
from tests.reference_platform.support import BASE_URL

from .support import WORKSPACE, settings, until


def runtime_of(directory: Path, *, clock: ManualClock | None = None, **env: str) -> Runtime:
    """A runtime that is still in its quiet first second, so nothing leaves this machine."""
    state = StateDir.open(directory, home=directory)
    return Runtime(
        settings(**env),
        state_dir=state,
        clock=clock or ManualClock(),
        log_file=directory / "log",
        transport=httpx.MockTransport(lambda request: httpx.Response(503, json={"error": "later"})),
    )


@contextmanager
def started(make: Callable[[], Runtime]) -> Iterator[RuntimeThread]:
    bridge = RuntimeThread(make)
    bridge.start()
    try:
        yield bridge
    finally:
        assert bridge.stop(5)


@pytest.fixture
def bridge(tmp_path: Path) -> Iterator[RuntimeThread]:
    with started(lambda: runtime_of(tmp_path)) as bridge:
        yield bridge


async def ident(_runtime: Runtime) -> int:
    return threading.get_ident()


async def test_work_is_done_in_the_runtimes_own_thread(bridge: RuntimeThread) -> None:
    """design: presence must not depend on tools."""
    with anyio.fail_after(5):
        first, second = await bridge.call(ident), await bridge.call(ident)
    assert first == second != threading.get_ident()


async def test_what_work_raises_is_raised_here(bridge: RuntimeThread) -> None:
    """design: one bridge; errors cross it as they are."""

    async def fail(_runtime: Runtime) -> None:
        raise StateDirUnwritable(path="/x", reason="no")

    with anyio.fail_after(5), pytest.raises(StateDirUnwritable):
        await bridge.call(fail)
    assert await bridge.call(ident)


@pytest.mark.parametrize("to_the_end", [False, True])
async def test_a_cancellation_here_cancels_there_unless_work_goes_to_its_end(
    bridge: RuntimeThread, to_the_end: bool
) -> None:
    """agent-side 5: a cancelled wait ends; an answer that has begun to leave does not."""
    begun, ended = threading.Event(), threading.Event()
    how: list[str] = []
    go_on = asyncio.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    async def work(_runtime: Runtime) -> None:
        loops.append(asyncio.get_running_loop())
        begun.set()
        try:
            await go_on.wait()
            how.append("finished")
        except asyncio.CancelledError:
            how.append("cancelled")
            raise
        finally:
            ended.set()

    calling = asyncio.create_task(bridge.call(work, to_the_end=to_the_end))
    await until(begun.is_set)
    calling.cancel()
    await asyncio.wait((calling,))
    assert calling.cancelled()
    if to_the_end:
        loops[0].call_soon_threadsafe(go_on.set)
    await until(ended.is_set)
    assert how == ["finished" if to_the_end else "cancelled"]


async def test_a_cast_runs_without_anybody_waiting(bridge: RuntimeThread) -> None:
    """design: what a cancelled caller leaves to be tidied."""
    await bridge.call(ident)
    done = threading.Event()

    async def tidy(_runtime: Runtime) -> None:
        done.set()

    bridge.cast(tidy)
    await until(done.is_set)


async def test_a_call_cancelled_before_the_start_does_not_stop_the_start(tmp_path: Path) -> None:
    """Ours: a host that cancels its first call must find a runtime at its second."""
    may_start = threading.Event()

    def make() -> Runtime:
        may_start.wait(5)
        return runtime_of(tmp_path)

    bridge = RuntimeThread(make)
    bridge.cast(ident)
    assert bridge.glance(lambda runtime: runtime) is None
    bridge.start()
    early = asyncio.create_task(bridge.call(ident))
    await anyio.lowlevel.checkpoint()
    early.cancel()
    await asyncio.wait((early,))
    may_start.set()
    with anyio.fail_after(5):
        assert await bridge.call(ident)
    assert bridge.stop(5)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_runtime_that_cannot_be_made_says_why_to_every_caller() -> None:
    """Ours: a crash at the start surfaces; nobody waits for ever."""

    def make() -> Runtime:
        raise StateDirUnwritable(path="/x", reason="no")

    bridge = RuntimeThread(make)
    bridge.start()
    with anyio.fail_after(5):
        for _ in range(2):
            with pytest.raises(StateDirUnwritable):
                await bridge.call(ident)
    bridge.cast(ident)
    assert bridge.glance(lambda runtime: runtime) is None
    assert bridge.stop(5)


async def test_a_stop_ends_within_its_bound_while_calls_hang(tmp_path: Path) -> None:
    """agent-side 2: gone within 0.5 s; waiting tools are cancelled."""
    bridge = RuntimeThread(lambda: runtime_of(tmp_path))
    bridge.start()
    begun = threading.Event()

    async def hang(_runtime: Runtime) -> None:
        begun.set()
        await asyncio.Event().wait()

    hanging = asyncio.create_task(bridge.call(hang))
    await until(begun.is_set)
    assert await anyio.to_thread.run_sync(bridge.stop) is True
    with anyio.fail_after(5):
        await asyncio.wait((hanging,))
    assert hanging.cancelled() or hanging.exception() is not None
    with anyio.fail_after(5), pytest.raises(RuntimeError):
        await bridge.call(ident)
    bridge.cast(ident)
    assert bridge.stop(5)


async def test_a_stop_does_not_wait_for_what_will_not_end(tmp_path: Path) -> None:
    """agent-side 2: what is left is cut off, as a kill would."""
    bridge = RuntimeThread(lambda: runtime_of(tmp_path))
    bridge.start()
    begun, release = threading.Event(), threading.Event()

    async def block(_runtime: Runtime) -> None:
        begun.set()
        release.wait(5)

    blocking = asyncio.create_task(bridge.call(block))
    await until(begun.is_set)
    assert await anyio.to_thread.run_sync(bridge.stop, 0.01) is False
    release.set()
    await asyncio.wait((blocking,))
    assert bridge.stop(5)


async def test_the_status_has_the_promised_shape(bridge: RuntimeThread, tmp_path: Path) -> None:
    """agent-side 5, runtime_status."""

    async def snapshot(runtime: Runtime) -> dict[str, Any]:
        await until(lambda: runtime.workspaces[0]._beat.held)
        return await runtime.snapshot()

    with anyio.fail_after(5):
        shown = await bridge.call(snapshot)
    (workspace,) = shown.pop("workspaces")
    assert shown == {"version": __version__, "log_file": str(tmp_path / "log"), "problems": []}
    assert workspace == {
        "id": WORKSPACE,
        "name": "molecule-mcp-11111111",
        "platform_url": BASE_URL,
        "presence": {
            "state": "starting",
            "since": "2026-01-01T00:00:00.000000Z",
            "last_ok_at": None,
            "last_error": None,
        },
        "inbox": {"new": 0, "leased": 0, "parked": 0, "files_pending": 0},
        "owner": {"beat": True, "inbox": workspace["owner"]["inbox"], "pid": os.getpid()},
    }


@pytest.mark.parametrize(
    ("env", "roles", "effective"),
    [
        ({}, Roles(), Roles()),
        ({"MOLECULE_MCP_DISABLE_HEARTBEAT": "1"}, Roles(), Roles(beats=False)),
        ({"MOLECULE_MCP_DISABLE_INBOX": "1"}, Roles(), Roles(reads_inbox=False)),
        ({}, Roles(beats=False), Roles(beats=False)),
        ({"MOLECULE_MCP_DISABLE_INBOX": "1"}, Roles(beats=False), Roles(beats=False, reads_inbox=False)),
    ],
)
async def test_a_job_is_done_when_both_settings_and_command_allow_it(
    tmp_path: Path, env: dict[str, str], roles: Roles, effective: Roles
) -> None:
    """agent-side 1: for hosts that do it themselves."""
    told = settings(**env)
    runtime = Runtime(told, state_dir=StateDir.open(tmp_path, home=tmp_path), roles=roles)
    assert runtime.workspaces[0]._roles == effective


@respx.mock
async def test_a_state_directory_that_fell_back_or_is_missing_is_a_problem_shown(tmp_path: Path) -> None:
    """agent-side 8: state errors in runtime_status."""
    file = tmp_path / "file"
    file.write_text("")
    fallen = Runtime(settings(), state_dir=StateDir.open(file / "x", home=tmp_path))
    gone = Runtime(settings(), state_dir=StateDirUnwritable(path="/x", reason="read-only"))
    (tmp_path / WORKSPACE).write_text("")
    blocked = Runtime(settings(), state_dir=StateDir(tmp_path))
    problems = [[one["id"] for one in (await runtime.snapshot())["problems"]] for runtime in (fallen, gone, blocked)]
    assert problems == [["state.fallback"], ["inbox.unusable"], ["inbox.unusable"]]


def test_a_stop_that_comes_before_the_start_is_heeded(tmp_path: Path) -> None:
    """ours: a host that closes the pipe during start-up must not wait for the time limit."""
    made = threading.Event()
    may_go_on = threading.Event()

    def make() -> Runtime:
        made.set()
        may_go_on.wait(5)
        return runtime_of(tmp_path)

    bridge = RuntimeThread(make)
    bridge.start()
    assert made.wait(5)
    assert not bridge.stop(0.0), "it cannot have ended yet"
    may_go_on.set()
    assert bridge.stop(5)

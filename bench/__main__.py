"""Run every case and print two tables, times and the agent side's goals: `make bench`.

Two noisy cores say little in seconds: read the ratios of rows of one block, which were measured in turn.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from websockets.asyncio.client import connect

from bench import files
from bench import platform as beating
from bench.agent_side import figures, table_of
from bench.no_doorbell import NoDoorbell
from molecule_runtime.doorbell import websocket_url
from tests.support.host import Host
from tests.support.platform import PlatformProcess, eventually

SERVERS = Path(__file__).parent / "servers"
STARTS = 7
MESSAGES = 40
POLLED_MESSAGES = 8
CALLS = 300


@dataclass(frozen=True)
class Row:
    """One line of the report; times in milliseconds, `floor` the row of the block to divide by."""

    case: str
    what: str
    p50_ms: float
    worst_ms: float
    cpu_ms: float | None = None


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="molecule-bench-") as directory:
        root = Path(directory)
        with PlatformProcess(root / "platform.sqlite3") as platform:
            blocks = [
                commands(),
                startup(platform, root),
                tool_calls(platform, root),
                message_latency(platform, root),
            ]
            found = [*figures(platform, root), *files.figures(platform, root)]
    table = Table("case", "what", "p50 ms", "worst ms", "CPU ms", "ratio to the first")
    for block in blocks:
        for row in block:
            cpu = f"{row.cpu_ms:.0f}" if row.cpu_ms is not None else ""
            ratio = f"{row.p50_ms / block[0].p50_ms:.2f}" if block[0].p50_ms else ""
            table.add_row(row.case, row.what, f"{row.p50_ms:.1f}", f"{row.worst_ms:.1f}", cpu, ratio)
        table.add_section()
    Console().print(table)
    Console().print(table_of(found))
    for load in beating.measure():
        Console().print(beating.table_of(load))


# commands that must not load anything heavy


def commands() -> list[Row]:
    contestants = {
        "python -c pass (floor)": ("-c", "pass"),
        'python -c "import typer" (peer)': ("-c", "import typer"),
        "molecule-mcp --version": ("-m", "molecule_mcp", "--version"),
        "molecule-mcp --help": ("-m", "molecule_mcp", "--help"),
    }
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in contestants}
    for _ in range(STARTS):
        for name, arguments in contestants.items():
            taken[name].append(_run(*arguments))
    return [_row("command", name, times) for name, times in taken.items()]


# startup: spawn -> initialize answered


def startup(platform: PlatformProcess, root: Path) -> list[Row]:
    settings = platform.create_workspace("startup")
    ours = (sys.executable, "-m", "molecule_mcp")
    contestants: dict[str, Callable[[], tuple[float, float]]] = {
        "stdlib loop (floor)": lambda: _start({}, root / "f", (sys.executable, str(SERVERS / "floor.py"))),
        "python -c pass": lambda: _run("-c", "pass"),
        "bare lowlevel server": lambda: _start({}, root / "l", (sys.executable, str(SERVERS / "bare_lowlevel.py"))),
        "molecule-mcp": lambda: _start(settings, root / "state", ours),
    }
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in contestants}
    for _ in range(STARTS):
        for name, run in contestants.items():
            taken[name].append(run())
    return [_row("spawn -> initialize", name, times) for name, times in taken.items()]


def _start(settings: dict[str, str], state: Path, command: tuple[str, ...]) -> tuple[float, float]:
    before = os.times()
    began = time.perf_counter()
    with Host(settings, state=state, command=command) as host:
        host.initialize()
        elapsed = time.perf_counter() - began
        host.close_stdin()
        host.exit_code(within_s=5)
    return elapsed, _children_cpu() - (before.children_user + before.children_system)


def _run(*arguments: str) -> tuple[float, float]:
    before = _children_cpu()
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began, _children_cpu() - before


def _children_cpu() -> float:
    times = os.times()
    return times.children_user + times.children_system


# tool calls: local ones, and the ones that ask the platform


def tool_calls(platform: PlatformProcess, root: Path) -> list[Row]:
    settings = platform.create_workspace("calls")
    floor = (sys.executable, str(SERVERS / "floor.py"))
    lowlevel = (sys.executable, str(SERVERS / "bare_lowlevel.py"))
    rows = []
    with (
        Host({}, state=root / "cf", command=floor) as floor_host,
        Host({}, state=root / "cl", command=lowlevel) as lowlevel_host,
        Host(settings, state=root / "cs") as host,
    ):
        for each in (floor_host, lowlevel_host, host):
            each.initialize()
        eventually(lambda: platform.status(settings["WORKSPACE_ID"]), within_s=10, until=lambda s: s == "online")
        for name, each, tool in (
            ("stdlib loop (floor)", floor_host, "echo"),
            ("bare lowlevel server", lowlevel_host, "echo"),
            ("molecule-mcp inbox_peek", host, "inbox_peek"),
            ("molecule-mcp list_peers (platform)", host, "list_peers"),
        ):
            times = [_timed(lambda each=each, tool=tool: each.call_raw(tool)) for _ in range(CALLS)]  # type: ignore[misc]
            rows.append(_row("tools/call", name, [(seconds, 0.0) for seconds in times], cpu=False))
    return rows


# messages: the user's POST -> the agent's wait_for_message returns


def message_latency(platform: PlatformProcess, root: Path) -> list[Row]:
    rows = [_row("message", "bare WebSocket push (peer)", asyncio.run(_bare_push(platform)), cpu=False)]
    with _online(platform, root / "d1", platform.url) as (host, workspace_id):
        rows.append(_latency("wait_for_message, doorbell", host, platform, workspace_id, MESSAGES))
    with (
        NoDoorbell("127.0.0.1", platform.port) as relay,
        _online(platform, root / "d2", relay.url) as (host, workspace),
    ):
        rows.append(_latency("wait_for_message, polling", host, platform, workspace, POLLED_MESSAGES))
    return rows


@contextmanager
def _online(platform: PlatformProcess, state: Path, url: str) -> Iterator[tuple[Host, str]]:
    settings = platform.create_workspace("latency") | {"PLATFORM_URL": url}
    workspace_id = settings["WORKSPACE_ID"]
    with Host(settings, state=state) as host:
        host.initialize()
        eventually(lambda: platform.status(workspace_id), within_s=10, until=lambda s: s == "online")
        platform.say(workspace_id, "warm up")
        host.call("inbox_pop", activity_id=host.call("wait_for_message", timeout_secs=20)["message"]["activity_id"])
        yield host, workspace_id


def _latency(what: str, host: Host, platform: PlatformProcess, workspace_id: str, count: int) -> Row:
    times = []
    for number in range(count):
        request = host.request("tools/call", {"name": "wait_for_message", "arguments": {"timeout_secs": 30}})
        began = time.perf_counter()
        platform.say(workspace_id, f"message {number}")
        answer = host.answer_to(request, 40)
        times.append((time.perf_counter() - began, 0.0))
        message = answer["result"]["structuredContent"]["message"]
        host.call("inbox_pop", activity_id=message["activity_id"])
    return _row("message", what, times, cpu=False)


async def _bare_push(platform: PlatformProcess) -> list[tuple[float, float]]:
    workspace_id = platform.create_workspace("bare push")["WORKSPACE_ID"]
    times = []
    async with connect(websocket_url(platform.url), close_timeout=0.1) as socket:
        for number in range(MESSAGES):
            began = time.perf_counter()
            posting = asyncio.to_thread(platform.say, workspace_id, f"push {number}")
            task = asyncio.ensure_future(posting)
            async for frame in socket:
                event = json.loads(frame)
                if event["event"] == "ACTIVITY_LOGGED" and event["workspace_id"] == workspace_id:
                    break
            times.append((time.perf_counter() - began, 0.0))
            await task
    return times


def _timed(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _row(case: str, what: str, times: list[tuple[float, float]], *, cpu: bool = True) -> Row:
    elapsed = [seconds * 1000 for seconds, _ in times]
    spent = statistics.median(seconds * 1000 for _, seconds in times)
    return Row(case, what, statistics.median(elapsed), max(elapsed), spent if cpu else None)


if __name__ == "__main__":
    main()

"""The agent side's goals (performance.md) that a time per call does not show: an idle hour, memory, calls side by side.

Each figure stands beside its rival's, measured in the same run. An idle minute is measured for all servers at once;
CPU is what the scheduler counted for every thread, which is finer than the clock ticks of `stat`.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from rich.table import Table

from bench.no_doorbell import NoDoorbell
from tests.support.beats import beats_of
from tests.support.host import Host
from tests.support.platform import PlatformProcess, eventually

SERVERS = Path(__file__).parent / "servers"
BARE = (sys.executable, str(SERVERS / "bare_lowlevel.py"))
POOLED = (sys.executable, str(SERVERS / "bare_pooled.py"))
WARM_UP_S = 70.0
"""Registered, doorbell up, the minute of fast polling after the last traffic over."""
IDLE_S = 60.0
BEAT_S = 2
WARM_CALLS = 1_000
MANY_CALLS = 10_000
STARTS = 7
PAIRS = 40
BLOCK = 50
BLOCKS = 8


@dataclass(frozen=True)
class Figure:
    """One line of the report. `goal` is the largest value wanted, None for a rival's figure."""

    case: str
    what: str
    value: float
    unit: str
    goal: float | None = None


def table_of(blocks: Iterable[Iterable[Figure]]) -> Table:
    """The figures beside their goals."""
    table = Table("case", "what", "figure", "unit", "goal", "")
    for block in blocks:
        for figure in block:
            goal = f"{figure.goal:.2f}" if figure.goal is not None else ""
            verdict = ("met" if figure.value <= figure.goal else "MISSED") if figure.goal is not None else ""
            table.add_row(figure.case, figure.what, f"{figure.value:.2f}", figure.unit, goal, verdict)
        table.add_section()
    return table


def figures(platform: PlatformProcess, root: Path) -> list[list[Figure]]:
    """Every case as a block of figures; about five minutes."""
    return [
        first_call(platform, root),
        beside_a_slow_call(platform, root),
        platform_tool(platform, root),
        memory_growth(platform, root),
        idle(platform, root),
    ]


# an idle minute


def idle(platform: PlatformProcess, root: Path) -> list[Figure]:
    """CPU, memory and beats of servers that nobody talks to."""
    with ExitStack() as stack:
        relay = stack.enter_context(NoDoorbell("127.0.0.1", platform.port))
        settings = platform.create_workspace("idle beats")
        hosts = {
            "bare lowlevel server": stack.enter_context(Host({}, state=root / "i0", command=BARE)),
            "molecule-mcp, doorbell": stack.enter_context(online(platform, root / "i1", platform.url)),
            "molecule-mcp, polling": stack.enter_context(online(platform, root / "i2", relay.url)),
            f"molecule-mcp, doorbell, a beat every {BEAT_S} s": stack.enter_context(
                Host(settings, state=root / "i3", MOLECULE_MCP_HEARTBEAT_SECS=str(BEAT_S))
            ),
        }
        for name in list(hosts)[::3]:  # the others are initialized
            hosts[name].initialize()
        for host in hosts.values():
            host.ask("ping")
        time.sleep(WARM_UP_S)
        beats = stack.enter_context(beats_of(platform, settings))
        before = {name: cpu_s(host.process.pid) for name, host in hosts.items()}
        began = time.monotonic()
        heard = beats.collect(for_s=IDLE_S)
        elapsed = time.monotonic() - began
        hours = elapsed / 3600
        hourly = {name: (cpu_s(host.process.pid) - before[name]) / hours for name, host in hosts.items()}
        memory = {name: rss_mb(host.process.pid) for name, host in hosts.items()}
    bare_mb = memory["bare lowlevel server"]
    gaps = [(later - earlier).total_seconds() / BEAT_S for earlier, later in pairwise(heard)]
    doorbell = "molecule-mcp, doorbell"
    return [
        *(Figure("idle", name, value, "CPU s/h", 4.0 if name == doorbell else None) for name, value in hourly.items()),
        *(
            Figure("idle", name, value, "MB RSS", min(90.0, 1.15 * bare_mb) if name == doorbell else None)
            for name, value in memory.items()
        ),
        Figure("beats", f"longest of {len(gaps)} gaps", max(gaps), "periods", 1.05),
    ]


@contextmanager
def online(platform: PlatformProcess, state: Path, url: str) -> Iterator[Host]:
    """A server that has registered, with an inbox of its own."""
    settings = platform.create_workspace(state.name) | {"PLATFORM_URL": url}
    with Host(settings, state=state) as host:
        host.initialize()
        eventually(lambda: platform.status(settings["WORKSPACE_ID"]), within_s=20, until=lambda s: s == "online")
        yield host


def cpu_s(pid: int) -> float:
    """CPU seconds of all threads that live."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def rss_mb(pid: int, which: str = "VmRSS") -> float:
    """Resident memory now, or with VmHWM its highest so far."""
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith(f"{which}:")]
    return int(line.split()[1]) / 1000


# memory over many calls


def memory_growth(platform: PlatformProcess, root: Path) -> list[Figure]:
    found = []
    with Host({}, state=root / "g0", command=BARE) as bare, online(platform, root / "g1", platform.url) as ours:
        bare.initialize()
        for name, host, tool, goal in (
            ("bare lowlevel server", bare, "echo", None),
            ("molecule-mcp inbox_peek", ours, "inbox_peek", 2.0),
        ):
            for _ in range(WARM_CALLS):
                host.call_raw(tool)
            before = rss_mb(host.process.pid)
            for _ in range(MANY_CALLS):
                host.call_raw(tool)
            found.append(
                Figure("memory", f"{name}, {MANY_CALLS} calls", rss_mb(host.process.pid) - before, "MB more", goal)
            )
    return found


# the first call after a spawn


def first_call(platform: PlatformProcess, root: Path) -> list[Figure]:
    settings = platform.create_workspace("first call")
    contestants: dict[str, Callable[[], float]] = {
        "bare lowlevel server": lambda: _first_call({}, root / "f0", BARE, "echo"),
        "molecule-mcp inbox_peek": lambda: _first_call(
            settings, root / "f1", (sys.executable, "-m", "molecule_mcp"), "inbox_peek"
        ),
    }
    return _in_turn("spawn -> first tools/call", contestants, STARTS, goal=1.2)


def _first_call(settings: dict[str, str], state: Path, command: tuple[str, ...], tool: str) -> float:
    began = time.perf_counter()
    with Host(settings, state=state, command=command) as host:
        host.initialize()
        host.call_raw(tool)
        return time.perf_counter() - began


# a call behind a slow one


def beside_a_slow_call(platform: PlatformProcess, root: Path) -> list[Figure]:
    with online(platform, root / "s1", platform.url) as host:

        def alone() -> float:
            began = time.perf_counter()
            host.call_raw("wait_for_message", timeout_secs=0.2)
            return time.perf_counter() - began

        def behind() -> float:
            slow = host.begin("wait_for_message", timeout_secs=0.2)
            began = time.perf_counter()
            host.call_raw("wait_for_message", timeout_secs=0.2)
            elapsed = time.perf_counter() - began
            host.finish(slow)
            return elapsed

        alone()
        return _in_turn("a call of 200 ms", {"alone": alone, "behind another of 200 ms": behind}, PAIRS, goal=1.3)


# a tool that calls the platform


def platform_tool(platform: PlatformProcess, root: Path) -> list[Figure]:
    settings = platform.create_workspace("platform tool")
    with Host(settings, state=root / "p0", command=POOLED) as bare, online(platform, root / "p1", platform.url) as ours:
        bare.initialize()

        def block(host: Host) -> Callable[[], float]:
            def run() -> float:
                began = time.perf_counter()
                for _ in range(BLOCK):
                    host.call_raw("list_peers")
                return (time.perf_counter() - began) / BLOCK

            run()
            return run

        contestants = {"bare lowlevel, pooled httpx": block(bare), "molecule-mcp list_peers": block(ours)}
        return _in_turn("tool that calls the platform", contestants, BLOCKS, goal=1.15)


def _in_turn(case: str, contestants: dict[str, Callable[[], float]], rounds: int, *, goal: float) -> list[Figure]:
    """Medians of runs taken in turn, the first contestant's being the measure; and the median of the ratios."""
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            taken[name].append(run() * 1000)
    return side_by_side(case, taken, goal=goal)


def side_by_side(case: str, taken: dict[str, list[float]], *, goal: float) -> list[Figure]:
    """Medians in ms, and the median of the ratios of runs of one turn: ours, which is the second, to its rival's."""
    rival, ours = taken
    ratio = statistics.median(mine / its for its, mine in zip(taken[rival], taken[ours], strict=True))
    medians = [Figure(case, name, statistics.median(times), "ms") for name, times in taken.items()]
    return [*medians, Figure(case, f"{ours} / {rival}", ratio, "times", goal)]

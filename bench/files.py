"""Files on their way to the agent: against a bare download, in memory, and from a platform that is far away.

Time is taken beside a rival in this very process, which reads the same bytes from the same platform process; memory is
a real server's. Both leave out what the user's upload costs.

Alone: `python -m bench.files`.
"""

from __future__ import annotations

import asyncio
import math
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console

from bench.agent_side import Figure, online, rss_mb, side_by_side, table_of
from bench.far_away import far_away
from molecule_runtime import logs
from molecule_runtime.client import PlatformClient
from molecule_runtime.clock import SystemClock
from molecule_runtime.credentials import Credentials
from molecule_runtime.inbox.classify import FilePart, UploadNotice
from molecule_runtime.inbox.files import FileRecord, FileState
from molecule_runtime.inbox.journal import Journal
from molecule_runtime.inbox.uploads import Uploads
from molecule_runtime.settings import Settings
from tests.support.host import Host
from tests.support.platform import PlatformProcess, eventually
from tests.support.uploads import drop, file_id, mention, noise, upload

LARGE_BYTES = 25_000_000
LARGE_ROUNDS = 9
SMALL_FILES = 32
SMALL_BYTES = 4_000
SMALL_ROUNDS = 5
LATENCY_S = 0.05
GROWTH_MB = 16.0


def figures(platform: PlatformProcess, root: Path) -> list[list[Figure]]:
    """Every case as a block of figures; about a minute."""
    logs.configure(stderr_level="WARNING", file=None)
    return [
        asyncio.run(large_file(platform, root / "large")),
        asyncio.run(small_files_far_away(platform, root / "small")),
        memory(platform, root),
    ]


class Agent:
    """What an agent does with files, and nothing else of it: journal, fetching, acks."""

    def __init__(self, settings: dict[str, str], directory: Path) -> None:
        (directory / "files").mkdir(parents=True)
        (told,) = Settings.from_env(settings).workspaces
        self._journal = Journal.open(directory / "inbox.sqlite3")
        self._client = PlatformClient(told.platform_url, told.id, Credentials(told, None))
        self._changed = asyncio.Event()
        self._uploads = Uploads(
            self._client,
            self._journal,
            directory / "files",
            clock=SystemClock(),
            quota_bytes=10_000_000_000,
            on_change=self._on_change,
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with self._client:
            task = asyncio.create_task(self._uploads.run())
            try:
                yield
            finally:
                task.cancel()
                await asyncio.wait([task])
                self._journal.close()

    async def stage(self, uploaded: list[dict[str, Any]]) -> float:
        """Seconds from the moment the notices are read until all files are staged."""
        notices = [
            UploadNotice("", file_id(one), FilePart(one["name"], one["uri"], size=one["size"], file_id=file_id(one)))
            for one in uploaded
        ]
        began = time.perf_counter()
        now = time.time()
        await self._journal.off_loop(self._journal.append, [], notices=notices, cursor=None, last_row_at=None, now=now)
        self._uploads.kick()
        while self._pending():
            self._changed.clear()
            await self._changed.wait()
        return time.perf_counter() - began

    async def acked(self) -> None:
        """Wait until nothing is left to do."""
        await asyncio.to_thread(eventually, self._unacked, within_s=60, until=lambda records: not records)

    def _unacked(self) -> list[FileRecord]:
        return self._journal.files.due(math.inf, {FileState.STAGED}, limit=1)

    def _pending(self) -> int:
        return self._journal.counts().files_pending

    async def _on_change(self) -> None:
        self._changed.set()


class Bare:
    """The rival: a pooled httpx client that streams to files, one after the other, and knows nothing else."""

    def __init__(self, settings: dict[str, str], directory: Path) -> None:
        directory.mkdir(parents=True)
        self._directory = directory
        self._path = f"/workspaces/{settings['WORKSPACE_ID']}/pending-uploads"
        self.http = httpx.AsyncClient(
            base_url=settings["PLATFORM_URL"],
            headers={"Authorization": f"Bearer {settings['MOLECULE_WORKSPACE_TOKEN']}"},
            trust_env=False,
        )

    async def fetch(self, uploaded: list[dict[str, Any]]) -> float:
        """Seconds for all of them."""
        began = time.perf_counter()
        for one in uploaded:
            async with self.http.stream("GET", f"{self._path}/{file_id(one)}/content") as answer:
                answer.raise_for_status()
                with (self._directory / file_id(one)).open("wb") as file:
                    async for chunk in answer.aiter_bytes():
                        file.write(chunk)
        return time.perf_counter() - began


async def large_file(platform: PlatformProcess, directory: Path) -> list[Figure]:
    settings = platform.create_workspace("a large file")
    content = noise(LARGE_BYTES)
    agent, bare = Agent(settings, directory / "agent"), Bare(settings, directory / "bare")
    async with bare.http, agent.running():
        return await _beside(
            "stage 25 MB",
            bare,
            agent,
            lambda: upload(platform, settings["WORKSPACE_ID"], [("large.bin", content)]),
            rounds=LARGE_ROUNDS,
            names=("bare httpx to a file", "molecule-mcp"),
            goal=3.0,
        )


async def small_files_far_away(platform: PlatformProcess, directory: Path) -> list[Figure]:
    content = noise(SMALL_BYTES)
    with far_away(platform.port, LATENCY_S) as url:
        settings = platform.create_workspace("small files") | {"PLATFORM_URL": url}
        agent, bare = Agent(settings, directory / "agent"), Bare(settings, directory / "bare")
        async with bare.http, agent.running():
            return await _beside(
                f"stage {SMALL_FILES} small files, platform {LATENCY_S * 1000:.0f} ms away",
                bare,
                agent,
                lambda: upload(platform, settings["WORKSPACE_ID"], [("small", content)] * SMALL_FILES),
                rounds=SMALL_ROUNDS,
                names=("bare httpx, one by one", "molecule-mcp"),
                goal=0.5,
            )


async def _beside(
    case: str,
    bare: Bare,
    agent: Agent,
    prepare: Callable[[], list[dict[str, Any]]],
    *,
    rounds: int,
    names: tuple[str, str],
    goal: float,
) -> list[Figure]:
    """The rival first in each round: what the agent has acked nobody can read any more."""
    taken: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        uploaded = await asyncio.to_thread(prepare)
        await bare.fetch(uploaded)  # the platform reads its database from the disk only now
        for name, run in zip(names, (bare.fetch, agent.stage), strict=True):
            taken[name].append(await run(uploaded) * 1000)
        await agent.acked()
    return side_by_side(case, taken, goal=goal)


def memory(platform: PlatformProcess, root: Path) -> list[Figure]:
    """How far a server's memory grows above what it had before, at its highest."""
    found = []
    for count in (1, 4):
        with online(platform, root / f"m{count}", platform.url) as host:
            workspace_id = host.call("runtime_status")["workspaces"][0]["id"]

            def next_message(host: Any = host) -> None:
                (status,) = {
                    one["status"]
                    for one in host.call("wait_for_message", 60, timeout_secs=50)["message"]["attachments"]
                }
                assert status == "staged"

            drop(platform, workspace_id, [("warm up", b"1")])
            next_message()
            before = rss_mb(host.process.pid)
            Path(f"/proc/{host.process.pid}/clear_refs").write_text("5")  # forget the highest so far
            uploaded = [
                one for _ in range(count) for one in upload(platform, workspace_id, [("large", noise(LARGE_BYTES))])
            ]
            mention(platform, workspace_id, "look", uploaded)
            _staged_message(host)
            grown = rss_mb(host.process.pid, "VmHWM") - before
            found.append(Figure("memory", f"while {count} x 25 MB are staged", grown, "MB more", GROWTH_MB))
    return found


def _staged_message(host: Host) -> None:
    message = host.call("wait_for_message", 60, timeout_secs=50)["message"]
    assert {attachment["status"] for attachment in message["attachments"]} == {"staged"}


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="molecule-files-") as directory:
        root = Path(directory)
        with PlatformProcess(root / "platform.sqlite3") as platform:
            Console().print(table_of(figures(platform, root)))


if __name__ == "__main__":
    main()

"""`python -m tests.support.crew PLAN`: agents of one workspace as processes that are born and killed all the time.

The library is imported once and every agent is a fork of that: real processes with a loop, a journal connection and
locks of their own, for milliseconds of CPU instead of a second. What each does is written to a file of its own at once,
so that a kill leaves an honest record. `Crew` is the test's side.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import select
import signal
import sqlite3
import ssl
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from molecule_runtime import logs
from molecule_runtime.errors import MoleculeError
from molecule_runtime.runtime import Runtime
from molecule_runtime.settings import Settings, environment
from molecule_runtime.state import StateDir
from tests.support.platform import clean_env

MAX_STATEMENT = 200
"""A life that opens the journal, reads a page, and takes and pops a dozen messages makes as many statements of SQL."""

NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Nothing is encrypted here, and building a client's usual context is most of what a life would cost."""


@dataclass(frozen=True)
class Plan:
    """A crew keeps `size` agents going. Each is killed at a moment within `longest_s`, every other one also from inside
    before a statement of SQL should it come to that first, and replaced, until the crew is told to be gentle."""

    records: str
    size: int
    seed: int
    longest_s: float
    takes_messages: bool = True
    """Without it an agent is only there: it beats, or reads the feed, or waits to do so."""
    max_statement: int = MAX_STATEMENT
    """Who is to die from inside dies before one of so many statements of SQL ..."""
    statements: str = ""
    """... that begin so."""


@dataclass(frozen=True)
class Life:
    """One agent. `died` is None while it lives; times are `time.monotonic`, the same in all processes."""

    number: int
    pid: int
    began: float
    died: float | None = None


@dataclass(frozen=True)
class Deed:
    """One line of an agent's record: it `got` a message in an attempt, or its pop was answered."""

    life: int
    what: str
    activity_id: str
    value: int | bool | str
    at: float


class Crew:
    """The test's side: starts a crew, waits for its deaths, ends it and reads its records."""

    def __init__(self, settings: dict[str, str], *, state: Path, plan: Plan, **env: str) -> None:
        self._records = Path(plan.records)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.crew", json.dumps(asdict(plan))],
            env=clean_env(CONFIGS_DIR=str(state), **settings, **env),
            stdin=subprocess.PIPE,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def be_gentle(self) -> None:
        """Kill nobody any more; a life that is to die at a statement still does."""
        self._tell("gentle")

    def kill_now(self) -> None:
        """Kill whoever lives at this moment, and go on as before."""
        self._tell("kill")

    def end(self) -> None:
        """Kill every agent, and wait until all are gone."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert self._process.wait(30) == 0

    def _tell(self, word: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{word}\n".encode())
        self._process.stdin.flush()

    def lives(self) -> dict[int, Life]:
        """Every agent so far, by number."""
        file = self._records / "lives"
        lines = file.read_text().splitlines() if file.exists() else []
        return {life.number: life for life in (Life(**json.loads(line)) for line in lines)}

    def deaths(self) -> int:
        return sum(life.died is not None for life in self.lives().values())

    def deeds(self) -> list[Deed]:
        """What all agents did, in the order of time."""
        lines = [line for file in self._records.glob("life-*") for line in file.read_text().splitlines()]
        return sorted((Deed(**json.loads(line)) for line in lines), key=lambda deed: deed.at)


def append_to(file: Path) -> Callable[[dict[str, Any]], None]:
    """Write lines that a kill can neither lose nor tear."""
    descriptor = os.open(file, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)

    def append(record: dict[str, Any]) -> None:
        os.write(descriptor, json.dumps(record).encode() + b"\n")

    return append


def die_before_statement(number: int, beginning: str) -> None:
    """Kill this process at its n-th statement of SQL that begins so: inside a page, between a lease and its commit,
    anywhere."""
    connect, left = sqlite3.connect, [number]

    def count(statement: str) -> None:
        left[0] -= statement.startswith(beginning)
        if left[0] <= 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def traced(*args: Any, **options: Any) -> sqlite3.Connection:
        connection = connect(*args, **options)
        connection.set_trace_callback(count)
        return connection

    sqlite3.connect = traced  # type: ignore[assignment]


async def live(number: int, append: Callable[[dict[str, Any]], None], *, takes_messages: bool) -> None:
    """The life of an agent: take the next message, put it away, again and again."""

    def record(what: str, activity_id: str, value: int | bool | str) -> None:
        append(asdict(Deed(number, what, activity_id, value, time.monotonic())))

    settings = Settings.from_env(environment())
    state_dir = StateDir.open(settings.configs_dir, home=Path.home())
    runtime = Runtime(settings, state_dir=state_dir, transport=httpx.AsyncHTTPTransport(verify=NO_TLS))
    running = asyncio.create_task(runtime.run())
    if not takes_messages:
        await running
    while not running.done():
        try:
            mailbox = await runtime.route().mailbox()
            found = await mailbox.wait(5, key=uuid.uuid4().hex)
            if found is None:
                continue
            record("got", found["activity_id"], found["attempt"])
            record("popped", found["activity_id"], await mailbox.pop(found["activity_id"]))
        except MoleculeError as error:
            record("failed", "", f"{type(error).__name__}: {error}")
            await asyncio.sleep(0.1)
    running.result()


def be_born(plan: Plan, number: int, chance: random.Random, *, is_gentle: bool) -> tuple[int, float | None]:
    """Fork an agent; its pid, and when it is to be killed from outside."""
    from_inside = chance.random() < 0.5
    statement, lasts_s = chance.randint(1, plan.max_statement), chance.uniform(0, plan.longest_s)
    pid = os.fork()
    if pid:
        return pid, None if is_gentle else time.monotonic() + lasts_s
    try:
        if from_inside and not is_gentle:
            die_before_statement(statement, plan.statements)
        append = append_to(Path(plan.records) / f"life-{number}")
        try:
            asyncio.run(live(number, append, takes_messages=plan.takes_messages))
        except Exception as bug:  # noqa: BLE001  # whatever it is, the test must hear of it
            append(asdict(Deed(number, "failed", "", f"{type(bug).__name__}: {bug}", time.monotonic())))
    finally:
        os._exit(1)


def main() -> int:
    plan = Plan(**json.loads(sys.argv[1]))
    logs.configure(stderr_level="ERROR", file=None)
    chance = random.Random(plan.seed)
    append = append_to(Path(plan.records) / "lives")
    living: dict[int, tuple[Life, float | None]] = {}
    born = 0
    is_gentle = is_over = is_now = False
    while not is_over or living:
        while not is_over and len(living) < plan.size:
            began = time.monotonic()
            pid, ends = be_born(plan, born, chance, is_gentle=is_gentle)
            living[pid] = (Life(born, pid, began), ends)
            append(asdict(living[pid][0]))
            born += 1
        now = time.monotonic()
        for pid, (_, ends) in living.items():
            if is_over or is_now or (ends is not None and ends <= now and not is_gentle):
                os.kill(pid, signal.SIGKILL)
        while living and (pid := os.waitpid(-1, os.WNOHANG)[0]):
            life, _ = living.pop(pid)
            append(asdict(life) | {"died": time.monotonic()})
        is_now = False
        if select.select([sys.stdin], [], [], 0.01)[0]:
            said = os.read(0, 64)
            is_now, is_over = b"kill" in said, not said
            is_gentle = is_gentle or is_over or b"gentle" in said
    return 0


if __name__ == "__main__":
    sys.exit(main())

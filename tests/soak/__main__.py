"""Run it: `python -m tests.soak --agents 10 --jobs 500 --seconds 120 --seed 7`; 0 when everything was as it must be.

Every life of an agent is a fork of this process, which has imported the library once: a real process with a runtime, a
journal connection and locks of its own, for milliseconds of CPU instead of a second. Each is killed (-9) at a moment by
chance, every other one from inside before a statement of SQL should it come to that first, and followed by the next.
The platform is a process that is killed and started again on its port and its database.

The seed names the jobs, the moments and the statements; which of them meet is the machine's doing.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import random
import secrets
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import anyio
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from molecule_runtime import logs
from tests.soak.books import COMPLETED, LEDGER, ROWS, Books, Database, open_messages
from tests.soak.life import live, note_in, notes_of
from tests.soak.work import jobs_of
from tests.support.crew import die_before_statement
from tests.support.platform import PlatformProcess, clean_env

MAX_STATEMENT = 600
"""Who is to die from inside dies before one of so many statements of SQL: about what a life makes in a few seconds."""
PLATFORM_DOWN_S = 1.0
"""The platform is started again within this time."""
LOOKED_EVERY_S = 0.25
FAULTS_SHOWN = 20
BAD_SIGNS = ("level='error'", "level='critical'", "Traceback")
"""Of a line of agents' or platform's log: something that nobody had thought of."""


@dataclass(frozen=True)
class Plan:
    agents: int
    jobs: int
    seconds: float
    seed: int
    restarts: int
    longest_life_s: float
    database: str | None


@dataclass
class _Life:
    agent: int
    ends: float
    """When it is killed from outside, by `time.monotonic`."""


@dataclass(frozen=True)
class Outcome:
    """What the summary shows. `cpu_s` is the CPU time of all processes, in seconds."""

    completed: int
    kills: int
    deaths_from_inside: int
    restarts: int
    seconds: float
    cpu_s: float
    errors_met: Counter[str]
    seen_twice: Counter[str]
    faults: list[str]


@dataclass
class Soak:
    """One run, in a directory of its own. The caller sees to it that no threads run here: this forks."""

    plan: Plan
    directory: Path
    kills: int = 0
    deaths_from_inside: int = 0
    restarts: int = 0
    _living: dict[int, _Life] = field(default_factory=dict)
    _born: int = 0
    _faults: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        plan = self.plan
        self._chance = random.Random(plan.seed)
        self._state, self._records = self.directory / "state", self.directory / "records"
        self._records.mkdir()
        self._log = os.open(self.directory / "stderr", os.O_CREAT | os.O_APPEND | os.O_RDWR, 0o600)
        self._where = plan.database or str(self.directory / "platform.sqlite3")
        self._database = Database(self._where)
        self._jobs = [
            jobs_of(agent, agents=plan.agents, jobs=plan.jobs, seed=plan.seed) for agent in range(plan.agents)
        ]

    def run(self) -> Outcome:
        began = time.monotonic()
        deadline = began + self.plan.seconds
        self._platform = PlatformProcess(self._where, stderr=self._log)
        try:
            self._team = [self._platform.create_workspace(f"Agent {n}") for n in range(self.plan.agents)]
            self._ids = [settings["WORKSPACE_ID"] for settings in self._team]
            self._run_until_all_is_done(deadline)
        finally:
            for pid in self._living:
                os.kill(pid, signal.SIGKILL)
            for pid in self._living:
                os.waitpid(pid, 0)
            self._platform.stop()
        return self._judge(time.monotonic() - began)

    def _run_until_all_is_done(self, deadline: float) -> None:
        moments = sorted(self._chance.uniform(0.1, 0.9) * self.plan.jobs for _ in range(self.plan.restarts))
        comes_back, looked = 0.0, 0.0
        is_up = True
        while (now := time.monotonic()) < deadline:
            self._keep_alive(now)
            self._reap()
            if not is_up and now >= comes_back:
                self._platform = PlatformProcess(self._where, port=self._platform.port, stderr=self._log)
                is_up = True
                self.restarts += 1
            if now - looked >= LOOKED_EVERY_S:
                looked = now
                noted = len({note.delegation_id for note in notes_of(self._records) if note.what == "result"})
                if is_up and moments and noted >= moments[0]:
                    moments.pop(0)
                    self._platform.kill()
                    self._platform.stop()
                    is_up, comes_back = False, time.monotonic() + self._chance.uniform(0, PLATFORM_DOWN_S)
                if noted >= self.plan.jobs and is_up and not open_messages(self._state, self._ids):
                    return
            time.sleep(0.01)
        self._faults.append(f"it was not done within {self.plan.seconds:g} s")

    def _keep_alive(self, now: float) -> None:
        """See that each agent lives, and end those whose time has come."""
        there = {life.agent for life in self._living.values()}
        for agent in range(self.plan.agents):
            if agent not in there:
                self._be_born(agent)
        for pid, life in self._living.items():
            if life.ends <= now:
                self.kills += 1
                life.ends = float("inf")
                os.kill(pid, signal.SIGKILL)

    def _be_born(self, agent: int) -> None:
        number, chance = self._born, self._chance
        self._born += 1
        lasts_s, seed = chance.uniform(0, self.plan.longest_life_s), f"{self.plan.seed} {number}"
        statement = chance.randint(1, MAX_STATEMENT) if chance.random() < 0.5 else None
        noted = {
            str(note.delegation_id) for note in notes_of(self._records) if note.agent == agent and note.what == "result"
        }
        pid = os.fork()
        if pid:
            self._living[pid] = _Life(agent, time.monotonic() + lasts_s)
            return
        note = note_in(self._records, agent, number)
        try:
            os.dup2(self._log, 2)
            if statement is not None:
                die_before_statement(statement, "")
            env = clean_env(CONFIGS_DIR=str(self._state), **self._team[agent])
            asyncio.run(live(env, self._ids, self._jobs[agent], noted=noted, note=note, seed=seed))
        except BaseException as bug:  # noqa: BLE001  # whatever it is, the judgement must hear of it
            note("bug", None, type(bug).__name__, repr(bug))
        finally:
            os._exit(1)

    def _reap(self) -> None:
        for pid in list(self._living):
            if os.waitpid(pid, os.WNOHANG)[0]:
                self.deaths_from_inside += self._living.pop(pid).ends != float("inf")

    def _judge(self, seconds: float) -> Outcome:
        notes = notes_of(self._records)
        books = Books(
            jobs=[job for jobs in self._jobs for job in jobs],
            ids=self._ids,
            ledger=self._database.rows(LEDGER),
            rows=self._database.rows(ROWS),
            notes=notes,
            left_open=open_messages(self._state, self._ids),
        )
        lines = (self.directory / "stderr").read_text(errors="replace").splitlines()
        logged = [f"an error was logged: {line[:2000]}" for line in lines if any(sign in line for sign in BAD_SIGNS)]
        used = os.times()
        return Outcome(
            completed=int(self._database.rows(COMPLETED)[0][0]),
            kills=self.kills,
            deaths_from_inside=self.deaths_from_inside,
            restarts=self.restarts,
            seconds=seconds,
            cpu_s=used.user + used.system + used.children_user + used.children_system,
            errors_met=Counter(note.value.partition(":")[0] for note in notes if note.what == "failed"),
            seen_twice=books.seen_twice(),
            faults=[*self._faults, *logged, *books.faults()],
        )


def show(plan: Plan, outcome: Outcome, console: Console) -> None:
    table = Table(title=f"Soak, seed {plan.seed}", show_header=False, title_justify="left")
    twice = ", ".join(f"{count} ({ways})" for ways, count in sorted(outcome.seen_twice.items())) or "0"
    met = ", ".join(f"{count} {name}" for name, count in sorted(outcome.errors_met.items())) or "0"
    table.add_row("agents, jobs", f"{plan.agents}, {plan.jobs}")
    table.add_row("completed", str(outcome.completed))
    table.add_row("agents killed", f"{outcome.kills} from outside, {outcome.deaths_from_inside} from inside")
    table.add_row("platform restarts", str(outcome.restarts))
    table.add_row("seconds, of CPU", f"{outcome.seconds:.1f}, {outcome.cpu_s:.1f}")
    table.add_row("deliveries seen twice", twice)
    table.add_row("errors met and outlived", met)
    table.add_row("faults", str(len(outcome.faults)))
    console.print(table)
    for fault in outcome.faults[:FAULTS_SHOWN]:
        console.print(f"[red]fault[/red] {escape(fault)}", soft_wrap=True)


def plan_from(arguments: Sequence[str]) -> Plan:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__.partition("\n")[0])
    parser.add_argument("--agents", type=int, default=10)
    parser.add_argument("--jobs", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=120, help="a run that takes longer has failed")
    parser.add_argument("--seed", type=int, default=None, help="one by chance, when it is not given")
    parser.add_argument("--restarts", type=int, default=2, help="how often the platform is killed and started again")
    parser.add_argument("--longest-life", type=float, default=10, help="seconds until an agent is killed, at most")
    parser.add_argument("--database", default=None, help="URL of an empty PostgreSQL database, instead of SQLite")
    told = parser.parse_args(arguments)
    seed = secrets.randbelow(1_000_000) if told.seed is None else told.seed
    return Plan(
        agents=max(2, told.agents),
        jobs=told.jobs,
        seconds=told.seconds,
        seed=seed,
        restarts=told.restarts,
        longest_life_s=told.longest_life,
        database=told.database,
    )


def main() -> int:
    plan = plan_from(sys.argv[1:])
    console = Console()
    logs.configure(stderr_level="ERROR", file=None)
    console.print(f"{plan.jobs} jobs among {plan.agents} agents, seed {plan.seed}: up to {plan.seconds:.0f} s ...")
    anyio.run(anyio.sleep, 0)  # what is imported at its first use is not imported in every life
    gc.collect()
    gc.freeze()  # nor are all objects copied by the first collection of every life
    with tempfile.TemporaryDirectory(prefix="molecule-soak-") as directory:
        outcome = Soak(plan, Path(directory)).run()
    show(plan, outcome, console)
    return 1 if outcome.faults else 0


if __name__ == "__main__":
    sys.exit(main())

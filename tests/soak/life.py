"""The life of an agent: hand out what is not handed out, do what one is handed, note every result; until a kill.

It does what a careful agent would. The journal says what the lives before this one have handed out; after an error the
same words are tried again; a result is noted before its message is put away. So a kill between the two shows a message
a second time, and nothing else does but asking a second time.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from molecule_runtime.agent import Agent, Message
from molecule_runtime.errors import MoleculeError
from molecule_runtime.inbox.delegations import DelegationRecord
from molecule_runtime.settings import Settings
from tests.soak.work import Job, answer_to, digest_of
from tests.support.crew import append_to

TURN_S = 5.0
AGAIN_S = 0.3
"""The pause before the same is tried again."""
WAITS_S = (0.0, 0.0, 0.0, 0.3, 0.3, 1.0, 5.0)
"""How long a call waits for its result, one of these by chance."""
PAUSE_S = 0.2
"""At most so long between two jobs that are handed out."""
OPEN_AT_MOST = 8
"""An agent waits for results before it hands out more."""
T = TypeVar("T")


@dataclass(frozen=True)
class Note:
    """One line of an agent's record.

    `what` is "result" (`how` says whence, "call", "message" or "status"; `value` is the text's digest), "ended" (a job
    ended otherwise; `value` is how), "popped", "answered", "failed" (an error that was met, and the life went on),
    "odd" (nothing that belongs here) or "bug". `at` is `time.monotonic`, the same in all processes.
    """

    agent: int
    life: int
    what: str
    delegation_id: str | None
    how: str
    value: str
    at: float


Notes = Callable[[str, str | None, str, str], None]


def notes_of(records: Path) -> list[Note]:
    """What all agents have noted, in the order of time."""
    lines = [line for file in records.glob("agent-*") for line in file.read_text().splitlines()]
    return sorted((Note(**json.loads(line)) for line in lines), key=lambda note: note.at)


def note_in(records: Path, agent: int, life: int) -> Notes:
    append = append_to(records / f"agent-{agent}")

    def note(what: str, delegation_id: str | None = None, how: str = "", value: str = "") -> None:
        append(asdict(Note(agent, life, what, delegation_id, how, value, time.monotonic())))

    return note


async def live(
    env: dict[str, str], peers: Sequence[str], jobs: Sequence[Job], *, noted: set[str], note: Notes, seed: str
) -> None:
    """Live until killed, or until the process that began this one is gone.

    `peers` are the workspaces' ids by index; `noted` the delegations whose result an earlier life has noted.
    """
    async with Agent(Settings.from_env(env)) as agent, asyncio.TaskGroup() as tasks:
        life = _Life(agent, peers, jobs, noted, note, random.Random(seed))
        tasks.create_task(life.take())
        tasks.create_task(life.hand_out())
        begun_by = os.getppid()
        while os.getppid() == begun_by:  # noqa: ASYNC110  # nobody can tell us
            await asyncio.sleep(1)
        os._exit(1)


class _Life:
    def __init__(
        self,
        agent: Agent,
        peers: Sequence[str],
        jobs: Sequence[Job],
        noted: set[str],
        note: Notes,
        chance: random.Random,
    ) -> None:
        self._agent = agent
        self._peers = peers
        self._jobs = jobs
        self._noted = noted
        self._note = note
        self._chance = chance
        self._open: set[str] = set()
        self._has_room = asyncio.Event()

    # what is handed out

    async def hand_out(self) -> None:
        handed = await self._again(lambda: self._agent.tasks(len(self._jobs)), "tasks")
        for record in handed:
            delegation_id = str(record.delegation_id)
            if delegation_id in self._noted:
                continue
            if record.told_at is None:
                self._open.add(delegation_id)
            else:  # a call was given the result, which therefore is no message; its life ended before the note
                self._note_end(record, "status")
        names = {record.task.partition(":")[0] + ":" for record in handed}
        for job in self._jobs:
            if job.name not in names:
                await self._wait_for_room()
                await self._hand_over(job)
                await asyncio.sleep(self._chance.uniform(0, PAUSE_S))

    async def _hand_over(self, job: Job) -> None:
        timeout_s = self._chance.choice(WAITS_S)
        record = await self._again(
            lambda: self._agent.delegate(self._peers[job.callee], job.task, timeout_s=timeout_s), "delegate"
        )
        if record.status.is_final:
            self._note_end(record, "call")
        elif record.delegation_id not in self._noted:  # its message may have been quicker
            self._open.add(str(record.delegation_id))

    async def _wait_for_room(self) -> None:
        while len(self._open) >= OPEN_AT_MOST:
            self._has_room.clear()
            await self._has_room.wait()

    async def _again(self, call: Callable[[], Awaitable[T]], what: str) -> T:
        """The same until it succeeds."""
        while True:
            try:
                return await call()
            except MoleculeError as error:
                self._note("failed", None, what, f"{type(error).__name__}: {error}")
                await asyncio.sleep(AGAIN_S)

    # what is handed to it, and what comes back

    async def take(self) -> None:
        while True:
            try:
                message = await self._agent.wait(TURN_S)
                if message is not None:
                    await self._deal_with(message)
            except MoleculeError as error:
                self._note("failed", None, "take", f"{type(error).__name__}: {error}")
                await asyncio.sleep(AGAIN_S)

    async def _deal_with(self, message: Message) -> None:
        delegation_id, text = message["delegation_id"], _whole(message)
        match message["kind"]:
            case "delegation_result" if message["outcome"] == "completed":
                self._note_result(delegation_id, "message", text)
                await self._agent.done(message)
                self._note("popped", delegation_id, "", "")
            case "peer_agent" if delegation_id is not None:
                await self._agent.reply(message, answer_to(text))
                self._note("answered", delegation_id, "", "")
            case _:
                self._note("odd", delegation_id, message["kind"], f"{message.get('outcome')}: {text[:200]}")
                await self._agent.done(message)

    def _note_end(self, record: DelegationRecord, how: str) -> None:
        if record.status == "completed" and record.is_whole and record.text is not None:
            self._note_result(str(record.delegation_id), how, record.text)
        else:
            said = f"{record.status} (whole: {record.is_whole}): {record.error}"
            self._note("ended", record.delegation_id, how, said)

    def _note_result(self, delegation_id: str, how: str, text: str) -> None:
        self._note("result", delegation_id, how, digest_of(text))
        self._noted.add(delegation_id)
        self._open.discard(delegation_id)
        self._has_room.set()


def _whole(message: Message) -> str:
    path = message.get("text_path")
    return str(message["text"]) if path is None else Path(path).read_bytes().decode()

"""What there is to do: each agent's jobs for its peers, by the seed alone, and the one right answer to each.

A task carries its job's number in its first words, as the task of a careful agent would: what `tasks` shows of it is
enough to know it again. One text in eight is long, tasks and answers alike.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass

LONG_REPEATS = 300
"""So often repeated, `FILLER` is longer than what an agent is shown of a text."""
FILLER = "报告：潮位 1.3 m 🌊 at 14:05, and so on. "


@dataclass(frozen=True)
class Job:
    """One job: which agent hands it to which, by their indices. `name` is where its task begins."""

    caller: int
    callee: int
    name: str
    task: str

    @property
    def answer(self) -> str:
        return answer_to(self.task)


def jobs_of(agent: int, *, agents: int, jobs: int, seed: int) -> list[Job]:
    """The jobs that an agent hands out; of `jobs` in all every agent has its share."""
    chance = random.Random(f"{seed} {agent}")
    others = [other for other in range(agents) if other != agent]
    made = []
    for number in range(jobs // agents + (agent < jobs % agents)):
        name = f"Job {agent}-{number} of {seed}:"
        task = f"{name} what is {chance.randrange(1000)} and {chance.randrange(1000)}? {_filler(chance.random())}"
        made.append(Job(agent, chance.choice(others), name, task))
    return made


def answer_to(task: str) -> str:
    """What whoever does this task answers, in whichever of its lives."""
    digest = hashlib.sha256(task.encode()).hexdigest()
    return f"Done, {digest[:16]}. {_filler(int(digest[:8], 16) / 2**32)}"


def digest_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _filler(share: float) -> str:
    return FILLER * (LONG_REPEATS if share < 1 / 8 else 1)

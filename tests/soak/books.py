"""What the platform's database and the agents' own files say at the end, and what of it is not as it must be.

Done once is judged by the platform alone: its ledger, its rows, its inboxes. Delivered is judged by what all lives of
an agent noted together.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg

from tests.soak.life import Note
from tests.soak.work import Job, digest_of

LEDGER = "SELECT delegation_id, caller_id, callee_id, status FROM delegations"
ROWS = (
    "SELECT workspace_id, activity_type, method, status, request_body, response_body, target_id, delegation_id"
    " FROM activity_logs WHERE activity_type IN ('delegation', 'a2a_receive')"
)
COMPLETED = "SELECT COUNT(*) FROM delegations WHERE status = 'completed'"

IN_ONE_LIFE = " in one life"
CROSSED_AT_MOST = 100
"""One job of so many may be answered in the moment between its acceptance and the call's wait: both are given it."""


class Database:
    """The platform's database, read from outside: a SQLite file, or PostgreSQL by its URL."""

    def __init__(self, where: str) -> None:
        self._where = where

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        if "://" in self._where:
            return asyncio.run(self._fetch(query))
        with closing(sqlite3.connect(f"{Path(self._where).as_uri()}?mode=ro", uri=True, timeout=10)) as db:
            return db.execute(query).fetchall()

    async def _fetch(self, query: str) -> list[tuple[Any, ...]]:
        connection = await asyncpg.connect(self._where.replace("+asyncpg", ""))
        try:
            return [tuple(row) for row in await connection.fetch(query)]
        finally:
            await connection.close()


def open_messages(state: Path, workspace_ids: Sequence[str]) -> dict[str, dict[str, int]]:
    """By workspace, how many messages are in which state, of those that are not handled."""
    found: dict[str, dict[str, int]] = {}
    for workspace_id in workspace_ids:
        if not (state / workspace_id / "inbox.sqlite3").exists():
            found[workspace_id] = {"no journal": 1}
            continue
        with closing(sqlite3.connect(state / workspace_id / "inbox.sqlite3", timeout=10)) as journal:
            query = "SELECT state, COUNT(*) FROM messages WHERE state != 'handled' GROUP BY state"
            if counts := dict(journal.execute(query).fetchall()):
                found[workspace_id] = counts
    return found


@dataclass(frozen=True)
class Books:
    """The judgement. `jobs` are all of them; `ids` the agents' workspaces by index."""

    jobs: Sequence[Job]
    ids: Sequence[str]
    ledger: Sequence[tuple[Any, ...]]
    rows: Sequence[tuple[Any, ...]]
    notes: Sequence[Note]
    left_open: Mapping[str, Mapping[str, int]]

    def faults(self) -> list[str]:
        """Everything that is not as it must be, a sentence each."""
        given = self._given()
        return [
            *self._of_jobs(given),
            *self._of_results(given),
            *self._of_notes(given),
            *(f"messages of {one} are left open: {dict(counts)}" for one, counts in self.left_open.items()),
        ]

    def seen_twice(self) -> Counter[str]:
        """How often a result that was noted was noted once more, by the ways: honest ones, unless `faults` has them."""
        ways: Counter[str] = Counter()
        last: dict[str | None, Note] = {}
        for note in self.notes:
            if note.what == "result":
                if (before := last.get(note.delegation_id)) is not None:
                    ways[f"{before.how}, then {note.how}{IN_ONE_LIFE if before.life == note.life else ''}"] += 1
                last[note.delegation_id] = note
        return ways

    def _given(self) -> dict[str, Job]:
        """The job of each delegation that the platform knows."""
        by_task = {job.task: job for job in self.jobs}
        found = {}
        for _, _, method, _, request, _, _, delegation_id in self.rows:
            if method == "delegate" and (job := by_task.get(str(_json(request).get("task")))) is not None:
                found[delegation_id] = job
        return found

    def _of_jobs(self, given: Mapping[str, Job]) -> list[str]:
        """Each job is one delegation from the right to the right workspace, and each delegation is completed once."""
        times = Counter(given.values())
        faults = [f"{job.name} was handed out {times[job]} times" for job in self.jobs if times[job] != 1]
        lines = {}
        for delegation_id, caller_id, callee_id, status in self.ledger:
            lines[delegation_id] = status
            job = given.get(delegation_id)
            if job is None:
                faults.append(f"delegation {delegation_id} is nobody's job")
            elif (caller_id, callee_id) != (self.ids[job.caller], self.ids[job.callee]):
                faults.append(f"{job.name} went from {caller_id} to {callee_id}")
        for delegation_id, job in given.items():
            if lines.get(delegation_id) != "completed":
                faults.append(f"{job.name} is {lines.get(delegation_id)} in the ledger")
        return faults

    def _of_results(self, given: Mapping[str, Job]) -> list[str]:
        """One row for each job with its result, one message that brought it, one message that brought its result."""
        faults = []
        seen: dict[tuple[str, str], list[tuple[Any, ...]]] = defaultdict(list)
        for workspace_id, kind, method, status, request, response, target_id, delegation_id in self.rows:
            body, answer = _json(request), _json(response)
            if kind == "delegation":
                seen[delegation_id, method].append((workspace_id, status, target_id, answer.get("text")))
            elif method == "delegate_result":
                seen[body.get("delegation_id", ""), "inbox"].append((workspace_id, status, answer.get("text")))
            else:
                told = body.get("params", {}).get("message", {})
                named = told.get("metadata", {}).get("delegation_id", "")
                seen[named, "message"].append((workspace_id, "".join(part["text"] for part in told.get("parts", ()))))
        for delegation_id, job in given.items():
            caller, callee = self.ids[job.caller], self.ids[job.callee]
            right: dict[str, tuple[Any, ...]] = {
                "delegate": (caller, "completed", callee, None),
                "delegate_result": (caller, "completed", callee, job.answer),
                "inbox": (caller, "ok", job.answer),
                "message": (callee, job.task),
            }
            for what, row in right.items():
                if (found := seen.pop((delegation_id, what), [])) != [row]:
                    faults.append(f"{job.name} has {len(found)} rows of {what}: {str(found)[:300]}")
        return faults + [f"rows of nobody's job: {key}: {str(found)[:300]}" for key, found in seen.items()]

    def _of_notes(self, given: Mapping[str, Job]) -> list[str]:
        """Every result was noted with the right text; and no message showed one that had been put away, or told."""
        faults = [
            f"{note.what}: {note.how} {note.value} ({note.delegation_id})"
            for note in self.notes
            if note.what in ("ended", "odd", "bug")
        ]
        crossed = self.seen_twice()["call, then message" + IN_ONE_LIFE]
        if crossed > 1 + len(self.jobs) / CROSSED_AT_MOST:
            faults.append(f"{crossed} results that a call was given came as messages as well")
        put_away: set[str | None] = set()
        told: dict[str | None, Note] = {}
        noted: set[str] = set()
        for note in self.notes:
            job = given.get(note.delegation_id or "")
            if note.what == "popped":
                put_away.add(note.delegation_id)
            elif note.what == "result" and job is None:
                faults.append(f"a result of nobody's job: {note}")
            elif note.what == "result" and job is not None:
                noted.add(job.name)
                if note.value != digest_of(job.answer) or note.agent != job.caller:
                    faults.append(f"{job.name} has a result that is not its own: {note}")
                if note.how == "message":
                    before = told.get(note.delegation_id)
                    if note.delegation_id in put_away:
                        faults.append(f"{job.name}: its message came again after it was put away: {note}")
                    if before is not None and before.life < note.life:
                        faults.append(f"{job.name}: a message brought what was told before: {before}, {note}")
                else:
                    told[note.delegation_id] = note
        return faults + [f"{job.name} has no result noted" for job in self.jobs if job.name not in noted]


def _json(body: Any) -> dict[str, Any]:
    decoded = json.loads(body) if isinstance(body, str) else body
    return decoded if isinstance(decoded, dict) else {}

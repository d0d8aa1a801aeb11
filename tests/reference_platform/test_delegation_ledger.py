"""The ledger of delegations on both databases: the rules of its states, and that they hold under contention."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any

import pytest
from sqlalchemy import Connection, select, update

from molecule_runtime.reference_platform.config import PlatformConfig
from molecule_runtime.reference_platform.services import delegation_ledger as ledger
from molecule_runtime.reference_platform.services.delegation_ledger import Step
from molecule_runtime.reference_platform.store.engine import Store
from molecule_runtime.reference_platform.store.tables import delegations
from molecule_runtime.wire.delegations import DelegationStatus

from .support import only

CALLER, CALLEE, STRANGER = "caller", "callee", "stranger"
NOW = datetime(2026, 1, 1, tzinfo=UTC)
LATER = NOW + timedelta(seconds=1)
LEGAL = {
    ("queued", "dispatched"),
    ("queued", "in_progress"),
    ("queued", "failed"),
    ("dispatched", "in_progress"),
    ("dispatched", "completed"),
    ("dispatched", "failed"),
    ("in_progress", "completed"),
    ("in_progress", "failed"),
    ("in_progress", "stuck"),
}
"""Contract 6.5, written down once more."""


@pytest.fixture
async def store(config: PlatformConfig) -> AsyncIterator[Store]:
    store = Store(config.database_url)
    yield store
    await store.close()


def begin(connection: Connection, delegation_id: str, status: str = "queued", task: str = "task") -> None:
    """A line in this state."""
    ledger.insert_queued(connection, CALLER, CALLEE, delegation_id, task, NOW)
    connection.execute(
        update(delegations).where(delegations.c.delegation_id == delegation_id).values(status=DelegationStatus(status))
    )


def line(connection: Connection, delegation_id: str) -> dict[str, Any]:
    query = select(delegations).where(delegations.c.delegation_id == delegation_id)
    return dict(connection.execute(query).mappings().one())


async def test_of_all_pairs_of_states_exactly_the_legal_ones_pass(store: Store) -> None:
    """36 pairs: what is legal moves with its texts, what is not changes nothing (contract 6.5, issue's invariant)."""

    def try_all(connection: Connection) -> dict[tuple[str, str], tuple[Step, dict[str, Any], dict[str, Any]]]:
        found = {}
        for before, after in product(DelegationStatus, DelegationStatus):
            name = f"{before}-{after}"
            begin(connection, name, before)
            old = line(connection, name)
            step = ledger.transition(connection, CALLER, name, after, LATER, preview="text", error="oops")
            found[str(before), str(after)] = (step, old, line(connection, name))
        return found

    found = await store.write(try_all)
    assert len(found) == 36
    for (before, after), (step, old, new) in found.items():
        texts = {"error_detail": "oops", "result_preview": "text", "updated_at": LATER}
        if (before, after) in LEGAL:
            assert (before, after, step, new) == (before, after, Step.MOVED, old | {"status": after} | texts)
        elif before == after:
            assert (before, step, new) == (before, Step.SAME, old | texts)
        else:
            assert (before, after, step, new) == (before, after, Step.ILLEGAL, old)


@only("sqlite")
async def test_one_that_nobody_called_is_completed_by_way_of_dispatched(store: Store) -> None:
    """From every open state an end moves it, with its text; from a final one nothing does (contract 6.5)."""

    def complete(connection: Connection) -> list[tuple[str, Step, str, str | None]]:
        done = []
        for before in DelegationStatus:
            begin(connection, before, before)
            step = ledger.finish(connection, CALLER, before, DelegationStatus.COMPLETED, LATER, preview="text")
            row = line(connection, before)
            done.append((str(before), step, row["status"], row["result_preview"]))
        return done

    assert await store.write(complete) == [
        ("queued", Step.MOVED, "completed", "text"),
        ("dispatched", Step.MOVED, "completed", "text"),
        ("in_progress", Step.MOVED, "completed", "text"),
        ("completed", Step.SAME, "completed", "text"),
        ("failed", Step.ILLEGAL, "failed", None),
        ("stuck", Step.ILLEGAL, "stuck", None),
    ]


async def test_a_repeat_fills_what_is_empty_and_overwrites_nothing(store: Store) -> None:
    """Without a text it does not even move updated_at (contract 6.5)."""

    def repeat(connection: Connection) -> list[tuple[Any, ...]]:
        begin(connection, "d", "dispatched")
        seen = []
        for text, error, moment in (("", "", 1), ("", "", 2), ("text", "", 3), ("other", "oops", 4), ("more", "x", 5)):
            now = NOW + timedelta(seconds=moment)
            ledger.transition(connection, CALLER, "d", DelegationStatus.COMPLETED, now, preview=text, error=error)
            row = line(connection, "d")
            seen.append((row["result_preview"], row["error_detail"], row["updated_at"].second))
        return seen

    assert await store.write(repeat) == [
        (None, None, 1),
        (None, None, 1),
        ("text", None, 3),
        ("text", "oops", 4),
        ("text", "oops", 4),
    ]


@only("sqlite")
async def test_what_is_unknown_or_anothers_is_left_alone(store: Store) -> None:
    """An id that is known is not inserted again, a foreign one neither moved, filled, read nor released (ours)."""

    def meddle(connection: Connection) -> tuple[list[Any], dict[str, Any], dict[str, Any]]:
        begin(connection, "d", "completed")
        before = line(connection, "d")
        ledger.insert_queued(connection, STRANGER, CALLEE, "d", "other", LATER, idempotency_key="k")
        done = [
            ledger.transition(connection, STRANGER, "d", DelegationStatus.COMPLETED, LATER, preview="x", error="x"),
            ledger.transition(connection, CALLER, "nobody", DelegationStatus.FAILED, LATER),
            ledger.find(connection, STRANGER, "d"),
            ledger.heartbeat(connection, STRANGER, "d", LATER),
            ledger.heartbeat(connection, CALLER, "d", LATER),
            ledger.heartbeat(connection, CALLEE, "d", LATER),
        ]
        return done, before, line(connection, "d")

    done, before, after = await store.write(meddle)
    assert done == [Step.UNKNOWN, Step.UNKNOWN, None, None, None, ledger.Beat(CALLER, started=False)]
    assert after == before


@only("sqlite")
async def test_previews_are_cut_at_4096_bytes_on_a_code_point(store: Store) -> None:
    """ASCII hits the limit exactly, no mark is added (contract 6.5, SEED #2962)."""

    def cut(connection: Connection) -> list[tuple[str, str]]:
        found = []
        for number, text in enumerate(("a" * 5000, "世" * 2000, "a" * 4094 + "世", "a" * 4093 + "🎉", "a" * 4096)):
            begin(connection, f"d{number}", "dispatched", text)
            ledger.transition(connection, CALLER, f"d{number}", DelegationStatus.COMPLETED, NOW, preview=text)
            row = line(connection, f"d{number}")
            found.append((row["task_preview"], row["result_preview"]))
        return found

    kept = ["a" * 4096, "世" * 1365, "a" * 4094, "a" * 4093, "a" * 4096]
    assert await store.write(cut) == [(text, text) for text in kept]


async def test_of_transitions_at_the_same_time_one_wins(config: PlatformConfig) -> None:
    """Six connections try three ends at once: one moves it, and its texts stand (issue's invariant)."""
    ends = (DelegationStatus.COMPLETED, DelegationStatus.FAILED, DelegationStatus.STUCK) * 2
    stores = [Store(config.database_url) for _ in ends]

    def end(connection: Connection, name: str, to: DelegationStatus, number: int) -> Step:
        return ledger.finish(connection, CALLER, name, to, NOW, preview=f"from {number}")

    for name in map(str, range(5)):
        await stores[0].write(begin, name, "in_progress")
        steps = await asyncio.gather(
            *(store.write(end, name, to, number) for number, (store, to) in enumerate(zip(stores, ends, strict=True)))
        )
        assert Counter(steps)[Step.MOVED] == 1
        winner = steps.index(Step.MOVED)
        row = await stores[0].read(line, name)
        assert (row["status"], row["result_preview"]) == (ends[winner], f"from {winner}")
    for store in stores:
        await store.close()


async def test_old_lines_are_pruned_in_portions(store: Store) -> None:
    """Whatever their state, when the activity of their time goes (ours)."""

    def fill(connection: Connection) -> None:
        for number in range(ledger.PRUNED_AT_ONCE + 1):
            ledger.insert_queued(connection, CALLER, CALLEE, f"old{number}", "task", NOW)
        ledger.insert_queued(connection, CALLER, CALLEE, "young", "task", LATER)

    await store.write(fill)
    assert [await store.write(ledger.prune, LATER) for _ in range(3)] == [ledger.PRUNED_AT_ONCE, 1, 0]
    left = await store.read(lambda connection: connection.execute(select(delegations.c.delegation_id)).scalars().all())
    assert left == ["young"]

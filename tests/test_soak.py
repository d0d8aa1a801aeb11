"""`make soak` in small: jobs between agents that are killed all the time, on a platform that is killed too (R13)."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.soak.books import Books
from tests.soak.life import Note
from tests.soak.work import digest_of, jobs_of
from tests.support import postgres
from tests.support.platform import clean_env

ENDS_WITHIN_S = 90


def soak(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run it with its files in `directory`."""
    command = [sys.executable, "-m", "tests.soak", "--seconds", str(ENDS_WITHIN_S - 20), *arguments]
    env = clean_env(TMPDIR=str(directory))
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=ENDS_WITHIN_S)


@pytest.mark.timeout(ENDS_WITHIN_S + 10)
def test_every_job_is_done_once_and_its_result_delivered_whoever_is_killed(tmp_path: Path) -> None:
    """Must hold: agents delegate to each other, random kills, all completed once."""
    told = ("--agents", "3", "--jobs", "18", "--longest-life", "3", "--restarts", "1")
    done = soak(tmp_path, *told)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.timeout(ENDS_WITHIN_S + 10)
def test_the_same_holds_on_postgresql(cluster: postgres.Cluster, tmp_path: Path) -> None:
    """Must hold: a delegation survives the restart of the platform, whichever its database."""
    told = ("--agents", "2", "--jobs", "6", "--longest-life", "3", "--restarts", "1")
    done = soak(tmp_path, *told, "--database", cluster.url(cluster.create()))
    assert done.returncode == 0, done.stdout + done.stderr


JOB, OTHER = jobs_of(0, agents=2, jobs=4, seed=1)
BOOKS = Books(
    jobs=[JOB],
    ids=["front", "worker"],
    ledger=[("d", "front", "worker", "completed")],
    rows=[
        ("front", "delegation", "delegate", "completed", {"task": JOB.task}, {"delegation_id": "d"}, "worker", "d"),
        ("front", "delegation", "delegate_result", "completed", None, {"text": JOB.answer}, "worker", "d"),
        ("front", "a2a_receive", "delegate_result", "ok", {"delegation_id": "d"}, {"text": JOB.answer}, None, None),
        (
            "worker",
            "a2a_receive",
            "message/send",
            "ok",
            {"params": {"message": {"metadata": {"delegation_id": "d"}, "parts": [{"text": JOB.task}]}}},
            None,
            None,
            None,
        ),
    ],
    notes=[
        Note(0, 1, "result", "d", "message", digest_of(JOB.answer), 1.0),
        Note(0, 3, "result", "d", "message", digest_of(JOB.answer), 2.0),
        Note(0, 3, "popped", "d", "", "", 3.0),
    ],
    left_open={},
)
"""All as it must be: one job, whose result was noted twice, because a kill came before it was put away."""
SHOWN, SHOWN_AGAIN, POPPED = BOOKS.notes
TOLD = replace(SHOWN, how="call")


@pytest.mark.parametrize(
    ("wrong", "count"),
    [
        (BOOKS, 0),
        (replace(BOOKS, notes=[SHOWN, POPPED, replace(SHOWN, how="call", at=4.0)]), 0),  # it asked again
        (replace(BOOKS, jobs=[JOB, OTHER]), 2),  # neither handed out nor noted
        (replace(BOOKS, ledger=[]), 1),
        (replace(BOOKS, ledger=[("d", "front", "worker", "in_progress")]), 1),
        (replace(BOOKS, ledger=[("d", "front", "front", "completed")]), 1),
        (replace(BOOKS, ledger=[*BOOKS.ledger, ("e", "front", "worker", "completed")]), 1),
        *((replace(BOOKS, rows=[*BOOKS.rows[:index], *BOOKS.rows[index + 1 :]]), 1) for index in (1, 2, 3)),
        *((replace(BOOKS, rows=[*BOOKS.rows, BOOKS.rows[index]]), 1) for index in (1, 2, 3)),
        (replace(BOOKS, rows=[*BOOKS.rows, (*BOOKS.rows[0][:7], "e")]), 5),  # handed out twice, and never done
        (replace(BOOKS, rows=[*BOOKS.rows[:2], (*BOOKS.rows[2][:5], {"text": "cut"}, None, None), BOOKS.rows[3]]), 1),
        (replace(BOOKS, notes=[]), 1),
        (replace(BOOKS, notes=[replace(SHOWN, value=digest_of("cut"))]), 1),
        (replace(BOOKS, notes=[replace(SHOWN, agent=1)]), 1),
        (replace(BOOKS, notes=[replace(SHOWN, delegation_id="e"), SHOWN]), 1),
        (replace(BOOKS, notes=[SHOWN, POPPED, SHOWN_AGAIN]), 1),
        (replace(BOOKS, notes=[TOLD, SHOWN_AGAIN]), 1),
        (replace(BOOKS, notes=[TOLD, SHOWN]), 0),  # they crossed
        (replace(BOOKS, notes=[TOLD, SHOWN] * 2), 1),
        (replace(BOOKS, notes=[SHOWN, replace(SHOWN, what="odd")]), 1),
        (replace(BOOKS, left_open={"worker": {"parked": 1}}), 1),
    ],
)
def test_the_judgement_overlooks_nothing(wrong: Books, count: int) -> None:
    """A soak whose books were wrong would prove nothing."""
    assert len(wrong.faults()) == count, wrong.faults()


def test_what_was_seen_twice_is_counted_by_how() -> None:
    """The summary tells an honest repetition from none."""
    assert BOOKS.seen_twice() == {"message, then message": 1}

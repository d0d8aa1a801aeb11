"""What the journal remembers of jobs: one intent is one job, one result is told once, whatever order things come in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from molecule_runtime.inbox.classify import Kind, Message
from molecule_runtime.inbox.delegations import INTENT_LASTS_S, RECORD_KEPT_S, DelegationRecord, Told
from molecule_runtime.inbox.journal import Counts, Journal
from molecule_runtime.wire.delegations import DelegationStatus

from .support import PEER, message

NOW = 1_000_000.0
OTHER = "33333333-3333-4333-8333-333333333333"
JOB = "55555555-5555-4555-8555-555555555555"
COMPLETED, FAILED = DelegationStatus.COMPLETED, DelegationStatus.FAILED


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal.open(tmp_path / "inbox.sqlite3")
    yield journal
    journal.close()


def intend(
    journal: Journal, key: str = "k1", *, peer: str = PEER, digest: str = "d1", now: float = NOW
) -> DelegationRecord:
    return journal.delegations.intend(key=key, peer_id=peer, digest=digest, task="count", now=now)


def handed_out(journal: Journal, key: str = "k1") -> DelegationRecord:
    """A job that the platform has accepted and an agent knows of."""
    intend(journal, key)
    record = journal.delegations.accepted(key, JOB, now=NOW)
    journal.delegations.hand(key, now=NOW)
    return record


def result(number: int = 1, text: str = "42", outcome: str = "completed") -> Message:
    return message(number, text, kind=Kind.DELEGATION_RESULT, delegation_id=JOB, outcome=outcome)


def answer(number: int = 1, text: str = "42", **fields: Any) -> Message:
    """A peer's ordinary message that names the job."""
    return message(number, text, **{"kind": Kind.PEER_AGENT, "peer_id": PEER, "delegation_id": JOB} | fields)


def arrive(journal: Journal, *messages: Message) -> list[str]:
    return journal.append(messages, cursor=messages[-1].activity_id, last_row_at=NOW, now=NOW)


def taken(journal: Journal, now: float = NOW, session: str = "s1") -> Message | None:
    entry = journal.lease(session=session, key="k", until=now + 600, now=now)
    return entry.message if entry is not None else None


def known(journal: Journal) -> tuple[DelegationStatus, str | None, str | None]:
    record = journal.delegations.find(JOB)
    assert record is not None
    return record.status, record.text, record.error


def test_an_intent_is_one_until_an_agent_has_its_handle(journal: Journal) -> None:
    """Deliver 2: a retry after a crash uses the same key; the same words later are a new job."""
    assert intend(journal, "k1").key == "k1"
    assert intend(journal, "k2").key == "k1"
    journal.delegations.accepted("k1", JOB, now=NOW)
    retried = intend(journal, "k3")
    assert (retried.key, retried.delegation_id) == ("k1", JOB)
    journal.delegations.hand("k1", now=NOW)
    assert intend(journal, "k4").key == "k4"


@pytest.mark.parametrize(
    ("other", "key"),
    [
        ({"peer": OTHER}, "k2"),
        ({"digest": "d2"}, "k2"),
        ({"now": NOW + INTENT_LASTS_S}, "k1"),
        ({"now": NOW + INTENT_LASTS_S + 1}, "k2"),
        ({"now": NOW - INTENT_LASTS_S - 1}, "k2"),
    ],
    ids=["another peer", "other words", "within the hour", "after it", "the clock was set back"],
)
def test_what_is_another_intent(journal: Journal, other: dict[str, Any], key: str) -> None:
    """Two askers of two things are never given one job."""
    intend(journal, "k1")
    assert intend(journal, "k2", **other).key == key


def test_a_result_that_was_handled_as_a_message_ends_the_intent(journal: Journal) -> None:
    """Must hold: asked again later is a new job, also when a crash took the handle and the result came by itself."""
    intend(journal, "k1")
    journal.delegations.accepted("k1", JOB, now=NOW)
    arrive(journal, result(1), message(2))
    journal.handle(message(2).activity_id, now=NOW)
    assert intend(journal, "k2").key == "k1"
    journal.handle(result(1).activity_id, now=NOW)
    assert intend(journal, "k3").key == "k3"


def test_a_job_that_was_refused_is_forgotten(journal: Journal) -> None:
    """There is nothing to follow; the same words may be tried again as a new job."""
    intend(journal, "k1")
    journal.delegations.withdraw("k1")
    assert intend(journal, "k2").key == "k2"
    journal.delegations.accepted("k2", JOB, now=NOW)
    journal.delegations.withdraw("k2")
    assert journal.delegations.find(JOB) is not None


def test_records_are_forgotten_when_the_feed_cannot_show_them_again(journal: Journal) -> None:
    """The journal does not grow for ever."""
    handed_out(journal)
    intend(journal, "k2", digest="d2", now=NOW + RECORD_KEPT_S)
    assert journal.delegations.find(JOB) is not None
    intend(journal, "k3", digest="d3", now=NOW + RECORD_KEPT_S + 1)
    assert journal.delegations.find(JOB) is None


def test_a_result_is_a_message_once(journal: Journal) -> None:
    """Must hold: delivered to the inbox once, however often the platform says so; kept whole for check_task_status."""
    handed_out(journal)
    assert arrive(journal, result(1), result(2)) == [result(1).activity_id]
    found = taken(journal)
    assert found is not None
    assert (found.kind, found.text, found.peer_id, found.delegation_id) == (Kind.DELEGATION_RESULT, "42", PEER, JOB)
    assert taken(journal) is None
    journal.handle(found.activity_id, now=NOW)
    assert arrive(journal, result(3)) == []
    assert taken(journal) is None
    assert known(journal) == (COMPLETED, "42", None)


def test_a_result_of_a_job_that_nobody_remembers_is_a_message_all_the_same(journal: Journal) -> None:
    """Handed out by other means, or before the journal was lost."""
    assert arrive(journal, result(1), result(2)) == [result(1).activity_id]
    assert known(journal) == (COMPLETED, "42", None)
    assert journal.delegations.latest(10) == []


def test_a_result_that_is_quicker_than_the_handle_belongs_to_it(journal: Journal) -> None:
    """The feed may show the end before the answer of /delegate is read."""
    intend(journal)
    arrive(journal, result(1))
    record = journal.delegations.accepted("k1", JOB, now=NOW)
    assert (record.key, record.peer_id, record.status, record.text) == ("k1", PEER, COMPLETED, "42")
    found = taken(journal)
    assert found is not None
    assert found.peer_id == PEER


def test_what_a_call_waits_for_is_not_offered_meanwhile(journal: Journal) -> None:
    """Neither to wait_for_message nor to a push: the call will give it; when it ends without, it is a message."""
    handed_out(journal)
    journal.delegations.wait_until(JOB, NOW + 30)
    arrive(journal, result(1))
    assert taken(journal, NOW) is None
    assert journal.take_unpushed("s1", 10, now=NOW) == []
    assert journal.counts(NOW) == Counts(new=1, held=1)
    journal.delegations.wait_until(JOB, None)
    assert journal.counts(NOW) == Counts(new=1)
    assert taken(journal) is not None


@pytest.mark.parametrize("moment", [NOW + 30, NOW - 31], ids=["its time is over", "the clock was set back"])
def test_a_call_that_was_killed_keeps_nothing_back(journal: Journal, moment: float) -> None:
    """kill -9 of the delegator: the result is a message of the next process."""
    handed_out(journal)
    journal.delegations.wait_until(JOB, NOW + 30)
    arrive(journal, result(1))
    assert taken(journal, moment) is not None


@pytest.mark.parametrize("comes_first", [True, False])
def test_what_the_call_was_given_is_no_message(journal: Journal, comes_first: bool) -> None:
    """Nothing twice: the result of a call that waited is handled, whichever way it was heard of first."""
    handed_out(journal)
    if comes_first:
        arrive(journal, result(1))
    else:
        journal.delegations.note(JOB, Told(COMPLETED, "42"), now=NOW)
    record = journal.delegations.tell("k1", now=NOW)
    assert (record.text, record.told_at) == ("42", NOW)
    if not comes_first:
        assert arrive(journal, result(1)) == []
    assert taken(journal) is None
    assert journal.counts(NOW) == Counts()


def test_a_call_that_was_cancelled_gives_back_what_nobody_saw(journal: Journal) -> None:
    """The result is a message again; and the same words are the same intent again."""
    handed_out(journal)
    arrive(journal, result(1))
    journal.delegations.tell("k1", now=NOW)
    journal.delegations.untell("k1")
    found = taken(journal)
    assert found is not None
    assert found.text == "42"
    assert intend(journal, "k2").key == "k1"


def test_what_was_handled_by_its_reader_does_not_come_back(journal: Journal) -> None:
    """A cancelled call gives back only what itself was given."""
    handed_out(journal)
    arrive(journal, result(1))
    journal.handle(result(1).activity_id, now=NOW)
    journal.delegations.untell("k1")
    assert taken(journal) is None
    journal.delegations.tell("k1", now=NOW)
    journal.delegations.untell("k1")
    assert taken(journal) is None


def test_a_peers_answer_is_a_result_where_the_platform_does_not_make_it_one(journal: Journal) -> None:
    """Contract 0.8: a client on such a platform merges by delegation_id, and closes it there (13.8)."""
    handed_out(journal)
    arrive(journal, answer(1))
    found = taken(journal)
    assert found is not None
    assert (found.kind, found.text, found.outcome) == (Kind.DELEGATION_RESULT, "42", "completed")
    assert [record.key for record in journal.delegations.to_report()] == ["k1"]
    journal.delegations.reported("k1")
    assert journal.delegations.to_report() == []
    assert arrive(journal, result(2)) == []


@pytest.mark.parametrize(
    "fields", [{"peer_id": OTHER}, {"delegation_id": OTHER}, {"delegation_id": None}], ids=["other", "job", "none"]
)
def test_an_answer_from_anybody_else_is_an_ordinary_message(journal: Journal, fields: dict[str, Any]) -> None:
    """Contract 0.8: the key is ignored."""
    handed_out(journal)
    arrive(journal, answer(1, **fields))
    found = taken(journal)
    assert found is not None
    assert found.kind is Kind.PEER_AGENT
    assert known(journal) == (DelegationStatus.QUEUED, None, None)


def test_a_second_answer_is_an_ordinary_message(journal: Journal) -> None:
    """One completion; a correction is not lost either."""
    handed_out(journal)
    arrive(journal, answer(1), answer(2, "43"))
    found = [(entry.message.kind, entry.message.delegation_id) for entry in journal.open_messages(10)]
    assert found == [(Kind.DELEGATION_RESULT, JOB), (Kind.PEER_AGENT, None)]
    assert known(journal) == (COMPLETED, "42", None)


@pytest.mark.parametrize("late", [answer(2), result(2)], ids=["as a message", "as a result"])
def test_an_answer_after_the_end_of_patience_is_a_result(journal: Journal, late: Message) -> None:
    """A job that counted as failed and is answered after all is done."""
    handed_out(journal)
    assert len(arrive(journal, result(1, "deadline exceeded by sweeper", "failed"))) == 1
    assert known(journal) == (FAILED, None, "deadline exceeded by sweeper")
    assert len(arrive(journal, late)) == 1
    assert known(journal) == (COMPLETED, "42", None)
    assert arrive(journal, result(3, "again", "failed")) == []
    assert known(journal) == (COMPLETED, "42", None)


def test_a_preview_gives_way_to_the_whole_text_and_to_nothing_else(journal: Journal) -> None:
    """Platforms without the full text show 300 bytes of it; the inbox has it all."""
    handed_out(journal)
    journal.delegations.note(JOB, Told(COMPLETED, "4", is_whole=False), now=NOW)
    journal.delegations.note(JOB, Told(COMPLETED, "5", is_whole=False), now=NOW)
    assert known(journal) == (COMPLETED, "4", None)
    journal.delegations.tell("k1", now=NOW)
    assert len(arrive(journal, result(1))) == 1
    assert known(journal) == (COMPLETED, "42", None)


def test_a_state_never_goes_back(journal: Journal) -> None:
    """Two askers may be answered in the wrong order."""
    handed_out(journal)
    journal.delegations.note(JOB, Told(DelegationStatus.IN_PROGRESS), now=NOW)
    journal.delegations.note(JOB, Told(DelegationStatus.DISPATCHED), now=NOW)
    assert known(journal)[0] is DelegationStatus.IN_PROGRESS
    journal.delegations.note(JOB, Told(DelegationStatus.STUCK, error="no heartbeat"), now=NOW)
    journal.delegations.note(JOB, Told(FAILED, error="other"), now=NOW)
    assert known(journal) == (DelegationStatus.STUCK, None, "no heartbeat")
    assert journal.delegations.note(OTHER, Told(COMPLETED, "x"), now=NOW) is None


def test_the_jobs_in_hand_are_those_that_this_session_took(journal: Journal) -> None:
    """What is said to be worked on is: not what waits, not what another has, not what is done, not a result."""
    handed_out(journal)
    arrive(journal, answer(1, delegation_id=OTHER), answer(2, delegation_id=PEER), message(3), result(4))
    assert journal.delegations.in_hand("s1") == []
    for session in ("s1", "s2", "s1", "s1"):
        assert taken(journal, session=session) is not None
    assert journal.delegations.in_hand("s1") == [OTHER]
    assert journal.delegations.in_hand("s2") == [PEER]
    journal.handle(answer(1).activity_id, now=NOW)
    assert journal.delegations.in_hand("s1") == []

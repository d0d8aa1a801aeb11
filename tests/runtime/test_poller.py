"""The poller: the platform's feed into the journal, whole and once."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
import respx
from structlog.testing import capture_logs

from molecule_runtime.client import PlatformClient
from molecule_runtime.clock import ManualClock
from molecule_runtime.errors import JournalUnusable, Unavailable, Unreachable
from molecule_runtime.inbox.classify import Kind, Message
from molecule_runtime.inbox.files import FileState
from molecule_runtime.inbox.journal import Counts, Journal
from molecule_runtime.inbox.poller import InboxHealth, Poller, peers_in
from molecule_runtime.wire.uploads import pending_uri
from tests.reference_platform.support import BASE_URL, Member, Platform
from tests.support.uploads import form, message_with

from .support import START, WORKSPACE, client_of, idle, lone_client, message, pass_time, row, running, until

FEED = f"{BASE_URL}/workspaces/{WORKSPACE}/activity"


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal.open(tmp_path / "inbox.sqlite3")
    yield journal
    journal.close()


class Heard:
    """What the poller announced, and whether a doorbell is up."""

    def __init__(self) -> None:
        self.pages: list[list[str]] = []
        self.doorbell_is_up = False

    async def messages(self, messages: list[Message]) -> None:
        self.pages.append([message.text for message in messages])


@pytest.fixture
def heard() -> Heard:
    return Heard()


def poller_of(client: PlatformClient, journal: Journal, clock: ManualClock, heard: Heard) -> Poller:
    return Poller(client, journal, clock=clock, on_messages=heard.messages, doorbell_is_up=lambda: heard.doorbell_is_up)


@pytest.fixture
async def poller(
    platform: Platform, member: Member, journal: Journal, clock: ManualClock, heard: Heard
) -> AsyncIterator[Poller]:
    """A poller on a platform in process."""
    async with client_of(platform, member) as client:
        yield poller_of(client, journal, clock, heard)


def texts(journal: Journal) -> list[str]:
    return [entry.message.text for entry in journal.open_messages(5000)]


async def test_the_first_window_is_turned_round(
    poller: Poller, platform: Platform, member: Member, journal: Journal, heard: Heard
) -> None:
    """Contract 4.3: without a cursor the page is newest first; the agent reads oldest first."""
    for text in ("one", "two", "three"):
        await platform.say(member, text)
    assert await poller.poll_once() == 3
    assert texts(journal) == ["one", "two", "three"]
    assert heard.pages == [["one", "two", "three"]]
    newest = (await platform.rows(member))[0]
    assert journal.position().cursor == newest["id"]
    assert await poller.poll_once() == 0


async def test_more_than_a_page_behind_the_cursor_is_read_in_one_go(
    poller: Poller, platform: Platform, member: Member, journal: Journal, heard: Heard
) -> None:
    """Contract 4.3: since_id, oldest first, 100 rows a page."""
    await platform.say(member, "first")
    await poller.poll_once()
    for number in range(205):
        await platform.say(member, f"message {number}")
    assert await poller.poll_once() == 205
    assert texts(journal) == ["first", *(f"message {number}" for number in range(205))]
    assert [len(page) for page in heard.pages] == [1, 100, 100, 5]


async def test_an_expired_cursor_reads_the_window_and_repeats_nothing(
    poller: Poller,
    platform: Platform,
    member: Member,
    journal: Journal,
    clock: ManualClock,
    platform_clock: ManualClock,
) -> None:
    """Contract 4.3: 410 is ordinary; all that came meanwhile is read, what was handled stays handled."""
    await platform.say(member, "old")
    await poller.poll_once()
    for each in (clock, platform_clock):
        each.advance(3 * 3600)
    await platform.say(member, "seen")
    await poller.poll_once()
    journal.handle(journal.open_messages(9)[1].message.activity_id, now=1.0)
    cursor = journal.position().cursor
    for each in (clock, platform_clock):
        each.advance(3 * 3600)
    await platform.say(member, "while away")
    assert cursor is not None
    journal.append([], cursor="99999999-9999-4999-8999-999999999999", last_row_at=None, now=0)

    with capture_logs() as logs:
        assert await poller.poll_once() == 1
    assert texts(journal) == ["old", "while away"]
    ours = [entry["event"] for entry in logs if entry["event"].startswith("poller.")]  # the platform logs here, too
    assert ours == ["poller.cursor_expired", "poller.messages_received"]


async def test_notices_and_echoes_pass_and_only_messages_are_kept(
    poller: Poller, platform: Platform, member: Member, journal: Journal, heard: Heard
) -> None:
    """Contract 4.3, rows an inbox must filter: our own notify moves the cursor and tells nobody."""
    await platform.http.post(f"/workspaces/{member.id}/notify", json={"message": "mine"}, headers=member.headers)
    report = {"activity_type": "a2a_receive", "method": "message/send", "summary": "own report"}
    await platform.http.post(f"/workspaces/{member.id}/activity", json=report, headers=member.headers)
    assert await poller.poll_once() == 0
    assert heard.pages == []
    assert texts(journal) == []
    assert journal.position().cursor == (await platform.rows(member))[0]["id"]


async def test_the_loop_polls_every_five_seconds_and_every_second_after_traffic(
    poller: Poller, platform: Platform, member: Member, clock: ManualClock, heard: Heard
) -> None:
    """agent-side 4: 5 s when idle, 1 s for 60 s after traffic."""
    async with running(poller.run):
        await idle(clock)
        await platform.say(member, "one")
        await pass_time(clock, 4.9)
        assert heard.pages == []
        await pass_time(clock, 0.1)
        assert heard.pages == [["one"]]
        await platform.say(member, "two")
        await pass_time(clock, 1)
        assert heard.pages == [["one"], ["two"]]
        for _ in range(60):
            await pass_time(clock, 1)
        await platform.say(member, "three")
        await pass_time(clock, 1)
        assert len(heard.pages) == 2
        await pass_time(clock, 4)
        assert heard.pages[2:] == [["three"]]


async def test_a_ring_polls_at_once(
    poller: Poller, platform: Platform, member: Member, clock: ManualClock, heard: Heard
) -> None:
    """agent-side 4: the doorbell means poll now; meanwhile the idle poll falls to 60 s."""
    heard.doorbell_is_up = True
    async with running(poller.run):
        await idle(clock)
        await platform.say(member, "one")
        await pass_time(clock, 59)
        assert heard.pages == []
        poller.ring()
        await until(lambda: heard.pages == [["one"]])
        await idle(clock)
        await platform.say(member, "two")
        await pass_time(clock, 60)
        assert heard.pages == [["one"], ["two"]]


async def test_a_ring_that_found_nothing_is_followed_once_more_after_a_second(
    poller: Poller, platform: Platform, member: Member, clock: ManualClock, heard: Heard
) -> None:
    """agent-side 4: an event may be heard before its row is visible."""
    heard.doorbell_is_up = True
    async with running(poller.run):
        await idle(clock)
        poller.ring()
        await until(lambda: clock.sleepers == 0)
        await idle(clock)
        await platform.say(member, "late")
        await pass_time(clock, 1)
        assert heard.pages == [["late"]]
        await platform.say(member, "next")
        await pass_time(clock, 59)
        assert len(heard.pages) == 1


async def test_a_message_that_cannot_be_announced_is_in_the_journal_all_the_same(
    platform: Platform, member: Member, journal: Journal, clock: ManualClock
) -> None:
    """Ours: the loop goes on after a bug behind it, and says so once with a traceback."""

    async def broken(messages: list[Message]) -> None:
        raise ZeroDivisionError

    async with client_of(platform, member) as client:
        poller = Poller(client, journal, clock=clock, on_messages=broken)
        await platform.say(member, "one")
        with capture_logs() as logs:
            async with running(poller.run):
                await idle(clock)
                await pass_time(clock, 30)
        assert texts(journal) == ["one"]
        assert [entry["event"] for entry in logs if entry["log_level"] == "error"] == ["poller.iteration_failed"]


# What follows are feeds and faults that the reference platform cannot produce.


@asynccontextmanager
async def lone_poller(journal: Journal, clock: ManualClock, heard: Heard) -> AsyncIterator[Poller]:
    async with lone_client() as client:
        yield poller_of(client, journal, clock, heard)


def feed(rows: list[dict[str, Any]], asked: list[dict[str, str]], *, now: ManualClock | None = None) -> Any:
    """A platform's answer by the contract's rules over `rows`, which stand oldest first."""

    def answer(request: httpx.Request) -> httpx.Response:
        params = dict(request.url.params)
        asked.append(params)
        limit = min(int(params["limit"]), 500)
        if "since_id" in params:
            ids = [each["id"] for each in rows]
            start = ids.index(params["since_id"]) + 1 if params["since_id"] in ids else len(ids)
            return httpx.Response(200, content=json.dumps(rows[start:][:limit]))
        found = rows[::-1]
        if "before_ts" in params:
            found = [each for each in found if moment(each["created_at"]) < moment(params["before_ts"])]
        if now is not None:
            oldest = now.now() - timedelta(seconds=int(params["since_secs"]))
            found = [each for each in found if moment(each["created_at"]) >= oldest]
        return httpx.Response(200, content=json.dumps(found[:limit]))

    return answer


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


@respx.mock
@pytest.mark.parametrize("per_instant", [1, 7, 400])
async def test_a_window_larger_than_a_page_is_paged_back_whole(
    journal: Journal, clock: ManualClock, heard: Heard, per_instant: int
) -> None:
    """Contract 4.3: at most 500 rows a page, older ones by before_ts, also when an instant lies across the edge."""
    rows = [row(n, at=START - timedelta(seconds=600 - n // per_instant)) for n in range(1, 1203)]
    asked: list[dict[str, str]] = []
    respx.get(FEED).mock(side_effect=feed(rows, asked))
    async with lone_poller(journal, clock, heard) as poller:
        assert await poller.poll_once() == 1202
    assert texts(journal) == [f"message {n}" for n in range(1, 1203)]
    assert journal.position().cursor == rows[-1]["id"]
    assert [set(params) for params in asked[:2]] == [
        {"type", "limit", "since_secs"},
        {"type", "limit", "since_secs", "before_ts"},
    ]


@respx.mock
async def test_an_instant_with_a_page_of_rows_does_not_hide_what_is_older(
    journal: Journal, clock: ManualClock, heard: Heard
) -> None:
    """Ours: a full page of one instant is stepped over, never taken for the end of the window."""
    rows = [row(n, at=START - timedelta(seconds=9)) for n in range(1, 4)]
    rows += [row(n, at=START) for n in range(4, 504)]
    respx.get(FEED).mock(side_effect=feed(rows, []))
    async with lone_poller(journal, clock, heard) as poller:
        with anyio.fail_after(5):
            assert await poller.poll_once() == 503
    assert texts(journal)[:4] == ["message 1", "message 2", "message 3", "message 4"]


@respx.mock
@pytest.mark.parametrize(
    ("away_s", "asked_s"),
    [
        pytest.param(None, 600, id="the first start"),
        pytest.param(10, 600, id="a moment"),
        pytest.param(7_200, 7_260, id="two hours"),
        pytest.param(30 * 86_400, 7 * 86_400, id="a month"),
        pytest.param(-60, 7 * 86_400, id="the clock was set back"),
    ],
)
async def test_the_window_is_as_wide_as_the_time_away(
    journal: Journal, clock: ManualClock, heard: Heard, away_s: int | None, asked_s: int
) -> None:
    """agent-side 4: time since the last journalled row plus 60 s, at least 600 s, at most 7 days."""
    asked: list[dict[str, str]] = []
    respx.get(FEED).mock(side_effect=feed([], asked))
    if away_s is not None:
        last = clock.now().timestamp() - away_s
        journal.append([], cursor="gone", last_row_at=last, now=last)
        journal.forget_cursor()
    async with lone_poller(journal, clock, heard) as poller:
        await poller.poll_once()
    assert asked == [{"type": "a2a_receive", "limit": "500", "since_secs": str(asked_s)}]


@respx.mock
async def test_the_backlog_of_a_lost_journal_is_read_as_far_back_as_possible(
    tmp_path: Path, clock: ManualClock, heard: Heard
) -> None:
    """Ours: after a damaged file nobody knows what was read, so a week is."""
    damaged = tmp_path / "damaged.sqlite3"
    damaged.write_bytes(b"this is not a database" * 100)
    journal = Journal.open(damaged)
    asked: list[dict[str, str]] = []
    respx.get(FEED).mock(side_effect=feed([row(1)], asked))
    async with lone_poller(journal, clock, heard) as poller:
        await poller.poll_once()
    assert asked[0]["since_secs"] == str(7 * 86_400)
    journal.close()


@respx.mock
async def test_a_platform_clock_ahead_of_ours_does_not_narrow_the_next_window(
    journal: Journal, clock: ManualClock, heard: Heard
) -> None:
    """Ours: the time away is measured by one clock, ours."""
    respx.get(FEED).mock(side_effect=feed([row(1, at=START + timedelta(hours=1))], []))
    async with lone_poller(journal, clock, heard) as poller:
        await poller.poll_once()
    assert journal.position().last_row_at == START.timestamp()


@respx.mock
async def test_a_row_that_became_visible_behind_the_cursor_is_found_by_looking_back(
    journal: Journal, clock: ManualClock, heard: Heard
) -> None:
    """agent-side 4: a platform without seq can skip rows of one instant; once a minute the past is read again."""
    rows = [row(1, seq=False)]
    asked: list[dict[str, str]] = []
    respx.get(FEED).mock(side_effect=feed(rows, asked, now=clock))
    async with lone_poller(journal, clock, heard) as poller:
        await poller.poll_once()
        clock.advance(1)
        rows.append(row(3, seq=False, at=START + timedelta(seconds=1)))
        await poller.poll_once()
        rows.insert(1, row(2, seq=False, at=START + timedelta(seconds=1)))
        clock.advance(58)
        assert await poller.poll_once() == 0
        clock.advance(40)
        assert await poller.poll_once() == 1
        assert journal.position().cursor == rows[2]["id"]
        clock.advance(1)
        assert await poller.poll_once() == 0
    assert sorted(texts(journal)) == ["message 1", "message 2", "message 3"]
    assert len(journal.open_messages(9)) == 3
    assert [params["since_secs"] for params in asked if "since_secs" in params] == ["600", "159"]


@respx.mock
async def test_a_platform_with_seq_is_never_asked_twice(journal: Journal, clock: ManualClock, heard: Heard) -> None:
    """Contract 0.7: a monotonic sequence needs no look back."""
    asked: list[dict[str, str]] = []
    respx.get(FEED).mock(side_effect=feed([row(1)], asked))
    async with lone_poller(journal, clock, heard) as poller:
        await poller.poll_once()
        clock.advance(300)
        await poller.poll_once()
    assert [set(params) for params in asked] == [{"type", "limit", "since_secs"}, {"type", "limit", "since_id"}]


@respx.mock
async def test_a_platform_that_repeats_a_full_page_is_not_asked_for_ever(
    journal: Journal, clock: ManualClock, heard: Heard
) -> None:
    """Ours: a proxy that drops the query must not be hammered."""
    journal.append([message(500)], cursor="somewhere", last_row_at=1.0, now=1.0)
    page = [row(n) for n in range(1, 101)]
    route = respx.get(FEED).respond(json=page)
    async with lone_poller(journal, clock, heard) as poller:
        with anyio.fail_after(5):
            assert await poller.poll_once() == 100
    assert route.call_count == 2


@respx.mock
async def test_a_lone_surrogate_in_a_message_does_not_stop_the_feed(
    journal: Journal, clock: ManualClock, heard: Heard
) -> None:
    """Ours: JSON can carry half a character; SQLite and a host's pipe cannot."""
    odd = row(1, summary="\ud800", request_body={"parts": [{"kind": "text", "text": "half \ud83d, whole 😀"}]})
    respx.get(FEED).mock(side_effect=feed([odd, row(2)], []))
    async with lone_poller(journal, clock, heard) as poller:
        assert await poller.poll_once() == 2
    assert texts(journal) == ["half \ufffd, whole 😀", "message 2"]


@respx.mock
async def test_a_row_with_an_odd_field_does_not_stop_the_feed(
    journal: Journal, clock: ManualClock, heard: Heard
) -> None:
    """Ours: what cannot be read of a row is left out; the message is delivered."""
    odd = row(1, status=None, duration_ms="soon", source_id=7, summary=["?"])
    respx.get(FEED).mock(side_effect=feed([odd, row(2)], []))
    async with lone_poller(journal, clock, heard) as poller:
        with capture_logs() as logs:
            assert await poller.poll_once() == 2
    assert texts(journal) == ["message 1", "message 2"]
    assert [entry["detail"] for entry in logs if entry["event"] == "client.odd_row"] == [
        "duration_ms, source_id, status, summary"
    ]


@respx.mock
async def test_a_row_without_an_id_does_not_keep_the_others_from_the_agent(
    journal: Journal, clock: ManualClock, heard: Heard
) -> None:
    """Ours: it can be neither named nor handled, and the next poll would meet it again."""
    nameless = row(2) | {"id": None}
    undated = row(3) | {"created_at": "yesterday"}
    respx.get(FEED).mock(side_effect=feed([undated, row(1), nameless], []))
    async with lone_poller(journal, clock, heard) as poller:
        assert await poller.poll_once() == 2
    assert len(texts(journal)) == 2


@respx.mock
async def test_failures_slow_the_loop_to_thirty_seconds_and_are_logged_once(
    journal: Journal, clock: ManualClock, heard: Heard
) -> None:
    """agent-side 4: back-off to 30 s with jitter on failure."""
    route = respx.get(FEED).mock(side_effect=httpx.ConnectError("refused"))
    async with lone_poller(journal, clock, heard) as poller:
        with capture_logs() as logs:
            async with running(poller.run):
                waits = [await wait_for_the_next(clock, lambda: route.call_count) for _ in range(7)]
                failed = poller.health()
                route.mock(side_effect=feed([row(1)], []))
                await pass_time(clock, 30)
                assert heard.pages == [["message 1"]]
                assert poller.health() == InboxHealth(last_ok_at=clock.now())
    for wait, full in zip(waits, (1, 2, 4, 8, 16, 30, 30), strict=True):
        assert 0.8 * full <= wait <= full + 0.1
    assert (type(failed.last_error), failed.consecutive_failures) == (Unreachable, 8)
    assert [entry["event"] for entry in logs if entry["log_level"] == "warning"] == ["poller.failed"]


async def wait_for_the_next(clock: ManualClock, count: Any) -> float:
    """Seconds on the clock until `count()` grows."""
    await idle(clock)
    before, start = count(), clock.monotonic()
    while count() == before:
        await pass_time(clock, 0.1)
    return clock.monotonic() - start


@respx.mock
async def test_a_ring_ends_a_back_off_but_never_a_wait_that_the_platform_asked_for(
    journal: Journal, clock: ManualClock, heard: Heard
) -> None:
    """agent-side 4: Retry-After obeyed, also while events keep ringing."""
    route = respx.get(FEED).mock(side_effect=httpx.ConnectError("refused"))
    async with lone_poller(journal, clock, heard) as poller, running(poller.run):
        await idle(clock)
        poller.ring()
        await until(lambda: route.call_count == 2)
        await idle(clock)
        route.mock(return_value=httpx.Response(429, headers={"Retry-After": "20"}, json={"error": "slow down"}))
        poller.ring()
        await until(lambda: route.call_count == 3)
        await idle(clock)
        poller.ring()
        await pass_time(clock, 19)
        assert route.call_count == 3
        error = poller.health().last_error
        assert isinstance(error, Unavailable)
        assert error.retry_after_s == 20
        await pass_time(clock, 1)
        assert route.call_count == 4


@respx.mock
async def test_the_loop_outlives_a_ring_that_meets_a_bug(journal: Journal, clock: ManualClock, heard: Heard) -> None:
    """Ours: no iteration ends the loop, not the second look after a ring either."""
    journal.append([], cursor="somewhere", last_row_at=1.0, now=1.0)
    route = respx.get(FEED).respond(json=[])
    with capture_logs() as logs:
        async with lone_poller(journal, clock, heard) as poller, running(poller.run) as task:
            poller.ring()
            await idle(clock)
            route.mock(side_effect=ZeroDivisionError)
            await pass_time(clock, 1)
            route.mock(side_effect=feed([row(1)], []))
            await pass_time(clock, 30)
            assert not task.done()
    assert [entry["event"] for entry in logs] == ["poller.iteration_failed"]


@respx.mock
async def test_a_journal_that_refuses_is_a_failure_like_any_other(
    journal: Journal, clock: ManualClock, heard: Heard
) -> None:
    """agent-side 2: a full disk does not end the loop."""
    respx.get(FEED).mock(side_effect=feed([row(1)], []))
    async with lone_poller(journal, clock, heard) as poller, running(poller.run):
        journal.close()
        poller.ring()
        await until(lambda: isinstance(poller.health().last_error, JournalUnusable))


async def test_the_peers_that_speak_are_named() -> None:
    """agent-side 4: names are looked up for peers, not for the user."""
    peer = message(1, kind=Kind.PEER_AGENT, peer_id="p")
    assert peers_in([peer, message(2), message(3, kind=Kind.DELEGATION_RESULT)]) == {"p"}
    assert START.tzinfo is UTC


@respx.mock
async def test_what_was_read_and_found_empty_is_where_the_next_life_begins(
    journal: Journal, clock: ManualClock, heard: Heard
) -> None:
    """Contract 4.3: the window is the time since the last successful read, also when there was no row in it."""
    route = respx.get(FEED).mock(side_effect=feed([], [row(1)]))
    async with lone_poller(journal, clock, heard) as poller:
        assert await poller.poll_once() == 0
    clock.advance(1_200)
    async with lone_poller(journal, clock, heard) as poller:
        await poller.poll_once()
    assert [call.request.url.params["since_secs"] for call in route.calls] == ["600", "1260"]


@respx.mock
async def test_a_page_that_is_too_much_for_the_line_is_asked_for_in_smaller_pieces(
    journal: Journal, clock: ManualClock, heard: Heard
) -> None:
    """Ours: a hundred rows of a megabyte do not come in ten seconds over every line."""
    journal.append([], cursor=row(1)["id"], last_row_at=1.0, now=1.0)
    route = respx.get(FEED).mock(side_effect=httpx.ReadTimeout("slow"))
    async with lone_poller(journal, clock, heard) as poller, running(poller.run):
        for _ in range(3):
            await wait_for_the_next(clock, lambda: route.call_count)
        asked = [int(call.request.url.params["limit"]) for call in route.calls]
    assert asked[:4] == [100, 50, 25, 12]


@respx.mock
async def test_a_platform_that_was_down_for_long_is_read_in_whole_pages_again(
    journal: Journal, clock: ManualClock, heard: Heard
) -> None:
    """Ours: a refused connection says nothing about the size of a page; the backlog must not come row by row."""
    journal.append([], cursor=row(1)["id"], last_row_at=1.0, now=1.0)
    asked: list[dict[str, str]] = []
    route = respx.get(FEED).mock(side_effect=httpx.ConnectError("refused"))
    async with lone_poller(journal, clock, heard) as poller, running(poller.run):
        for _ in range(8):
            await pass_time(clock, 30)
        assert poller.health().consecutive_failures == 9
        route.mock(side_effect=feed([row(number) for number in range(1, 252)], asked))
        await pass_time(clock, 30)
        assert len(texts(journal)) == 250
    assert [params["limit"] for params in asked] == ["100", "100", "100"]


async def test_files_are_journalled_with_their_page_and_announced(
    platform: Platform, member: Member, journal: Journal, clock: ManualClock, heard: Heard
) -> None:
    """agent-side 8: a notice is no message; whoever fetches is told, also when no message names the file yet."""
    told: list[str] = []

    async def recovered() -> None:
        told.append("recovery")

    files = form([("a.txt", b"12345"), ("b.txt", b"1")])
    reply = await platform.http.post(f"/workspaces/{member.id}/chat/uploads", files=files, headers=platform.admin)
    first, second = reply.json()["files"]
    async with client_of(platform, member) as client:
        poller = Poller(
            client,
            journal,
            clock=clock,
            on_messages=heard.messages,
            on_files=lambda: told.append("files"),
            on_recovery=recovered,
        )
        assert await poller.poll_once() == 0
        assert (told, heard.pages, journal.counts()) == (["files"], [], Counts(files_pending=2))
        now = clock.now().timestamp()
        due = journal.files.due(now, {FileState.PENDING}, limit=5)
        assert [(record.name, record.size) for record in due] == [("a.txt", 5), ("b.txt", 1)]
        body = message_with("look", [second])
        await platform.http.post(f"/workspaces/{member.id}/a2a", json=body, headers=platform.admin)
        assert await poller.poll_once() == 1
        (entry,) = journal.open_messages(5)
        assert [record.name for record in entry.files] == ["b.txt"]
        assert first["uri"] == pending_uri(member.id, due[0].file_id)
        assert told == ["files", "files"]


@respx.mock
async def test_a_read_that_goes_well_after_failures_says_so(journal: Journal, clock: ManualClock, heard: Heard) -> None:
    """uploads: what waited for another attempt is due when the platform is back, not minutes later."""
    recoveries: list[float] = []

    async def recovered() -> None:
        recoveries.append(clock.monotonic())

    route = respx.get(FEED)
    route.side_effect = [httpx.Response(200, json=[]), *[httpx.Response(503, json={"error": "no"})] * 2] + [
        httpx.Response(200, json=[])
    ] * 3
    async with lone_client() as client:
        poller = Poller(client, journal, clock=clock, on_messages=heard.messages, on_recovery=recovered)
        async with running(poller.run):
            while route.call_count < 6:
                await pass_time(clock, 5)
    assert len(recoveries) == 1

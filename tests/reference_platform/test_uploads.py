"""Files of the chat at the platform: what is staged, who may read it, and what a refusal leaves behind (nothing)."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from structlog.testing import capture_logs

from molecule_runtime.clock import ManualClock
from molecule_runtime.reference_platform.config import PlatformConfig
from molecule_runtime.reference_platform.services.pending_uploads import PendingUpload, UploadTables
from molecule_runtime.reference_platform.services.uploads import ChatUploads
from molecule_runtime.reference_platform.store.engine import StoreError
from molecule_runtime.wire.uploads import AckReply
from tests.support.platform import PlatformProcess

from .support import NOBODY, Database, Member, Platform, bearer, only, running, served, until
from .uploads import (
    FORM,
    GONE,
    NOT_YOURS,
    ack,
    file_id,
    form,
    named,
    part,
    path,
    pieces,
    post,
    read,
    staged,
    stock,
    times,
    told,
    upload,
)

NOTHING = (0, 0, 0)
DAY = 86_400


async def test_an_upload_is_staged_announced_fetched_and_acked(platform: Platform, database: Database) -> None:
    """From the user's drop to the agent's ack: answer, rows, events, bytes, times (contract 5.1, 5.4, 5.5)."""
    member = await platform.join()
    big = bytes(range(256)) * 10_000
    with platform.parts.bus.subscribe() as events:
        reply = await upload(platform, member, ("b 世界.pdf", b"one", "application/pdf"), ("a.bin", big, "x/y; q=1"))
        heard = await platform.heard(events)
    assert reply.status_code == 200
    files = reply.json()["files"]
    first, second = (file_id(file) for file in files)
    assert files == [
        {
            "uri": f"platform-pending:{member.id}/{first}",
            "name": "b___.pdf",
            "mimeType": "application/pdf",
            "size": 3,
        },
        {"uri": f"platform-pending:{member.id}/{second}", "name": "a.bin", "mimeType": "x/y", "size": len(big)},
    ]
    row, other = reversed(await platform.rows(member))
    assert row == {
        "id": row["id"],
        "workspace_id": member.id,
        "activity_type": "a2a_receive",
        "source_id": None,
        "target_id": member.id,
        "method": "chat_upload_receive",
        "summary": "chat_upload_receive: b___.pdf",
        "request_body": {"file_id": first, **files[0]},
        "duration_ms": None,
        "status": "ok",
        "error_detail": None,
        "created_at": row["created_at"],
        "seq": 1,
    }
    assert (other["request_body"], other["seq"]) == ({"file_id": second, **files[1]}, 2)
    assert [(name, payload["request_body"]["file_id"]) for name, payload in heard] == [
        ("ACTIVITY_LOGGED", first),
        ("ACTIVITY_LOGGED", second),
    ]
    assert stock(database) == (2, 4, 2)  # the second is of three pieces
    assert times(database, second) == {"fetched": False, "acked": False}
    fetched = await read(platform, member, second)
    assert (fetched.status_code, fetched.content) == (200, big)
    assert times(database, second) == {"fetched": True, "acked": False}
    assert await ack(platform, member, second) == (200, {"acked": True})
    assert times(database, second) == {"fetched": True, "acked": True}
    assert times(database, first) == {"fetched": False, "acked": False}
    assert (await read(platform, member, first)).content == b"one"


@only("sqlite")  # the parser is the matter, not the database
@pytest.mark.parametrize(
    ("parts", "more"),
    [
        (500, '; filename="' + ";" * 4000),
        (200, '; filename="' + ";" * 4000 + '"'),
    ],
    ids=["open quotes", "closed quotes"],
)
async def test_a_form_of_long_headers_does_not_keep_others_waiting(platform: Platform, parts: int, more: str) -> None:
    """Whatever 2 MB of headers say, the others are answered meanwhile (ours): reading takes time by their length."""
    member = await platform.join()
    body = form(*[part(b"", f'Content-Disposition: form-data; name="y"{more}')] * parts)
    posted = asyncio.create_task(post(platform, member, body))
    waits = []
    while not posted.done():
        asked = time.monotonic()
        await anyio.sleep(0.002)  # what a socket would: a request in process gives way to nobody
        assert (await platform.http.get("/health")).status_code == 200
        waits.append(time.monotonic() - asked)
    assert (await posted)[0] == 400
    assert max(waits) < 2


async def test_many_files_keep_their_order(platform: Platform) -> None:
    """64 files of one request: answer, rows and contents in the order they were sent (contract 5.1)."""
    member = await platform.join()
    contents = [b"%d" % number * (number + 1) for number in range(64)]
    ids = await staged(platform, member, *contents)
    rows = list(reversed(await platform.rows(member)))
    assert [row["request_body"]["file_id"] for row in rows] == ids
    assert [row["request_body"]["name"] for row in rows] == [f"{number}.bin" for number in range(64)]
    assert {row["request_body"]["mimeType"] for row in rows} == {""}
    for number in (0, 31, 63):
        assert (await read(platform, member, ids[number])).content == contents[number]


@only("sqlite")  # the wire is the matter, not the database
async def test_the_bytes_come_with_headers_that_a_browser_obeys(platform: Platform) -> None:
    """Type, length, a name to save it under; never shown as a page of the platform's own (contract 5.4)."""
    member = await platform.join()
    page = ("my page.html", b"<script>", "text/html; charset=utf-8")
    reply = await upload(platform, member, page, ("bare", b"x", ""))
    html, bare = [await read(platform, member, file_id(file)) for file in reply.json()["files"]]
    assert {name: html.headers[name] for name in ("content-type", "content-length", "x-content-type-options")} == {
        "content-type": "text/html",
        "content-length": "8",
        "x-content-type-options": "nosniff",
    }
    disposition = "attachment; filename=\"my_page.html\"; filename*=UTF-8''my_page.html"
    assert html.headers["content-disposition"] == disposition
    assert bare.headers["content-type"] == "application/octet-stream"


EVIL = [
    ('a"\r\nX-Evil: 1', "text/html\r\nX-Evil: 1"),
    ("a\nX-Evil: 1", "text/html\nX-Evil: 1"),
    ('"; filename="b.html', 'text/html"; x="'),
    ("世界\u202eexe.pdf", "文本/纯"),
    ("../../etc/passwd", "a/b/c"),
    ("", ";"),
]


async def test_no_stored_name_or_type_can_split_a_header(platform: Platform, database: Database) -> None:
    """Not even what somebody wrote into the table by hand: headers are cleaned again on their way out (5.3, 5.4)."""
    member = await platform.join()
    (file,) = await staged(platform, member, b"x")
    for name, kind in EVIL:
        quoted = [text.replace("'", "''") for text in (name, kind)]
        database.sql(f"UPDATE pending_uploads SET filename = '{quoted[0]}', mimetype = '{quoted[1]}'")
        reply = await read(platform, member, file)
        assert (reply.status_code, reply.content) == (200, b"x")
        assert "x-evil" not in reply.headers
        for _, value in reply.headers.raw:
            assert value.isascii()
            assert not {b"\r", b"\n", b"\x00"} & {value[i : i + 1] for i in range(len(value))}
        before, quote, after = reply.headers["content-disposition"].partition('filename="')
        assert (before, quote) == ("attachment; ", 'filename="')
        assert after.count('"') == 1
        assert reply.headers["content-type"] in ("application/octet-stream", 'text/html"')


@only("sqlite")  # the wire is the matter, not the database
async def test_no_uploaded_name_can_split_anything(platform: Platform) -> None:
    """However a client writes it, what is stored is clean, in the answer, the row and the header (contract 5.2)."""
    member = await platform.join()
    for name in ('a"; name="other', "a\nX-Evil: 1", "a\x00b", "é" * 300, "CON", ".."):
        status, answer = await post(platform, member, form(named(name, b"x")))
        assert status == 200
        (file,) = answer["files"]
        assert all(char.isascii() and (char.isalnum() or char in "._-") for char in file["name"])
        assert 0 < len(file["name"]) <= 100
        (row,) = await platform.rows(member, limit=1)
        assert row["request_body"]["name"] == file["name"]
        assert f'"{file["name"]}"' in (await read(platform, member, file_id(file))).headers["content-disposition"]
    # A line end as HTTP has it ends the header of the part, whose quote is left open.
    refusal = (400, {"error": "malformed multipart body"})
    assert await post(platform, member, form(named("a\r\nX-Evil: 1"))) == refusal


async def test_a_workspaces_own_upload_is_silent_and_the_canvas_can_read_it(
    locked: Platform, database: Database, clock: ManualClock
) -> None:
    """No row, no event: what an agent sends to its user must not come back to it (contract 5.7)."""
    member = await locked.join()
    with locked.parts.bus.subscribe() as events:
        reply = await upload(locked, member, ("a.txt", b"for you", "text/plain"), headers=member.headers)
        assert await locked.heard(events) == []
    (file,) = reply.json()["files"]
    assert await locked.rows(member) == []
    assert stock(database) == (1, 1, 0)
    clock.advance(DAY - 0.000_001)
    assert (await read(locked, member, file_id(file), own=False)).content == b"for you"
    clock.advance(0.000_001)
    assert told(await read(locked, member, file_id(file), own=False)) == GONE
    again = await upload(locked, member, ("a.txt", b"for it", "text/plain"), headers=locked.admin)
    assert again.status_code == 200
    assert len(await locked.rows(member)) == 1


async def test_an_acked_file_is_gone_for_the_agent_and_stays_for_the_canvas(
    locked: Platform, database: Database, clock: ManualClock
) -> None:
    """404 for the workspace's token, the bytes for others; a second ack is fine and changes nothing (5.4, 5.5)."""
    member = await locked.join()
    (file,) = await staged_by_admin(locked, member)
    assert await ack(locked, member, file) == (200, {"acked": True})
    (first,) = database.sql("SELECT acked_at FROM pending_uploads")
    clock.advance(60)
    assert told(await read(locked, member, file)) == GONE
    assert (await read(locked, member, file, own=False)).content == b"x"
    for own in (True, False):
        assert await ack(locked, member, file, own=own) == (200, {"acked": True})
    assert database.sql("SELECT acked_at FROM pending_uploads") == [first]
    clock.advance(2 * DAY)  # what was acked in time stays until it is swept, whatever its age
    assert (await read(locked, member, file, own=False)).status_code == 200
    await locked.parts.upload_sweeper.sweep_once()
    assert told(await read(locked, member, file, own=False)) == GONE
    assert await ack(locked, member, file) == GONE


async def staged_by_admin(platform: Platform, member: Member, *contents: bytes) -> list[str]:
    files = [("a", content, "") for content in contents or (b"x",)]
    reply = await upload(platform, member, *files, headers=platform.admin)
    return [file_id(file) for file in reply.json()["files"]]


async def test_nobody_reads_or_acks_anothers_file(platform: Platform, database: Database) -> None:
    """401 on the other's route, 404 for its file on one's own, and the same for the canvas (contract 5.4, 5.5)."""
    ours, other = await platform.join("ours"), await platform.join("other")
    (theirs,) = await staged(platform, other, b"secret")
    for method, what in (("GET", "content"), ("POST", "ack")):
        crossing = await platform.http.request(method, path(other, theirs, what), headers=ours.headers)
        assert told(crossing) == (401, {"error": "invalid workspace auth token"})
        for headers in (ours.headers, {}):
            strange = await platform.http.request(method, path(ours, theirs, what), headers=headers)
            assert told(strange) == NOT_YOURS
    assert times(database, theirs) == {"fetched": False, "acked": False}
    refused = await upload(platform, other, ("a", b"x", ""), headers=ours.headers)
    assert told(refused) == (401, {"error": "invalid workspace auth token"})
    assert stock(database) == (1, 1, 1)


async def test_what_is_not_there_is_404_and_what_is_no_id_400(platform: Platform, clock: ManualClock) -> None:
    """Missing, expired, no UUID; ids compare without case (contract 5.4, 5.5, conventions)."""
    member = await platform.join()
    (file,) = await staged(platform, member)
    assert (await read(platform, member, file.upper())).status_code == 200
    for method, what in (("GET", "content"), ("POST", "ack")):
        for path_, answer in (
            (path(member, NOBODY, what), GONE),
            (path(member, "nope", what), (400, {"error": "invalid file_id"})),
            (path(Member("nope", ""), file, what), (400, {"error": "invalid workspace ID"})),
        ):
            assert told(await platform.http.request(method, path_, headers=member.headers)) == answer
    clock.advance(DAY)
    assert told(await read(platform, member, file)) == GONE
    assert await ack(platform, member, file) == GONE


async def test_concurrent_acks_all_succeed_and_the_first_time_stays(platform: Platform, database: Database) -> None:
    """Twelve at once: twelve times 200, one timestamp (contract 5.5)."""
    member = await platform.join()
    (file,) = await staged(platform, member)
    answers = await asyncio.gather(*(ack(platform, member, file) for _ in range(12)))
    assert answers == [(200, {"acked": True})] * 12
    assert times(database, file) == {"fetched": False, "acked": True}


async def test_two_acks_that_overtake_each_other_keep_the_first_time(
    platform: Platform, database: Database, clock: ManualClock
) -> None:
    """The store's own ack is idempotent too: both may have looked before either wrote (R7)."""
    member = await platform.join()
    (file,) = await staged(platform, member)
    assert await platform.parts.pending_uploads.ack(file)
    before = database.sql("SELECT acked_at FROM pending_uploads")
    clock.advance(10)
    assert await platform.parts.pending_uploads.ack(file)
    assert database.sql("SELECT acked_at FROM pending_uploads") == before
    assert not await platform.parts.pending_uploads.ack(NOBODY)


async def test_a_row_that_vanishes_before_its_ack_is_raced(
    platform: Platform, database: Database, clock: ManualClock
) -> None:
    """The sweeper came between look-up and ack: the file is done all the same (contract 5.5)."""

    class SweptAtOnce(UploadTables):
        async def get(self, file_id: str) -> PendingUpload | None:
            found = await super().get(file_id)
            database.sql("DELETE FROM pending_upload_chunks")
            database.sql("DELETE FROM pending_uploads")
            return found

    member = await platform.join()
    (file,) = await staged(platform, member)
    parts = platform.parts
    tables = SweptAtOnce(parts.store, clock, ttl=timedelta(days=1))
    uploads = ChatUploads(parts.store, tables, parts.activity, clock)
    assert await uploads.ack(member.id, file) == AckReply(raced=True)


@pytest.fixture
async def small(config: PlatformConfig, clock: ManualClock) -> AsyncIterator[Platform]:
    """A platform with caps of 1000 and 5000 bytes."""
    async with running(replace(config, upload_max_file_bytes=1000, upload_max_request_bytes=5000), clock) as platform:
        yield platform


async def test_a_refused_batch_leaves_nothing(small: Platform, database: Database) -> None:
    """Second file over its cap, 65 files, a long body, no form, no bytes: no rows, no bytes, no events (5.1)."""
    member = await small.join()
    too_long = (400, {"error": "malformed multipart body", "max": 5000})
    bodies: list[tuple[Any, tuple[int, Any]]] = [
        (
            form(named("a"), named("b.pdf", b"x" * 1001), named("c")),
            (413, {"error": "file exceeds per-file cap", "filename": "b.pdf", "size": 1001, "max": 1000}),
        ),
        (form(*[named("a", b"x" * 900)] * 6), too_long),
        (pieces(form(*[named("a", b"x" * 900)] * 6), 1000), too_long),
        (form(named("a"))[:-4], (400, {"error": "malformed multipart body"})),
        (form(part(b"x", "X: y")), (400, {"error": "no files field in request"})),
        (form(named("a"), named("b", b"")), (500, {"error": "could not stage files", "detail": "a file is empty"})),
    ]
    with small.parts.bus.subscribe() as events:
        for body, answer in bodies:
            assert await post(small, member, body) == answer
        assert await small.heard(events) == []
    assert stock(database) == NOTHING
    assert (await post(small, member, form(named("a", b"x" * 1000))))[0] == 200


@only("sqlite")  # the wire is the matter, not the database
async def test_65_files_are_too_many(platform: Platform, database: Database) -> None:
    """64 is what is checked (contract 5.1)."""
    member = await platform.join()
    assert await post(platform, member, form(*[named("a")] * 65)) == (400, {"error": "too many files (limit 64)"})
    assert stock(database) == NOTHING


@only("sqlite")  # the wire is the matter, not the database
async def test_the_body_is_not_asked_for_before_it_is_known_for_whom(
    platform: Platform, locked: Platform, database: Database
) -> None:
    """401, 400 and 404 cost nobody an upload (contract 5.1)."""
    removed = await platform.join("removed")
    await platform.http.delete(f"/workspaces/{removed.id}")
    member = await platform.join()
    asked: list[str] = []

    async def body(name: str) -> AsyncIterator[bytes]:
        asked.append(name)
        yield form(named("a"))

    for target, headers, answer in (
        (removed.id, {}, (404, {"error": "workspace not found"})),
        (NOBODY, {}, (404, {"error": "workspace not found"})),
        ("nope", {}, (400, {"error": "invalid workspace ID"})),
        (member.id, bearer("wrong"), (401, {"error": "invalid workspace auth token"})),
        (removed.id, removed.headers, (401, {"error": "invalid workspace auth token"})),
    ):
        post_to = f"/workspaces/{target}/chat/uploads"
        headers = {"Content-Type": FORM} | headers
        assert told(await platform.http.post(post_to, content=body(target), headers=headers)) == answer
    assert asked == []
    assert stock(database)[0] == 0


FAILING = {
    "pending_uploads": "could not stage files",
    "pending_upload_chunks": "could not stage files",
    "activity_logs": "could not log upload activity",
}


async def test_a_batch_that_cannot_be_written_leaves_nothing(platform: Platform, database: Database) -> None:
    """Whichever insert fails: 500, no file, no row, no event, a line in the log; then it works again (5.1)."""
    member = await platform.join()
    body = form(named("a"), named("b"))
    for table, error in FAILING.items():
        database.refuse("INSERT", table)
        with platform.parts.bus.subscribe() as events, capture_logs() as logs:
            assert await post(platform, member, body) == (500, {"error": error})
            assert await platform.heard(events) == []
        assert [entry["log_level"] for entry in logs] == ["error"]
        assert stock(database) == NOTHING
        database.heal("INSERT", table)
    # The last row alone: the first files and rows of the batch were written by then.
    database.sql("CREATE UNIQUE INDEX one_name ON activity_logs (summary)")
    repeated = form(named("a"), named("b"), named("b"))
    assert await post(platform, member, repeated) == (500, {"error": "could not log upload activity"})
    assert stock(database) == NOTHING
    assert (await post(platform, member, body))[0] == 200
    assert stock(database) == (2, 2, 2)
    database.sql("DROP INDEX one_name")


async def test_a_failing_store_is_never_not_found(platform: Platform, database: Database) -> None:
    """500 with the contract's texts (5.1, 5.4, 5.5, R22)."""
    member = await platform.join()
    (file,) = await staged(platform, member)
    database.sql("ALTER TABLE pending_uploads RENAME TO hidden")
    assert told(await read(platform, member, file)) == (500, {"error": "storage error"})
    assert await ack(platform, member, file) == (500, {"error": "storage error"})
    database.sql("ALTER TABLE hidden RENAME TO pending_uploads")
    database.sql("ALTER TABLE pending_upload_chunks RENAME TO hidden")
    assert told(await read(platform, member, file)) == (500, {"error": "storage error"})
    database.sql("ALTER TABLE hidden RENAME TO pending_upload_chunks")
    database.sql("ALTER TABLE workspaces RENAME TO hidden")
    assert await post(platform, member, form(named("a"))) == (500, {"error": "delivery_mode lookup failed"})
    database.sql("ALTER TABLE hidden RENAME TO workspaces")
    assert (await read(platform, member, file)).status_code == 200


async def test_the_bytes_are_given_also_when_their_fetching_cannot_be_noted(
    platform: Platform, database: Database
) -> None:
    """fetched_at is for the operator's eye (contract 5.4)."""
    member = await platform.join()
    (file,) = await staged(platform, member, b"bytes")
    database.refuse("UPDATE", "pending_uploads")
    with capture_logs() as logs:
        assert (await read(platform, member, file)).content == b"bytes"
    assert [entry["event"] for entry in logs] == ["uploads.mark_failed"]
    assert times(database, file) == {"fetched": False, "acked": False}
    assert await ack(platform, member, file) == (500, {"error": "storage error"})


async def test_a_file_that_is_swept_while_it_is_read_breaks_off(platform: Platform, database: Database) -> None:
    """A reader gets an error, never a file that is shorter than announced (ours)."""
    member = await platform.join()
    (file,) = await staged(platform, member, b"x" * 3_000_000)
    pending = platform.parts.pending_uploads
    upload_ = await pending.get(file)
    assert upload_ is not None
    content = pending.content(upload_)
    assert len(await anext(content)) == 1_048_576
    database.sql("DELETE FROM pending_upload_chunks WHERE position > 0")
    with pytest.raises(StoreError):
        await anext(content)


@only("sqlite")  # the wire is the matter, not the database
async def test_the_caps_are_the_operators(small: Platform, platform: Platform) -> None:
    """What is enforced is what is shown, to anybody (contract 5.1)."""
    assert (await small.http.get("/uploads/limits")).json() == {
        "per_file_bytes": 1000,
        "per_request_bytes": 5000,
        "max_attachments_per_message": 10,
    }
    assert (await platform.http.get("/uploads/limits")).json()["per_file_bytes"] == 25 * 1024 * 1024


@only("sqlite")  # the wire is the matter, not the database
async def test_a_message_that_names_its_files_shows_them_in_the_chat(platform: Platform) -> None:
    """The upload's row makes no bubble, the message that refers to it one with the attachment (contract 4.5, 5.1)."""
    member = await platform.join()
    reply = await upload(platform, member, ("a b.pdf", b"one", "application/pdf"))
    (file,) = reply.json()["files"]
    words = {"kind": "text", "text": "see"}
    message = {"method": "message/send", "params": {"message": {"parts": [words, {"kind": "file", "file": file}]}}}
    assert (await platform.http.post(f"/workspaces/{member.id}/a2a", json=message)).status_code == 200
    page = (await platform.http.get(f"/workspaces/{member.id}/chat-history")).json()["messages"]
    assert [(bubble["role"], bubble["content"], bubble["attachments"]) for bubble in page] == [("user", "see", [file])]


@only("sqlite")  # the connection is the matter, not the database
async def test_a_client_that_goes_away_in_the_middle_leaves_nothing(config: PlatformConfig, database: Database) -> None:
    """Half a body, then the connection ends: nothing staged, no file left, and nothing in the log (contract 5.1)."""

    others = spools()

    async def spooling() -> bool:
        return spools() == others + 1

    async def forgotten() -> bool:
        return spools() == others

    with capture_logs() as logs:
        async with served(config) as url:
            member = await registered(url)
            body = form(named("a", b"x" * 6_000_000))
            async with await anyio.connect_tcp("127.0.0.1", httpx.URL(url).port or 0) as connection:
                await connection.send(head(url, member, len(body)) + body[: len(body) // 2])
                await until(spooling)
            await until(forgotten)
            assert stock(database) == NOTHING
    assert [entry for entry in logs if entry["log_level"] in ("warning", "error")] == []


def spools() -> int:
    """Open files of this process that have no name."""
    count = 0
    for link in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # closed meanwhile
            count += "(deleted)" in os.readlink(link)
    return count


def head(url: str, member: Member, length: int, more: str = "") -> bytes:
    """The head of an upload as it goes over the socket."""
    return (
        f"POST /workspaces/{member.id}/chat/uploads HTTP/1.1\r\nHost: {httpx.URL(url).netloc.decode()}\r\n"
        f"Content-Type: {FORM}\r\nContent-Length: {length}\r\n{more}\r\n"
    ).encode()


async def registered(url: str) -> Member:
    """A polling workspace of a served platform."""
    async with httpx.AsyncClient(base_url=url) as http:
        reply = await http.post("/workspaces", json={"name": "laptop", "external": True, "delivery_mode": "poll"})
        return Member(reply.json()["id"], reply.json()["connection"]["auth_token"])


@only("sqlite")  # the wire is the matter, not the database
async def test_the_rest_of_a_refused_body_is_read_within_limits(small: Platform) -> None:
    """What is refused is read to its end, so that any server gets the answer out; what has no end is not (ours)."""
    member = await small.join()
    asked = 0

    async def body(first: bytes, count: int) -> AsyncIterator[bytes]:
        nonlocal asked
        asked = 0
        yield first.ljust(1000, b"x")
        for _ in range(count):
            asked += 1
            yield b"x" * 1000

    no_form, endless = b"rubbish", named("a")[:-3]
    for first, count, read_out in ((no_form, 4, 4), (no_form, 1000, 6), (endless, 8, 8), (endless, 1000, 11)):
        assert (await post(small, member, body(first, count)))[0] == 400
        assert asked == read_out


@only("sqlite")  # the connection is the matter, not the database
async def test_a_client_that_is_still_sending_sees_the_refusal(config: PlatformConfig, database: Database) -> None:
    """Each refusal reaches a client that writes all of a large body before it reads (contract 5.1)."""
    config = replace(config, upload_max_file_bytes=100_000, upload_max_request_bytes=8_000_000)
    async with served(config) as url, httpx.AsyncClient(base_url=url) as http:
        member = await registered(url)
        long = form(named("a", b"x" * 7_000_000))
        longer = form(named("a", b"x" * 12_000_000))
        cases: list[tuple[str, dict[str, str], Any, int]] = [
            (member.id, {}, long, 413),
            (member.id, {}, longer, 400),
            (member.id, {}, pieces(longer, 100_000), 400),
            (member.id, {"Content-Type": "text/plain"}, long, 400),
            (member.id, bearer("wrong"), long, 401),
            (NOBODY, {}, long, 404),
        ]
        for target, headers, body, status in cases:
            post_to = f"/workspaces/{target}/chat/uploads"
            reply = await http.post(post_to, content=body, headers={"Content-Type": FORM} | headers)
            assert reply.status_code == status, reply.text
            assert "error" in reply.json()
        assert (await http.post(f"/workspaces/{member.id}/chat/uploads", files={"files": ("a", b"x")})).is_success
    assert stock(database) == (1, 1, 1)


@only("sqlite")  # the connection is the matter, not the database
async def test_a_download_that_is_broken_off_does_not_count(config: PlatformConfig, database: Database) -> None:
    """fetched_at says that somebody took all the bytes (contract 5.4)."""
    async with served(config) as url, httpx.AsyncClient(base_url=url) as http:
        member = await registered(url)
        file = ("a", b"x" * 20_000_000)
        reply = await http.post(f"/workspaces/{member.id}/chat/uploads", files={"files": file})
        staged_file = file_id(reply.json()["files"][0])
        content = path(member, staged_file, "content")
        async with http.stream("GET", content, headers=member.headers) as response:
            await anext(response.aiter_raw())

        async def answered() -> bool:
            lines = (await http.get("/metrics")).text.splitlines()
            return any("content" in line and line.startswith("molecule_http_requests_total") for line in lines)

        await until(answered)
        assert times(database, staged_file) == {"fetched": False, "acked": False}
        whole = await http.get(content, headers=member.headers)
        assert whole.content == file[1]

        async def noted() -> bool:
            return times(database, staged_file)["fetched"]

        await until(noted)


def test_memory_does_not_grow_with_the_body(platform_process: PlatformProcess) -> None:
    """50 MiB in one request, then 25 MiB out: the process never holds more than a part of them (ours)."""
    workspace = platform_process.create_workspace("laptop")["WORKSPACE_ID"]
    piece = os.urandom(1 << 16)
    frame = [named("a", b"|").partition(b"|")[0], b"\r\n" + named("b", b"|").partition(b"|")[0], b"\r\n" + form()]

    def body() -> Iterator[bytes]:
        yield frame[0]
        yield from [piece] * 400
        yield frame[1]
        yield from [piece] * 399
        yield frame[2]

    reset = Path(f"/proc/{platform_process.pid}/clear_refs")
    reset.write_text("5")
    before = peak_bytes(platform_process.pid)
    uploads = f"/workspaces/{workspace}/chat/uploads"
    reply = platform_process.http.post(uploads, content=body(), headers={"Content-Type": FORM}, timeout=60)
    assert [file["size"] for file in reply.json()["files"]] == [400 << 16, 399 << 16]
    content = path(Member(workspace, ""), file_id(reply.json()["files"][0]), "content")
    with platform_process.http.stream("GET", content, timeout=60) as response:
        assert b"".join(response.iter_raw()) == piece * 400
    assert peak_bytes(platform_process.pid) - before < 32 << 20


def peak_bytes(pid: int) -> int:
    """The most memory that a process has had since the mark was reset."""
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024

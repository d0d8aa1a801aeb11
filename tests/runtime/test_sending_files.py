"""Files on their way to the user: streamed in one batch, whole or not at all, and then named in a message."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import httpx
import pytest
import respx

from molecule_runtime import client as client_module
from molecule_runtime import messages
from molecule_runtime.attachments import AttachmentPolicy, held
from molecule_runtime.client import PlatformClient
from molecule_runtime.clock import ManualClock
from molecule_runtime.credentials import Credentials
from molecule_runtime.errors import (
    AttachmentRefused,
    BadReply,
    InvalidArgument,
    TooLarge,
    Unavailable,
    Unreachable,
    WhyUnreachable,
)
from molecule_runtime.messages import Enclosed
from molecule_runtime.state import WorkspaceState
from molecule_runtime.upload_body import UploadProgress
from molecule_runtime.wire.uploads import MAX_FILE_BYTES, MAX_REQUEST_BYTES, UploadedFile, UploadLimits
from molecule_runtime.workspace import Roles, Workspace
from tests.reference_platform.support import BASE_URL, Member, Platform
from tests.support.faulty import LARGE, Answer, Asked, Fault, FaultyPlatform, HeldUploads, Script, said
from tests.support.uploads import files_in, staged

from .support import WORKSPACE, client_of, lone_client, running, settings, ticking, until, workspace_settings

UPLOADS = f"/workspaces/{WORKSPACE}/chat/uploads"
LIMITS = "/uploads/limits"
USUAL = UploadLimits(per_file_bytes=MAX_FILE_BYTES, per_request_bytes=MAX_REQUEST_BYTES, max_attachments_per_message=64)


@pytest.fixture
def outbox(tmp_path: Path) -> Path:
    (tmp_path / "outbox").mkdir()
    return tmp_path / "outbox"


def written(file: Path, content: bytes) -> Path:
    file.write_bytes(content)
    return file


def sparse(file: Path, size: int) -> Path:
    """A file of so many zeros that takes no room."""
    with file.open("wb") as stream:
        stream.truncate(size)
    return file


def enclosed(*files: Path | str, **more: Any) -> Enclosed:
    """These files, from wherever they are."""
    return Enclosed([str(file) for file in files], AttachmentPolicy(None), **more)


@asynccontextmanager
async def talking_to(platform: FaultyPlatform) -> AsyncIterator[PlatformClient]:
    told = workspace_settings(PLATFORM_URL=platform.url)
    async with PlatformClient(platform.url, WORKSPACE, Credentials(told, None)) as client:
        yield client


async def upload(client: PlatformClient, *files: Path, progress: UploadProgress | None = None) -> list[UploadedFile]:
    async with held([str(file) for file in files], AttachmentPolicy(None)) as opened:
        return await client.upload(opened, progress=progress)


def only(path: str, answer: Script) -> Script:
    """Play this for requests of a path that ends so; all others are well."""

    def choose(asked: Asked) -> Any:
        if not asked.path.endswith(path):
            return None
        return answer(asked) if callable(answer) else answer

    return choose


# the whole way, on the reference platform


async def test_the_user_gets_the_bytes_and_the_chat_shows_them_and_the_agents_own_inbox_does_not(
    platform: Platform, member: Member, outbox: Path
) -> None:
    """R7, agent-side 5: upload, then notify; contract 5.7: no inbox row for what the workspace itself sends."""
    await platform.register(member)
    contents = {"报告.pdf": b"%PDF" + os.urandom(300_000), "b.txt": b"x"}
    files = [written(outbox / name, content) for name, content in contents.items()]
    async with client_of(platform, member) as client:
        sent = await messages.send_to_user(client, "here", enclosed(*files))
    assert [(file.name, file.mimeType, file.size) for file in sent] == [
        ("__.pdf", "application/pdf", 300_004),
        ("b.txt", "text/plain", 1),
    ]
    history = (await platform.http.get(f"/workspaces/{member.id}/chat-history", headers=platform.admin)).json()
    (bubble,) = history["messages"]
    assert (bubble["role"], bubble["content"]) == ("agent", "here")
    assert bubble["attachments"] == [file.model_dump() for file in sent]
    for file, content in zip(bubble["attachments"], contents.values(), strict=True):
        file_id = file["uri"].rpartition("/")[2]
        read = await platform.http.get(f"/workspaces/{member.id}/pending-uploads/{file_id}/content")
        assert (read.status_code, read.content) == (200, content)
    assert [row["method"] for row in await platform.rows(member)] == ["notify"]


async def test_a_message_without_files_uploads_nothing(platform: Platform, member: Member) -> None:
    """Contract 4.2: the key `attachments` is absent when there are none."""
    await platform.register(member)
    async with client_of(platform, member) as client:
        assert await messages.send_to_user(client, "hello", enclosed()) == []
    (row,) = await platform.rows(member)
    assert row["response_body"] == {"result": "hello"}


# what is asked of the platform


async def test_all_files_go_in_one_form_with_its_length_and_then_the_message(outbox: Path) -> None:
    """Contract 5.1 and 4.2: repeated field `files`, cleaned names, in their order; the answer's files are passed on."""
    files = [written(outbox / f'{number} "q"\n.csv', b"%d" % number) for number in range(12)]
    with FaultyPlatform() as platform:
        async with talking_to(platform) as client:
            sent = await messages.send_to_user(client, "twelve", enclosed(*files))
    limits, form, notify = platform.asked
    assert [asked.path for asked in (limits, form, notify)] == [LIMITS, UPLOADS, f"/workspaces/{WORKSPACE}/notify"]
    assert files_in(form.headers["content-type"], form.body) == [
        (f"{number}__q__.csv", "text/csv", b"%d" % number) for number in range(12)
    ]
    assert form.headers["content-length"] == str(len(form.body))
    assert "transfer-encoding" not in form.headers
    assert json.loads(notify.body) == {"message": "twelve", "attachments": [file.model_dump() for file in sent]}


REFUSED = {
    "a file that is not there": ("none.txt", AttachmentRefused),
    "an empty file": ("empty.txt", AttachmentRefused),
    "a file above the platform's cap": ("large.bin", AttachmentRefused),
    "more than the platform takes at once": ("good.bin", InvalidArgument),
}


@respx.mock
@pytest.mark.parametrize("why", list(REFUSED))
async def test_any_refusal_sends_nothing(outbox: Path, why: str) -> None:
    """agent-side 5: neither the good file beside the bad one nor the message."""
    sizes = {"per_file_bytes": 1_000, "per_request_bytes": 2_000, "max_attachments_per_message": 10}
    respx.get(BASE_URL + LIMITS).respond(200, json=sizes)
    upload = respx.post(BASE_URL + UPLOADS).respond(500)
    notify = respx.post(f"{BASE_URL}/workspaces/{WORKSPACE}/notify").respond(500)
    written(outbox / "empty.txt", b"")
    sparse(outbox / "large.bin", 1_001)
    sparse(outbox / "good.bin", 1_000)
    good = sparse(outbox / "also good.bin", 1_000)
    name, kind = REFUSED[why]
    async with lone_client() as client:
        with pytest.raises(kind):
            await messages.send_to_user(client, "hello", enclosed(good, outbox / name))
    assert (upload.call_count, notify.call_count) == (0, 0)


@pytest.mark.parametrize("answer", [said(500, {"error": "could not stage files"}), Fault.RESET_READ, said(200, {})])
async def test_no_message_names_files_that_were_not_staged(outbox: Path, answer: Answer | Fault) -> None:
    """agent-side 5: any refusal sends nothing; and nothing was shown, so the agent may simply call again."""
    with FaultyPlatform() as platform:
        platform.play(only("/chat/uploads", answer))
        async with talking_to(platform) as client:
            with pytest.raises((Unavailable, Unreachable, BadReply)) as raised:
                await messages.send_to_user(client, "hello", enclosed(written(outbox / "a.txt", b"x")))
        assert (platform.count("/chat/uploads"), platform.count("/notify")) == (1, 0)
    assert not getattr(raised.value, "may_have_arrived", False)


async def test_an_answer_that_names_other_files_is_no_answer(outbox: Path) -> None:
    """Ours: a file cut short on the way must not be shown as whole."""

    def short(asked: Asked) -> Answer:
        files = staged(WORKSPACE, asked.headers["content-type"], asked.body)
        return said(200, {"files": [files[0] | {"size": 2}, files[1]]})

    def one_of_two(asked: Asked) -> Answer:
        return said(200, {"files": staged(WORKSPACE, asked.headers["content-type"], asked.body)[:1]})

    files = [written(outbox / name, b"abc") for name in ("a.txt", "b.txt")]
    with FaultyPlatform() as platform:
        for answer in (short, one_of_two):
            platform.play(only("/chat/uploads", answer))
            async with talking_to(platform) as client:
                with pytest.raises(BadReply):
                    await upload(client, *files)


async def test_a_token_that_was_renewed_is_read_again_and_the_form_is_made_anew(tmp_path: Path, outbox: Path) -> None:
    """agent-side 1: re-read after a 401; the second attempt has every byte."""
    token = written(tmp_path / "token", b"old")
    content = os.urandom(600_000)
    progress = UploadProgress()

    def refuse_the_old(asked: Asked) -> Answer | None:
        token.write_bytes(b"new")
        return said(401, {"error": "no"}) if asked.headers["authorization"] == "Bearer old" else None

    told = workspace_settings(token=None, MOLECULE_WORKSPACE_TOKEN_FILE=str(token))
    with FaultyPlatform() as platform:
        platform.play(only("/chat/uploads", refuse_the_old))
        async with PlatformClient(platform.url, WORKSPACE, Credentials(told, None)) as client:
            (sent,) = await upload(client, written(outbox / "a.bin", content), progress=progress)
        forms = [asked for asked in platform.asked if asked.path == UPLOADS]
    assert [asked.headers["authorization"] for asked in forms] == ["Bearer old", "Bearer new"]
    assert {asked.body for asked in forms} == {forms[0].body}
    assert files_in(forms[1].headers["content-type"], forms[1].body)[0][2] == content
    assert (sent.size, progress.done, progress.total) == (600_000, len(forms[1].body), len(forms[1].body))


async def test_an_upload_is_never_made_twice_by_itself(outbox: Path) -> None:
    """Ours: on a connection that died idle a call that may be repeated is; this one leaves files behind each time."""
    with FaultyPlatform(keep_alive="timeout=60") as platform:
        async with talking_to(platform) as client:
            await client.notify("which connections are kept")
            await client.notify("warm")
            kept = platform.connections
            platform.play_next(Fault.RESET_READ)
            with pytest.raises(Unreachable) as raised:
                await upload(client, written(outbox / "a.txt", b"x"))
        assert (platform.count("/chat/uploads"), platform.connections) == (1, kept)
    assert raised.value.may_have_arrived is False


# limits


@respx.mock
@pytest.mark.parametrize(
    ("answer", "limits", "asked"),
    [
        (httpx.Response(200, json=dict(USUAL) | {"per_file_bytes": 7}), dict(USUAL) | {"per_file_bytes": 7}, 1),
        (httpx.Response(404, json={"error": "not found"}), dict(USUAL), 1),
        (httpx.Response(404, text="404 page not found"), dict(USUAL), 1),
        (httpx.Response(401, json={"error": "no"}), dict(USUAL), 1),
        (httpx.Response(200, text="<html>"), dict(USUAL), 1),
        (httpx.Response(200, json={"per_file_bytes": "many"}), dict(USUAL), 1),
        (httpx.Response(200, json=dict(USUAL) | {"per_request_bytes": 0}), dict(USUAL), 1),
        (httpx.Response(503, json={"error": "later"}), dict(USUAL), 2),
    ],
)
async def test_the_limits_are_asked_for_once_and_guessed_where_a_platform_does_not_say(
    answer: httpx.Response, limits: dict[str, int], asked: int
) -> None:
    """Contract 5.1: later platforms have the route; 25 and 50 MiB otherwise."""
    route = respx.get(BASE_URL + LIMITS).mock(return_value=answer)
    async with lone_client() as client:
        assert dict(await client.upload_limits()) == limits
        assert dict(await client.upload_limits()) == limits
    assert route.call_count == asked


async def test_a_platform_that_does_not_answer_is_not_sent_a_file(outbox: Path) -> None:
    """agent-side 5: the failure names the base URL, and nothing has gone out that would have to be looked for."""
    with FaultyPlatform() as platform:
        platform.play(only("/limits", Fault.RESET_READ))
        async with talking_to(platform) as client:
            with pytest.raises(Unreachable) as raised:
                await messages.send_to_user(client, "hello", enclosed(written(outbox / "a.txt", b"x")))
        assert platform.count("/chat/uploads") == 0
    assert (raised.value.base_url, raised.value.may_have_arrived) == (platform.url, False)


async def test_a_limit_that_a_refusal_names_is_learned_and_said(outbox: Path) -> None:
    """Contract 5.1: `max` of the 413; the next one is refused before it is sent."""
    small, large = written(outbox / "small.bin", b"x"), sparse(outbox / "large.bin", 5_000)
    with FaultyPlatform() as platform:
        platform.play(only("/chat/uploads", said(413, {"error": "file exceeds per-file cap", "max": 4_000})))
        async with talking_to(platform) as client:
            for _ in range(2):
                with pytest.raises(AttachmentRefused) as raised:
                    await messages.send_to_user(client, "hello", enclosed(small, large))
                assert (raised.value.path, "5,000 bytes" in raised.value.reason) == (str(large), True)
                assert "at most 4,000" in raised.value.reason
        assert (platform.count("/chat/uploads"), platform.count("/notify")) == (1, 0)


@pytest.mark.parametrize("body", [{"error": "too much", "max": 9_000}, {"error": "too much", "max": True}, {}])
async def test_a_refusal_of_the_whole_is_said_as_it_is(outbox: Path, body: dict[str, Any]) -> None:
    """Ours: a proxy has a limit of its own, and says little."""
    files = [sparse(outbox / name, 5_000) for name in ("a.bin", "b.bin")]
    with FaultyPlatform() as platform:
        platform.play(only("/chat/uploads", said(413, body)))
        async with talking_to(platform) as client:
            with pytest.raises(TooLarge):
                await upload(client, *files)
            learned = (await client.upload_limits()).per_request_bytes
    assert learned == (9_000 if body.get("max") == 9_000 else MAX_REQUEST_BYTES)


# on the way


@asynccontextmanager
async def a_platform_that_waits() -> AsyncIterator[tuple[HeldUploads, PlatformClient]]:
    with HeldUploads() as platform:
        async with talking_to(platform) as client:
            yield platform, client


async def test_how_far_an_upload_is_can_be_seen_while_it_is_under_way(outbox: Path) -> None:
    """agent-side 5, progress: what is counted is what the network has taken, but for a piece."""
    file, progress = sparse(outbox / "a.bin", LARGE), UploadProgress()
    async with a_platform_that_waits() as (there, client):
        sending = asyncio.create_task(upload(client, file, progress=progress))
        assert (progress.done, progress.total) == (0, 0)
        await until(lambda: progress.done > 0, within_s=10)
        seen = progress.done
        assert 0 < seen < progress.total - LARGE // 4
        there.go_on.set()
        with anyio.fail_after(20):
            await sending
    assert progress.done == progress.total > LARGE


@pytest.mark.parametrize("change", ["grows", "shrinks", "is rewritten"])
async def test_a_file_that_changes_on_its_way_is_not_sent(outbox: Path, change: str) -> None:
    """agent-side 5: the call fails with a sentence, and no message names half of it."""
    file, progress = sparse(outbox / "a.bin", LARGE), UploadProgress()
    async with a_platform_that_waits() as (there, client):
        sending = asyncio.create_task(messages.send_to_user(client, "hello", enclosed(file, progress=progress)))
        await until(lambda: progress.done > 0, within_s=10)
        os.truncate(file, {"grows": LARGE + 1, "shrinks": LARGE - 1, "is rewritten": LARGE}[change])
        os.utime(file)
        there.go_on.set()
        with anyio.fail_after(20), pytest.raises(AttachmentRefused) as raised:
            await sending
        assert (there.count("/chat/uploads"), there.count("/notify")) == (0, 0)
    assert raised.value.reason == "it was written to while it was being sent"


@pytest.mark.parametrize(("stall_s", "base_s"), [(0.3, 600), (600, 0.3)])
async def test_an_upload_that_stands_still_fails_after_its_time(
    outbox: Path, monkeypatch: pytest.MonkeyPatch, stall_s: float, base_s: float
) -> None:
    """Ours: no step longer than the stall limit, however much time the whole has; and a limit for the whole."""
    file = sparse(outbox / "a.bin", LARGE)
    monkeypatch.setattr(client_module, "UPLOAD_STALL_S", stall_s)
    monkeypatch.setattr(client_module, "UPLOAD_BASE_S", base_s)
    monkeypatch.setattr(client_module, "UPLOAD_BYTES_PER_S", 1e15)
    async with a_platform_that_waits() as (_there, client):
        with anyio.fail_after(10), pytest.raises(Unreachable) as raised:
            await upload(client, file)
    assert (raised.value.why, raised.value.detail) == (WhyUnreachable.TIMEOUT, "no answer within 0.3 s")


class Stuck:
    """A file on a disk that does not answer."""

    path, name, mime_type, size = "/net/a.bin", "a.bin", "application/octet-stream", 10

    def __init__(self) -> None:
        self.is_read, self.answers = threading.Event(), threading.Event()

    def read(self, count: int = -1) -> bytes:
        self.is_read.set()
        self.answers.wait(20)
        return b""

    def seek(self, offset: int, whence: int = 0) -> int:
        return self.size if whence == os.SEEK_END else offset

    def tell(self) -> int:
        return 0


async def test_a_disk_that_hangs_holds_up_neither_the_loop_nor_the_end_of_the_call() -> None:
    """performance: heartbeats share this event loop."""
    file = Stuck()
    with FaultyPlatform() as platform:
        async with talking_to(platform) as client:
            with anyio.fail_after(5):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(client.upload, [file])
                    await until(file.is_read.is_set)
                    await client.notify("meanwhile")
                    tasks.cancel_scope.cancel()
            file.answers.set()


# the echo


class Upstream:
    """A platform that shows an upload to its sender, as if the user had sent it (contract 5.7)."""

    def __init__(self, platform: FaultyPlatform) -> None:
        self._platform = platform
        self.file_ids: list[str] = []

    def __call__(self, asked: Asked) -> Answer | None:
        if not asked.path.endswith("/chat/uploads"):
            return None
        files = staged(WORKSPACE, asked.headers["content-type"], asked.body)
        for file in files:
            file_id = file["uri"].rpartition("/")[2]
            self.file_ids.append(file_id)
            self._platform.feed.rows.append(
                {
                    "id": file_id,
                    "workspace_id": WORKSPACE,
                    "activity_type": "a2a_receive",
                    "method": "chat_upload_receive",
                    "source_id": None,
                    "target_id": WORKSPACE,
                    "summary": f"chat_upload_receive: {file['name']}",
                    "status": "ok",
                    "created_at": "2026-01-01T00:00:00Z",
                    "request_body": {"file_id": file_id, **file},
                }
            )
        return said(200, {"files": files})


async def test_an_upload_that_comes_back_as_an_arrival_is_left_where_it_is(
    state: WorkspaceState, clock: ManualClock, outbox: Path
) -> None:
    """agent-side 8: acked by its own poller, the user's link would be a 404."""
    with FaultyPlatform() as platform:
        upstream = Upstream(platform)
        platform.play(upstream)
        told = settings(PLATFORM_URL=platform.url)
        workspace = Workspace(told.workspaces[0], told, state=state, clock=clock, roles=Roles(beats=False))
        async with running(workspace.run), ticking(clock):
            mailbox = await workspace.mailbox()
            file = written(outbox / "a b.txt", b"mine")
            sent = await messages.send_to_user(workspace.client, "here", enclosed(file, echoes=mailbox))
            polls = platform.count("/activity")
            await until(lambda: platform.count("/activity") > polls + 3, within_s=15)
        assert [one.uri.rpartition("/")[2] for one in sent] == upstream.file_ids
        paths = [asked.path for asked in platform.asked]
    assert not [path for path in paths if "pending-uploads" in path]
    assert list(state.files.iterdir()) == []

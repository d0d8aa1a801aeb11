"""fetch_attachment over a real runtime and a platform that plays faults."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from molecule_mcp.tools._base import ToolContext, ToolResult, run_tool
from molecule_mcp.tools.files import TOOLS as FILE_TOOLS
from molecule_mcp.tools.inbox import TOOLS as INBOX_TOOLS
from molecule_runtime.runtime import Runtime, RuntimeThread
from molecule_runtime.settings import Settings
from molecule_runtime.state import StateDir
from molecule_runtime.wire.uploads import pending_uri
from tests.runtime.rows import WORKSPACE, row
from tests.support.faulty import Answer, Asked, Fault, FaultyPlatform, said
from tests.support.platform import eventually

FETCH, WAIT, POP = FILE_TOOLS[0], INBOX_TOOLS[0], INBOX_TOOLS[3]
FILES = {f"44444444-4444-4444-8444-{number:012d}": name for number, name in ((1, "a b.txt"), (2, "c.txt"))}
MESSAGE = row(9)["id"]
GONE = said(404, {"error": "pending upload not found, expired, or already acked"})


def feed() -> list[dict[str, Any]]:
    """Two uploads and the message that names them."""
    files = [
        {"file_id": file_id, "name": name.replace(" ", "_"), "mimeType": "text/plain", "size": 5}
        for file_id, name in FILES.items()
    ]
    parts = [
        {"kind": "file", "file": {"uri": pending_uri(WORKSPACE, file_id), "name": name}}
        for file_id, name in FILES.items()
    ]
    notices = [row(n, method="chat_upload_receive", request_body=body) for n, body in enumerate(files, 1)]
    return [*notices, row(9, request_body={"params": {"message": {"parts": parts}}})]


def oddly_named() -> list[dict[str, Any]]:
    """A message with files of names that are not shown as they are."""
    names = ["two  spaces.txt", "👩‍👩.jpg", "a<b>.txt", " lead.txt"]
    uris = [pending_uri(WORKSPACE, f"44444444-4444-4444-8444-{number:012d}") for number in range(5, 9)]
    parts = [{"kind": "file", "file": {"uri": uri, "name": name}} for uri, name in zip(uris, names, strict=True)]
    return [row(9, request_body={"params": {"message": {"parts": parts}}})]


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    """The feed from the first poll on."""
    return feed()


@pytest.fixture
def faulty(rows: list[dict[str, Any]]) -> Iterator[FaultyPlatform]:
    with FaultyPlatform(row={}) as platform:
        platform.feed.rows = rows
        yield platform


@pytest.fixture
def context(faulty: FaultyPlatform, tmp_path: Path) -> Iterator[ToolContext]:
    settings = Settings.from_env(
        {"PLATFORM_URL": faulty.url, "WORKSPACE_ID": WORKSPACE, "MOLECULE_MCP_DISABLE_HEARTBEAT": "1"}
    )
    bridge = RuntimeThread(lambda: Runtime(settings, state_dir=StateDir.open(tmp_path, home=tmp_path)))

    async def no_progress(_done: float, _total: float | None, _text: str) -> None:
        return None

    bridge.start()
    eventually(lambda: bridge.glance(lambda runtime: runtime), within_s=10)
    yield ToolContext(settings, bridge, no_progress)
    assert bridge.stop(5)


def content(answer: Answer | Fault) -> Any:
    """A platform that answers so where a file's bytes are asked for."""

    def play(asked: Asked) -> Answer | Fault | None:
        if asked.path.endswith("/ack"):
            return said(200, {"acked": True})
        return answer if asked.path.endswith("/content") else None

    return play


def standing(result: ToolResult) -> list[tuple[str, str]]:
    assert result.error_text is None, result.error_text
    shown = result.payload.get("message", result.payload)["attachments"]
    return [(one["name"], one["status"]) for one in shown]


async def test_what_did_not_come_is_fetched_when_it_is_asked_for(faulty: FaultyPlatform, context: ToolContext) -> None:
    """agent-side 4: a failed file is tried again now, of an open message or a handled one, and acked."""
    faulty.play(content(GONE))
    found = await run_tool(WAIT, context, {"timeout_secs": 20})
    assert standing(found) == [("a b.txt", "failed"), ("c.txt", "failed")]
    again = await run_tool(FETCH, context, {"activity_id": MESSAGE})
    assert standing(again) == [("a b.txt", "failed"), ("c.txt", "failed")]
    assert "already acked" in again.payload["attachments"][0]["reason"]
    assert faulty.count("/content") == 4
    faulty.play(content(Answer(200, b"12345")))
    one = await run_tool(FETCH, context, {"activity_id": MESSAGE, "name": "a b.txt"})
    assert standing(one) == [("a b.txt", "staged"), ("c.txt", "failed")]
    assert await asyncio.to_thread(Path(one.payload["attachments"][0]["path"]).read_bytes) == b"12345"
    await run_tool(POP, context, {"activity_id": MESSAGE})
    rest = await run_tool(FETCH, context, {"activity_id": MESSAGE})
    assert sorted(standing(rest)) == [("a_b.txt", "staged"), ("c.txt", "staged")]
    await asyncio.to_thread(lambda: eventually(lambda: faulty.count("/ack") == 2, within_s=5))
    assert standing(await run_tool(FETCH, context, {"activity_id": MESSAGE})) == standing(rest)
    assert faulty.count("/content") == 6


async def test_a_file_that_takes_long_goes_on_after_the_answer(
    faulty: FaultyPlatform, context: ToolContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """clients.md 1.4: no call stays open longer than a host allows; the file comes all the same."""
    monkeypatch.setattr("molecule_mcp.tools.files.FETCH_LIMIT_S", 0.2)
    faulty.play(content(GONE))
    await run_tool(WAIT, context, {"timeout_secs": 20})
    asked = faulty.count("/content")
    faulty.play(content(Answer(200, b"12345", sent_bytes=2, hangs=True)))
    slow = await run_tool(FETCH, context, {"activity_id": MESSAGE, "name": "c.txt"})
    assert standing(slow) == [("a b.txt", "failed"), ("c.txt", "failed")]
    assert faulty.count("/content") == asked + 1


@pytest.mark.parametrize("rows", [oddly_named()], ids=["oddly named"])
async def test_a_file_is_found_by_every_name_it_is_shown_by(faulty: FaultyPlatform, context: ToolContext) -> None:
    """agent-side 5: what the message shows is what the tool takes, whatever was cleaned away."""
    faulty.play(content(GONE))
    found = await run_tool(WAIT, context, {"timeout_secs": 20})
    asked = faulty.count("/content")
    for shown, _ in standing(found):
        await run_tool(FETCH, context, {"activity_id": MESSAGE, "name": shown})
    assert faulty.count("/content") == asked + 4


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"activity_id": row(3)["id"]}, f"This inbox has no open message {row(3)['id']}."),
        ({"activity_id": "3"}, "activity_id: must be the activity_id of a message, a UUID."),
        ({"activity_id": MESSAGE, "name": "d"}, "name: no uploaded file of it has this name; it has: a b.txt, c.txt."),
    ],
)
async def test_what_cannot_be_fetched_is_said_and_changes_nothing(
    faulty: FaultyPlatform, context: ToolContext, arguments: dict[str, Any], said: str
) -> None:
    """Every bad input gets a sentence that says what is wrong and what to do."""
    faulty.play(content(GONE))
    await run_tool(WAIT, context, {"timeout_secs": 20})
    asked = faulty.count("/content")
    result = await run_tool(FETCH, context, arguments)
    assert said in (result.error_text or "")
    assert faulty.count("/content") == asked

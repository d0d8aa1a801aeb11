"""Files that a tool sends along: what models write for them, what a host is told meanwhile, what is refused."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from molecule_mcp.tools import _attachments
from molecule_mcp.tools._base import ToolContext, ToolResult, _validate, run_tool
from molecule_mcp.tools.inbox import TOOLS as INBOX_TOOLS
from molecule_mcp.tools.messages import TOOLS as MESSAGE_TOOLS
from molecule_runtime.errors import InvalidArgument
from molecule_runtime.runtime import Runtime, RuntimeThread
from molecule_runtime.settings import Settings
from molecule_runtime.state import StateDir
from tests.runtime.support import TOKEN, WORKSPACE, until
from tests.support.faulty import LARGE, HeldUploads

SEND = next(tool for tool in MESSAGE_TOOLS if tool.name == "send_message_to_user")
REPLY = next(tool for tool in INBOX_TOOLS if tool.name == "reply")


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (None, None),
        ("", []),
        ([], []),
        ([None, ""], []),
        ("/tmp/a b.pdf", ["/tmp/a b.pdf"]),
        (["/tmp/a", "/tmp/b"], ["/tmp/a", "/tmp/b"]),
        ('["/tmp/a", "/tmp/b"]', ["/tmp/a", "/tmp/b"]),
        ("[]", []),
        (" [ ]", []),
        ('["/tmp/a"', ['["/tmp/a"']),
        ("[" * 100_000, ["[" * 100_000]),
    ],
)
def test_what_models_write_for_a_list_of_paths_is_read_kindly(written: Any, read: list[str] | None) -> None:
    """agent-side 5: null and "" say nothing, as elsewhere; one path is a list of one; some write a list as text."""
    for tool, more in ((SEND, {}), (REPLY, {"activity_id": WORKSPACE})):
        args = _validate(tool, {"message": "hello", "attachments": written, **more})
        assert args.model_dump()["attachments"] == read


@pytest.mark.parametrize("written", [7, {"path": "/tmp/a"}, [7], [["/tmp/a"]], [{"path": "/tmp/a"}]])
def test_what_is_no_list_of_paths_is_refused(written: Any) -> None:
    """agent-side 5: the argument is named."""
    with pytest.raises(InvalidArgument) as refused:
        _validate(SEND, {"message": "hello", "attachments": written})
    assert refused.value.argument.partition(".")[0] == "attachments"


@pytest.fixture
def platform() -> Iterator[HeldUploads]:
    with HeldUploads() as platform:
        yield platform


@pytest.fixture
def large(tmp_path: Path) -> Path:
    (tmp_path / "outbox").mkdir()
    with (tmp_path / "outbox" / "a.bin").open("wb") as stream:
        stream.truncate(LARGE)
    return tmp_path / "outbox" / "a.bin"


class Session:
    """A runtime at work for one caller, and what that caller is told."""

    def __init__(self, settings: Settings, bridge: RuntimeThread) -> None:
        self.told: list[tuple[float, float | None]] = []
        self._context = ToolContext(settings, bridge, self._progress)

    async def _progress(self, done: float, total: float | None, text: str) -> None:
        assert text
        self.told.append((done, total))

    async def call(self, **arguments: Any) -> ToolResult:
        return await run_tool(SEND, self._context, {"message": "hello", **arguments})


@asynccontextmanager
async def session(platform: HeldUploads, state: Path, **env: str) -> AsyncIterator[Session]:
    """An agent of a platform that holds uploads; it neither beats nor reads a feed."""
    told = {"PLATFORM_URL": platform.url, "WORKSPACE_ID": WORKSPACE, "MOLECULE_WORKSPACE_TOKEN": TOKEN}
    settings = Settings.from_env(
        told | {"MOLECULE_MCP_DISABLE_HEARTBEAT": "1", "MOLECULE_MCP_DISABLE_INBOX": "1"} | env
    )
    bridge = RuntimeThread(lambda: Runtime(settings, state_dir=StateDir.open(state, home=state)))
    bridge.start()
    try:
        yield Session(settings, bridge)
    finally:
        platform.go_on.set()
        assert await asyncio.to_thread(bridge.stop, 5)


async def test_a_host_is_told_how_far_an_upload_is_and_nothing_while_it_stands_still(
    platform: HeldUploads, large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """agent-side 5: bytes of the whole, rising; also without an inbox, which is switched off here."""
    monkeypatch.setattr(_attachments, "PROGRESS_EVERY_S", 0.02)
    async with session(platform, tmp_path / "state", MOLECULE_ATTACHMENT_ROOTS=str(large.parent)) as agent:
        calling = asyncio.create_task(agent.call(attachments=str(large)))
        await until(lambda: bool(agent.told), within_s=10)
        await anyio.sleep(0.2)  # ten looks at an upload that does not move
        standing = list(agent.told)
        platform.go_on.set()
        with anyio.fail_after(20):
            result = await calling
    (sent,) = result.payload["attachments"]
    assert (result.payload["status"], sent["name"], sent["size"]) == ("sent", "a.bin", LARGE)
    assert sorted(set(agent.told)) == agent.told
    assert {total for _, total in agent.told} == {agent.told[0][1]}
    assert 0 < standing[-1][0] < LARGE < (standing[-1][1] or 0)
    assert len(standing) < 9


async def test_what_was_begun_is_sent_though_its_caller_is_gone(
    platform: HeldUploads, large: Path, tmp_path: Path
) -> None:
    """agent-side 5: a host that gives up after 60 s must not cut the message from its files."""
    async with session(platform, tmp_path / "state", MOLECULE_ATTACHMENT_ROOTS=str(large.parent)) as agent:
        calling = asyncio.create_task(agent.call(attachments=[str(large)]))
        await until(lambda: platform.count("/limits") == 1, within_s=10)
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling
        platform.go_on.set()
        await until(lambda: platform.count("/notify") == 1, within_s=20)
    (named,) = json.loads(platform.asked[-1].body)["attachments"]
    assert named["name"] == "a.bin"


async def test_a_file_that_may_not_be_sent_is_a_result_the_model_can_act_on(
    platform: HeldUploads, large: Path, tmp_path: Path
) -> None:
    """agent-side 1 and 5: what is wrong and what to do; nothing is asked of the platform."""
    state = tmp_path / "state"
    async with session(platform, state, MOLECULE_ATTACHMENT_ROOTS=str(tmp_path), CONFIGS_DIR=str(state)) as agent:
        secret = state / WORKSPACE / "token"
        secret.parent.mkdir(parents=True, exist_ok=True)
        secret.write_text(TOKEN)
        (large.parent / "notes.txt").hardlink_to(secret)
        said = {path: (await agent.call(attachments=[str(large), path])).error_text for path in (
            "a.bin", "/etc/passwd", str(secret), str(large.parent / "notes.txt"), str(large.parent), str(large)
        )}  # fmt: skip
    for path, text in said.items():
        assert text is not None
        assert text.startswith(f"The file {path} cannot be sent: ")
        assert text.endswith("Nothing was sent.")
        assert TOKEN not in text
    assert platform.asked == []

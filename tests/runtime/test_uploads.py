"""The user's files on their way to the agent: fetched once, whole or not at all, acked, and what the agent is told."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest

from molecule_runtime.clock import ManualClock
from molecule_runtime.state import WorkspaceState
from tests.reference_platform.support import Member, Platform
from tests.support.uploads import form, message_with, sha256

from .support import running, state_in, ticking
from .test_workspace import workspace_of


@pytest.fixture
def at_home(member: Member, tmp_path: Path) -> WorkspaceState:
    return state_in(tmp_path / "state", member.id)


async def drop(platform: Platform, member: Member, files: Sequence[tuple[str, bytes]], text: str = "look") -> list[Any]:
    """The user drops files into the chat: upload, then the message that names them."""
    reply = await platform.http.post(f"/workspaces/{member.id}/chat/uploads", files=form(files), headers=platform.admin)
    assert reply.status_code == 200, reply.text
    uploaded: list[Any] = reply.json()["files"]
    await platform.http.post(f"/workspaces/{member.id}/a2a", json=message_with(text, uploaded), headers=platform.admin)
    return uploaded


async def test_a_file_of_a_message_lies_on_the_disk_when_the_message_is_handed_out(
    platform: Platform, member: Member, at_home: WorkspaceState, clock: ManualClock
) -> None:
    """R8: fetched, staged, acked, named in the message."""
    workspace = workspace_of(platform, member, at_home, clock)
    content = b"%PDF-1.7 " + bytes(range(256)) * 10
    async with running(workspace.run), ticking(clock):
        mailbox = await workspace.mailbox()
        await drop(platform, member, [("../a b.pdf", content)])
        with anyio.fail_after(10):
            shown = await mailbox.wait(10_000, key="a")
        assert shown is not None
        (attachment,) = shown["attachments"]
        path = Path(attachment.pop("path"))
        assert attachment == {
            "name": "a_b.pdf",
            "mime_type": "application/octet-stream",
            "size": len(content),
            "status": "staged",
            "reason": None,
        }
        assert path.parent == at_home.files
        assert sha256(path.read_bytes()) == sha256(content)
        assert path.stat().st_mode & 0o777 == 0o600

"""The agent sends files, black box: the console script over a pipe, a platform process, the user at the canvas."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from tests.support.host import Host
from tests.support.platform import PlatformProcess, eventually
from tests.support.uploads import sha256

LARGE = 25 * 1024 * 1024
"""As large as a platform takes a file."""
GROWTH_KB = 16 * 1024


def fetched(platform: PlatformProcess, workspace_id: str, attachment: dict[str, Any]) -> bytes:
    """The bytes as the user's canvas gets them."""
    file_id = attachment["uri"].rpartition("/")[2]
    answer = platform.http.get(f"/workspaces/{workspace_id}/pending-uploads/{file_id}/content")
    assert answer.status_code == 200, answer.text
    return answer.content


def bubbles(platform: PlatformProcess, workspace_id: str) -> list[dict[str, Any]]:
    """What the chat shows after a reload, oldest first."""
    found: list[dict[str, Any]] = platform.http.get(f"/workspaces/{workspace_id}/chat-history").json()["messages"]
    return found


def memory_kb(pid: int, what: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{what}:"))


def test_the_user_fetches_what_the_agent_sent_and_no_inbox_shows_it(
    platform_process: PlatformProcess, tmp_path: Path
) -> None:
    """R7, R8, agent-side 5: with a message of its own, and with an answer."""
    settings = platform_process.create_workspace("sends files")
    peer = platform_process.create_workspace("looks on")["WORKSPACE_ID"]
    workspace_id, outbox, state = settings["WORKSPACE_ID"], tmp_path / "outbox", tmp_path / "state"
    outbox.mkdir()
    contents = {"数据 📊.csv": b"a,b\n1,2\n", "large.bin": os.urandom(LARGE)}
    for name, content in contents.items():
        (outbox / name).write_bytes(content)
    (outbox / "inbox.txt").symlink_to(state / workspace_id / "inbox.sqlite3")
    with Host(
        settings, state=state, MOLECULE_ATTACHMENT_ROOTS=f"{outbox}:{state}", MOLECULE_MCP_HEARTBEAT_SECS="1"
    ) as host:
        host.initialize()
        paths = [str(outbox / name) for name in contents]

        sent = host.call("send_message_to_user", message="small", attachments=paths[:1])
        assert sent["attachments"][0]["name"] == "____.csv"
        assert host.call("inbox_peek") == {"messages": [], "total": 0}
        pid = host.process.pid
        is_linux = sys.platform == "linux"
        if is_linux:
            Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak counts from here
            before_kb = memory_kb(pid, "VmRSS")
        sent = host.call("send_message_to_user", message="large", attachments=paths)
        if is_linux:
            assert memory_kb(pid, "VmHWM") - before_kb <= GROWTH_KB
        assert [(one["name"], one["size"]) for one in sent["attachments"]] == [("____.csv", 8), ("large.bin", LARGE)]

        eventually(lambda: platform_process.status(workspace_id), within_s=8, until=lambda status: status == "online")
        platform_process.say(workspace_id, "the data, please")
        message = host.call("wait_for_message", timeout_secs=10)["message"]
        answered = host.call(
            "reply", activity_id=message["activity_id"], message="here", attachments=str(outbox / "数据 📊.csv")
        )
        (attached,) = answered.pop("attachments")
        assert answered == {"status": "sent", "to": "user", "popped": True}

        for path in ("/etc/passwd", str(outbox / "inbox.txt"), str(state / "log" / "molecule-mcp.log"), "数据 📊.csv"):
            text = host.call_error("send_message_to_user", message="and this", attachments=[paths[0], path])
            assert path in text
            assert text.endswith("Nothing was sent.")
        assert host.call("inbox_peek") == {"messages": [], "total": 0}

    shown = bubbles(platform_process, workspace_id)
    assert [(one["content"], len(one.get("attachments", ()))) for one in shown] == [
        ("small", 1),
        ("large", 2),
        ("the data, please", 0),
        ("here", 1),
    ]
    for shown_file, content in zip(shown[1]["attachments"], contents.values(), strict=True):
        assert sha256(fetched(platform_process, workspace_id, shown_file)) == sha256(content)
    assert shown[3]["attachments"][0]["uri"] == attached["uri"]
    assert fetched(platform_process, workspace_id, attached) == contents["数据 📊.csv"]
    assert {row["method"] for row in platform_process.activity(workspace_id)} == {"notify", "message/send"}
    assert platform_process.activity(peer) == []

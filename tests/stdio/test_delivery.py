"""Every message reaches the agent, in order, until it is handled, and then never again (agent-side 4, contract 4.3)."""

from __future__ import annotations

import sqlite3
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.host import Host
from tests.support.platform import PlatformProcess, eventually

Settings = dict[str, str]


@pytest.fixture
def settings(platform_process: PlatformProcess) -> Settings:
    return platform_process.create_workspace(f"delivery {uuid.uuid4().hex[:8]}")


@contextmanager
def session(settings: Settings, state: Path, **env: str) -> Iterator[Host]:
    with Host(settings, state=state, **env) as host:
        host.initialize()
        yield host


def next_message(host: Host, timeout_secs: float = 20) -> dict[str, Any]:
    found = host.call("wait_for_message", timeout_secs=timeout_secs)
    assert "message" in found, found
    message: dict[str, Any] = found["message"]
    return message


def journal_of(state: Path, settings: Settings) -> Path:
    return state / settings["WORKSPACE_ID"] / "inbox.sqlite3"


def change(database: Path, statement: str, *values: object) -> None:
    """Change a database file from outside, as an operator with a shell would."""
    with closing(sqlite3.connect(database, timeout=10)) as connection, connection:
        connection.execute(statement, values)


def test_the_message_an_agent_sees(platform_process: PlatformProcess, settings: Settings, tmp_path: Path) -> None:
    """Agent-side 4: the whole object; CJK and emoji unharmed, peek and wait alike."""
    text = "部署失败 🚨 — naïve “quotes”\n\ttab\u200d👩‍👩‍👧"
    platform_process.say(settings["WORKSPACE_ID"], text)
    with session(settings, tmp_path) as host:
        message = next_message(host)
        assert message == {
            "activity_id": message["activity_id"],
            "kind": "canvas_user",
            "workspace_id": settings["WORKSPACE_ID"],
            "peer_id": "",
            "peer_name": None,
            "peer_role": None,
            "text": text,
            "attachments": [],
            "created_at": message["created_at"],
            "attempt": 1,
            "state": "leased",
            "pushed": False,
            "delegation_id": None,
        }
        assert message["created_at"].endswith("Z")
        assert host.call("inbox_peek") == {"messages": [message], "total": 1}


def test_a_message_in_hand_comes_back_after_a_kill_and_never_after_its_pop(
    platform_process: PlatformProcess, settings: Settings, tmp_path: Path
) -> None:
    """Agent-side 4: at least once until the pop, which holds through a lost cursor and a 410 on it."""
    platform_process.say(settings["WORKSPACE_ID"], "do it once")
    with session(settings, tmp_path) as host:
        first = next_message(host)
        host.kill()
    with session(settings, tmp_path) as host:
        started = time.monotonic()
        again = next_message(host)
        assert time.monotonic() - started < 10
        assert again == first | {"attempt": 2}
        assert host.call("inbox_pop", activity_id=again["activity_id"]) == {
            "removed": True,
            "activity_id": again["activity_id"],
        }
        assert host.call("inbox_pop", activity_id=again["activity_id"])["removed"] is False
        host.kill()

    # The platform has pruned the row the cursor names: 410, and the window holds a newer and the handled message.
    platform_process.say(settings["WORKSPACE_ID"], "pruned later")
    with session(settings, tmp_path) as host:
        pruned = next_message(host)
        host.call("inbox_pop", activity_id=pruned["activity_id"])
        host.kill()
    change(platform_process.database, "DELETE FROM activity_logs WHERE id = ?", pruned["activity_id"])
    platform_process.say(settings["WORKSPACE_ID"], "after the 410")
    with session(settings, tmp_path) as host:
        after = next_message(host)
        assert (after["text"], after["attempt"]) == ("after the 410", 1)
        assert host.call("wait_for_message", timeout_secs=0.5) == {"timeout": True, "waiting": 0}
        host.call("inbox_pop", activity_id=after["activity_id"])
        host.kill()
    assert "poller.cursor_expired" in (tmp_path / "log" / "molecule-mcp.log").read_text()

    # The cursor alone is gone: the backlog window is read again and every handled id is known.
    change(journal_of(tmp_path, settings), "UPDATE position SET cursor = NULL, last_row_at = NULL")
    platform_process.say(settings["WORKSPACE_ID"], "last")
    with session(settings, tmp_path) as host:
        assert next_message(host)["text"] == "last"
        assert host.call("wait_for_message", timeout_secs=0.5) == {"timeout": True, "waiting": 0}
        assert [message["text"] for message in host.call("inbox_peek")["messages"]] == ["last"]


def test_500_messages_written_while_nobody_was_there_are_handed_out_once_in_order(
    platform_process: PlatformProcess, settings: Settings, tmp_path: Path
) -> None:
    """Agent-side 8, "unread messages lost on restart; oldest dropped at 200": no cap, and pages join without a seam."""
    platform_process.say(settings["WORKSPACE_ID"], "before")
    with session(settings, tmp_path) as host:
        host.call("inbox_pop", activity_id=next_message(host)["activity_id"])
        host.kill()
    texts = [f"message {number}" for number in range(500)]
    for text in texts:
        platform_process.say(settings["WORKSPACE_ID"], text)
    with session(settings, tmp_path) as host:
        eventually(lambda: host.call("inbox_peek")["total"], within_s=10, until=lambda total: total == 500)
        found = [host.call("wait_for_message", timeout_secs=20) for _ in texts]
        assert [(each["message"]["text"], each["message"]["attempt"]) for each in found] == [(t, 1) for t in texts]
        assert [each.get("waiting", 0) for each in found] == list(range(499, -1, -1))
        assert host.call("wait_for_message", timeout_secs=0.3) == {"timeout": True, "waiting": 0}


def test_a_long_text_is_given_in_part_with_a_file_that_holds_it_whole(
    platform_process: PlatformProcess, settings: Settings, tmp_path: Path
) -> None:
    """Agent-side 4: 8,000 characters, because Codex cuts results at 10 kB; 8,000 themselves are given whole."""
    long, fits = "龙🐉" * 4_001, "é" * 8_000
    platform_process.say(settings["WORKSPACE_ID"], long)
    platform_process.say(settings["WORKSPACE_ID"], fits)
    with session(settings, tmp_path) as host:
        cut = next_message(host)
        assert cut["text"] == long[:8_000]
        assert cut["text_truncated"] is True
        file = Path(cut["text_path"])
        assert file.read_text(encoding="utf-8") == long
        assert file.is_relative_to(tmp_path)
        assert file.stat().st_mode & 0o777 == 0o600
        whole = next_message(host)
        assert whole["text"] == fits
        assert "text_truncated" not in whole


def test_the_agent_never_hears_its_own_message(
    platform_process: PlatformProcess, settings: Settings, tmp_path: Path
) -> None:
    """Agent-side 8, "agent reads its own messages as user input": the feed brings them back and they are echoes."""
    with session(settings, tmp_path) as host:
        host.call("send_message_to_user", message="my own words")
        platform_process.say(settings["WORKSPACE_ID"], "the user's words")
        assert next_message(host)["text"] == "the user's words"
        assert host.call("wait_for_message", timeout_secs=0.5) == {"timeout": True, "waiting": 0}
        assert host.call("inbox_peek")["total"] == 1
    assert platform_process.chat(settings["WORKSPACE_ID"]) == [
        ("agent", "my own words"),
        ("user", "the user's words"),
    ]


def test_peers_write_to_each_other_by_name(platform_process: PlatformProcess, tmp_path: Path) -> None:
    """Agent-side 5, reply: an answer goes where the message came from, and arrives as a peer's, with its name."""
    alice, bob = (platform_process.create_workspace(f"{name} {uuid.uuid4().hex[:8]}") for name in ("alice", "bob"))
    names = {s["WORKSPACE_ID"]: platform_process.workspace(s["WORKSPACE_ID"])["name"] for s in (alice, bob)}
    with session(bob, tmp_path / "bob") as host:
        message = {"role": "agent", "messageId": str(uuid.uuid4()), "parts": [{"kind": "text", "text": "build it"}]}
        sent = platform_process.http.post(
            f"/workspaces/{bob['WORKSPACE_ID']}/a2a",
            json={"jsonrpc": "2.0", "id": "1", "method": "message/send", "params": {"message": message}},
            headers={
                "X-Workspace-ID": alice["WORKSPACE_ID"],
                "Authorization": f"Bearer {alice['MOLECULE_WORKSPACE_TOKEN']}",
            },
        )
        assert sent.json()["status"] == "queued"
        got = next_message(host)
        assert {key: got[key] for key in ("kind", "peer_id", "peer_name", "text")} == {
            "kind": "peer_agent",
            "peer_id": alice["WORKSPACE_ID"],
            "peer_name": names[alice["WORKSPACE_ID"]],
            "text": "build it",
        }
        answered = host.call("reply", activity_id=got["activity_id"], message="built ✅")
        assert answered == {"status": "sent", "to": "peer", "popped": True}
    with session(alice, tmp_path / "alice") as host:
        back = next_message(host)
        assert {key: back[key] for key in ("kind", "peer_id", "peer_name", "text")} == {
            "kind": "peer_agent",
            "peer_id": bob["WORKSPACE_ID"],
            "peer_name": names[bob["WORKSPACE_ID"]],
            "text": "built ✅",
        }
        (found,) = host.call("list_peers", q=names[bob["WORKSPACE_ID"]])["peers"]
        assert (found["id"], found["name"]) == (bob["WORKSPACE_ID"], names[bob["WORKSPACE_ID"]])


def test_a_reply_to_nothing_sends_nothing(
    platform_process: PlatformProcess, settings: Settings, tmp_path: Path
) -> None:
    """Agent-side 5, reply: an unknown or a handled message is an error that names the way on."""
    platform_process.say(settings["WORKSPACE_ID"], "question")
    with session(settings, tmp_path) as host:
        unknown = str(uuid.uuid4())
        text = host.call_error("reply", activity_id=unknown, message="into the void")
        assert unknown in text
        assert "inbox_peek" in text
        message = next_message(host)
        host.call("inbox_pop", activity_id=message["activity_id"])
        host.call_error("reply", activity_id=message["activity_id"], message="too late")
    assert platform_process.chat(settings["WORKSPACE_ID"]) == [("user", "question")]


def test_two_replies_at_once_send_one_answer(
    platform_process: PlatformProcess, settings: Settings, tmp_path: Path
) -> None:
    """Agent-side 5, reply: a host that calls twice in parallel must not make the user read it twice."""
    platform_process.say(settings["WORKSPACE_ID"], "question")
    with session(settings, tmp_path) as host:
        activity_id = next_message(host)["activity_id"]
        calls = [host.begin("reply", activity_id=activity_id, message=f"answer {n}") for n in range(2)]
        results = [host.answer_to(call)["result"] for call in calls]
        assert sorted(result.get("isError", False) for result in results) == [False, True]
        assert host.call("inbox_peek") == {"messages": [], "total": 0}
    said = [text for role, text in platform_process.chat(settings["WORKSPACE_ID"]) if role == "agent"]
    assert len(said) == 1

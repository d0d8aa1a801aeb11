"""`molecule-mcp send`: the agent's word to the user, and the user's to the agent (agent-side 7)."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from molecule_runtime.inbox.journal import Journal
from molecule_runtime.state import StateDir
from tests.cli.terminal import COMMAND, Terminal
from tests.runtime.support import TOKEN, WORKSPACE
from tests.support.faulty import LARGE, HeldUploads
from tests.support.platform import PlatformProcess, clean_env, eventually

ROOT = Path(__file__).parents[2]


def send(*arguments: str, stdin: str = "", cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, "send", *arguments],
        env=clean_env(PYTHONPATH=str(ROOT), **env),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=30,
        cwd=cwd,
    )


@pytest.fixture
def settings(platform_process: PlatformProcess) -> dict[str, str]:
    return platform_process.create_workspace(f"send {uuid.uuid4().hex[:8]}")


def test_both_sides_speak_and_the_chat_shows_it(
    platform_process: PlatformProcess, settings: dict[str, str], tmp_path: Path
) -> None:
    """Agent-side 7: as the tool does, with the token of the state directory too; the user needs none."""
    workspace_id, state = settings["WORKSPACE_ID"], {"CONFIGS_DIR": str(tmp_path / "state")}
    said = send("--json", "from the agent 你好", **settings, **state)
    assert (said.returncode, said.stderr) == (0, "")
    assert json.loads(said.stdout) == {"status": "sent", "workspace_id": workspace_id, "attachments": []}
    assert not (tmp_path / "state").exists()
    token = settings.pop("MOLECULE_WORKSPACE_TOKEN")
    asked = send("-", "--as-user", stdin="from the user\nin two lines\n", **settings, **state)
    assert (asked.returncode, asked.stdout) == (0, f"Sent to the agent of {workspace_id}.\n")
    (tmp_path / "state" / workspace_id).mkdir(parents=True)
    (tmp_path / "state" / workspace_id / "token").write_text(token)
    assert send("again", "--workspace", workspace_id.upper(), **settings, **state).returncode == 0
    assert platform_process.chat(workspace_id) == [
        ("agent", "from the agent 你好"),
        ("user", "from the user\nin two lines"),
        ("agent", "again"),
    ]


def test_files_go_both_ways(platform_process: PlatformProcess, settings: dict[str, str], tmp_path: Path) -> None:
    """Agent-side 7: from wherever they are, by the shell's own paths; no bar where nobody looks at one."""
    workspace_id, state = settings["WORKSPACE_ID"], {"CONFIGS_DIR": str(tmp_path / "state")}
    (tmp_path / "报告.pdf").write_bytes(b"%PDF")
    (tmp_path / "b.bin").write_bytes(bytes(range(256)) * 4_000)
    said = send("two", "--file", "b.bin", "--file", "./报告.pdf", "--json", cwd=tmp_path, **settings, **state)
    assert (said.returncode, said.stderr) == (0, "")
    answer = json.loads(said.stdout)
    attached = answer.pop("attachments")
    assert answer == {"status": "sent", "workspace_id": workspace_id}
    assert [(file["name"], file["size"]) for file in attached] == [("b.bin", 1_024_000), ("__.pdf", 4)]
    assert not (tmp_path / "state").exists()
    token = settings.pop("MOLECULE_WORKSPACE_TOKEN")
    asked = send("look", "--as-user", "--file", str(tmp_path / "b.bin"), **settings, **state)
    assert (asked.returncode, asked.stderr) == (0, "")
    assert asked.stdout == f"Sent to the agent of {workspace_id}, with a file.\n"
    history = platform_process.http.get(f"/workspaces/{workspace_id}/chat-history").json()["messages"]
    assert [(one["role"], one["content"]) for one in history] == [("agent", "two"), ("user", "look")]
    assert [{key: file[key] for key in ("name", "uri", "size")} for file in history[0]["attachments"]] == attached
    (shown,) = history[1]["attachments"]
    assert (shown["name"], shown["mimeType"], shown["size"]) == ("b.bin", "application/octet-stream", 1_024_000)
    for file, content in ((attached[1], b"%PDF"), (shown, (tmp_path / "b.bin").read_bytes())):
        file_id = file["uri"].rpartition("/")[2]
        read = platform_process.http.get(f"/workspaces/{workspace_id}/pending-uploads/{file_id}/content")
        assert (read.status_code, read.content) == (200, content)
    (tmp_path / "state" / workspace_id).mkdir(parents=True)
    (tmp_path / "state" / workspace_id / "token").write_text(token)
    assert send("again", "--file", str(tmp_path / "b.bin"), **settings, **state).returncode == 0
    assert os.listdir(tmp_path / "state" / workspace_id) == ["token"]  # no inbox is made where there is none
    rows = [row["method"] for row in reversed(platform_process.activity(workspace_id))]
    assert rows == ["notify", "chat_upload_receive", "message/send", "notify"]  # only the user's file arrives


def test_what_cannot_be_sent_is_said_in_a_sentence(settings: dict[str, str], tmp_path: Path) -> None:
    """Agent-side 2: 2 for what was asked, 3 for the token, 4 for the platform; never a traceback, nothing on stdout."""
    other = str(uuid.uuid4())
    url = settings["PLATFORM_URL"]
    several = json.dumps([{"id": settings["WORKSPACE_ID"]}, {"id": other}])
    token = tmp_path / "token"
    token.write_text(settings["MOLECULE_WORKSPACE_TOKEN"])
    (tmp_path / "state" / other).mkdir(parents=True)
    (tmp_path / "state" / other / "token").write_text("y" * 43)
    (tmp_path / "link").symlink_to(tmp_path / "state" / other / "token")
    by_file = {name: value for name, value in settings.items() if name != "MOLECULE_WORKSPACE_TOKEN"}
    by_file |= {"MOLECULE_WORKSPACE_TOKEN_FILE": str(token), "CONFIGS_DIR": str(tmp_path / "state")}
    cases = [
        (send("x", "--file", str(token), **by_file), 2, "keeps its tokens"),
        (send("x", "--file", str(tmp_path / "link"), "--as-user", **by_file), 2, "keeps its tokens"),
        (send(" ", **settings), 2, "blank"),
        (send("-", stdin="\n", **settings), 2, "blank"),
        (send("x", "--workspace", other, **settings), 2, settings["WORKSPACE_ID"]),
        (send("x", PLATFORM_URL=url, MOLECULE_WORKSPACES=several), 2, other),
        (send("x", HOME=str(tmp_path)), 2, "  - WORKSPACE_ID is not set"),
        (send("x", **settings | {"MOLECULE_WORKSPACE_TOKEN": "y" * 43}), 3, "refuses this workspace's token"),
        (send("x", **settings | {"PLATFORM_URL": "http://127.0.0.1:9"}), 4, "cannot be reached"),
    ]
    for done, code, said in cases:
        assert (done.returncode, done.stdout) == (code, ""), done.stderr
        assert said in done.stderr
        assert "Traceback" not in done.stderr


def test_the_user_is_not_played_where_users_say_who_they_are(tmp_path: Path) -> None:
    """Ours: a platform with ADMIN_TOKEN is no development platform, and the sentence says so; chat says it, too."""
    with PlatformProcess(tmp_path / "p.sqlite3", workspace="laptop", ADMIN_TOKEN="a" * 43) as platform:
        sent = send("hello", "--as-user", **platform.settings)
        talked = subprocess.run(
            [*COMMAND, "chat"], env=clean_env(**platform.settings), input="hello\n", capture_output=True, text=True
        )
    for done in (sent, talked):
        assert (done.returncode, done.stdout) == (3, "")
        assert "Only a platform in development mode lets a command play the user" in done.stderr


@pytest.fixture
def held() -> Iterator[HeldUploads]:
    with HeldUploads() as platform:
        yield platform


def env_of(platform: HeldUploads) -> dict[str, str]:
    return {"PLATFORM_URL": platform.url, "WORKSPACE_ID": WORKSPACE, "MOLECULE_WORKSPACE_TOKEN": TOKEN}


@pytest.fixture
def large(tmp_path: Path) -> Path:
    with (tmp_path / "large.bin").open("wb") as stream:
        stream.truncate(LARGE)
    return tmp_path / "large.bin"


def test_a_person_sees_how_far_an_upload_is(held: HeldUploads, large: Path, tmp_path: Path) -> None:
    """Agent-side 7: a bar on the terminal, gone when the file is there; what stays is one line."""
    with Terminal("send", "here", "--file", str(large), CONFIGS_DIR=str(tmp_path / "s"), **env_of(held)) as terminal:
        terminal.wait_for("Uploading")
        terminal.wait_for("/25.2 MB")
        held.go_on.set()
        terminal.wait_for(f"Sent to the user of {WORKSPACE}, with a file.")
        assert terminal.exit_code(within_s=10) == 0
        screen = terminal.screen()
    assert "\x1b[1A\x1b[2KSent to the user" in screen  # on the line where the bar was, which is wiped
    assert screen.count("\x1b[?25l") == screen.count("\x1b[?25h")  # the cursor is there again


def test_a_person_who_stops_an_upload_gets_the_terminal_back(held: HeldUploads, large: Path, tmp_path: Path) -> None:
    """Agent-side 2: 130, at once, no traceback, no bar left."""
    with Terminal("send", "here", "--file", str(large), CONFIGS_DIR=str(tmp_path / "s"), **env_of(held)) as terminal:
        terminal.wait_for("/25.2 MB")
        terminal.type("\x03")
        assert terminal.exit_code(within_s=5) == 130
        screen = terminal.screen()
    assert "Traceback" not in screen
    assert screen.count("\x1b[?25l") == screen.count("\x1b[?25h")
    assert held.count("/notify") == 0


def test_a_server_of_the_same_workspace_is_told_what_the_command_uploads(held: HeldUploads, tmp_path: Path) -> None:
    """Agent-side 8: on a platform that shows an upload to its sender, the server leaves the command's file alone."""
    state = StateDir.open(tmp_path / "state", home=tmp_path).workspace(WORKSPACE)
    Journal.open(state.journal).close()
    file = tmp_path / "a b.txt"
    file.write_text("mine")
    process = subprocess.Popen(
        [*COMMAND, "send", "here", "--file", str(file), "--json"],
        env=clean_env(CONFIGS_DIR=str(tmp_path / "state"), **env_of(held)),
        stdout=subprocess.PIPE,
    )
    with closing(sqlite3.connect(state.journal)) as db:
        noted = "SELECT name, size FROM sendings"
        eventually(lambda: db.execute(noted).fetchall(), within_s=20, until=lambda rows: rows == [("a_b.txt", 4)])
        held.go_on.set()
        answer = json.loads(process.communicate(timeout=20)[0])
        (file_id,) = [one["uri"].rpartition("/")[2] for one in answer["attachments"]]
        assert db.execute("SELECT file_id, state FROM files").fetchall() == [(file_id, "sent")]
        assert db.execute(noted).fetchall() == []

"""`molecule-mcp send`: the agent's word to the user, and the user's to the agent (agent-side 7)."""

from __future__ import annotations

import json
import subprocess
import uuid
from pathlib import Path

import pytest

from tests.cli.terminal import COMMAND
from tests.support.platform import PlatformProcess, clean_env


def send(*arguments: str, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, "send", *arguments], env=clean_env(**env), input=stdin, capture_output=True, text=True, timeout=30
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


def test_what_cannot_be_sent_is_said_in_a_sentence(settings: dict[str, str], tmp_path: Path) -> None:
    """Agent-side 2: 2 for what was asked, 3 for the token, 4 for the platform; never a traceback, nothing on stdout."""
    other = str(uuid.uuid4())
    url = settings["PLATFORM_URL"]
    several = json.dumps([{"id": settings["WORKSPACE_ID"]}, {"id": other}])
    cases = [
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

"""`molecule-mcp status`: one screen that is true, beside a running agent and after its end (agent-side 7)."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
import uuid
from contextlib import closing
from pathlib import Path
from typing import Any

from molecule_runtime.inbox.classify import FilePart, UploadNotice
from molecule_runtime.inbox.journal import Journal
from molecule_runtime.state import StateDir
from tests.cli.terminal import COMMAND, Piped, Terminal
from tests.support.platform import PlatformProcess, clean_env


def run(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, "status", *arguments], env=clean_env(**env), capture_output=True, text=True, timeout=30
    )


def report(**env: str) -> dict[str, Any]:
    done = run("--json", **env)
    assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", 1)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_it_tells_how_an_agent_stands_alive_and_dead(platform_process: PlatformProcess, tmp_path: Path) -> None:
    """Ours: with the settings, without them, on a terminal, and after kill -9."""
    settings = platform_process.create_workspace(f"status {uuid.uuid4().hex[:8]}")
    state = {"CONFIGS_DIR": str(tmp_path)}
    with Piped("presence", "--json", **settings, **state, MOLECULE_MCP_HEARTBEAT_SECS="1") as agent:
        agent.json_line(state="online")
        platform_process.say(settings["WORKSPACE_ID"], "\x1b[31mhello")
        agent.json_line(waiting=1)
        told = report(**settings, **state)
        (one,) = told["workspaces"]
        assert (told["settings"], told["problems"], told["recent"]) == ("ok", [], [])
        assert (one["presence"]["state"], one["inbox"]) == (
            "online",
            {"new": 1, "leased": 0, "parked": 0, "files_pending": 0},
        )
        assert one["owner"] == {"beat_pid": agent.process.pid, "inbox_pid": agent.process.pid}
        assert one["platform"] == {"status": "online", "error": None}
        with Terminal("status", **state) as terminal:
            screen = terminal.wait_for("Log: ")
            assert terminal.exit_code(within_s=10) == 0
        assert "Not set in this shell: PLATFORM_URL, WORKSPACE_ID." in screen
        assert "╭" in screen
        assert re.search(rf"{agent.process.pid} beats and reads the inbox", screen)
        agent.signal(signal.SIGKILL)
        agent.process.wait(10)
    (one,) = report(**settings, **state)["workspaces"]
    assert (one["presence"]["state"], one["owner"]) == ("stopped", {"beat_pid": None, "inbox_pid": None})
    assert one["inbox"]["new"] == 1


def test_it_tells_that_there_is_nothing_and_makes_nothing(tmp_path: Path) -> None:
    """Ours: a first look on a machine where nothing has run; plain text behind a pipe."""
    done = run(CONFIGS_DIR=str(tmp_path / "state"), HOME=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert f"No workspace was served from {tmp_path / 'state'} yet." in done.stdout
    assert "╭" not in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_still_to_come_are_counted(tmp_path: Path) -> None:
    """Agent-side 5: files_pending, as in runtime_status."""
    state = StateDir.open(tmp_path, home=tmp_path).workspace(str(uuid.uuid4()))
    part = FilePart("a.txt", "", file_id=str(uuid.uuid4()))
    notice = UploadNotice(str(uuid.uuid4()), part.file_id or "", part)
    with closing(Journal.open(state.journal)) as journal:
        journal.append([], notices=[notice], cursor=None, last_row_at=None, now=time.time())
    assert report(CONFIGS_DIR=str(tmp_path))["workspaces"][0]["inbox"]["files_pending"] == 1
    assert "0 new, 0 in hand, 0 parked, 1 file still to come" in run(CONFIGS_DIR=str(tmp_path)).stdout


def test_wrong_settings_end_with_2_after_the_facts(tmp_path: Path) -> None:
    """Agent-side 2: all problems on stderr; what can be told is told."""
    (tmp_path / str(workspace := uuid.uuid4())).mkdir()
    done = run("--json", PLATFORM_URL="ftp://x", WORKSPACE_ID="no", CONFIGS_DIR=str(tmp_path))
    assert done.returncode == 2
    assert [line.split()[1] for line in done.stderr.splitlines()[1:]] == ["PLATFORM_URL", "WORKSPACE_ID"]
    told = json.loads(done.stdout)
    assert (told["settings"], [one["id"] for one in told["workspaces"]]) == ("wrong", [str(workspace)])


def test_a_platform_that_is_down_is_a_fact(tmp_path: Path) -> None:
    """Ours: its failure is shown, not a crash."""
    told = report(PLATFORM_URL="http://127.0.0.1:9", WORKSPACE_ID=str(uuid.uuid4()), CONFIGS_DIR=str(tmp_path))
    assert "cannot be reached" in told["workspaces"][0]["platform"]["error"]
    assert list(tmp_path.iterdir()) == []

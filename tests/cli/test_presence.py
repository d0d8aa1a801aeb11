"""`molecule-mcp presence`: online and collecting messages for as long as nobody ends it (agent-side 2, 3, 7)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import termios
import uuid
from pathlib import Path

import pytest

from tests.cli.terminal import COMMAND, Piped, Terminal
from tests.support.platform import PlatformProcess, clean_env, eventually

GONE_S = 1.0
"""Agent-side 2 says 0.5 s; a busy machine is given twice that."""


@pytest.fixture
def settings(platform_process: PlatformProcess) -> dict[str, str]:
    return platform_process.create_workspace(f"presence {uuid.uuid4().hex[:8]}")


def env(settings: dict[str, str], state: Path, **more: str) -> dict[str, str]:
    return settings | {"CONFIGS_DIR": str(state), "MOLECULE_MCP_HEARTBEAT_SECS": "1"} | more


def hears_beats(platform: PlatformProcess, settings: dict[str, str]) -> None:
    """Wait until the platform has heard two more beats."""
    begin = platform.workspace(settings["WORKSPACE_ID"])["uptime_seconds"]
    eventually(
        lambda: platform.workspace(settings["WORKSPACE_ID"])["uptime_seconds"],
        within_s=10,
        until=lambda seconds: seconds >= begin + 2,
    )


def test_it_is_online_tells_each_change_and_says_who_beats(
    platform_process: PlatformProcess, settings: dict[str, str], tmp_path: Path
) -> None:
    """Agent-side 7: heartbeat and inbox without MCP, so without its SDK; 143 within 0.5 s of SIGTERM."""
    with Piped("presence", "--json", python_options=("-X", "importtime"), **env(settings, tmp_path)) as owner:
        online = owner.json_line(state="online")
        assert online["workspace_id"] == settings["WORKSPACE_ID"]
        assert (online["beats"], online["beat_pid"], online["waiting"]) == (True, owner.process.pid, 0)
        assert platform_process.status(settings["WORKSPACE_ID"]) == "online"
        with Piped("presence", **env(settings, tmp_path)) as other:
            while "another process" not in (line := other.line()):
                pass
            assert f"online, another process (pid {owner.process.pid}) beats" in line
            platform_process.say(settings["WORKSPACE_ID"], "are you there?")
            assert owner.json_line()["waiting"] == 1
            assert "online, 1 message waiting, another process" in other.line()
            other.signal(signal.SIGINT)
            assert other.exit_code(within_s=GONE_S) == 130
            assert (other.rest(), other.stderr()) == ([], "")
        owner.signal(signal.SIGTERM)
        assert owner.exit_code(within_s=GONE_S) == 143
        assert owner.rest() == []
        loaded = {line.rsplit("|", 1)[-1].strip().partition(".")[0] for line in owner.stderr().splitlines()}
        assert "httpx" in loaded
        assert loaded.isdisjoint({"mcp", "sqlalchemy", "prompt_toolkit", "starlette"})


def test_it_never_ends_for_a_refused_token(
    platform_process: PlatformProcess, settings: dict[str, str], tmp_path: Path
) -> None:
    """Agent-side 2: serve and presence never exit for it; the line says what to do."""
    token_file = tmp_path / "token"
    token_file.write_text("x" * 43)
    token = settings.pop("MOLECULE_WORKSPACE_TOKEN")
    with Piped("presence", **env(settings, tmp_path, MOLECULE_WORKSPACE_TOKEN_FILE=str(token_file))) as piped:
        while "unauthorized" not in (line := piped.line()):
            pass
        assert "Check that WORKSPACE_ID and token belong together" in line
        token_file.write_text(token)
        assert piped.line().endswith("online")
        piped.signal(signal.SIGTERM)
        assert piped.exit_code(within_s=GONE_S) == 143


@pytest.mark.parametrize("loss", ["terminal closed", "terminal held", "readers gone"])
def test_it_lives_on_when_nobody_listens(
    platform_process: PlatformProcess, settings: dict[str, str], tmp_path: Path, loss: str
) -> None:
    """Agent-side 2: presence lives on when its shell goes; a screen that is held (Ctrl-S) holds no beat."""
    workspace_id = settings["WORKSPACE_ID"]
    log_level = {"MOLECULE_MCP_LOG_LEVEL": "INFO"}  # so that stderr is written to as well
    if loss == "readers gone":
        reader, writer = os.pipe()
        process = subprocess.Popen(
            [*COMMAND, "presence"], env=clean_env(**env(settings, tmp_path, **log_level)), stdout=writer, stderr=writer
        )
        os.close(writer)
        eventually(lambda: platform_process.status(workspace_id), within_s=15, until=lambda s: s == "online")
        os.close(reader)
        terminal = None
    else:
        terminal = Terminal("presence", **env(settings, tmp_path, **log_level))
        process = terminal.process
        terminal.wait_for("online")
        if loss == "terminal closed":
            terminal.hang_up()
        else:
            termios.tcflow(terminal.slave, termios.TCOOFF)
    try:
        platform_process.say(workspace_id, "a reason to write a line")
        hears_beats(platform_process, settings)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(GONE_S) == 143
    finally:
        process.kill()
        process.wait(10)
        if terminal is not None:
            terminal.hang_up()


def test_closed_standard_descriptors_are_not_given_to_a_journal(
    platform_process: PlatformProcess, settings: dict[str, str], tmp_path: Path
) -> None:
    """Ours: started with `>&- 2>&-`, the next file that is opened would be descriptor 1, and printed into."""
    shell = subprocess.Popen(
        ["sh", "-c", f"exec {sys.executable} -m molecule_mcp presence <&- >&- 2>&-"],
        env=clean_env(**env(settings, tmp_path)),
    )
    try:
        hears_beats(platform_process, settings)
        if Path("/proc/self/fd").exists():
            assert {os.readlink(f"/proc/{shell.pid}/fd/{fd}") for fd in range(3)} == {os.devnull}
        shell.send_signal(signal.SIGTERM)
        assert shell.wait(GONE_S) == 143
    finally:
        shell.kill()
        shell.wait(10)


def test_wrong_settings_are_all_named(tmp_path: Path) -> None:
    """Agent-side 2: all problems at once, exit 2, nothing on stdout, nothing made."""
    done = subprocess.run(
        [*COMMAND, "presence", "--json"],
        env=clean_env(PLATFORM_URL="ftp://x", MOLECULE_MCP_HEARTBEAT_SECS="never", HOME=str(tmp_path)),
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (done.returncode, done.stdout) == (2, "")
    lines = done.stderr.splitlines()
    assert lines[0] == "molecule-mcp is not set up:"
    assert [line.split()[1] for line in lines[1:]] == ["PLATFORM_URL", "MOLECULE_MCP_HEARTBEAT_SECS", "WORKSPACE_ID"]
    assert list(tmp_path.iterdir()) == []

"""When something is wrong: the agent is told what and what to do, and presence goes on (agent-side 2, 3)."""

from __future__ import annotations

import os
import resource
import secrets
import sqlite3
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.host import Host
from tests.support.platform import PlatformProcess, clean_env, eventually, free_port, no_platform

Settings = dict[str, str]


@pytest.fixture
def settings(platform_process: PlatformProcess) -> Settings:
    return platform_process.create_workspace(f"trouble {uuid.uuid4().hex[:8]}")


@contextmanager
def session(settings: Settings, state: Path, **more: Any) -> Iterator[Host]:
    with Host(settings, state=state, MOLECULE_MCP_HEARTBEAT_SECS="1", **more) as host:
        host.initialize()
        yield host


def presence_of(host: Host) -> dict[str, Any]:
    presence: dict[str, Any] = host.call("runtime_status")["workspaces"][0]["presence"]
    return presence


def problem_ids(host: Host) -> list[str]:
    return [problem["id"] for problem in host.call("runtime_status")["problems"]]


def everything_said(host: Host, state: Path) -> str:
    """stderr and every text file below the state directory but the token's own."""
    files = [path for path in state.rglob("*") if path.is_file() and path.name != "token"]
    return host.stderr() + "".join(path.read_bytes().decode("utf-8", "replace") for path in files)


def test_a_platform_that_is_down_is_told_and_found_again_by_itself(tmp_path: Path) -> None:
    """Agent-side 2 and 5: initialize never waits for the network, each tool names the address, no restart is needed."""
    port = free_port()
    database = tmp_path / "platform.sqlite3"
    with PlatformProcess(database, port=port) as platform:
        settings = platform.create_workspace("late platform")
    with session(settings, tmp_path / "state") as host:
        for tool, arguments in (
            ("send_message_to_user", {"message": "anybody?"}),
            ("list_peers", {}),
            ("wait_for_message", {"timeout_secs": 2}),
        ):
            text = host.call_error(tool, **arguments)
            assert settings["PLATFORM_URL"] in text, tool
        eventually(lambda: presence_of(host)["state"], within_s=5, until=lambda state: state == "unreachable")
        assert "Presence: unreachable." in host.call_error("list_peers")
        peek = host.call("inbox_peek")
        assert settings["PLATFORM_URL"] in peek["warning"]
        assert {"presence.unreachable", "inbox.feed"} <= set(problem_ids(host))
        with PlatformProcess(database, port=port) as platform:
            platform.say(settings["WORKSPACE_ID"], "here again")
            eventually(lambda: platform.status(settings["WORKSPACE_ID"]), within_s=15, until=lambda s: s == "online")
            assert host.call("wait_for_message", timeout_secs=20)["message"]["text"] == "here again"
            assert host.call("send_message_to_user", message="found you")["status"] == "sent"
            eventually(lambda: problem_ids(host), within_s=5, until=lambda ids: ids == [])


WRONG = [
    pytest.param({}, ["PLATFORM_URL", "WORKSPACE_ID"], id="nothing set"),
    pytest.param(
        {
            "PLATFORM_URL": "canvas.example.com",
            "WORKSPACE_ID": "my-workspace",
            "MOLECULE_WORKSPACE_TOKEN": "canary-0123456789 two",
            "MOLECULE_MCP_HEARTBEAT_SECS": "often",
            "MOLECULE_MCP_TOOLS": "all",
        },
        [
            "PLATFORM_URL",
            "WORKSPACE_ID",
            "MOLECULE_WORKSPACE_TOKEN",
            "MOLECULE_MCP_HEARTBEAT_SECS",
            "MOLECULE_MCP_TOOLS",
        ],
        id="all wrong",
    ),
]


@pytest.mark.parametrize(("given", "named"), WRONG)
def test_wrong_settings_are_the_answer_of_every_tool_all_at_once(
    tmp_path: Path, given: Settings, named: list[str]
) -> None:
    """Agent-side 2: hosts hide stderr, so the agent hears it; tools are listed all the same."""
    with Host(given, state=tmp_path) as host:
        assert host.initialize()["instructions"]
        tools = [tool["name"] for tool in host.ask("tools/list")["result"]["tools"]]
        assert "wait_for_message" in tools
        texts = {host.call_error(tool) for tool in tools}
        assert len(texts) == 1
        (text,) = texts
        for name in named:
            assert name in text
        assert "canary" not in text + host.stderr()
        assert host.ask("tools/call", {"name": "no_such_tool"})["error"]["code"] == -32602
        host.close_stdin()
        assert host.exit_code(within_s=1) == 0


@pytest.mark.parametrize(("given", "named"), WRONG)
def test_strict_ends_with_2_and_says_every_problem_on_stderr(tmp_path: Path, given: Settings, named: list[str]) -> None:
    """Agent-side 2: `--strict` ends everywhere, whether or not stdin goes on."""
    with Host(given, state=tmp_path, command=(sys.executable, "-m", "molecule_mcp", "serve", "--strict")) as host:
        assert host.exit_code(within_s=10) == 2
        assert host.received_lines() == []
        said = eventually(host.stderr, within_s=2, until=lambda text: all(name in text for name in named))
        assert "canary" not in said


@pytest.mark.parametrize(
    "arguments", [["--no-such-option"], ["no-such-command"], ["serve", "--loudly"], ["serve", "more"]]
)
def test_an_unknown_option_or_command_is_answered_with_the_usage(tmp_path: Path, arguments: list[str]) -> None:
    """Agent-side 2: usage on stderr, exit 2, nothing on stdout."""
    command = [sys.executable, "-m", "molecule_mcp", *arguments]
    env = clean_env(CONFIGS_DIR=str(tmp_path), **no_platform())
    done = subprocess.run(command, env=env, stdin=subprocess.DEVNULL, capture_output=True, timeout=20, check=False)
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"Usage: " in done.stderr


def test_a_refused_token_is_said_and_its_successor_is_read_without_a_restart(
    platform_process: PlatformProcess, settings: Settings, tmp_path: Path
) -> None:
    """Agent-side 1 and 3: unauthorized is a state, not an end; the file is read again after a 401."""
    good, wrong = settings.pop("MOLECULE_WORKSPACE_TOKEN"), "canary-" + secrets.token_urlsafe(24)
    token_file = tmp_path / "token.txt"
    token_file.write_text(wrong + "\n")
    state = tmp_path / "state"
    with session(settings | {"MOLECULE_WORKSPACE_TOKEN_FILE": str(token_file)}, state) as host:
        eventually(lambda: presence_of(host)["state"], within_s=5, until=lambda found: found == "unauthorized")
        text = host.call_error("send_message_to_user", message="may I?")
        assert "token" in text
        assert "Presence: unauthorized." in text
        assert "presence.unauthorized" in problem_ids(host)
        assert platform_process.status(settings["WORKSPACE_ID"]) == "awaiting_agent"
        token_file.write_text(good + "\n")
        eventually(
            lambda: platform_process.status(settings["WORKSPACE_ID"]), within_s=15, until=lambda s: s == "online"
        )
        assert host.call("send_message_to_user", message="I may")["status"] == "sent"
        said = everything_said(host, state)
        assert wrong not in said
        assert good not in said


def test_a_token_file_that_cannot_be_read_is_told_and_mended_without_a_restart(
    platform_process: PlatformProcess, settings: Settings, tmp_path: Path
) -> None:
    """Agent-side 1: an error of its own that never falls through to another token; presence retries it."""
    good = settings.pop("MOLECULE_WORKSPACE_TOKEN")
    token_file, state = tmp_path / "the token", tmp_path / "state"
    fallback = state / settings["WORKSPACE_ID"] / "token"
    fallback.parent.mkdir(parents=True)
    fallback.write_text(good)
    with session(settings | {"MOLECULE_WORKSPACE_TOKEN_FILE": str(token_file)}, state) as host:
        for content, reason in (
            (None, "no such file"),
            (b" \n", "empty"),
            (b"canary one\n", "more than one word"),
            (b"canary\xff\xfe\n", "not UTF-8"),
        ):
            if content is not None:
                token_file.write_bytes(content)
            for tool, arguments in (("list_peers", {}), ("send_message_to_user", {"message": "x"})):
                text = host.call_error(tool, **arguments)
                assert str(token_file) in text
                assert reason in text
                assert "canary" not in text
        eventually(lambda: presence_of(host)["state"], within_s=5, until=lambda found: found == "unauthorized")
        assert platform_process.status(settings["WORKSPACE_ID"]) == "awaiting_agent"
        assert "presence.unauthorized" in problem_ids(host)
        token_file.write_text(good)
        eventually(
            lambda: platform_process.status(settings["WORKSPACE_ID"]), within_s=15, until=lambda s: s == "online"
        )


def journal_of(state: Path, settings: Settings) -> Path:
    return state / settings["WORKSPACE_ID"] / "inbox.sqlite3"


def handle_one_keep_one(platform: PlatformProcess, settings: Settings, state: Path) -> None:
    """A life that leaves a journal with one handled and one open message behind, all in the main file."""
    for text in ("handled before", "open before"):
        platform.say(settings["WORKSPACE_ID"], text)
    with session(settings, state) as host:
        message = host.call("wait_for_message", timeout_secs=20)["message"]
        host.call("inbox_pop", activity_id=message["activity_id"])
        host.close_stdin()
        assert host.exit_code(within_s=2) == 0
    with closing(sqlite3.connect(journal_of(state, settings))) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def test_a_journal_with_a_damaged_page_is_replaced_and_handled_messages_stay_handled(
    platform_process: PlatformProcess, settings: Settings, tmp_path: Path
) -> None:
    """Agent-side 4: moved aside and said so; the backlog is fetched again without what is known as handled."""
    handle_one_keep_one(platform_process, settings, tmp_path)
    journal = journal_of(tmp_path, settings)
    with closing(sqlite3.connect(journal)) as db:
        (page_size,) = db.execute("PRAGMA page_size").fetchone()
        (page,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'messages_by_state'").fetchone()
    with journal.open("r+b") as file:
        file.seek((page - 1) * page_size)
        file.write(b"\xaa" * page_size)
    platform_process.say(settings["WORKSPACE_ID"], "new")
    with session(settings, tmp_path) as host:
        heard = [host.call("wait_for_message", timeout_secs=20)["message"]["text"] for _ in range(2)]
        assert heard == ["open before", "new"]
        assert host.call("wait_for_message", timeout_secs=0.5) == {"timeout": True, "waiting": 0}
        (problem,) = host.call("runtime_status")["problems"]
        assert problem["id"] == "inbox.damaged"
        (aside,) = journal.parent.glob("inbox.sqlite3.damaged-?")
        assert str(aside) in problem["summary"]


def test_a_journal_that_is_no_database_is_replaced_and_the_backlog_comes_again(
    platform_process: PlatformProcess, settings: Settings, tmp_path: Path
) -> None:
    """Agent-side 4: nothing can be saved from it, so messages may come a second time, but none is lost."""
    handle_one_keep_one(platform_process, settings, tmp_path)
    journal = journal_of(tmp_path, settings)
    journal.write_bytes(b"this is not a database " * 500)
    with session(settings, tmp_path) as host:
        heard = [host.call("wait_for_message", timeout_secs=20)["message"]["text"] for _ in range(2)]
        assert heard == ["handled before", "open before"]
        assert problem_ids(host) == ["inbox.damaged"]
        (aside,) = journal.parent.glob("inbox.sqlite3.damaged-?")
        assert aside.read_bytes() == b"this is not a database " * 500


def test_a_journal_of_a_newer_version_is_refused_and_left_as_it_is(
    platform_process: PlatformProcess, settings: Settings, tmp_path: Path
) -> None:
    """Agent-side 4: never written to, byte for byte; presence goes on and the tools say why there is no inbox."""
    handle_one_keep_one(platform_process, settings, tmp_path)
    journal = journal_of(tmp_path, settings)
    with closing(sqlite3.connect(journal)) as db:
        db.execute("PRAGMA user_version = 99")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    before = journal.read_bytes()
    with session(settings, tmp_path) as host:
        for tool, arguments in (
            ("wait_for_message", {}),
            ("inbox_peek", {}),
            ("inbox_pop", {"activity_id": str(uuid.uuid4())}),
        ):
            assert "newer version" in host.call_error(tool, **arguments)
        assert "inbox.unusable" in problem_ids(host)
        eventually(lambda: platform_process.status(settings["WORKSPACE_ID"]), within_s=5, until=lambda s: s == "online")
        assert host.call("send_message_to_user", message="I can still speak")["status"] == "sent"
    assert journal.read_bytes() == before


def test_a_state_directory_that_cannot_be_made_falls_back_and_is_said(
    platform_process: PlatformProcess, settings: Settings, tmp_path: Path
) -> None:
    """Agent-side 8, "heartbeat dies silently": below a regular file nothing can be made; home is used instead."""
    (tmp_path / "file").write_text("in the way")
    home = tmp_path / "home"
    home.mkdir()
    platform_process.say(settings["WORKSPACE_ID"], "anyone home?")
    with session(settings, tmp_path / "file" / "below", HOME=str(home)) as host:
        assert host.call("wait_for_message", timeout_secs=20)["message"]["text"] == "anyone home?"
        (problem,) = host.call("runtime_status")["problems"]
        assert problem["id"] == "state.fallback"
        assert str(tmp_path / "file" / "below") in problem["summary"]
        assert str(home / ".molecule-workspace") in problem["summary"]
    assert journal_of(home / ".molecule-workspace", settings).exists()


def test_no_place_for_any_state_leaves_presence_and_says_so(
    platform_process: PlatformProcess, settings: Settings, tmp_path: Path
) -> None:
    """Design, Two threads: a state directory that cannot be used takes the inbox away, never the presence."""
    (tmp_path / "file").write_text("in the way")
    with session(settings, tmp_path / "file" / "below", HOME=str(tmp_path / "file")) as host:
        assert str(tmp_path / "file" / "below") in host.call_error("wait_for_message")
        assert "inbox.unusable" in problem_ids(host)
        eventually(lambda: platform_process.status(settings["WORKSPACE_ID"]), within_s=5, until=lambda s: s == "online")
        assert host.call("send_message_to_user", message="I am here")["status"] == "sent"


@contextmanager
def small_disk(at: Path) -> Iterator[Path]:
    """A file system of 1 MB, or a skip where mounting is not allowed."""
    at.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(at)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("mounting a small disk needs more rights than this test has")
    try:
        yield at
    finally:
        subprocess.run(["umount", "--lazy", str(at)], check=True)


def test_a_full_disk_costs_no_message_and_no_presence(
    platform_process: PlatformProcess, settings: Settings, tmp_path: Path
) -> None:
    """Agent-side 4: rows and cursor are one transaction; presence goes on, tools say it, space brings the message."""
    with small_disk(tmp_path / "disk") as disk, session(settings, disk) as host:
        eventually(lambda: platform_process.status(settings["WORKSPACE_ID"]), within_s=5, until=lambda s: s == "online")
        platform_process.say(settings["WORKSPACE_ID"], "before")
        message = host.call("wait_for_message", timeout_secs=20)["message"]
        host.call("inbox_pop", activity_id=message["activity_id"])
        ballast = disk / "ballast"
        with ballast.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(b"\0" * 4096)
            except OSError:
                pass
        late = "written on a full disk " * 2_000
        platform_process.say(settings["WORKSPACE_ID"], late)
        text = eventually(
            lambda: host.call_raw("wait_for_message", timeout_secs=1),
            within_s=15,
            until=lambda r: r.get("isError", False),
        )["content"][0]["text"]
        assert "inbox.sqlite3" in text
        assert "full" in text
        uptime = platform_process.workspace(settings["WORKSPACE_ID"])["uptime_seconds"]
        eventually(
            lambda: platform_process.workspace(settings["WORKSPACE_ID"]),
            within_s=4,
            until=lambda row: row["uptime_seconds"] > uptime and row["status"] == "online",
        )
        assert host.call("send_message_to_user", message="my disk is full")["status"] == "sent"
        ballast.unlink()
        found = eventually(
            lambda: host.call_raw("wait_for_message", timeout_secs=20),
            within_s=40,
            until=lambda r: not r.get("isError"),
        )
        assert found["structuredContent"]["message"]["text"] == late[:8_000]
        eventually(lambda: problem_ids(host), within_s=5, until=lambda ids: ids == [])


def test_a_file_size_limit_is_told_like_a_full_disk(
    platform_process: PlatformProcess, settings: Settings, tmp_path: Path
) -> None:
    """Agent-side 4: where no small disk can be mounted a limit on file sizes stands for it; presence goes on."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))

    with session(settings, tmp_path, preexec_fn=limit) as host:
        platform_process.say(settings["WORKSPACE_ID"], "x" * 400_000)
        found = eventually(
            lambda: host.call_raw("wait_for_message", timeout_secs=1),
            within_s=15,
            until=lambda r: r.get("isError", False),
        )
        assert "inbox.sqlite3" in found["content"][0]["text"]
        eventually(lambda: platform_process.status(settings["WORKSPACE_ID"]), within_s=5, until=lambda s: s == "online")
        with closing(sqlite3.connect(journal_of(tmp_path, settings))) as db:
            assert db.execute("SELECT cursor, (SELECT COUNT(*) FROM messages) FROM position").fetchall() == [(None, 0)]
    with session(settings, tmp_path) as host:
        assert host.call("wait_for_message", timeout_secs=20)["message"]["text"] == "x" * 8_000


def test_the_token_is_nowhere_to_be_read(platform_process: PlatformProcess, settings: Settings, tmp_path: Path) -> None:
    """Agent-side 1: never printed, never logged, never in argv, whatever the level and whatever goes wrong."""
    token = settings["MOLECULE_WORKSPACE_TOKEN"]
    with session(settings, tmp_path, MOLECULE_MCP_LOG_LEVEL="DEBUG") as host:
        eventually(lambda: platform_process.status(settings["WORKSPACE_ID"]), within_s=5, until=lambda s: s == "online")
        assert token.encode() not in Path(f"/proc/{host.process.pid}/cmdline").read_bytes()
        host.call("send_message_to_user", message="hello")
        host.call("list_peers")
        said = str(host.call("runtime_status")) + host.call_error("inbox_pop", activity_id=token)
        host.close_stdin()
        assert host.exit_code(within_s=2) == 0
        said += b"\n".join(host.received_lines()).decode()
        said += everything_said(host, tmp_path)
    assert "presence.registered" in said
    assert token not in said
    assert os.path.getsize(tmp_path / "log" / "molecule-mcp.log") > 0


def test_a_token_that_is_not_set_is_named_as_what_is_missing(platform_process: PlatformProcess, tmp_path: Path) -> None:
    """Agent-side 2: missing settings reach the agent; "refused" would send it looking for a wrong token."""
    settings = platform_process.create_workspace("no token")
    del settings["MOLECULE_WORKSPACE_TOKEN"]
    with Host(settings, state=tmp_path) as host:
        host.initialize()
        eventually(
            lambda: host.call("runtime_status")["workspaces"][0]["presence"]["state"],
            within_s=5,
            until=lambda state: state == "unauthorized",
        )
        said = host.call_error("wait_for_message", timeout_secs=0)
        assert "none is set" in said
        assert "MOLECULE_WORKSPACE_TOKEN_FILE" in said
        (problem,) = [p for p in host.call("runtime_status")["problems"] if p["id"] == "presence.unauthorized"]
        assert "MOLECULE_WORKSPACE_TOKEN_FILE" in problem["fix"]


def test_a_wait_without_end_cannot_be_asked_for(tmp_path: Path) -> None:
    """Agent-side 5: at most 50 s; JSON has no NaN, but a text can say it."""
    with Host(no_platform(), state=tmp_path) as host:
        host.initialize()
        for odd in ("nan", "inf", "-inf"):
            assert "timeout_secs" in host.call_error("wait_for_message", timeout_secs=odd)


def test_a_log_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    """Ours: the directory of logs may be a file, or the log a directory."""
    (tmp_path / "log").touch()
    with Host(no_platform(), state=tmp_path) as host:
        host.initialize()
        assert host.call("runtime_status")["log_file"] is None
        assert "serve.no_log_file" in host.stderr()

"""Every way serving can end: at once, with the right exit code, with what was asked answered (agent-side 2)."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sqlite3
import struct
import subprocess
import sys
import termios
import time
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

import filelock
import pytest

from tests.stdio.conftest import RUDE_SERVER
from tests.support.host import Host
from tests.support.platform import PlatformProcess, SilentPlatform, clean_env, eventually, no_platform

GONE_S = 1.0
"""Agent-side 2 says 0.5 s; a busy machine is given twice that."""
UNREAD_S = 3.0
"""Agent-side 2 says 1 s for a host that no longer reads; a busy machine is given more to give a full queue up."""
ORPHANED_S = 4.0
"""Agent-side 2 says 2 s after the parent's death; a busy machine is given twice that."""
SIGNALS = [pytest.param(signal.SIGTERM, 143, id="SIGTERM"), pytest.param(signal.SIGINT, 130, id="SIGINT")]


def test_the_end_of_input_ends_an_idle_server(tmp_path: Path) -> None:
    """Agent-side 2: 0 on EOF; mcp-sdk, table: at once."""
    with Host(no_platform(), state=tmp_path) as host:
        host.initialize()
        assert host.ask("ping")["result"] == {}
        host.close_stdin()
        assert host.exit_code(within_s=GONE_S) == 0
        assert host.received_lines() == []
        assert "Traceback" not in host.stderr()


def test_the_end_of_input_before_anything_was_asked_ends_the_server(tmp_path: Path) -> None:
    """Clients 4: a host that only looks is not kept waiting by an import."""
    with Host(no_platform(), state=tmp_path) as host:
        host.close_stdin()
        assert host.exit_code(within_s=3) == 0  # the interpreter has to start first
        assert host.received_lines() == []


def test_a_waiting_tool_is_answered_at_the_end_of_input(tmp_path: Path) -> None:
    """Agent-side 2: waiting tools are cancelled and answered."""
    with Host(no_platform(), state=tmp_path) as host:
        host.initialize()
        waiting = host.begin("wait_for_message", timeout_secs=30)
        host.ask("ping")
        host.close_stdin()
        assert host.exit_code(within_s=GONE_S) == 0
        (line,) = host.received_lines()
        answer = json.loads(line)
        assert answer["id"] == waiting
        assert answer["error"]["code"] == -32000


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_signal_ends_the_server_and_answers_what_waits(tmp_path: Path, number: signal.Signals, code: int) -> None:
    """Agent-side 2: 143 and 130 with stdin still open, waiting tools answered."""
    with Host(no_platform(), state=tmp_path) as host:
        host.initialize()
        waiting = host.begin("wait_for_message", timeout_secs=30)
        host.ask("ping")
        host.signal(number)
        assert host.exit_code(within_s=GONE_S) == code
        (line,) = host.received_lines()
        assert json.loads(line)["id"] == waiting
        assert "Traceback" not in host.stderr()


@pytest.mark.parametrize(("second", "after_s"), [(signal.SIGINT, 0.03), (signal.SIGTERM, 0.1)])
def test_a_second_signal_does_not_change_the_end(tmp_path: Path, second: signal.Signals, after_s: float) -> None:
    """Clients 1.3: Claude sends SIGINT and 0.1 s later SIGTERM; the first one names the exit code."""
    with Host(no_platform(), state=tmp_path) as host:
        host.initialize()
        host.begin("wait_for_message", timeout_secs=30)
        host.ask("ping")
        host.signal(signal.SIGINT)
        host.receive_nothing(after_s) if not after_s else time.sleep(after_s)
        if host.process.poll() is None:
            host.signal(second)
        assert host.exit_code(within_s=GONE_S) == 130
        assert "Traceback" not in host.stderr()


@pytest.mark.parametrize(
    ("number", "code", "after_s"), [(signal.SIGTERM, 143, 0.4), (signal.SIGINT, 130, 0.7), (signal.SIGTERM, 143, 1.0)]
)
def test_a_signal_while_the_sdk_is_imported_ends_the_server(
    tmp_path: Path, number: signal.Signals, code: int, after_s: float
) -> None:
    """Agent-side 2: also in the first second, with a request already sent."""
    with Host(no_platform(), state=tmp_path) as host:
        host.request("ping")
        time.sleep(after_s)  # what is tested is a moment of the start, which nothing outside can see
        host.signal(number)
        assert host.exit_code(within_s=GONE_S) == code
        assert "Traceback" not in host.stderr()


def test_a_signal_is_not_kept_waiting_by_a_platform_that_hangs(tmp_path: Path) -> None:
    """Agent-side 2: no network call on the way out, and none that is under way is waited for."""
    with SilentPlatform() as platform, Host(no_platform() | {"PLATFORM_URL": platform.url}, state=tmp_path) as host:
        host.initialize()
        platform.wait_for_a_call(within_s=10)
        host.begin("list_peers")
        host.ask("ping")
        host.signal(signal.SIGTERM)
        assert host.exit_code(within_s=GONE_S) == 143


def test_a_platform_that_hangs_does_not_keep_the_host_waiting(tmp_path: Path) -> None:
    """Agent-side 2: the end of input likewise."""
    with SilentPlatform() as platform, Host(no_platform() | {"PLATFORM_URL": platform.url}, state=tmp_path) as host:
        host.initialize()
        platform.wait_for_a_call(within_s=10)
        host.begin("send_message_to_user", message="never heard")
        host.ask("ping")
        host.close_stdin()
        assert host.exit_code(within_s=GONE_S) == 0


def test_a_journal_that_another_program_holds_does_not_delay_the_end(tmp_path: Path) -> None:
    """Agent-side 2: a worker thread that waits for a lock of SQLite (5 s) is cut off, as a kill would."""
    settings = no_platform()
    with Host(settings, state=tmp_path) as host:
        host.initialize()
        host.call("inbox_peek")
        with sqlite3.connect(tmp_path / settings["WORKSPACE_ID"] / "inbox.sqlite3", isolation_level=None) as other:
            other.execute("BEGIN IMMEDIATE")
            host.begin("inbox_pop", activity_id=settings["WORKSPACE_ID"])
            host.ask("ping")
            host.signal(signal.SIGTERM)
            assert host.exit_code(within_s=GONE_S) == 143
            other.execute("ROLLBACK")
        other.close()


ENDS = [("EOF", 0), ("SIGTERM", 143), ("SIGINT", 130)]


def end(host: Host, how: str) -> None:
    host.close_stdin() if how == "EOF" else host.signal(signal.Signals[how])


@pytest.mark.parametrize(("how", "code"), ENDS)
def test_a_tool_that_blocks_the_loop_is_cut_off(tmp_path: Path, how: str, code: int) -> None:
    """Agent-side 2: whatever goes on in this process, it is gone before the host's SIGKILL leaves an orphan."""
    with Host(no_platform(), state=tmp_path, command=RUDE_SERVER) as host:
        host.initialize()
        host.begin("block", seconds=30)
        host.request("ping")
        host.receive_nothing(0.2)
        end(host, how)
        assert host.exit_code(within_s=2.5) == code


@pytest.mark.parametrize(("how", "code"), ENDS)
def test_a_host_that_stops_reading_in_the_middle_of_a_result_can_still_end_the_server(
    tmp_path: Path, how: str, code: int
) -> None:
    """Agent-side 2: 1 s when the host no longer reads, with a full pipe and a queue of answers behind it."""
    with Host(no_platform(), state=tmp_path, command=RUDE_SERVER, reads=False) as host:
        fill_the_pipe(host)
        end(host, how)
        assert host.exit_code(within_s=UNREAD_S) == code


def initialize_by_hand(host: Host) -> BinaryIO:
    """The handshake of a host without a reader; its end of the server's stdout."""
    assert isinstance(host.process.stdout, BufferedReader)
    params = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
    host.request("initialize", params)
    assert json.loads(host.process.stdout.readline())["result"]
    host.send({"jsonrpc": "2.0", "method": "notifications/initialized"})
    return host.process.stdout


def fill_the_pipe(host: Host) -> None:
    """Ask for more than the pipe and the server's queue hold, and read only the beginning of it."""
    stdout = initialize_by_hand(host)
    for _ in range(8):
        host.begin("large", bytes=4_000_000)
    assert len(os.read(stdout.fileno(), 100_000)) > 1_000
    eventually(lambda: is_full(host), within_s=20)


def test_a_host_that_only_writes_nonsense_and_never_reads_can_still_close(tmp_path: Path) -> None:
    """Mcp-sdk, table: the answers to malformed lines fill the pipe, too, and must not bar the way out."""
    with Host(no_platform(), state=tmp_path, reads=False) as host:
        for _ in range(100):
            host.send_raw(b"nonsense\n" * 2_000)
        eventually(lambda: is_full(host), within_s=20)
        host.close_stdin()
        assert host.exit_code(within_s=2) == 0


def test_a_host_that_stopped_reading_can_still_signal(tmp_path: Path) -> None:
    """Agent-side 2: 1 s when the host no longer reads."""
    with Host(no_platform(), state=tmp_path, reads=False) as host:
        for _ in range(100):
            host.send_raw(b"nonsense\n" * 2_000)
        eventually(lambda: is_full(host), within_s=20)
        host.signal(signal.SIGTERM)
        assert host.exit_code(within_s=2) == 143


def is_full(host: Host) -> bool:
    """Whether the pipe from the server holds all that the system allows."""
    assert host.process.stdout is not None
    held = struct.unpack("i", fcntl.ioctl(host.process.stdout, termios.FIONREAD, b"\0" * 4))[0]
    return bool(held >= fcntl.fcntl(host.process.stdout, fcntl.F_GETPIPE_SZ) - 4096)


def test_a_host_that_closes_only_its_end_of_stdout_is_gone(tmp_path: Path) -> None:
    """Mcp-sdk, table: treated as the end of input."""
    with Host(no_platform(), state=tmp_path, reads=False) as host:
        host.request("ping")
        assert host.process.stdout is not None
        assert host.process.stdout.readline()
        host.close_stdout()
        assert host.exit_code(within_s=2) == 0


def test_a_host_that_closes_stdout_while_a_tool_waits_is_gone(tmp_path: Path) -> None:
    """Agent-side 2: nobody can be answered any more, so nothing is waited for."""
    with Host(no_platform(), state=tmp_path, reads=False) as host:
        stdout = initialize_by_hand(host)
        host.begin("wait_for_message", timeout_secs=30)
        ping = host.request("ping")
        assert json.loads(stdout.readline())["id"] == ping
        host.close_stdout()
        assert host.exit_code(within_s=2) == 0


WRAPPER = "import subprocess, sys; subprocess.run([sys.executable, *sys.argv[1:]])"


def wrapped(command: tuple[str, ...]) -> tuple[str, ...]:
    """The command as a child of a process in between, whose end leaves the pipes open in this one."""
    return (sys.executable, "-c", WRAPPER, *command[1:])


def test_the_death_of_the_spawning_process_is_noticed_while_others_hold_the_pipe(tmp_path: Path) -> None:
    """Agent-side 2: within 2 s of the parent's death, though this test keeps both pipes open."""
    with Host(no_platform(), state=tmp_path, command=wrapped((sys.executable, "-m", "molecule_mcp"))) as host:
        host.initialize()
        (child,) = children_of(host.process.pid)
        host.kill()
        eventually(lambda: not is_alive(child), within_s=ORPHANED_S)


def test_the_death_of_the_spawning_process_is_noticed_with_a_full_pipe(tmp_path: Path) -> None:
    """Agent-side 2: neither a reader nor a writer would wake."""
    with Host(no_platform(), state=tmp_path, command=wrapped(RUDE_SERVER), reads=False) as host:
        fill_the_pipe(host)
        (child,) = children_of(host.process.pid)
        host.kill()
        eventually(lambda: not is_alive(child), within_s=ORPHANED_S)


NO_PIDFD = "import os; vars(os).pop('pidfd_open', None); from molecule_mcp.__main__ import main; main()"


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(("-m", "molecule_mcp"), id="told by the system"),
        pytest.param(("-c", NO_PIDFD), id="looked for"),
    ],
)
def test_the_death_of_the_spawning_process_is_noticed_while_the_sdk_is_imported(
    tmp_path: Path, arguments: tuple[str, str]
) -> None:
    """Agent-side 2: a request that waits is not served to the end for a host that is not there any more."""
    with Host(no_platform(), state=tmp_path, command=wrapped((sys.executable, *arguments))) as host:
        host.request("ping")
        (child,) = eventually(lambda: children_of(host.process.pid), within_s=10)
        eventually(lambda: len(list(Path(f"/proc/{child}/task").iterdir())), within_s=10, until=lambda n: n >= 4)
        host.kill()
        eventually(lambda: not is_alive(child), within_s=ORPHANED_S)
        assert host.received_lines() == []
    log = tmp_path / "log" / "molecule-mcp.log"
    assert not log.exists() or "serve.ended" not in log.read_text()  # it did not begin to serve


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_two_requests_in_a_pipe_that_ends_are_both_answered(tmp_path: Path) -> None:
    """Agent-side 2: `printf … | molecule-mcp` answers before it ends, in the order of asking."""
    asked = [
        {
            "jsonrpc": "2.0",
            "id": 1,
            "method": "initialize",
            "params": {
                "protocolVersion": "2025-06-18",
                "capabilities": {},
                "clientInfo": {"name": "p", "version": "1"},
            },
        },
        {"jsonrpc": "2.0", "method": "notifications/initialized"},
        {"jsonrpc": "2.0", "id": 2, "method": "tools/list"},
        {"jsonrpc": "2.0", "id": 3, "method": "tools/call", "params": {"name": "inbox_peek"}},
    ]
    done = subprocess.run(
        [sys.executable, "-m", "molecule_mcp"],
        input="".join(json.dumps(message) + "\n" for message in asked).removesuffix("\n").encode(),
        env=clean_env(CONFIGS_DIR=str(tmp_path), **no_platform()),
        capture_output=True,
        timeout=20,
        check=False,
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(answer["id"], "result" in answer) for answer in answers] == [(1, True), (2, True), (3, True)]
    assert done.returncode == 0


@pytest.mark.parametrize("end", ["EOF", "SIGTERM", "SIGKILL"])
def test_a_life_of_a_second_leaves_no_trace(platform_process: PlatformProcess, tmp_path: Path, end: str) -> None:
    """Agent-side 2, clients 4: a health check makes no absent agent look online, keeps no lock, leaves no half file."""
    settings = platform_process.create_workspace(f"brief {end}")
    with Host(settings, state=tmp_path) as host:
        time.sleep(max(0.0, 1.2 - (time.monotonic() - host.spawned_at)))  # a life of this length is what is tested
        assert host.process.poll() is None
        if end == "EOF":
            host.close_stdin()
        else:
            host.signal(signal.Signals[end])
        host.exit_code(within_s=GONE_S)
    row = platform_process.workspace(settings["WORKSPACE_ID"])
    assert (row["status"], row["uptime_seconds"], row["agent_card"]) == ("awaiting_agent", 0, None)
    for path in tmp_path.rglob("*"):
        assert not path.name.startswith("."), path
        if path.suffix == ".lock":
            lock = filelock.FileLock(path)
            lock.acquire(timeout=0)
            lock.release()
    assert os.stat(tmp_path).st_mode & 0o077 == 0

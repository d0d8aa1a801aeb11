"""The command `molecule-mcp memory-plugin`: many writers at once, its beginning and every way in which it ends."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from molecule_mcp.__main__ import main
from tests.reference_platform.support import PostgresDatabase, SqliteFile
from tests.support.platform import clean_env, eventually

from .support import PluginProcess, command

WRITERS, EACH, NAMESPACES = 8, 125, 10
WRITER = """
import http.client, json, sys
address, writer, each, namespaces = sys.argv[1], *map(int, sys.argv[2:])
plugin = http.client.HTTPConnection(address)
for number in range(writer * each, (writer + 1) * each):
    body = json.dumps({"content": f"note no. {number}", "kind": "fact", "source": "agent"})
    plugin.request("POST", f"/v1/namespaces/custom:n{number % namespaces}/memories", body)
    reply = plugin.getresponse()
    print(reply.status, number, json.loads(reply.read()).get("id"))
"""


MEMORIES = "/v1/namespaces/custom:a/memories"


def ask(address: str, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """One exchange; status and answer."""
    with closing(http.client.HTTPConnection(address, timeout=10)) as connection:
        connection.request(method, path, None if body is None else json.dumps(body))
        reply = connection.getresponse()
        return reply.status, json.loads(reply.read() or b"null")


def write(address: str, content: str) -> tuple[int, Any]:
    return ask(address, "POST", MEMORIES, {"content": content, "kind": "fact", "source": "agent"})


def search(plugin: PluginProcess, *namespaces: str, **fields: Any) -> list[Any]:
    status, reply = ask(plugin.address, "POST", "/v1/search", {"namespaces": namespaces, "limit": 100} | fields)
    assert status == 200, reply
    memories: list[Any] = reply["memories"]
    return memories


def every_commit_is_found(plugin: PluginProcess) -> None:
    """1,000 commits of 8 processes: every one confirmed, and found exactly once, by full text and in the lists."""
    arguments = [[plugin.address, str(writer), str(EACH), str(NAMESPACES)] for writer in range(WRITERS)]
    writers = [
        subprocess.Popen([sys.executable, "-S", "-E", "-c", WRITER, *each], stdout=subprocess.PIPE, text=True)
        for each in arguments
    ]
    said = [line.split() for writer in writers for line in writer.communicate(timeout=50)[0].splitlines()]
    assert [status for status, _, _ in said] == ["201"] * WRITERS * EACH
    confirmed = sorted((f"note no. {number}", memory_id) for _, number, memory_id in said)
    for query in (None, "no note"):
        found = []
        for number in range(NAMESPACES):
            found += search(plugin, f"custom:n{number}", query=query)
        assert sorted((memory["content"], memory["id"]) for memory in found) == confirmed
    everywhere = [f"custom:n{number}" for number in range(NAMESPACES)]
    for number in (10, 77, 999):
        assert [each["content"] for each in search(plugin, *everywhere, query=str(number))] == [f"note no. {number}"]


def test_many_writers_of_a_sqlite_file_lose_nothing_and_sigterm_ends_it(tmp_path: Path) -> None:
    """The issue's figure; after the end nothing is left beside the file, and the next one finds all (contract 7.5)."""
    file = tmp_path / "m.sqlite3"
    with PluginProcess("--db", str(file)) as plugin:
        every_commit_is_found(plugin)
        with closing(http.client.HTTPConnection(plugin.address)) as idle:  # does not hold up the end
            idle.request("GET", "/v1/health")
            assert idle.getresponse().read()
            plugin.process.terminate()
            assert plugin.process.wait(2) == -signal.SIGTERM
    assert [each.name for each in tmp_path.iterdir()] == ["m.sqlite3"]
    assert SqliteFile(file).sql("SELECT count(*) FROM memory_records") == [(1000,)]
    assert file.stat().st_mode & 0o777 == 0o600


def test_many_writers_of_a_postgresql_database_lose_nothing_and_sigint_ends_it(
    postgres_database: PostgresDatabase,
) -> None:
    """The same, its URL in the environment, where no list of processes shows a password (contract 7.5)."""
    url = postgres_database.url.replace("postgresql+asyncpg://", "postgres://")
    with PluginProcess(MEMORY_PLUGIN_DATABASE_URL=url) as plugin:
        every_commit_is_found(plugin)
        plugin.process.send_signal(signal.SIGINT)
        assert plugin.process.wait(2) == 130
    assert postgres_database.sql("SELECT count(*) FROM memory_records") == [(1000,)]


PARENT = """
import subprocess, sys
with subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE) as plugin:
    print(plugin.pid, flush=True)
    plugin.wait()
"""


def test_it_is_gone_when_its_parent_was_killed_also_while_a_write_waits(tmp_path: Path) -> None:
    """SIGKILL of the parent closes the pipe: no orphan after 2 s, though somebody holds the file's lock (R11).

    It is started here as a person does it: its own place at home, private, and beyond loopback a warning.
    """
    env = clean_env(HOME=str(tmp_path), MEMORY_PLUGIN_LISTEN_ADDR=":0", PYTHONUNBUFFERED="1")
    with subprocess.Popen(
        [sys.executable, "-S", "-c", PARENT, *command("--parent-pipe")],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        assert parent.stderr is not None
        pid = int(parent.stdout.readline())
        ready = parent.stdout.readline()
        assert "The memory plugin answers at http://0.0.0.0:" in ready
        assert "everyone who reaches it can read and change every memory" in parent.stderr.readline()
        file = tmp_path / ".molecule-workspace" / "memory" / "memory.sqlite3"
        assert [each.stat().st_mode & 0o777 for each in (file.parent, file)] == [0o700, 0o600]

        address = f"127.0.0.1:{ready.split()[5].rpartition(':')[2]}"
        assert write(address, "before")[0] == 201
        with (
            closing(sqlite3.connect(file, isolation_level=None)) as holder,
            closing(http.client.HTTPConnection(address)) as waiting,
        ):
            holder.execute("BEGIN IMMEDIATE")
            waiting.request("POST", MEMORIES, json.dumps({"content": "waits", "kind": "fact", "source": "agent"}))
            assert ask(address, "GET", "/v1/health")[0] == 200  # reading goes on, and the write has arrived
            parent.kill()
            parent.wait(5)
            try:
                eventually(lambda: is_running(pid), within_s=2, until=lambda running: not running)
            except AssertionError:
                os.kill(pid, signal.SIGKILL)
                raise
    assert SqliteFile(file).sql("SELECT content FROM memory_records") == [("before",)]


def is_running(pid: int) -> bool:
    """Whether there is such a process; one that has ended and that nobody has asked about is none."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Run the command here, where it cannot serve: exit code and what it says, on stderr alone."""

    def start(*options: str, **env: str) -> tuple[int, str]:
        for name in [each for each in os.environ if each.startswith("MEMORY_")]:
            monkeypatch.delenv(name)
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["molecule-mcp", "memory-plugin", *options])
        code = main()
        out, said = capsys.readouterr()
        assert (out, "Traceback" in said) == ("", False)
        return code, " ".join(said.split())

    return start


def test_all_settings_that_are_wrong_are_told_at_once(start: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    """Exit code 2; a PostgreSQL set-up without its URL names the variable (contract 7.5)."""
    code, said = start("--db", "postgresql", MEMORY_PLUGIN_LISTEN_ADDR="127.0.0.1")
    assert (code, "MEMORY_PLUGIN_DATABASE_URL is empty or not set" in said) == (2, True)
    assert "MEMORY_PLUGIN_LISTEN_ADDR is not an address" in said
    code, said = start(
        MEMORY_PLUGIN_DATABASE_URL=" ", MEMORY_PLUGIN_LISTEN_ADDR="here", MEMORY_PLUGIN_MIGRATIONS_DIR=str(tmp_path)
    )
    assert code == 2
    for variable in ("DATABASE_URL", "LISTEN_ADDR", "MIGRATIONS_DIR"):
        assert f"MEMORY_PLUGIN_{variable}" in said


def test_an_address_in_use_is_said(start: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    """Exit code 2, and the address is named (ours)."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        code, said = start("--db", str(tmp_path / "m.sqlite3"), MEMORY_PLUGIN_LISTEN_ADDR=address)
    assert (code, f"the memory plugin cannot listen on {address}" in said) == (2, True)


def test_a_database_that_cannot_be_used_is_said_without_its_password(start: Callable[..., tuple[int, str]]) -> None:
    """Exit code 5 and a sentence that names where the URL is from (ours)."""
    code, said = start("--port", "0", MEMORY_PLUGIN_DATABASE_URL="postgres://me:pass-word@127.0.0.1:1/m")
    assert (code, "cannot be used" in said, "MEMORY_PLUGIN_DATABASE_URL" in said) == (5, True, True)
    assert "pass-word" not in said

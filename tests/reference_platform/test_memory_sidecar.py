"""The memory plugin that the platform starts: when, how it ends, and what happens when it does not come up."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import anyio
import httpx
import pytest
from typer.testing import CliRunner

from molecule_mcp.cli import app
from molecule_runtime.clock import ManualClock
from molecule_runtime.reference_platform.config import PlatformConfig, SidecarConfig
from molecule_runtime.reference_platform.memory_sidecar import MemorySidecar, SidecarFailed
from molecule_runtime.reference_platform.services.memory_plugin import MemoryPlugin, PluginUnavailable
from tests.support.platform import clean_env, eventually, free_port

from .memories import a_plugin
from .support import SqliteFile, until

LISTEN = "127.0.0.1:0"


def is_alive(pid: int) -> bool:
    with suppress(OSError):
        os.kill(pid, 0)
        return not Path(f"/proc/{pid}/stat").exists() or Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    return False


def children(pid: int) -> list[int]:
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(each) for each in listed.stdout.split()]


def a_sidecar(tmp_path: Path, clock: ManualClock, **more: object) -> tuple[MemorySidecar, MemoryPlugin]:
    plugin = MemoryPlugin("", clock, timeout_s=5)
    config = SidecarConfig(LISTEN, str(tmp_path / "m.sqlite3"), clean_env())
    return MemorySidecar(config, plugin, clock, **more), plugin  # type: ignore[arg-type]


def test_the_plugin_of_a_platform_that_was_killed_is_gone_within_two_seconds(tmp_path: Path) -> None:
    """`--memory`: a free port, a file beside the database, no orphan whatever ends the platform (R11, ours)."""
    file = tmp_path / "platform.sqlite3"
    command = [sys.executable, "-m", "molecule_mcp", "platform", "--memory", "--json", "--port", "0", "--db", str(file)]
    env = clean_env(PYTHONUNBUFFERED="1")
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as platform:
        assert platform.stdout is not None
        url = platform.stdout.readline().split('"')[3]
        (plugin,) = children(platform.pid)
        with httpx.Client(base_url=url) as http:
            member = http.post("/workspaces", json={"name": "a", "external": True}).json()
            memory = {"content": "kept", "scope": "LOCAL"}
            assert http.post(f"/workspaces/{member['id']}/memories", json=memory).status_code == 201
            found = http.get(f"/workspaces/{member['id']}/v2/memories").json()["memories"]
            assert [each["content"] for each in found] == ["kept"]
        assert Path(f"{file}.memory.sqlite3").exists()
        platform.kill()
        platform.wait(10)
        eventually(lambda: is_alive(plugin), within_s=2, until=lambda alive: not alive)


def test_a_plugin_that_does_not_come_up_stops_the_start_loudly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its address is taken by somebody who is no plugin: an exit code and a sentence (R11)."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setenv("MEMORY_V2_CUTOVER", "true")
        monkeypatch.setenv("MEMORY_PLUGIN_LISTEN_ADDR", address)
        done = CliRunner().invoke(app, ["platform", "--port", "0", "--db", str(tmp_path / "p.sqlite3")])
    assert (done.exit_code, done.stdout) == (5, "")
    assert "The memory plugin did not start: it ended with code 2." in done.stderr
    assert address in capfd.readouterr().err  # the plugin's own words


async def test_a_plugin_that_says_nothing_in_time_is_given_up_and_ended(tmp_path: Path, clock: ManualClock) -> None:
    """The health gate (R11); no process stays behind."""
    program = "import sys; sys.stdin.read()"
    sidecar, _ = a_sidecar(tmp_path, clock, command=(sys.executable, "-c", program), gate_s=0.5)
    before = children(os.getpid())
    with pytest.raises(SidecarFailed, match=r"not healthy after 0\.5 s"):
        async with sidecar.running():
            pytest.fail("there is no plugin")
    assert [pid for pid in children(os.getpid()) if pid not in before and is_alive(pid)] == []


async def test_without_a_database_for_it_the_start_names_the_variable(clock: ManualClock) -> None:
    """A PostgreSQL platform: its plugin's database is not guessed (R11)."""
    sidecar = MemorySidecar(SidecarConfig(LISTEN, None), MemoryPlugin("", clock, timeout_s=1), clock)
    with pytest.raises(SidecarFailed, match="MEMORY_PLUGIN_DATABASE_URL"):
        async with sidecar.running():
            pytest.fail("there is no plugin")


STAND_IN = """
import http.server, json, os, sys, threading
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200), self.end_headers(), self.wfile.write(b"{}")
    def do_POST(self):
        self.send_response(200), self.end_headers(), self.wfile.write(b'{"memories": []}')
    def log_message(self, *_):
        pass
host, _, port = os.environ["MEMORY_PLUGIN_LISTEN_ADDR"].partition(":")
server = http.server.HTTPServer((host, int(port)), Answer)
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
print(json.dumps({"url": "http://%s:%d" % server.server_address}), flush=True)
server.serve_forever()
"""
"""Enough of a plugin for what is tested of the one who keeps it; ours needs a second of CPU to start."""


@pytest.mark.parametrize("has_address", [False, True])
async def test_a_plugin_that_dies_is_started_again_with_growing_pauses(
    tmp_path: Path, clock: ManualClock, has_address: bool
) -> None:
    """Calls fail by name meanwhile; when it serves again it is asked at once, whatever failed before (ours)."""
    address = f"127.0.0.1:{free_port()}"
    plugin = MemoryPlugin(f"http://{address}" if has_address else "", clock, timeout_s=5)
    config = SidecarConfig(address if has_address else LISTEN, str(tmp_path / "m.sqlite3"), clean_env())
    sidecar = MemorySidecar(config, plugin, clock, command=(sys.executable, "-S", "-c", STAND_IN))
    async with sidecar.running():
        for pause_s in (1, 2, 4):
            died = sidecar.pid
            assert died is not None
            os.kill(died, signal.SIGKILL)

            async def it_waits() -> bool:
                return clock.sleepers == 1

            await until(it_waits)
            for _ in range(4):
                with pytest.raises(PluginUnavailable):
                    await plugin.search(["team:a"], limit=1)
            clock.advance(pause_s - 0.1)
            assert clock.sleepers == 1
            assert sidecar.pid == died
            clock.advance(0.1)

            async def it_serves() -> bool:
                with suppress(PluginUnavailable):
                    return await plugin.search(["team:a"], limit=1) == []
                return False

            await until(it_serves)
    assert sidecar.pid is None
    assert not await plugin.is_healthy()
    await plugin.close()


async def test_a_plugin_that_serves_at_the_address_already_is_used(tmp_path: Path, clock: ManualClock) -> None:
    """Nothing is started then, nor ended (ours)."""
    async with a_plugin(SqliteFile(tmp_path / "m.sqlite3")) as url:
        plugin = MemoryPlugin(url, clock, timeout_s=5)
        sidecar = MemorySidecar(SidecarConfig(LISTEN, None), plugin, clock)
        async with sidecar.running():
            assert sidecar.pid is None
        assert await plugin.is_healthy()
        await plugin.close()


def read(database: str = "/d/p.sqlite3", *, memory: bool = False, **env: str) -> PlatformConfig:
    return PlatformConfig.from_env(env, host="127.0.0.1", port=0, database=database, memory=memory)


def test_when_and_where_the_platform_starts_one() -> None:
    """Only after the cut-over, by --memory, or at an address where it can serve; never when it is forbidden (R11)."""
    assert read().memory_sidecar is None
    own = "/d/p.sqlite3.memory.sqlite3"

    def started(config: PlatformConfig) -> tuple[str, str | None] | None:
        sidecar = config.memory_sidecar
        return None if sidecar is None else (sidecar.listen_addr, sidecar.database)

    assert started(read(memory=True)) == ("127.0.0.1:0", own)
    assert started(read(MEMORY_V2_CUTOVER="true")) == ("127.0.0.1:9100", own)
    assert started(read(MEMORY_V2_CUTOVER="1")) is None
    assert started(read(MEMORY_PLUGIN_URL="http://localhost:9200/")) == ("localhost:9200", own)
    assert started(read(MEMORY_PLUGIN_URL="http://[::1]:9200")) == ("[::1]:9200", own)
    assert started(read(memory=True, MEMORY_PLUGIN_LISTEN_ADDR="127.0.0.1:9300")) == ("127.0.0.1:9300", own)
    for url in ("http://memory.example:9100", "https://127.0.0.1:9100", "http://127.0.0.1:9100/under"):
        assert started(read(MEMORY_PLUGIN_URL=url, MEMORY_V2_CUTOVER="true")) is None
        assert read(MEMORY_PLUGIN_URL=url).memory_plugin_url == url
    forbidden = read(
        memory=True, MEMORY_V2_CUTOVER="true", MEMORY_PLUGIN_URL="http://127.0.0.1:9100", MEMORY_PLUGIN_DISABLE="1"
    )
    assert (started(forbidden), forbidden.memory_plugin_url) == (None, "http://127.0.0.1:9100")
    assert started(read("postgresql+asyncpg://h/d", memory=True)) == ("127.0.0.1:0", None)
    with_database = read("postgresql+asyncpg://h/d", memory=True, MEMORY_PLUGIN_DATABASE_URL="postgresql://u:pw@h/m")
    assert started(with_database) == ("127.0.0.1:0", "")


def test_the_plugin_gets_no_admin_token_and_no_secret_is_shown() -> None:
    """It asks nobody who he is, so it needs none (ours)."""
    config = read(
        memory=True, ADMIN_TOKEN="the-secret", MEMORY_PLUGIN_DATABASE_URL="postgresql://u:pw@h/m", PATH="/bin"
    )
    assert config.memory_sidecar is not None
    assert dict(config.memory_sidecar.environment) == {
        "MEMORY_PLUGIN_DATABASE_URL": "postgresql://u:pw@h/m",
        "PATH": "/bin",
    }
    assert "pw" not in repr(replace(config, memory_plugin_url="http://u:pw@h"))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("500ms", 0.5), ("1m30s", 90), ("1.5s", 1.5), ("2", 2), ("", 2), ("soon", 2), ("-1s", 2), ("0s", 2)],
)
def test_the_timeout_is_a_duration_of_go(text: str, seconds: float) -> None:
    """A bad one is the default of 2 s (contract 7.5)."""
    assert read(MEMORY_PLUGIN_TIMEOUT=text).memory_plugin_timeout_s == seconds


async def test_a_plugin_that_does_not_end_by_itself_is_killed(tmp_path: Path, clock: ManualClock) -> None:
    """The end of the platform waits for it only so long (ours)."""
    program = "import time, json; print(json.dumps({'url': 'http://127.0.0.1:9'}), flush=True); time.sleep(600)"
    sidecar, _ = a_sidecar(tmp_path, clock, command=(sys.executable, "-c", program), gate_s=0.5)
    before = children(os.getpid())
    with anyio.fail_after(10), pytest.raises(SidecarFailed):
        async with sidecar.running():
            pytest.fail("there is no plugin")
    assert [pid for pid in children(os.getpid()) if pid not in before and is_alive(pid)] == []

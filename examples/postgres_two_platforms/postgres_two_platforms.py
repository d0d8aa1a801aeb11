"""Two platform processes on one PostgreSQL behave as one: the agent is at one, the user at the other.

The program starts a throwaway PostgreSQL server of its own, two platforms on one database, an agent at the first and a
user at the second; it prints what each saw, checks it, and ends with 0 when all of it was right:

    python examples/postgres_two_platforms/postgres_two_platforms.py

Where PostgreSQL is not installed it says what to install, and ends with 0 as well.
"""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx

from molecule_runtime import Runtime, Settings
from molecule_runtime.state import StateDir

PLATFORM = [sys.executable, "-m", "molecule_mcp", "platform", "--json", "--port", "0"]  # or just molecule-mcp platform
WITHIN_S = 2.0
"""A message that rings the doorbell is in the mailbox long before this; a poll comes once a minute."""


def programs() -> Path | None:
    """Where initdb is: on PATH, else where Debian puts it."""
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).resolve().parent
    return max((path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")), default=None)


@contextmanager
def postgres(found: Path, directory: Path) -> Iterator[str]:
    """A server on a socket in its own directory; the URL of its database."""
    # The server refuses to be root, so a root user lends it the account that the package made.
    account = "postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
    if os.geteuid() == 0:
        shutil.chown(directory, account)
    options: dict[str, Any] = {"user": account if os.geteuid() == 0 else None, "cwd": directory}
    data = directory / "data"
    command = [found / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, **options)
    with (directory / "log").open("w") as log:
        command = [found / "postgres", "-D", data, "-k", directory, "-c", "listen_addresses=", "-c", "fsync=off"]
        server = subprocess.Popen(command, stdout=log, stderr=log, **options)
    try:
        yield f"postgresql+asyncpg://postgres@/postgres?host={directory}"
    finally:
        server.terminate()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


@asynccontextmanager
async def platform(url: str, name: str) -> AsyncIterator[str]:
    """A platform process on that database; its address."""
    deadline = time.monotonic() + 30
    while True:
        process = await asyncio.create_subprocess_exec(
            *PLATFORM, "--db", url, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
        )
        assert process.stdout is not None
        line = await process.stdout.readline()
        if line:
            break
        await process.wait()  # the database server is still starting
        assert time.monotonic() < deadline, f"platform {name} did not start"
    address = json.loads(line)["url"]
    print(f"{name:6} listens at {address}")
    try:
        yield address
    finally:
        process.terminate()
        await process.wait()


@asynccontextmanager
async def agent(settings: dict[str, str], state: Path) -> AsyncIterator[Runtime]:
    """The agent's runtime, online."""
    runtime = Runtime(Settings.from_env(settings), state_dir=StateDir.open(state, home=state))
    running = asyncio.create_task(runtime.run())
    try:
        yield runtime
    finally:
        running.cancel()
        await asyncio.wait((running,))


async def hear(runtime: Runtime) -> dict[str, Any]:
    """The next message of the mailbox, taken out."""
    mailbox = await runtime.route().mailbox()
    message = await mailbox.wait(30, key="example")
    assert message is not None, "no message came"
    await mailbox.pop(message["activity_id"])
    return message


async def say(canvas: httpx.AsyncClient, workspace_id: str, text: str) -> None:
    """The user types a line into the canvas."""
    message = {"role": "user", "messageId": str(uuid.uuid4()), "parts": [{"kind": "text", "text": text}]}
    body = {"method": "message/send", "params": {"message": message}}
    (await canvas.post(f"/workspaces/{workspace_id}/a2a", json=body)).raise_for_status()


async def show(first: str, second: str, state: Path) -> None:
    """The user at `second` talks to an agent at `first`."""
    async with httpx.AsyncClient(base_url=second) as canvas:
        body = {"name": "far away", "external": True, "delivery_mode": "poll"}
        created = (await canvas.post("/workspaces", json=body)).raise_for_status().json()["connection"]
        workspace_id = created["workspace_id"]
        settings = {
            "PLATFORM_URL": first,
            "WORKSPACE_ID": workspace_id,
            "MOLECULE_WORKSPACE_TOKEN": created["auth_token"],
        }
        print(f"user   made workspace {workspace_id} at the second platform")
        async with agent(settings, state) as runtime:
            await say(canvas, workspace_id, "warm up")
            await hear(runtime)
            async with asyncio.timeout(30):
                while (await canvas.get(f"/workspaces/{workspace_id}")).json()["status"] != "online":  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
            print("user   sees at the second platform that the agent is online at the first")
            for text in ("Can you hear me over there? 你好?", "And now?"):
                began = time.monotonic()
                await say(canvas, workspace_id, text)
                heard = await hear(runtime)
                elapsed = time.monotonic() - began
                print(f"agent  heard {heard['text']!r} after {elapsed * 1000:.0f} ms")
                assert heard["text"] == text, heard
                assert elapsed < WITHIN_S, f"{elapsed:.1f} s: the doorbell did not ring"


async def main() -> None:
    found = programs()
    if found is None:
        print("PostgreSQL is not here. Install it (Debian, Ubuntu: apt-get install postgresql; macOS: brew install")
        print("postgresql), then run this again. There is nothing to set up: a server of its own is used.")
        return
    with tempfile.TemporaryDirectory(prefix="molecule-example-") as directory:
        root = Path(directory)
        server, state = root / "postgres", root / "state"
        for path in (server, state):
            path.mkdir()
        root.chmod(0o711)  # the server's account must reach its directory
        with postgres(found, server) as url:
            async with platform(url, "first") as first, platform(url, "second") as second:
                await show(first, second, state)
    print("All of it was right.")


if __name__ == "__main__":
    asyncio.run(main())

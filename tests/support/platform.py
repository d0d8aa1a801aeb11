"""A reference platform as a process of its own, and the user at its canvas. Synchronous, for black-box tests."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

T = TypeVar("T")


def eventually(look: Callable[[], T], *, within_s: float, until: Callable[[T], bool] = bool) -> T:
    """Look again and again until `until(result)` holds; the result. AssertionError with the last one otherwise."""
    deadline = time.monotonic() + within_s
    while True:
        found = look()
        if until(found):
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within_s} s; the last look showed {found!r}")
        time.sleep(0.02)


def clean_env(**extra: str) -> dict[str, str]:
    """This process's environment without any setting of ours or a proxy, and with `extra`."""
    ours = (
        "MOLECULE_",
        "PLATFORM_URL",
        "WORKSPACE_ID",
        "CONFIGS_DIR",
        "ADMIN_TOKEN",
        "REMOTE_",
        "EXTERNAL_",
        "CORS_",
        "RATE_LIMIT",
        "ACTIVITY_",
        "UPLOAD_",
        "PENDING_UPLOADS_",
        "DELEGATION_",
        "MEMORY_",
    )
    proxies = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(ours) and k.upper() not in proxies}
    return kept | extra


def free_port() -> int:
    """A port of the loopback interface that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def no_platform() -> dict[str, str]:
    """Settings that are right in form while nothing answers at the address."""
    return {
        "PLATFORM_URL": f"http://127.0.0.1:{free_port()}",
        "WORKSPACE_ID": str(uuid.uuid4()),
        "MOLECULE_WORKSPACE_TOKEN": secrets.token_urlsafe(32),
    }


class SilentPlatform:
    """An address where connections are accepted and nothing is ever answered."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=16)
        self._connections: list[socket.socket] = []
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for each in (*self._connections, self._listener):
            each.close()

    def wait_for_a_call(self, within_s: float) -> None:
        """Wait until a request has begun to arrive; its connection stays open to the end."""
        self._listener.settimeout(within_s)
        connection, _ = self._listener.accept()
        self._connections.append(connection)
        connection.settimeout(within_s)
        assert connection.recv(1)


class PlatformProcess:
    """`molecule-mcp platform` on a free port. `env` may shorten its windows (REMOTE_LIVENESS_STALE_AFTER ...)."""

    def __init__(
        self,
        database: Path | str,
        *,
        port: int = 0,
        workspace: str | None = None,
        memory: bool = False,
        stops_within_s: float = 10,
        stderr: int = subprocess.DEVNULL,
        **env: str,
    ) -> None:
        """`memory`: with a memory plugin beside it. `stderr` is a file descriptor for what it logs."""
        self.database = database
        self._stops_within_s = stops_within_s
        command = [sys.executable, "-m", "molecule_mcp", "platform", "--json"]
        command += ["--port", str(port), "--db", str(database)]
        if workspace is not None:
            command += ["--workspace", workspace]
        if memory:
            command += ["--memory"]
        self._process = subprocess.Popen(
            command, env=clean_env(**env), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr
        )
        assert self._process.stdout is not None
        started: dict[str, Any] = json.loads(self._process.stdout.readline())
        self.url: str = started["url"]
        self.settings: dict[str, str] = started.get("workspace", {})
        self.http = httpx.Client(base_url=self.url, headers={"Origin": self.url}, timeout=10, trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    @property
    def pid(self) -> int:
        return self._process.pid

    def kill(self) -> None:
        """End it as a power cut would (SIGKILL), and wait."""
        self._process.kill()
        self._process.wait(10)

    def stop(self) -> None:
        """End it as an operator would, and wait."""
        self.http.close()
        if self._process.poll() is None:
            self._process.terminate()
        self._process.wait(self._stops_within_s)
        if self._process.stdout:
            self._process.stdout.close()

    # the canvas

    def create_workspace(self, name: str, **fields: Any) -> dict[str, str]:
        """A new polling workspace; its settings for an agent's environment."""
        body = {"name": name, "external": True, "delivery_mode": "poll", **fields}
        created = self.http.post("/workspaces", json=body)
        created.raise_for_status()
        connection = created.json()["connection"]
        return {
            "PLATFORM_URL": self.url,
            "WORKSPACE_ID": connection["workspace_id"],
            "MOLECULE_WORKSPACE_TOKEN": connection["auth_token"],
        }

    def workspace(self, workspace_id: str) -> dict[str, Any]:
        row: dict[str, Any] = self.http.get(f"/workspaces/{workspace_id}").json()
        return row

    def status(self, workspace_id: str) -> str:
        return str(self.workspace(workspace_id)["status"])

    def say(self, workspace_id: str, text: str) -> None:
        """Post a message as the user's canvas does."""
        message = {"role": "user", "messageId": str(uuid.uuid4()), "parts": [{"kind": "text", "text": text}]}
        body = {"method": "message/send", "params": {"message": message, "metadata": {"history": []}}}
        self.http.post(f"/workspaces/{workspace_id}/a2a", json=body).raise_for_status()

    def activity(self, workspace_id: str) -> list[dict[str, Any]]:
        """All inbox rows, newest first."""
        answer = self.http.get(f"/workspaces/{workspace_id}/activity", params={"limit": 500})
        answer.raise_for_status()
        rows: list[dict[str, Any]] = answer.json()
        return rows

    def chat(self, workspace_id: str) -> list[tuple[str, str]]:
        """The bubbles of a reload: (role, text), oldest first."""
        answer = self.http.get(f"/workspaces/{workspace_id}/chat-history", params={"limit": 1000})
        answer.raise_for_status()
        return [(message["role"], message["content"]) for message in answer.json()["messages"]]

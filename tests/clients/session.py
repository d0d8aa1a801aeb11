"""A session of a real client, as all of them play it: `programs/` has one program for each SDK.

A program reads from stdin what to spawn, lets its SDK spawn it, and prints what the SDK shows, one JSON object a line
with the name of its `step`; it judges nothing. This side is the user at the canvas, and keeps what was printed.

    initialize · tools/list · wait_for_message begins, with progress
    meanwhile: ping, send_message_to_user, a bad argument, an unknown tool
    progress arrives -> the user writes FIRST -> the waiting call returns it · inbox_peek · reply
    another wait is cancelled · inbox_peek · the user writes SECOND -> the next wait gets it · inbox_pop
    runtime_status · the SDK closes
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.host import CONSOLE_SCRIPT
from tests.support.platform import PlatformProcess, clean_env

FIRST = "你好 👋 are you there?"
SECOND = "And now?"
HELLO = "Hello, user. 你好"
"""What the programs send to the user unasked."""
ANSWER = "Heard."


@dataclass
class Session:
    """What a program showed. A step that came several times (progress) is kept with its first facts."""

    steps: dict[str, dict[str, Any]] = field(default_factory=dict)
    seen_by_user: list[tuple[str, str]] = field(default_factory=list)
    """The chat when `send_message_to_user` had returned."""
    lived_on: bool = True
    """Whether the server was still there when the SDK had closed."""

    def result(self, step: str) -> dict[str, Any]:
        """The structured result of a tool call, which its text must repeat."""
        shown = self.steps[step]["result"]
        assert not shown.get("isError"), shown
        (block,) = shown["content"]
        assert json.loads(block["text"]) == shown["structuredContent"]
        payload: dict[str, Any] = shown["structuredContent"]
        return payload

    def error(self, step: str) -> str:
        """The text of a failed tool call."""
        shown = self.steps[step]["result"]
        assert shown["isError"] is True, shown
        (block,) = shown["content"]
        text: str = block["text"]
        return text


def server_entry(settings: dict[str, str], directory: Path) -> dict[str, Any]:
    """What a host is configured with: the command, and settings in its env block, the token in a private file."""
    token_file = directory / "token"
    token_file.touch(mode=0o600)
    token_file.write_text(settings["MOLECULE_WORKSPACE_TOKEN"])
    kept = {key: value for key, value in settings.items() if key != "MOLECULE_WORKSPACE_TOKEN"}
    paths = {"MOLECULE_WORKSPACE_TOKEN_FILE": str(token_file), "CONFIGS_DIR": str(directory / "state")}
    return {"command": CONSOLE_SCRIPT, "args": [], "env": kept | paths}


def ends(directory: Path) -> list[str]:
    """Why each server that ran in this directory ended, by its own log."""
    log = (directory / "state" / "log" / "molecule-mcp.log").read_text(encoding="utf-8")
    return [line["detail"] for line in map(json.loads, log.splitlines()) if line["event"] == "serve.ended"]


def play(program: Sequence[str], platform: PlatformProcess, settings: dict[str, str], directory: Path) -> Session:
    """Run a program to its end, being its user."""
    workspace_id = settings["WORKSPACE_ID"]
    session = Session()
    with subprocess.Popen(
        list(program),
        env=clean_env(HOME=str(directory)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    ) as client:
        try:
            assert client.stdin is not None
            assert client.stdout is not None
            client.stdin.write(json.dumps(server_entry(settings, directory)) + "\n")
            client.stdin.flush()
            for line in client.stdout:
                facts = json.loads(line)
                step = facts.pop("step")
                is_new = session.steps.setdefault(step, facts) is facts
                if step == "sent":
                    session.seen_by_user = platform.chat(workspace_id)
                elif step == "progress" and is_new:
                    platform.say(workspace_id, FIRST)
                elif step == "cancelled":
                    platform.say(workspace_id, SECOND)
                elif step == "closed":
                    (workspace,) = session.result("status")["workspaces"]
                    session.lived_on = is_alive(workspace["owner"]["pid"])
            _, errors = client.communicate(timeout=10)
        except BaseException:
            client.kill()  # its server notices within 2 s
            raise
    assert client.returncode == 0, errors
    return session


def is_alive(pid: int) -> bool:
    """Whether there is such a process; the SDKs collect their children when they close."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True

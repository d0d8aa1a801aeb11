"""The clients that people's hosts are built on, each spawning the installed command (clients 2 and 4)."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import mcp_types

from molecule_mcp.instructions import instructions
from molecule_mcp.server import SERVER_NAME, listed_tools
from molecule_runtime import __version__
from molecule_runtime.errors import InvalidArgument, advice
from molecule_runtime.settings import DEFAULT_POLL_TIMEOUT_SECS
from tests.clients.session import ANSWER, FIRST, HELLO, SECOND, ends, play, server_entry
from tests.support.platform import PlatformProcess, clean_env
from tests.support.snapshots import SNAPSHOTS

LISTING = [json.loads((SNAPSHOTS / f"{tool.name}.json").read_text(encoding="utf-8")) for tool in listed_tools(None)]
"""What was agreed: names, annotations, schemas, and no outputSchema."""


def test_a_whole_session(program: list[str], platform_process: PlatformProcess, tmp_path: Path) -> None:
    """Clients 1 and 4, mcp-sdk: the SDK shows what we sent, and its own way of closing ends the server."""
    settings = platform_process.create_workspace("client")
    session = play(program, platform_process, settings, tmp_path)
    steps = session.steps

    begun = steps["initialized"]
    assert begun["protocolVersion"] == "2025-11-25"
    assert (begun["serverInfo"]["name"], begun["serverInfo"]["version"]) == (SERVER_NAME, __version__)
    assert begun["capabilities"]["tools"] == {"listChanged": False}
    assert begun["instructions"] == instructions(listed_tools(None), poll_timeout_secs=DEFAULT_POLL_TIMEOUT_SECS)
    assert begun.get("fell_back", True)  # the one program that asks server/discover first tells
    assert steps["listed"]["tools"] == LISTING

    assert steps["pinged"]["result"] == {}
    assert session.result("sent") == {"status": "sent", "attachments": []}
    assert session.seen_by_user == [("agent", HELLO)]
    wrong = InvalidArgument(argument="activity_id", reason="must be the activity_id of a message, a UUID")
    assert session.error("bad_argument").startswith(str(advice(wrong)))
    assert steps["unknown_tool"]["code"] == mcp_types.INVALID_PARAMS
    assert "no_such_tool" in steps["unknown_tool"]["message"]
    assert steps["waited_meanwhile"] == {"done": False}
    assert steps["progress"] == {"done": 5, "total": 30, "text": "no message yet"}

    first = session.result("first")["message"]
    assert (first["text"], first["kind"], first["attempt"]) == (FIRST, "canvas_user", 1)
    (peeked,) = session.result("peeked")["messages"]
    assert (peeked["activity_id"], peeked["state"]) == (first["activity_id"], "leased")
    assert session.result("replied") == {"status": "sent", "to": "user", "popped": True}
    assert session.result("cancelled") == {"messages": [], "total": 0}
    second = session.result("second")["message"]
    assert (second["text"], second["attempt"]) == (SECOND, 1)
    (workspace,) = session.result("status")["workspaces"]
    assert workspace["presence"]["state"] == "online"

    assert not session.lived_on
    assert ends(tmp_path) == ["EOF"]  # the SDKs send SIGTERM to a server that has not ended 2 s later
    assert platform_process.chat(settings["WORKSPACE_ID"]) == [
        ("agent", HELLO),
        ("user", FIRST),
        ("agent", ANSWER),
        ("user", SECOND),
    ]


def test_the_inspector_lists_and_calls(inspector: list[str], platform_process: PlatformProcess, tmp_path: Path) -> None:
    """Clients 2: a server process for each command; `--strict` would end with 6 over a schema that hosts refuse."""
    settings = platform_process.create_workspace("inspected")
    entry = server_entry(settings, tmp_path)
    env = [part for name, value in entry["env"].items() for part in ("-e", f"{name}={value}")]

    def inspect(*arguments: str) -> dict[str, Any]:
        done = subprocess.run(
            [*inspector, entry["command"], *env, *arguments, "--format", "json"],
            env=clean_env(HOME=str(tmp_path)),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=40,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, ""), done.stdout
        result: dict[str, Any] = json.loads(done.stdout)["result"]
        return result

    assert inspect("--method", "tools/list", "--strict")["tools"] == LISTING
    say = ("--tool-name", "send_message_to_user", "--tool-arg", f"message={HELLO}")
    assert inspect("--method", "tools/call", *say)["structuredContent"] == {"status": "sent", "attachments": []}
    assert platform_process.chat(settings["WORKSPACE_ID"]) == [("agent", HELLO)]
    assert ends(tmp_path) == ["EOF", "EOF"]

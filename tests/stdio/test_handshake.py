"""How a session begins: versions, eras, and what the server says about itself (mcp-sdk, Eras; clients 1.1)."""

from __future__ import annotations

import sys
from pathlib import Path

import mcp
import pytest

from molecule_runtime import __version__
from tests.support.host import Host
from tests.support.platform import PlatformProcess, clean_env, no_platform

SERVED = ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"]
MODERN = "2026-07-28"


def test_the_first_session_of_a_host_that_asks_for_the_modern_era_first(tmp_path: Path) -> None:
    """Mcp-sdk, Eras: `server/discover` gets -32601, ping works before initialize, and initialize works after both."""
    with Host(no_platform(), state=tmp_path) as host:
        meta = {"_meta": {"io.modelcontextprotocol/protocolVersion": MODERN}}
        refused = host.ask("server/discover", meta)["error"]
        assert refused == {"code": -32601, "message": refused["message"]}
        assert host.ask("ping")["result"] == {}
        early = host.ask("tools/list")["error"]
        assert early["code"] in {-32600, -32602}
        result = host.initialize("2025-11-25")
        assert result == {
            "protocolVersion": "2025-11-25",
            "capabilities": {
                "experimental": {"claude/channel": {}},
                "prompts": {"listChanged": False},
                "resources": {"listChanged": False, "subscribe": True},
                "tools": {"listChanged": False},
            },
            "serverInfo": {"name": "molecule-mcp", "title": "Molecule canvas", "version": __version__},
            "instructions": result["instructions"],
        }
        assert "wait_for_message" in result["instructions"]
        enveloped = host.ask("tools/list", meta)["error"]
        assert enveloped["code"] == -32600
        named = [tool["name"] for tool in host.ask("tools/list")["result"]["tools"]]
        assert named[0] == "wait_for_message"
        assert host.ask("server/discover", meta)["error"]["code"] == -32601
        assert host.ask("ping")["result"] == {}


def test_every_version_of_the_handshake_era_is_echoed_and_any_other_gets_the_newest(
    rude_host: Host,
) -> None:
    """Mcp-sdk, Eras: 2024-11-05 to 2025-11-25 are served; an unknown or modern version is answered 2025-11-25."""
    answered = {version: rude_host.initialize(version)["protocolVersion"] for version in SERVED}
    assert answered == {version: version for version in SERVED}
    for version in ("1999-01-01", MODERN, "", "latest"):
        assert rude_host.initialize(version)["protocolVersion"] == "2025-11-25"
    assert rude_host.ask("ping")["result"] == {}


def test_a_first_request_in_the_modern_envelope_is_refused_and_the_session_is_not_locked(tmp_path: Path) -> None:
    """Mcp-sdk, Eras: the first request decides the era, so an enveloped one must not reach the SDK."""
    with Host(no_platform(), state=tmp_path) as host:
        meta = {"_meta": {"io.modelcontextprotocol/protocolVersion": MODERN}}
        for method in ("tools/list", "ping"):
            assert host.ask(method, meta)["error"]["code"] == -32600
        assert host.initialize("2025-06-18")["protocolVersion"] == "2025-06-18"
        assert host.ask("tools/list")["result"]["tools"]


async def test_the_python_sdk_client_works_end_to_end(platform_process: PlatformProcess, tmp_path: Path) -> None:
    """Clients 2: the SDK's client asks `server/discover` first and falls back; tools, errors and results pass."""
    settings = platform_process.create_workspace("sdk client")
    platform_process.say(settings["WORKSPACE_ID"], "hello from the canvas 👋")
    parameters = mcp.StdioServerParameters(
        command=sys.executable, args=["-m", "molecule_mcp"], env=clean_env(CONFIGS_DIR=str(tmp_path), **settings)
    )
    async with mcp.Client(parameters) as client:
        listed = await client.list_tools()
        assert "runtime_status" in [tool.name for tool in listed.tools]
        waited = await client.call_tool("wait_for_message", {"timeout_secs": 20})
        assert waited.structured_content is not None
        message = waited.structured_content["message"]
        assert (message["text"], message["kind"]) == ("hello from the canvas 👋", "canvas_user")
        replied = await client.call_tool("reply", {"activity_id": message["activity_id"], "message": "heard"})
        assert replied.structured_content == {"status": "sent", "to": "user", "popped": True}
        wrong = await client.call_tool("inbox_pop", {})
        assert wrong.is_error
        with pytest.raises(mcp.MCPError) as unknown:
            await client.call_tool("no_such_tool", {})
        assert unknown.value.error.code == -32602
    assert platform_process.chat(settings["WORKSPACE_ID"])[-1] == ("agent", "heard")

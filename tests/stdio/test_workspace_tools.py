"""The tools about the workspace and its past, black box."""

from __future__ import annotations

from pathlib import Path

from tests.support.host import Host
from tests.support.platform import PlatformProcess, eventually


def test_history_info_and_card_of_a_workspace(platform_process: PlatformProcess, tmp_path: Path) -> None:
    """agent-side 5; the set full lists what core does not; a card survives the process that set it."""
    settings, peer = platform_process.create_workspace("worker", role="sre"), platform_process.create_workspace("peer")
    workspace_id = settings["WORKSPACE_ID"]
    with Host(settings, state=tmp_path, MOLECULE_MCP_TOOLS="full", MOLECULE_MCP_HEARTBEAT_SECS="1") as host:
        host.initialize()
        eventually(lambda: platform_process.status(workspace_id), within_s=8, until=lambda status: status == "online")
        info = host.call("get_workspace_info")
        assert info == {
            "id": workspace_id,
            "name": "worker",
            "role": "sre",
            "tier": info["tier"],
            "status": "online",
            "parent_id": None,
        }
        platform_process.say(workspace_id, "你好?")
        host.call("send_message_to_user", message="👋")
        history = host.call("chat_history", limit=5)
        assert [(one["from"], one["text"]) for one in history["messages"]] == [("user", "你好?"), ("agent", "👋")]
        assert history["reached_end"] is True
        assert host.call("chat_history", peer_id=peer["WORKSPACE_ID"])["messages"] == []
        older = host.call("chat_history", before_ts=history["messages"][0]["created_at"])
        assert older["messages"] == []
        assert "before_ts: must be an RFC3339 time" in host.call_error("chat_history", before_ts="yesterday")
        assert "peer_id: must be a peer's id" in host.call_error("chat_history", peer_id="bob")

        assert host.call("update_agent_card", card={"name": "painter", "skills": ["paint"]})["status"] == "updated"
        assert platform_process.workspace(workspace_id)["agent_card"] == {"name": "painter", "skills": ["paint"]}
        assert "card: must be a JSON object" in host.call_error("update_agent_card", card="no card")
        host.kill()
    with Host(settings, state=tmp_path, MOLECULE_AGENT_NAME="of the settings") as again:
        again.initialize()
        names = {tool["name"] for tool in again.ask("tools/list")["result"]["tools"]}
        assert "update_agent_card" not in names
        eventually(
            lambda: again.call("runtime_status")["workspaces"][0]["presence"]["state"],
            within_s=10,
            until=lambda state: state == "online",
        )
        assert platform_process.workspace(workspace_id)["agent_card"]["name"] == "painter"

"""The main job, black box: the console script over a pipe, a platform process, a user at the canvas."""

from __future__ import annotations

from pathlib import Path

from tests.support.host import Host
from tests.support.platform import PlatformProcess, eventually


def test_a_user_writes_the_agent_answers_and_the_answer_survives_a_reload(
    platform_process: PlatformProcess, tmp_path: Path
) -> None:
    """Contract 13; CJK and emoji come through every path unharmed."""
    settings = platform_process.create_workspace("main job")
    workspace_id = settings["WORKSPACE_ID"]
    with Host(settings, state=tmp_path, MOLECULE_MCP_HEARTBEAT_SECS="1") as host:
        host.initialize()
        eventually(lambda: platform_process.status(workspace_id), within_s=4, until=lambda s: s == "online")
        platform_process.say(workspace_id, "你好 👋 ça va?")
        message = host.call("wait_for_message", timeout_secs=10)["message"]
        assert message["text"] == "你好 👋 ça va?"
        assert message["kind"] == "canvas_user"
        assert message["attempt"] == 1
        answered = host.call("reply", activity_id=message["activity_id"], message="听得很清楚 ✅")
        assert answered == {"status": "sent", "to": "user", "popped": True}
        assert platform_process.chat(workspace_id) == [("user", "你好 👋 ça va?"), ("agent", "听得很清楚 ✅")]
        assert host.call("inbox_peek") == {"messages": [], "total": 0}
        host.close_stdin()
        assert host.exit_code(within_s=2) == 0
    eventually(lambda: platform_process.status(workspace_id), within_s=8, until=lambda s: s == "awaiting_agent")

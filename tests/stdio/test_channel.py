"""Channel push, black box: what a host is shown unasked, and when it is shown nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support.host import Host
from tests.support.platform import PlatformProcess, eventually

METHOD = "notifications/claude/channel"
HELLO = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}


class Shown:
    """What one host was shown unasked, in order."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._taken = 0

    def new(self) -> list[dict[str, Any]]:
        """The pushes that came since the last call, as far as they are before the answer to a ping."""
        self._host.ask("ping")
        pushed = [one["params"] for one in self._host.others if one.get("method") == METHOD]
        found, self._taken = pushed[self._taken :], len(pushed)
        return found

    def wait(self, count: int, within_s: float = 8) -> list[dict[str, Any]]:
        """The next `count` pushes."""
        found: list[dict[str, Any]] = []
        eventually(lambda: found.extend(self.new()) or len(found), within_s=within_s, until=lambda n: n >= count)
        return found


def online(platform: PlatformProcess, workspace_id: str) -> None:
    eventually(lambda: platform.status(workspace_id), within_s=8, until=lambda status: status == "online")


def test_what_arrives_is_pushed_once_and_stays_until_it_is_popped(
    platform_process: PlatformProcess, tmp_path: Path
) -> None:
    """agent-side 6: a push is not a delivery; clients.md 3: every meta value is a string."""
    settings = platform_process.create_workspace("pushed")
    workspace_id = settings["WORKSPACE_ID"]
    platform_process.say(workspace_id, "before anybody was there")
    with Host(settings, state=tmp_path) as host:
        online(platform_process, workspace_id)
        eventually(lambda: (tmp_path / workspace_id / "inbox.sqlite3").exists(), within_s=5)
        answer = host.ask("initialize", HELLO)["result"]
        assert answer["capabilities"]["experimental"] == {"claude/channel": {}}
        pushed = Shown(host)
        assert host.call("inbox_peek")["total"] == 1
        platform_process.say(workspace_id, "你好 👋")
        eventually(lambda: host.call("inbox_peek")["total"], within_s=8, until=lambda total: total == 2)
        host.receive_nothing(for_s=0.5)
        assert pushed.new() == []

        host.send({"jsonrpc": "2.0", "method": "notifications/initialized"})
        first, second = pushed.wait(2)
        assert (first["content"], second["content"]) == ("before anybody was there", "你好 👋")
        shown = host.call("inbox_peek")["messages"]
        assert [one["pushed"] for one in shown] == [True, True]
        assert second["meta"] == {
            "source": "molecule",
            "kind": "canvas_user",
            "workspace_id": workspace_id,
            "peer_id": "",
            "peer_name": "",
            "peer_role": "",
            "activity_id": shown[1]["activity_id"],
            "ts": shown[1]["created_at"],
            "attachments": "0",
        }
        host.call("reply", activity_id=second["meta"]["activity_id"], message="seen")
        taken = host.call("wait_for_message", timeout_secs=5)["message"]
        assert (taken["text"], taken["pushed"], taken["attempt"]) == ("before anybody was there", True, 1)

        waiting = host.begin("wait_for_message", timeout_secs=20)
        platform_process.say(workspace_id, "for the one who waits")
        assert host.finish(waiting)["message"]["text"] == "for the one who waits"
        platform_process.say(workspace_id, "for nobody in particular")
        (third,) = pushed.wait(1)
        assert third["content"] == "for nobody in particular"

        host.receive_nothing(for_s=0.6)  # three times as long as a push takes: nothing is shown twice
        assert pushed.new() == []

        # Another process of the workspace does not read the feed, so it pushes nothing until it takes over.
        with Host(settings, state=tmp_path) as other:
            other.initialize()
            pushed_there = Shown(other)
            assert other.call("inbox_peek")["messages"][-1]["pushed"] is False
            platform_process.say(workspace_id, "for the owner's host")
            assert pushed.wait(1)[0]["content"] == "for the owner's host"
            assert pushed_there.new() == []
            host.kill()
            host.exit_code(within_s=5)
            told = pushed_there.wait(4, within_s=20)
            # Also what the killed process had in hand, as soon as it is new again.
            assert {push["content"] for push in told} == {
                "before anybody was there",
                "for the one who waits",
                "for nobody in particular",
                "for the owner's host",
            }

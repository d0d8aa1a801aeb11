"""One server for workspaces of two platforms, black box: routing, and one bad entry that stops nobody."""

from __future__ import annotations

import json
import secrets
import uuid
from pathlib import Path

from tests.support.host import Host
from tests.support.platform import PlatformProcess, eventually


def entry(settings: dict[str, str], token_file: Path) -> dict[str, str]:
    """A workspace as an element of MOLECULE_WORKSPACES, its token in a file."""
    token_file.write_text(settings["MOLECULE_WORKSPACE_TOKEN"])
    return {
        "id": settings["WORKSPACE_ID"],
        "token_file": str(token_file),
        "platform_url": settings["PLATFORM_URL"],
    }


def test_workspaces_of_two_platforms_and_a_bad_entry_live_in_one_server(
    platform_process: PlatformProcess, tmp_path: Path
) -> None:
    """agent-side 1 and 5: each has its own platform, token and journal; answers go where the question came from."""
    with PlatformProcess(tmp_path / "second.sqlite3") as second:
        here, there = platform_process.create_workspace("here"), second.create_workspace("there")
        team = secrets.token_hex(8)
        platform_process.create_workspace(f"{team} mate")
        second.create_workspace(f"{team} far mate")
        stranger = {"id": str(uuid.uuid4()), "token": secrets.token_urlsafe(32), "platform_url": second.url}
        listed = [
            {"id": "not a uuid"},
            entry(here, tmp_path / "here"),
            entry(there, tmp_path / "there"),
            stranger,
        ]
        env = {"MOLECULE_WORKSPACES": json.dumps(listed)}
        with Host(env, state=tmp_path / "state", MOLECULE_MCP_HEARTBEAT_SECS="1") as host:
            host.initialize()
            tools = {tool["name"]: tool for tool in host.ask("tools/list")["result"]["tools"]}
            with_choice = {name for name, tool in tools.items() if "workspace_id" in tool["inputSchema"]["properties"]}
            assert set(tools) - with_choice == {"runtime_status"}
            for platform, workspace in ((platform_process, here), (second, there)):
                eventually(
                    lambda platform=platform, workspace=workspace: platform.status(workspace["WORKSPACE_ID"]),  # type: ignore[misc]
                    within_s=6,
                    until=lambda status: status == "online",
                )
            unsaid = host.call_error("send_message_to_user", message="to whom?")
            assert here["WORKSPACE_ID"] in unsaid
            assert there["WORKSPACE_ID"] in unsaid

            second.say(there["WORKSPACE_ID"], "who hears this?")
            message = host.call("wait_for_message", timeout_secs=10)["message"]
            assert message["workspace_id"] == there["WORKSPACE_ID"]
            host.call("reply", activity_id=message["activity_id"], message="I do")
            host.call("send_message_to_user", message="and more")
            host.call("send_message_to_user", message="hello", source_workspace_id=here["WORKSPACE_ID"])
            assert second.chat(there["WORKSPACE_ID"]) == [
                ("user", "who hears this?"),
                ("agent", "I do"),
                ("agent", "and more"),
            ]
            assert platform_process.chat(here["WORKSPACE_ID"]) == [("agent", "hello")]

            platform_process.say(here["WORKSPACE_ID"], "pop me")
            message = host.call("wait_for_message", timeout_secs=10, workspace_id=here["WORKSPACE_ID"])["message"]
            assert host.call("inbox_pop", activity_id=message["activity_id"])["removed"] is True

            def status() -> dict[str, str]:
                shown = host.call("runtime_status")
                left_out = [one["summary"] for one in shown["problems"] if "workspace_id" not in one]
                assert left_out[0] == "MOLECULE_WORKSPACES entry 1 names no platform"
                assert left_out[1].startswith("MOLECULE_WORKSPACES entry 1: id must be a UUID")
                return {one["id"]: one["presence"]["state"] for one in shown["workspaces"]}

            expected = {here["WORKSPACE_ID"]: "online", there["WORKSPACE_ID"]: "online", stranger["id"]: "unauthorized"}
            eventually(status, within_s=10, until=lambda states: states == expected)
            refused = host.call_error("list_peers", workspace_id=stranger["id"])
            assert "unauthorized" in refused
            assert stranger["id"] in refused

            both = host.call("list_peers", q=team)
            assert {one["name"]: one["via"] for one in both["peers"]} == {
                f"{team} mate": [here["WORKSPACE_ID"]],
                f"{team} far mate": [there["WORKSPACE_ID"]],
            }
            assert stranger["id"] in both["warning"]
            assert here["WORKSPACE_ID"] not in both["warning"]
            (named,) = host.call("list_peers", q=team, workspace_id=here["WORKSPACE_ID"])["peers"]
            assert (named["name"], "via" in named) == (f"{team} mate", False)
            second.stop()
            left = host.call("list_peers", q=team)
            assert [one["name"] for one in left["peers"]] == [f"{team} mate"]
            assert there["WORKSPACE_ID"] in left["warning"]
            assert second.url in left["warning"]
            host.close_stdin()
            assert host.exit_code(within_s=2) == 0
    assert sorted(path.name for path in (tmp_path / "state").iterdir() if path.is_dir()) == sorted(
        {"log", here["WORKSPACE_ID"], there["WORKSPACE_ID"], stranger["id"]}
    )

"""An agent in a program of its own: the library's door for those who do not speak MCP, against a platform process."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import anyio
import pytest

from molecule_runtime import Agent, Settings
from molecule_runtime.errors import (
    AttachmentRefused,
    InvalidArgument,
    MemoryUnknown,
    MessageUnknown,
    StateDirUnwritable,
    Unreachable,
)
from molecule_runtime.wire.memories import MemoryScope
from molecule_runtime.wire.registry import WorkspaceStatus
from tests.support.platform import PlatformProcess, eventually, no_platform
from tests.support.uploads import drop

SOON_S = 10.0
"""A message takes milliseconds; a busy machine is given seconds."""


def agent_of(settings: dict[str, str], directory: Path) -> Agent:
    return Agent(Settings.from_env(settings | {"CONFIGS_DIR": str(directory), "MOLECULE_MCP_HEARTBEAT_SECS": "1"}))


async def test_a_message_is_taken_answered_and_done(platform_process: PlatformProcess, tmp_path: Path) -> None:
    """Requirements, the main job, as a program does it: online, heard, answered, gone from the inbox."""
    settings = platform_process.create_workspace("embedded")
    workspace_id = settings["WORKSPACE_ID"]
    async with agent_of(settings, tmp_path) as agent:
        # These looks block the event loop as a slow agent's own code would; presence goes on beside it.
        eventually(lambda: platform_process.status(workspace_id), within_s=SOON_S, until=is_online)
        platform_process.say(workspace_id, "你好 👋")
        platform_process.say(workspace_id, "for your information")
        inbox = agent.messages()
        with anyio.fail_after(SOON_S):
            question, remark = await anext(inbox), await anext(inbox)
        assert (question["text"], question["kind"], question["attempt"]) == ("你好 👋", "canvas_user", 1)
        await agent.reply(question, "听得很清楚 ✅")
        await agent.done(remark)
        await agent.send_to_user("Anything else?")
        with pytest.raises(MessageUnknown):
            await agent.reply(remark, "too late")
        (workspace,) = (await agent.status())["workspaces"]
        assert workspace["presence"]["state"] == "online"
        assert workspace["inbox"] == {"new": 0, "leased": 0, "parked": 0, "files_pending": 0}
    said = [text for role, text in platform_process.chat(workspace_id) if role == "agent"]
    assert said == ["听得很清楚 ✅", "Anything else?"]


async def test_an_agent_remembers_and_forgets(platform_process: PlatformProcess, tmp_path: Path) -> None:
    """The same promises as the tools: stored when it says so, found by a word, gone for good."""
    async with agent_of(platform_process.create_workspace("embedded"), tmp_path) as agent:
        done = await agent.remember("潮汐表在抽屉里", MemoryScope.TEAM)
        assert done.is_stored
        (found,) = await agent.recall("抽屉")
        assert (found.id, found.content, found.scope) == (done.id, "潮汐表在抽屉里", "TEAM")
        assert await agent.recall(scope=MemoryScope.LOCAL) == []
        await agent.forget(done.id)
        assert await agent.recall() == []
        with pytest.raises(MemoryUnknown):
            await agent.forget(done.id)
        with pytest.raises(InvalidArgument):
            await agent.remember(" ")


async def test_files_go_both_ways(platform_process: PlatformProcess, tmp_path: Path) -> None:
    """R8, as a program does it: the user's file is on the disk, the program's files are the user's to fetch."""
    settings = platform_process.create_workspace("embedded, with files")
    workspace_id = settings["WORKSPACE_ID"]
    answer = tmp_path / "answer.txt"
    answer.write_bytes(b"forty-two")
    http = platform_process.http
    async with agent_of(settings | {"MOLECULE_ATTACHMENT_ROOTS": str(tmp_path)}, tmp_path / "state") as agent:
        (file,) = drop(platform_process, workspace_id, [("question.txt", b"six times seven")])
        with anyio.fail_after(SOON_S):
            message = await anext(agent.messages())
        assert await asyncio.to_thread(Path(message["attachments"][0]["path"]).read_bytes) == b"six times seven"
        with pytest.raises(AttachmentRefused):
            await agent.reply(message, "here", attachments=[str(answer), message["attachments"][0]["path"] + "x"])
        await agent.reply(message, "here", attachments=[str(answer)])
        await agent.send_to_user("again", attachments=[str(answer)])
    history = http.get(f"/workspaces/{workspace_id}/chat-history").json()["messages"]
    sent = [(one["content"], one["attachments"]) for one in history if one["role"] == "agent"]
    assert [text for text, _ in sent] == ["here", "again"]
    for _, ((file),) in sent:
        path = f"/workspaces/{workspace_id}/pending-uploads/{file['uri'].rpartition('/')[2]}/content"
        assert http.get(path).content == b"forty-two"


async def test_an_answer_goes_to_the_workspace_that_was_written_to(
    platform_process: PlatformProcess, tmp_path: Path
) -> None:
    """Agent-side 5: one program serves several workspaces; what is not an answer says for which it is."""
    told = [platform_process.create_workspace(f"one of two {number}") for number in range(2)]
    ids = [each["WORKSPACE_ID"] for each in told]
    entries = [{"id": each["WORKSPACE_ID"], "token": each["MOLECULE_WORKSPACE_TOKEN"]} for each in told]
    both = {"PLATFORM_URL": platform_process.url, "MOLECULE_WORKSPACES": json.dumps(entries)}
    async with agent_of(both, tmp_path) as agent:
        for workspace_id in ids:
            platform_process.say(workspace_id, workspace_id)
        inbox = agent.messages()
        with anyio.fail_after(SOON_S):
            taken = [await anext(inbox), await anext(inbox)]
        for message in taken:
            await agent.reply(message, f"re {message['text']}")
        await agent.send_to_user("unasked", workspace_id=ids[0])
    first, second = (platform_process.chat(workspace_id) for workspace_id in ids)
    assert first == [("user", ids[0]), ("agent", f"re {ids[0]}"), ("agent", "unasked")]
    assert second == [("user", ids[1]), ("agent", f"re {ids[1]}")]


async def test_what_was_taken_and_not_handled_comes_back(platform_process: PlatformProcess, tmp_path: Path) -> None:
    """Agent-side 4: an agent that fails in the middle of a message is offered it again, the next time it comes."""
    settings = platform_process.create_workspace("fails")
    platform_process.say(settings["WORKSPACE_ID"], "do something difficult")

    async def fail() -> None:
        async with agent_of(settings, tmp_path) as agent:
            async for _message in agent.messages():
                raise ZeroDivisionError

    with anyio.fail_after(SOON_S), pytest.raises(ZeroDivisionError):
        await fail()
    async with agent_of(settings, tmp_path) as agent:
        again = await agent.wait(SOON_S)
        assert again is not None
        assert (again["text"], again["attempt"]) == ("do something difficult", 2)


async def test_a_wait_that_is_given_up_loses_nothing(platform_process: PlatformProcess, tmp_path: Path) -> None:
    """Agent-side 5: a cancelled wait does not take the message that comes after it."""
    settings = platform_process.create_workspace("impatient")
    async with agent_of(settings, tmp_path) as agent:
        assert await agent.wait(0) is None
        waiting = asyncio.create_task(agent.wait(SOON_S))
        await agent.status()  # the wait has been handed over by now
        waiting.cancel()
        await asyncio.wait([waiting])
        platform_process.say(settings["WORKSPACE_ID"], "now")
        message = await agent.wait(SOON_S)
        assert message is not None
        assert (message["text"], message["attempt"]) == ("now", 1)


async def test_a_platform_that_cannot_be_reached_is_not_a_quiet_inbox(tmp_path: Path) -> None:
    """Agent-side 5: `wait` says so, as soon as one attempt to read the feed has failed."""

    async def wait_for_ever(agent: Agent) -> None:
        while True:
            assert await agent.wait(0.05) is None

    async with agent_of(no_platform(), tmp_path / "state") as agent:
        with anyio.fail_after(SOON_S), pytest.raises(Unreachable):
            await wait_for_ever(agent)


async def test_an_agent_without_a_place_for_its_inbox_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ours: a program is told at once, since nobody reads a status of it."""
    nowhere = tmp_path / "file"
    nowhere.touch()
    monkeypatch.setenv("HOME", os.fspath(nowhere))
    with pytest.raises(StateDirUnwritable):
        async with agent_of(no_platform(), nowhere):
            raise AssertionError


async def test_an_agent_that_was_not_entered_says_how(tmp_path: Path) -> None:
    """Ours."""
    with pytest.raises(RuntimeError, match="async with"):
        await agent_of(no_platform(), tmp_path).wait(1)


def is_online(status: str) -> bool:
    return status == WorkspaceStatus.ONLINE

"""Resources and prompts: what a host may read and choose beside tools."""

from __future__ import annotations

import json
from typing import Any

import anyio
import mcp
import mcp_types
import pytest

from molecule_mcp.prompts import PROMPTS
from molecule_mcp.resources import INBOX, MEMORY
from molecule_mcp.server import build_server, listed_tools
from molecule_runtime.errors import Problem, SettingsError
from molecule_runtime.inbox.classify import Message
from molecule_runtime.runtime import Runtime
from tests.mcp.conftest import Running
from tests.runtime.rows import message

pytestmark = pytest.mark.filterwarnings("ignore:resources/(un)?subscribe is removed:mcp.MCPDeprecationWarning")
"""The client's own warning: hosts of the handshake era have no other way."""


async def arrive(running: Running, *messages: Message) -> None:
    """Let messages come as the poller would."""

    async def append(runtime: Runtime) -> None:
        mailbox = await runtime.route().mailbox()
        mailbox._journal.append(messages, cursor="c", last_row_at=1.0, now=1.0)
        await mailbox.recount()
        mailbox.announce()

    await running.bridge.call(append)


async def read(client: mcp.Client, uri: str) -> dict[str, Any]:
    (content,) = (await client.read_resource(uri)).contents
    assert isinstance(content, mcp_types.TextResourceContents)
    assert (str(content.uri), content.mime_type) == (uri, "application/json")
    found: dict[str, Any] = json.loads(content.text)
    return found


async def test_the_inbox_can_be_read_and_reading_takes_nothing(running: Running) -> None:
    """Deliver 4: molecule://inbox."""
    server = build_server(running.settings, running.bridge)
    await arrive(running, message(1, "hello"), message(2, "again"))
    async with mcp.Client(server, mode="legacy") as client:
        listed = (await client.list_resources()).resources
        assert [(str(one.uri), one.name, one.mime_type) for one in listed] == [
            (INBOX, "inbox", "application/json"),
            (MEMORY, "memory", "application/json"),
        ]
        for _ in range(2):
            shown = await read(client, INBOX)
            assert [(one["text"], one["state"]) for one in shown["messages"]] == [("hello", "new"), ("again", "new")]
            assert shown["waiting"] == 2


async def test_what_cannot_be_read_is_said_in_the_resource(running: Running) -> None:
    """A platform that is away: the sentence that a tool would give, not an error of the protocol."""
    async with mcp.Client(build_server(running.settings, running.bridge), mode="legacy") as client:
        shown = await read(client, MEMORY)
    assert "cannot be reached" in shown["error"]


@pytest.mark.parametrize("uri", ["molecule://nothing", "file:///etc/passwd"])
async def test_another_resource_is_an_error_that_names_those_there_are(running: Running, uri: str) -> None:
    """MCP: -32002."""
    async with mcp.Client(build_server(running.settings, running.bridge), mode="legacy") as client:
        for call in (client.read_resource, client.subscribe_resource, client.unsubscribe_resource):
            with pytest.raises(mcp.MCPError) as unknown:
                await call(uri)
            assert unknown.value.error.code == -32002
            assert f"{INBOX}, {MEMORY}" in unknown.value.error.message


async def test_a_subscriber_is_told_of_what_changes(running: Running) -> None:
    """Deliver 4: subscription on the handshake era; and not any more after it was ended."""
    told: list[str] = []
    heard = anyio.Event()

    async def hear(incoming: Any) -> None:
        if isinstance(incoming, mcp_types.ResourceUpdatedNotification):
            told.append(str(incoming.params.uri))
            heard.set()

    server = build_server(running.settings, running.bridge)
    assert server.subscriptions is not None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(server.subscriptions.run)
        async with mcp.Client(server, mode="legacy", message_handler=hear) as client:
            await arrive(running, message(1))
            await client.subscribe_resource(INBOX)
            await anyio.wait_all_tasks_blocked()
            assert told == []
            with anyio.fail_after(5):
                while not told:  # what comes before the first look at the inbox is not a change
                    await arrive(running, message(2))
                    with anyio.move_on_after(0.2):
                        await heard.wait()
            assert told == [INBOX]
            await client.unsubscribe_resource(INBOX)
            await arrive(running, message(3))
            await anyio.wait_all_tasks_blocked()
            assert told == [INBOX]
        tasks.cancel_scope.cancel()


async def test_prompts_name_only_what_is_listed(running: Running) -> None:
    """Deliver 4: catch up, hand over; every tool that a prompt names can be called."""
    names = {tool.name for tool in listed_tools(running.settings)}
    async with mcp.Client(build_server(running.settings, running.bridge), mode="legacy") as client:
        listed = (await client.list_prompts()).prompts
        assert [prompt.name for prompt in listed] == ["catch_up", "hand_over"]
        for prompt in listed:
            assert prompt.title
            assert prompt.description
            (said,) = (await client.get_prompt(prompt.name)).messages
            assert said.role == "user"
            assert isinstance(said.content, mcp_types.TextContent)
            assert {word.strip(".,:;?") for word in said.content.text.split() if "_" in word} - {"task_id"} <= names
        with pytest.raises(mcp.MCPError) as unknown:
            await client.get_prompt("dance")
    assert unknown.value.error.code == -32602
    assert "catch_up, hand_over" in unknown.value.error.message


def test_a_prompt_leaves_out_what_is_not_there() -> None:
    """The text is made from the tools that are listed."""
    for prompt in PROMPTS:
        assert "_" not in prompt.text(())
        assert len(prompt.text(())) > 40


async def test_wrong_settings_are_told_by_resources_too() -> None:
    """Agent-side 2: everything is listed, each call says what is wrong."""
    trouble = SettingsError((Problem("a", "A is not set", "Set A."),))
    async with mcp.Client(build_server(None, None, trouble=trouble), mode="legacy") as client:
        assert len((await client.list_resources()).resources) == 2
        with pytest.raises(mcp.MCPError) as refused:
            await client.read_resource(INBOX)
        await client.subscribe_resource(INBOX)
        await client.unsubscribe_resource(INBOX)
    assert "A is not set" in refused.value.error.message

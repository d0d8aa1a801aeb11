"""What every tool promises to every host: names, schemas, annotations, results (agent-side 5, clients 4)."""

from __future__ import annotations

import json
import re
import uuid
from dataclasses import replace
from typing import Any

import mcp
import pytest
from mcp.server.lowlevel import Server

from molecule_mcp.instructions import instructions
from molecule_mcp.server import build_server, describe, listed_tools
from molecule_mcp.tools import ALL_TOOLS
from molecule_mcp.tools._base import Arguments, Hints, Tool, ToolContext
from molecule_runtime.errors import MessageUnknown, Problem, SettingsError, advice
from molecule_runtime.settings import DEFAULT_POLL_TIMEOUT_SECS, Settings, ToolSet
from tests.mcp.conftest import Running
from tests.support.platform import no_platform
from tests.support.snapshots import SNAPSHOTS, assert_snapshot

EVERY_TOOL = pytest.mark.parametrize("tool", ALL_TOOLS, ids=lambda tool: tool.name)
HINTS = Hints(read_only=True, destructive=False, idempotent=True, open_world=False)
MAX_LISTING_BYTES = 8_000
MAX_INSTRUCTION_TOKENS = 250


def on_the_wire(tool: Tool) -> dict[str, Any]:
    """The tool as `tools/list` shows it."""
    shown: dict[str, Any] = describe(tool).model_dump(mode="json", by_alias=True, exclude_unset=True)
    return shown


def client_of(server: Server[Any]) -> mcp.Client:
    return mcp.Client(server, mode="legacy")


def sample(tool: Tool) -> dict[str, Any]:
    """A value that is not the default for every argument of a tool, made from its schema alone."""
    values: dict[str, Any] = {}
    for name, schema in tool.input_schema()["properties"].items():
        match schema["type"]:
            case "string" if name in ("scope", "kind"):
                values[name] = {"scope": "TEAM", "kind": "summary"}[name]
            case "string":
                is_time = name.endswith(("_ts", "_at"))
                # an id is a text like any other, and an id where one is wanted
                values[name] = "2026-01-31T09:30:00Z" if is_time else str(uuid.uuid4())
            case "integer":
                values[name] = schema.get("default", 0) + 1
            case "number":
                values[name] = 7.5
            case "boolean":
                values[name] = not schema.get("default", False)
            case "object":
                values[name] = {"any": ["thing"]}
            case "array":
                values[name] = ["fact"] if name == "kinds" else ["/tmp/a.pdf", "/tmp/b.pdf"]
            case other:
                raise AssertionError(f"{tool.name}.{name}: no host was seen to handle the type {other!r}")
    return values


# listing


def test_names_are_unique_and_the_order_is_fixed() -> None:
    """Agent-side 5: one record a tool, listed in the order of ALL_TOOLS."""
    names = [tool.name for tool in ALL_TOOLS]
    assert len(names) == len(set(names))
    assert [tool.name for tool in listed_tools(None)] == [
        "wait_for_message",
        "inbox_peek",
        "reply",
        "inbox_pop",
        "send_message_to_user",
        "chat_history",
        "list_peers",
        "delegate_task",
        "delegate_task_async",
        "check_task_status",
        "commit_memory",
        "recall_memory",
        "forget_memory",
        "get_workspace_info",
        "runtime_status",
    ]
    assert [tool.name for tool in ALL_TOOLS if tool.set is ToolSet.FULL] == [
        "fetch_attachment",
        "commit_memory_v2",
        "search_memory",
        "commit_summary",
        "list_readable_namespaces",
        "list_writable_namespaces",
        "update_agent_card",
    ]


@EVERY_TOOL
def test_a_tool_says_what_it_is(tool: Tool) -> None:
    """Clients 4: the first sentence is all that some hosts show; annotations are asked for before a call."""
    shown = on_the_wire(tool)
    assert re.fullmatch(r"[a-z0-9_]{1,40}", shown["name"])
    assert shown["title"].strip()
    assert set(shown["annotations"]) == {"readOnlyHint", "destructiveHint", "idempotentHint", "openWorldHint"}
    assert {type(value) for value in shown["annotations"].values()} == {bool}
    assert not (tool.hints.read_only and tool.hints.destructive)
    first, dot, _ = shown["description"].partition(".")
    assert dot
    assert len(first.split()) >= 4
    assert shown["description"].endswith(".")
    assert set(shown) == {"name", "title", "description", "inputSchema", "annotations"}  # no outputSchema


@EVERY_TOOL
def test_a_schema_is_flat_and_says_its_limits_in_words(tool: Tool) -> None:
    """Clients 2 and 4: Codex removes limits and defaults, Gemini rewrites type lists, hosts stumble over $ref."""
    schema = on_the_wire(tool)["inputSchema"]
    assert set(schema) <= {"type", "properties", "required", "additionalProperties"}
    assert schema["type"] == "object"
    assert schema["additionalProperties"] is False
    assert not re.search(r'"(\$ref|\$defs|anyOf|oneOf|allOf|title)":', json.dumps(schema))
    for name, prop in schema["properties"].items():
        assert prop["description"].strip().endswith("."), name
        assert isinstance(prop["type"], str), name
        assert set(prop) <= {"type", "items", "description", "default", "minimum", "maximum"}, name
        assert prop.get("items") == ({"type": "string"} if prop["type"] == "array" else None), name
        for limit in ("minimum", "maximum"):
            if limit in prop:
                assert re.search(rf"\b{prop[limit]}\b", prop["description"]), f"{name}: {limit}"
        assert ("default" in prop) <= (name not in schema.get("required", []))
    required = [name for name, field in tool.arguments.model_fields.items() if field.is_required()]
    assert schema.get("required", []) == required
    assert set(schema["properties"]) == set(tool.arguments.model_fields)


@EVERY_TOOL
async def test_every_argument_of_the_schema_reaches_the_handler(tool: Tool, running: Running) -> None:
    """Agent-side 8, "schema and dispatcher drifted": what is listed is what arrives, and nothing else does."""
    got: list[Arguments] = []

    async def record(_context: ToolContext, arguments: Arguments) -> dict[str, Any]:
        got.append(arguments)
        return {}

    server = build_server(running.settings, running.bridge, tools=[replace(tool, handler=record, set=ToolSet.CORE)])
    given = sample(tool)
    async with client_of(server) as client:
        result = await client.call_tool(tool.name, {**given, "wait_for_previous": True})
    assert not result.is_error
    assert [type(arguments) for arguments in got] == [tool.arguments]
    assert got[0].model_dump() == given


@EVERY_TOOL
def test_a_tools_listing_is_what_was_agreed(tool: Tool) -> None:
    """Agent-side 5: models were told these names and words; a change is seen in review."""
    assert_snapshot(f"{tool.name}.json", json.dumps(on_the_wire(tool), indent=2, ensure_ascii=False) + "\n")


def test_the_instructions_are_what_was_agreed() -> None:
    """Agent-side 5: at most 250 tokens (four characters each, the usual estimate for English)."""
    text = instructions(ALL_TOOLS, poll_timeout_secs=DEFAULT_POLL_TIMEOUT_SECS)
    assert_snapshot("instructions.txt", text.replace(". ", ".\n") + "\n")
    assert len(text) / 4 <= MAX_INSTRUCTION_TOKENS


def test_no_snapshot_is_left_of_a_tool_that_is_gone() -> None:
    """Ours: a file nobody compares would look like a promise."""
    kept = {file.name for file in SNAPSHOTS.iterdir()}
    assert kept == {f"{tool.name}.json" for tool in ALL_TOOLS} | {"instructions.txt"}


def test_the_instructions_name_only_tools_that_are_listed() -> None:
    """Agent-side 5: made from what is switched on; with 0 s nobody is asked to wait."""
    names = {tool.name for tool in ALL_TOOLS}
    assert not [name for name in names if name in instructions([], poll_timeout_secs=2)]
    assert "timeout_secs=7" in instructions(ALL_TOOLS, poll_timeout_secs=7)
    assert "wait_for_message" not in instructions(ALL_TOOLS, poll_timeout_secs=0)


async def test_the_listing_and_the_instructions_fit_into_a_small_context(running: Running) -> None:
    """Performance: what every turn of every model pays, as it stands on the wire."""
    async with client_of(build_server(running.settings, running.bridge)) as client:
        listed = await client.list_tools()
        told = client.instructions or ""
    line = json.dumps(listed.model_dump(mode="json", by_alias=True, exclude_unset=True), separators=(",", ":"))
    assert [tool.name for tool in listed.tools] == [tool.name for tool in listed_tools(None)]
    assert len(line.encode()) + len(told.encode()) <= MAX_LISTING_BYTES


# results


async def test_a_success_says_the_same_in_text_and_in_structured_content(running: Running) -> None:
    """Clients 2: Claude and Codex show only the one, opencode and Gemini only the other."""
    async with client_of(build_server(running.settings, running.bridge)) as client:
        for name, arguments in (("runtime_status", {}), ("inbox_peek", {"limit": 3}), ("inbox_pop", unknown_id())):
            result = await client.call_tool(name, arguments)
            assert not result.is_error
            (block,) = result.content
            assert block.type == "text"
            assert json.loads(block.text) == result.structured_content
            assert block.text == json.dumps(result.structured_content, ensure_ascii=False, separators=(",", ":"))


def unknown_id() -> dict[str, Any]:
    return {"activity_id": str(uuid.uuid4())}


async def test_an_expected_failure_is_two_sentences_the_model_can_act_on(running: Running) -> None:
    """Agent-side 5: isError, what happened, what to do next; no structured part."""
    asked = unknown_id()
    async with client_of(build_server(running.settings, running.bridge)) as client:
        result = await client.call_tool("reply", {**asked, "message": "hello"})
    said = advice(MessageUnknown(activity_id=asked["activity_id"]))
    assert (result.is_error, result.structured_content) == (True, None)
    assert [block.model_dump(exclude_none=True) for block in result.content] == [
        {"type": "text", "text": f"{said.what} {said.next}"}
    ]


async def test_a_crash_tells_the_host_nothing_of_its_cause(running: Running) -> None:
    """Mcp-sdk, recipes: the exception's text could hold anything; its traceback is in the log."""

    async def handler(_context: ToolContext, _arguments: Arguments) -> dict[str, Any]:
        raise ValueError("canary of a secret")

    tool = Tool("crashes", "Crashes", "Crashes on every call.", Arguments, HINTS, handler)
    async with client_of(build_server(running.settings, running.bridge, tools=[tool])) as client:
        result = await client.call_tool("crashes", {})
        (block,) = result.content
        assert result.is_error
        assert block.type == "text"
        assert "crashes failed inside molecule-mcp" in block.text
        assert "canary" not in block.text
        assert (await client.list_tools()).tools


@EVERY_TOOL
async def test_every_tool_says_what_is_wrong_with_the_settings(tool: Tool) -> None:
    """Agent-side 2: spawned with wrong settings each call answers with the problems and the fix."""
    trouble = SettingsError((Problem("a", "A is not set", "Set A."), Problem("b", "B is no number", "Mend B.")))
    async with client_of(build_server(None, None, trouble=trouble, tools=[replace(tool, set=ToolSet.CORE)])) as client:
        result = await client.call_tool(tool.name, sample(tool))
    (block,) = result.content
    assert result.is_error
    assert block.type == "text"
    assert block.text == str(advice(trouble))
    for word in ("A is not set", "B is no number", "Set A.", "Mend B."):
        assert word in block.text


async def test_an_unknown_tool_is_a_protocol_error_that_lists_the_known(running: Running) -> None:
    """Agent-side 5: -32602."""
    async with client_of(build_server(running.settings, running.bridge)) as client:
        with pytest.raises(mcp.MCPError) as unknown:
            await client.call_tool("send_mesage_to_user", {})
    assert unknown.value.error.code == -32602
    assert "send_message_to_user" in unknown.value.error.message


def test_push_is_announced_unless_it_is_switched_off_or_there_is_no_inbox(running: Running) -> None:
    """agent-side 1 and 6: MOLECULE_MCP_PUSH; a capability is a promise."""

    def announced(**env: str) -> object:
        told = Settings.from_env(no_platform() | env)
        return build_server(told, running.bridge).get_capabilities().experimental

    assert announced() == {"claude/channel": {}}
    assert announced(MOLECULE_MCP_PUSH="off") is None
    assert announced(MOLECULE_MCP_DISABLE_INBOX="1") is None
    assert build_server(None, None).get_capabilities().experimental is None

"""Between the pipe and the SDK: what passes, what is refused, what is written last (mcp-sdk, the transport's table)."""

from __future__ import annotations

import asyncio
import json
import os
from typing import Any

import anyio
import mcp_types
import pytest
from mcp.shared.message import SessionMessage

from molecule_mcp.pipe import MAX_UNSENT_BYTES, End, Overlong
from molecule_mcp.server import build_server, serve_pipe
from molecule_mcp.transport import Refusal, read_message, stdio, to_line
from tests.mcp.conftest import Running
from tests.mcp.test_pipe import MIB, Ends, ends

__all__ = ["ends"]  # the fixture

REFUSED = [
    pytest.param(b"{", (None, -32700), id="truncated"),
    pytest.param(b"\x00", (None, -32700), id="NUL"),
    pytest.param(b'{"a": Infinity}', (None, -32700), id="a constant of Python"),
    pytest.param(Overlong(), (None, -32700), id="overlong"),
    pytest.param(b"[1]", (None, -32600), id="batch"),
    pytest.param(b"1", (None, -32600), id="number"),
    pytest.param(b"{}", (None, -32600), id="empty object"),
    pytest.param(b'{"jsonrpc":"2.0","id":"x","method":[]}', ("x", -32600), id="method is a list"),
    pytest.param(b'{"jsonrpc":"2.0","id":false,"method":"ping"}', (None, -32600), id="id is false"),
    pytest.param(b'{"jsonrpc":"2.0","id":0,"method":"server/discover"}', (0, -32601), id="discover, id 0"),
    pytest.param(b'{"jsonrpc":"2.0","id":"","method":"server/discover"}', ("", -32601), id="discover, empty id"),
    pytest.param(
        b'{"jsonrpc":"2.0","id":3,"method":"ping","params":{"_meta":'
        b'{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}}}',
        (3, -32600),
        id="modern envelope",
    ),
]


@pytest.mark.parametrize(("line", "expected"), REFUSED)
def test_a_line_the_sdk_would_drop_is_refused(line: bytes | Overlong, expected: tuple[Any, int]) -> None:
    """Mcp-sdk, table: with the id it carries, or null; the refusal itself is a message of MCP."""
    refusal = read_message(line)
    assert isinstance(refusal, Refusal)
    assert (refusal.id, refusal.code) == expected
    written = json.loads(refusal.to_line())
    assert written == {
        "jsonrpc": "2.0",
        "id": expected[0],
        "error": {"code": expected[1], "message": refusal.message},
    }
    mcp_types.jsonrpc_message_adapter.validate_python(written)


@pytest.mark.parametrize("line", [b"", b" ", b"\r", b"\t \r", "\u00a0".encode()])
def test_a_blank_line_is_nothing(line: bytes) -> None:
    """MCP stdio: hosts may end with empty lines."""
    assert read_message(line) is None


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (b'{"jsonrpc":"2.0","id":1,"method":"ping"}', mcp_types.JSONRPCRequest),
        (b'{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"_meta":{}}}', mcp_types.JSONRPCRequest),
        (b'{"jsonrpc":"2.0","method":"notifications/initialized"}\r', mcp_types.JSONRPCNotification),
        (b'{"jsonrpc":"2.0","id":1,"result":{}}', mcp_types.JSONRPCResponse),
        (b'{"jsonrpc":"2.0","id":null,"error":{"code":1,"message":"x"}}', mcp_types.JSONRPCError),
    ],
)
def test_a_message_passes_as_what_it_is(line: bytes, kind: type[object]) -> None:
    """JSON-RPC 2.0: four kinds of messages."""
    passed = read_message(line)
    assert isinstance(passed, SessionMessage)
    assert type(passed.message) is kind


def test_text_that_utf8_cannot_hold_is_replaced_on_the_way_in_and_escaped_on_the_way_out() -> None:
    """Mcp-sdk, table: half a surrogate pair ends no session."""
    passed = read_message(rb'{"jsonrpc":"2.0","id":1,"method":"x","params":{"\ud83d":"\ud83d\udc4b\udc4b"}}')
    assert isinstance(passed, SessionMessage)
    assert isinstance(passed.message, mcp_types.JSONRPCRequest)
    assert passed.message.params == {"\ufffd": "👋\ufffd"}
    answer = mcp_types.JSONRPCResponse(jsonrpc="2.0", id=1, result={"text": "\ud83d"})
    assert json.loads(to_line(answer)) == {"jsonrpc": "2.0", "id": 1, "result": {"text": "\ud83d"}}
    assert b"\n" not in to_line(mcp_types.JSONRPCResponse(jsonrpc="2.0", id=1, result={"text": "a\nb\u2028"}))


RESULTS: dict[str, type[mcp_types.Result]] = {
    "initialize": mcp_types.InitializeResult,
    "ping": mcp_types.EmptyResult,
    "tools/list": mcp_types.ListToolsResult,
    "tools/call": mcp_types.CallToolResult,
}


async def test_every_line_of_a_session_is_a_message_of_mcp(running: Running, ends: Ends) -> None:
    """Mcp-sdk, suites: each line validated against the models of `mcp_types`, the results against their own."""
    client = {"name": "test", "version": "1"}
    asked: list[tuple[str, dict[str, Any]]] = [
        ("initialize", {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": client}),
        ("ping", {}),
        ("tools/list", {}),
        ("tools/call", {"name": "runtime_status"}),
        ("tools/call", {"name": "inbox_peek", "arguments": {"limit": 0}}),
        ("tools/call", {"name": "wait_for_message", "arguments": {"timeout_secs": 0}}),
        ("no/such", {}),
        ("server/discover", {}),
    ]
    ends.pipe.serve_from(asyncio.get_running_loop())
    for number, (method, params) in enumerate(asked):
        message = {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
        os.write(ends.host_out, json.dumps(message).encode() + b"\n")
    os.write(ends.host_out, b"nonsense\n")
    ends.hang_up(ends.host_out)
    with anyio.fail_after(10):
        assert await serve_pipe(build_server(running.settings, running.bridge), ends.pipe) is End.EOF
    os.set_blocking(ends.host_in, False)
    lines = os.read(ends.host_in, MIB).splitlines()
    answered = {}
    for line in lines:
        message = mcp_types.jsonrpc_message_adapter.validate_json(line)
        if isinstance(message, mcp_types.JSONRPCResponse):
            assert isinstance(message.id, int)
            method = asked[message.id][0]
            RESULTS[method].model_validate(message.result)
            answered[message.id] = method
        else:
            assert isinstance(message, mcp_types.JSONRPCError)
            answered[message.id] = str(message.error.code)
    assert answered == {
        0: "initialize",
        1: "ping",
        2: "tools/list",
        3: "tools/call",
        4: "tools/call",
        5: "tools/call",
        6: "-32601",
        7: "-32601",
        None: "-32700",
    }


async def test_notifications_are_dropped_before_answers_when_the_host_does_not_read(ends: Ends) -> None:
    """Mcp-sdk, shape: the queue is bounded by bytes and pushes go first."""
    ends.pipe.serve_from(asyncio.get_running_loop())
    answer = mcp_types.JSONRPCResponse(jsonrpc="2.0", id=1, result={"text": "a" * MIB})
    push = mcp_types.JSONRPCNotification(jsonrpc="2.0", method="notifications/claude/channel")
    count = MAX_UNSENT_BYTES // MIB  # with what surrounds the text just above the bound
    with anyio.fail_after(10):
        async with stdio(ends.pipe) as (from_pipe, to_pipe), from_pipe:
            for _ in range(count):
                await to_pipe.send(SessionMessage(answer))
            for _ in range(50):
                await to_pipe.send(SessionMessage(push))
            heard = await anyio.to_thread.run_sync(ends.hear, count * (len(to_line(answer)) + 1))
            await to_pipe.send(SessionMessage(push))
    assert heard == (to_line(answer) + b"\n") * count
    os.set_blocking(ends.host_in, False)
    assert os.read(ends.host_in, MIB).count(b"claude/channel") in {1, 2}

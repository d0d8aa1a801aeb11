"""Lines that are not what MCP wants: each gets an answer, and the session goes on (mcp-sdk, the transport's table)."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.host import Host

PARSE_ERROR, INVALID_REQUEST, METHOD_NOT_FOUND, INVALID_PARAMS = -32700, -32600, -32601, -32602


def error_of(answer: dict[str, Any]) -> tuple[Any, int]:
    """(id, code) of an error answer, whose shape is checked as a whole."""
    assert answer == {
        "jsonrpc": "2.0",
        "id": answer["id"],
        "error": {"code": answer["error"]["code"], "message": answer["error"]["message"]}
        | ({"data": answer["error"]["data"]} if "data" in answer["error"] else {}),
    }
    assert answer["error"]["message"]
    return answer["id"], answer["error"]["code"]


def assert_still_answers(host: Host) -> None:
    """A ping is answered next, so nothing else was on the wire and the session lives."""
    request_id = host.request("ping")
    assert host.receive() == {"jsonrpc": "2.0", "id": request_id, "result": {}}


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(b"hello", id="not JSON"),
        pytest.param(b'{"jsonrpc": "2.0", "id": 1, "method": "pi', id="truncated"),
        pytest.param(b'{"jsonrpc": "2.0", "id": 1, "method": "ping", "params": {"x": NaN}}', id="NaN"),
        pytest.param(b'{"jsonrpc": "2.0", "id": 1, "method": "ping", "params": {"x": -Infinity}}', id="Infinity"),
        pytest.param(b'{"a":' * 100_000 + b"1" + b"}" * 100_000, id="objects nested too deep"),
        pytest.param(b"[" * 100_000 + b"]" * 100_000, id="arrays nested too deep"),
        pytest.param(b"{'id': 1}", id="single quotes"),
        pytest.param(b'{"jsonrpc": "2.0", "id": 1, "method": "ping"} {}', id="two values"),
        pytest.param(b"\xff\xfe\x00", id="bytes that are no text"),
    ],
)
def test_a_line_that_is_not_json_is_answered_with_a_parse_error(rude_host: Host, line: bytes) -> None:
    """mcp-sdk, table: -32700 with id null, the session goes on."""
    rude_host.send_raw(line + b"\n")
    assert error_of(rude_host.receive()) == (None, PARSE_ERROR)
    assert_still_answers(rude_host)


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(b"[]", id="empty batch"),
        pytest.param(b'[{"jsonrpc": "2.0", "id": 7, "method": "ping"}]', id="batch"),
        pytest.param(b"42", id="number"),
        pytest.param(b'"ping"', id="string"),
        pytest.param(b"null", id="null"),
    ],
)
def test_a_batch_or_a_bare_value_is_an_invalid_request(rude_host: Host, line: bytes) -> None:
    """mcp-sdk, table: -32600 with id null."""
    rude_host.send_raw(line + b"\n")
    assert error_of(rude_host.receive()) == (None, INVALID_REQUEST)
    assert_still_answers(rude_host)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        pytest.param({"id": 70, "method": 5}, (70, INVALID_REQUEST), id="method is a number"),
        pytest.param({"id": 71, "method": None}, (71, INVALID_REQUEST), id="method is null"),
        pytest.param({"id": 72}, (72, INVALID_REQUEST), id="neither method nor result"),
        pytest.param({"id": 73, "method": "ping", "params": []}, (73, INVALID_REQUEST), id="params is a list"),
        pytest.param({"id": 74, "method": "ping", "params": "x"}, (74, INVALID_REQUEST), id="params is a string"),
        pytest.param({"id": "a b", "method": "ping", "params": 1}, ("a b", INVALID_REQUEST), id="id is a string"),
        pytest.param({"id": 75, "method": "ping", "jsonrpc": "1.0"}, (75, INVALID_REQUEST), id="JSON-RPC 1.0"),
        pytest.param({"id": True, "method": "ping"}, (None, INVALID_REQUEST), id="id is true"),
        pytest.param({"id": 1.5, "method": "ping"}, (None, INVALID_REQUEST), id="id is 1.5"),
        pytest.param({"id": None, "method": "ping"}, (None, INVALID_REQUEST), id="id is null"),
        pytest.param({"id": {}, "method": "ping"}, (None, INVALID_REQUEST), id="id is an object"),
        pytest.param({"id": 76, "method": "tools/call"}, (76, INVALID_PARAMS), id="call without params"),
        pytest.param({"id": 77, "method": "tools/call", "params": {}}, (77, INVALID_PARAMS), id="call without name"),
        pytest.param(
            {"id": 78, "method": "tools/call", "params": {"name": 1}}, (78, INVALID_PARAMS), id="call of a number"
        ),
        pytest.param(
            {"id": 79, "method": "tools/call", "params": {"name": "inbox_peek", "arguments": []}},
            (79, INVALID_PARAMS),
            id="arguments is a list",
        ),
        pytest.param(
            {"id": 80, "method": "tools/call", "params": {"name": "no_such_tool"}},
            (80, INVALID_PARAMS),
            id="unknown tool",
        ),
        pytest.param({"id": 81, "method": "tools/call", "params": {"name": ""}}, (81, INVALID_PARAMS), id="no name"),
        pytest.param({"id": 82, "method": "no/such"}, (82, METHOD_NOT_FOUND), id="unknown method"),
        pytest.param({"id": 83, "method": "tasks/list"}, (83, METHOD_NOT_FOUND), id="method not offered"),
        pytest.param(
            {"id": 84, "method": "logging/setLevel", "params": {"level": "info"}}, (84, METHOD_NOT_FOUND), id="setLevel"
        ),
        pytest.param({"id": 2**70, "method": "no/such"}, (2**70, METHOD_NOT_FOUND), id="a huge id"),
    ],
)
def test_a_request_of_a_wrong_shape_is_answered_with_its_id(
    rude_host: Host, message: dict[str, Any], expected: tuple[Any, int]
) -> None:
    """mcp-sdk, table: a client that hears nothing waits for ever; an id no answer can carry becomes null."""
    rude_host.send({"jsonrpc": "2.0", **message})
    assert error_of(rude_host.receive()) == expected
    assert_still_answers(rude_host)


@pytest.mark.parametrize(
    "message",
    [
        pytest.param({"method": "notifications/no-such"}, id="unknown notification"),
        pytest.param({"method": "notifications/cancelled", "params": {"requestId": 9_999}}, id="cancel of nothing"),
        pytest.param({"method": "notifications/cancelled"}, id="cancel without an id"),
        pytest.param({"method": "notifications/progress", "params": {"progressToken": "x"}}, id="broken progress"),
        pytest.param({"id": 12_345, "result": {}}, id="answer to nothing"),
        pytest.param({"id": 12_345, "error": {"code": 1, "message": "x"}}, id="error to nothing"),
    ],
)
def test_what_needs_no_answer_gets_none(rude_host: Host, message: dict[str, Any]) -> None:
    """JSON-RPC 2.0: notifications and answers are never answered; clients 2, odd behaviour of opencode."""
    rude_host.send({"jsonrpc": "2.0", **message})
    assert_still_answers(rude_host)


def test_an_initialize_without_a_version_is_refused_with_its_id(rude_host: Host) -> None:
    """mcp-sdk, table: a wrong shape with an id is answered with that id."""
    rude_host.send({"jsonrpc": "2.0", "id": 90, "method": "initialize", "params": {"capabilities": {}}})
    assert error_of(rude_host.receive()) == (90, INVALID_PARAMS)
    assert_still_answers(rude_host)


@pytest.mark.parametrize("ending", [b"\n\n\n", b"\r\n", b"  \t\n", b"\n\r\n"])
def test_blank_lines_and_carriage_returns_are_no_message(rude_host: Host, ending: bytes) -> None:
    """MCP stdio: one message a line; blank lines mean nothing, and CRLF is a line end, too."""
    rude_host.send_raw(b'{"jsonrpc": "2.0", "id": "crlf", "method": "ping"}' + ending)
    assert rude_host.receive() == {"jsonrpc": "2.0", "id": "crlf", "result": {}}
    assert_still_answers(rude_host)


def call_line(text: bytes) -> bytes:
    """A call of `measure` with this text, not escaped in any way."""
    call = b'{"jsonrpc": "2.0", "id": "raw", "method": "tools/call", "params": {"name": "measure", "arguments": '
    return call + b'{"text": "' + text + b'"}}}\n'


@pytest.mark.parametrize(
    ("sent", "seen"),
    [
        pytest.param(b"a\xff\xfeb", "a\ufffd\ufffdb", id="bytes that are not UTF-8 are replaced"),
        pytest.param("你好 👋".encode(), "你好 👋", id="UTF-8 arrives as it is"),
        pytest.param(rb"\ud83d\udc4b", "👋", id="an escaped pair is one character"),
        pytest.param("\u2028\u0085\u00a0".encode(), "\u2028\u0085\u00a0", id="only a newline ends a line"),
        pytest.param(rb"\u0000", "\u0000", id="an escaped NUL"),
    ],
)
def test_text_is_served_whatever_its_bytes(rude_host: Host, sent: bytes, seen: str) -> None:
    """mcp-sdk, table: non-UTF-8 bytes are replaced and the request is served."""
    rude_host.send_raw(call_line(sent))
    assert rude_host.receive()["result"]["structuredContent"] == {"length": len(seen), "head": seen}
    assert_still_answers(rude_host)


@pytest.mark.parametrize(
    ("sent", "seen"),
    [
        pytest.param(rb"a\ud83db", "a\ufffdb", id="high half"),
        pytest.param(rb"a\uDC4Bb", "a\ufffdb", id="low half, capital letters"),
        pytest.param(rb"\ud83d\ud83d\udc4b", "\ufffd👋", id="half before a pair"),
        pytest.param(rb"\\ud83d", "\\ud83d", id="an escaped backslash before letters is text"),
    ],
)
def test_a_lone_surrogate_is_replaced_and_the_request_is_served(rude_host: Host, sent: bytes, seen: str) -> None:
    """mcp-sdk, table: as with bytes that are no UTF-8; nothing could store it or send it on."""
    rude_host.send_raw(call_line(sent))
    assert rude_host.receive()["result"]["structuredContent"] == {"length": len(seen), "head": seen}
    assert_still_answers(rude_host)


def test_a_lone_surrogate_in_a_result_reaches_the_host_as_an_escape(rude_host: Host) -> None:
    """mcp-sdk, recipes: one bad text of a peer must not end the session for all."""
    assert rude_host.call("half") == {"text": "half a pair: \ud83d"}
    assert_still_answers(rude_host)


def test_a_lone_surrogate_in_an_id_or_a_method_is_answered(rude_host: Host) -> None:
    """mcp-sdk, table: whatever stands in a line, the session answers it and lives."""
    for line in (
        rb'{"jsonrpc": "2.0", "id": "\ud83d", "method": "ping"}',
        rb'{"jsonrpc": "2.0", "id": "m", "method": "\ud83d"}',
        rb'{"jsonrpc": "2.0", "id": "\ud83d", "method": 5}',
        rb'{"jsonrpc": "2.0", "id": "n", "method": "tools/call", "params": {"name": "\ud83d"}}',
    ):
        rude_host.send_raw(line + b"\n")
        assert rude_host.receive()["jsonrpc"] == "2.0"
        assert_still_answers(rude_host)


def test_an_argument_of_10_mb_arrives_whole(rude_host: Host) -> None:
    """Agent-side 5: a line has no limit that a message could meet."""
    size = 10 * 1024 * 1024
    assert rude_host.call("measure", text="y" * size) == {"length": size, "head": "y" * 40}
    assert_still_answers(rude_host)


def test_an_answer_of_10_mb_arrives_whole(rude_host: Host) -> None:
    """mcp-sdk, table: a long line is written in many pieces and stays one line."""
    size = 10 * 1024 * 1024
    assert rude_host.call("large", bytes=size) == {"text": "x" * size}
    assert_still_answers(rude_host)


def test_what_a_tool_or_its_child_prints_does_not_reach_the_wire(rude_host: Host) -> None:
    """mcp-sdk, table: descriptor 1 is stderr and descriptor 0 reads nothing while serving."""
    assert rude_host.call("shout") == {"child_stdin": ""}
    assert_still_answers(rude_host)
    said = rude_host.stderr()
    for stray in ("stray print", '"half":', "stray bytes without an end", "stray child"):
        assert stray in said


def test_a_crash_inside_a_tool_is_an_error_without_its_words(rude_host: Host) -> None:
    """mcp-sdk, recipes: an exception that escapes would put its text on the wire."""
    text = rude_host.call_error("crash")
    assert "crash" in text
    assert "nobody outside" not in text
    assert "Traceback" not in text
    assert_still_answers(rude_host)


def test_a_bad_argument_is_an_error_that_names_it(rude_host: Host) -> None:
    """Agent-side 5, SEP-1303: the model can correct what it is told."""
    assert rude_host.call_error("inbox_peek", limit="many").startswith("limit: ")
    assert rude_host.call_error("inbox_peek", limit=0).startswith("limit: ")
    assert rude_host.call_error("reply", message="x").startswith("activity_id: it is required.")
    assert rude_host.call_error("inbox_pop", activity_id="../../etc").startswith("activity_id: ")
    assert rude_host.call_error("send_message_to_user", message="  ").startswith("message: must not be empty.")
    assert_still_answers(rude_host)


def test_an_argument_nobody_knows_is_ignored(rude_host: Host) -> None:
    """Clients 1.5: Gemini adds `wait_for_previous` to every call."""
    assert rude_host.call("measure", text="abc", wait_for_previous=True) == {"length": 3, "head": "abc"}
    assert_still_answers(rude_host)


@pytest.mark.parametrize("meta", [{}, {"progressToken": 1, "callId": "x", "turn": {"n": [1]}}, {"a/b": None}])
def test_metadata_of_any_shape_is_tolerated(rude_host: Host, meta: dict[str, Any]) -> None:
    """Clients 4: Codex sends its own keys along with every call."""
    params = {"name": "measure", "arguments": {"text": ""}, "_meta": meta}
    answer = rude_host.ask("tools/call", params)
    assert answer["result"]["structuredContent"] == {"length": 0, "head": ""}
    assert_still_answers(rude_host)


def test_a_number_too_long_to_be_read_does_not_leave_its_caller_waiting(rude_host: Host) -> None:
    """Mcp-sdk: right id, whatever else is wrong with it; where it is the id itself, nobody can be named."""
    digits = b"9" * 5_000
    rude_host.send_raw(b'{"jsonrpc":"2.0","id":"long","method":"ping","params":{"n":' + digits + b"}}\n")
    assert rude_host.answer_to("long")["result"] == {}
    rude_host.send_raw(b'{"jsonrpc":"2.0","id":' + digits + b',"method":"ping"}\n')
    assert error_of(rude_host.receive()) == (None, INVALID_REQUEST)

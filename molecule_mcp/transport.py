"""MCP over a `Pipe`: JSON-RPC lines to the SDK's streams, and an answer for every line the SDK would drop.

The SDK's own stdio transport ignores malformed lines, hangs on SIGINT and stays alive when the host stops reading.
Here a line that is not JSON gets -32700, a batch or a wrong shape -32600 with the id it carries, so that no client
waits for ever; `server/discover` gets -32601, because a connection of the 2026 era has no way for unasked
notifications and Claude Code then refuses channel push (mcp-sdk.md, clients.md 1.1).
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import anyio
import mcp_types
import structlog
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.shared.message import SessionMessage
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import ValidationError
from pydantic_core import PydanticSerializationError

from molecule_mcp.pipe import MAX_LINE_BYTES, End, Overlong, Pipe

ANSWER_GRACE_S = 0.15
"""At the end of input, how long requests that are nearly answered may take (`printf … | molecule-mcp`)."""
FLUSH_S = 0.5
"""With the rest of the way out this stays within the second a host that no longer reads is given (agent-side 2)."""

MAX_INTEGER_DIGITS = 300

RequestId = str | int
log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Refusal:
    """A line that does not reach the SDK, and the error that answers it; `id` None is null on the wire."""

    id: RequestId | None
    code: int
    message: str

    def to_line(self) -> bytes:
        error = {"code": self.code, "message": self.message}
        return json.dumps({"jsonrpc": "2.0", "id": self.id, "error": error}).encode()


class Unanswered:
    """The requests that still wait for their answer."""

    def __init__(self) -> None:
        self._ids: set[RequestId] = set()
        self._none = anyio.Event()

    def add(self, request_id: RequestId) -> None:
        self._ids.add(request_id)

    def remove(self, request_id: RequestId) -> None:
        self._ids.discard(request_id)
        if not self._ids:
            self._none.set()

    async def wait_until_none(self) -> None:
        while self._ids:
            self._none = anyio.Event()
            await self._none.wait()


@asynccontextmanager
async def stdio(
    pipe: Pipe,
) -> AsyncIterator[
    tuple[MemoryObjectReceiveStream[SessionMessage | Exception], MemoryObjectSendStream[SessionMessage]]
]:
    """The two streams that `Server.run` wants. On leaving, the last answers are written (at most `FLUSH_S`)."""
    to_server, from_pipe = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    to_pipe, from_server = anyio.create_memory_object_stream[SessionMessage](0)
    unanswered = Unanswered()
    reading, all_written = anyio.CancelScope(), anyio.Event()

    async def pump_in() -> None:
        with reading:
            await _pump_in(pipe, to_server, unanswered)

    async def pump_out() -> None:
        await _pump_out(pipe, from_server, unanswered)
        all_written.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(pump_in)
        tasks.start_soon(pump_out)
        try:
            yield from_pipe, to_pipe
        finally:
            reading.cancel()
            to_pipe.close()
            with anyio.move_on_after(FLUSH_S, shield=True):
                await all_written.wait()
                await pipe.flush(FLUSH_S)
            tasks.cancel_scope.cancel()


async def _pump_in(
    pipe: Pipe, to_server: MemoryObjectSendStream[SessionMessage | Exception], unanswered: Unanswered
) -> None:
    async with to_server:
        while (line := await pipe.read_line()) is not None:
            what = read_message(line)
            if what is None:
                continue
            if isinstance(what, Refusal):
                log.info("transport.refused", status=what.code, detail=what.message)
                if not await pipe.write(what.to_line()):
                    return  # nobody will read an answer any more
                continue
            if isinstance(what.message, mcp_types.JSONRPCRequest):
                unanswered.add(what.message.id)
            try:
                await to_server.send(what)
            except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                return
        if pipe.ended is End.EOF:
            with anyio.move_on_after(ANSWER_GRACE_S):
                await unanswered.wait_until_none()


async def _pump_out(pipe: Pipe, from_server: MemoryObjectReceiveStream[SessionMessage], unanswered: Unanswered) -> None:
    async with from_server:
        async for item in from_server:
            message = item.message
            is_notification = isinstance(message, mcp_types.JSONRPCNotification)
            await pipe.write(to_line(message), droppable=is_notification)
            if isinstance(message, mcp_types.JSONRPCResponse | mcp_types.JSONRPCError) and message.id is not None:
                unanswered.remove(message.id)


def to_line(message: mcp_types.JSONRPCMessage) -> bytes:
    """A message as one line of UTF-8. Text that UTF-8 cannot hold (half a surrogate pair) goes out as an escape."""
    try:
        return message.model_dump_json(by_alias=True, exclude_unset=True).encode()
    except PydanticSerializationError:
        return json.dumps(message.model_dump(by_alias=True, exclude_unset=True), separators=(",", ":")).encode()


def read_message(line: bytes | Overlong) -> SessionMessage | Refusal | None:
    """One line of the host: a message for the SDK, a refusal to send back, or None for a blank line."""
    if isinstance(line, Overlong):
        return Refusal(None, mcp_types.PARSE_ERROR, f"Parse error: a line of more than {MAX_LINE_BYTES} bytes")
    text = line.decode("utf-8", "replace")
    if not text.strip():
        return None
    try:
        body = json.loads(text, parse_constant=_refuse_constant, parse_int=_integer)
        if "\\ud" in text.lower():
            body = _without_lone_surrogates(body)
    except (ValueError, RecursionError):
        return Refusal(None, mcp_types.PARSE_ERROR, "Parse error: the line is not JSON")
    if isinstance(body, list):
        return Refusal(None, mcp_types.INVALID_REQUEST, "Invalid request: batches are not part of this protocol")
    if not isinstance(body, dict):
        return Refusal(None, mcp_types.INVALID_REQUEST, "Invalid request: not a JSON object")
    return _read_object(body)


def _read_object(body: dict[str, Any]) -> SessionMessage | Refusal:
    request_id = _request_id(body)
    if "id" in body and "method" in body:
        if request_id is None:
            return Refusal(None, mcp_types.INVALID_REQUEST, "Invalid request: an id is a string or an integer")
        if body["method"] == "server/discover":
            return Refusal(request_id, mcp_types.METHOD_NOT_FOUND, "Method not found: send initialize")
        if body["method"] != "initialize" and _is_modern(body.get("params")):
            return Refusal(
                request_id,
                mcp_types.INVALID_REQUEST,
                f"Invalid request: this server does not speak {MODERN_PROTOCOL_VERSIONS[-1]}; send initialize",
            )
    try:
        return SessionMessage(mcp_types.jsonrpc_message_adapter.validate_python(body, by_name=False))
    except ValidationError:
        return Refusal(request_id, mcp_types.INVALID_REQUEST, "Invalid request: not a JSON-RPC 2.0 message")


def _request_id(body: dict[str, Any]) -> RequestId | None:
    """The id if it is one an answer can carry: a string or an integer (True is neither)."""
    value = body.get("id")
    return value if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)) else None


def _without_lone_surrogates(body: Any) -> Any:
    """The same JSON with halves of surrogate pairs replaced: nothing could write, store or send them as UTF-8."""
    text = json.dumps(body, ensure_ascii=False)
    return json.loads(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))


def _is_modern(params: object) -> bool:
    meta = params.get("_meta") if isinstance(params, dict) else None
    return isinstance(meta, dict) and mcp_types.PROTOCOL_VERSION_META_KEY in meta


def _integer(text: str) -> int | None:
    """An integer of JSON; None for one that Python refuses to read, so that its request can still be answered."""
    return int(text) if len(text) <= MAX_INTEGER_DIGITS else None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")

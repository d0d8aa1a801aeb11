"""The way between an agent and its platform, where a test can make it slow or far, and see everything that passes.

A relay that reads HTTP/1.1 as far as it must: it knows each request and counts the bytes of its answer. A WebSocket
passes unread. It runs on a thread of its own, so a test may block.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

PIECE_BYTES = 64 * 1024
PIECE_S = 0.02
HEAD_BYTES = 64 * 1024
READ_WITHIN_S = 15.0
_END = b"\r\n\r\n"


@dataclass
class Exchange:
    """A request that passed, and how much of its answer did. `began` is a POSIX time; `length` the body's, in bytes."""

    method: str
    path: str
    began: float
    status: int | None = None
    length: int | None = None
    passed: int = 0
    ended: float | None = None

    @property
    def is_whole(self) -> bool:
        """The answer came through to its last byte."""
        return self.length is not None and self.passed >= self.length

    @property
    def file_id(self) -> str | None:
        """The file whose bytes are asked for; None for any other request."""
        *_, route, file_id, what = ["", "", *self.path.split("/")]
        return file_id if (route, what) == ("pending-uploads", "content") else None


@dataclass
class _Line:
    """One connection of the agent's, its continuation to the platform, and what is being asked on it."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    there_reader: asyncio.StreamReader
    there_writer: asyncio.StreamWriter
    asking: Exchange | None = None
    head: bytearray = field(default_factory=bytearray)


class Link:
    """The relay; `url` is what an agent is told. Use as a context."""

    def __init__(self, port: int, *, delay_s: float = 0.0, file_bytes_per_s: float | None = None) -> None:
        """`delay_s` is added to each request, `file_bytes_per_s` bounds each download alone; both may be changed."""
        self.delay_s = delay_s
        self.file_bytes_per_s = file_bytes_per_s
        self.exchanges: list[Exchange] = []
        """In the order of the requests' arrival; grows while the test looks at it."""
        self.url = ""
        self._port = port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="link", daemon=True)
        self._is_up = threading.Event()
        self._is_stopping = False
        self._tasks: set[asyncio.Task[None]] = set()

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._is_up.wait(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop)
        self._thread.join(10)
        assert not self._thread.is_alive()
        self._loop.close()

    def downloads(self, file_id: str | None = None) -> list[Exchange]:
        """The requests for bytes of files, or of one file."""
        return [each for each in list(self.exchanges) if each.file_id and file_id in (None, each.file_id)]

    def file_bytes(self) -> int:
        """How many bytes of files have passed so far."""
        return sum(each.passed for each in self.downloads())

    def beats(self) -> list[float]:
        """When each heartbeat came by."""
        return [each.began for each in list(self.exchanges) if each.path == "/registry/heartbeat"]

    # what a kind of link may do to what passes

    def forwarded(self, asked: Exchange, head: bytes) -> bytes:
        """The head of a request as the platform shall see it."""
        return head

    async def before_answer(self, asked: Exchange) -> None:
        """Called when the platform has begun to answer, before the agent sees any of it."""

    # the relay

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._accepted, "127.0.0.1", 0, limit=HEAD_BYTES))
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._is_up.set()
        self._loop.run_forever()
        server.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.run_until_complete(_settled())

    def _stop(self) -> None:
        self._is_stopping = True
        self._loop.stop()

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = self._loop.create_task(self._relay(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._port, limit=HEAD_BYTES)
        except OSError:
            writer.close()
            return
        except asyncio.CancelledError:
            writer.transport.abort()
            raise
        line = _Line(reader, writer, there_reader, there_writer)
        ways = [asyncio.ensure_future(self._there(line)), asyncio.ensure_future(self._back(line))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)  # an end that goes takes the other along
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            if line.asking is not None:
                line.asking.ended = time.time()
            for end in (writer, there_writer):
                is_cut = line.asking is not None and not line.asking.is_whole
                end.transport.abort() if is_cut or self._is_stopping else end.close()

    async def _there(self, line: _Line) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await line.reader.readuntil(_END)
                method, path, _ = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
                asked = Exchange(method, path.partition("?")[0], time.time())
                self.exchanges.append(asked)
                headers = _headers(head)
                await asyncio.sleep(self.delay_s)
                line.asking, line.head = asked, bytearray()
                line.there_writer.write(self.forwarded(asked, head))
                if "upgrade" in headers:
                    await _pump(line.reader, line.there_writer)
                    return
                await _pass_body(headers, line.reader, line.there_writer)

    async def _back(self, line: _Line) -> None:
        with suppress(ConnectionError):
            while piece := await line.there_reader.read(self._piece_bytes(line.asking)):
                asked = line.asking
                assert asked is not None
                if not line.head:
                    await self.before_answer(asked)
                self._count(line, asked, piece)
                line.writer.write(piece)
                await line.writer.drain()
                if asked.file_id and (rate := self.file_bytes_per_s):
                    await asyncio.sleep(len(piece) / rate)

    def _piece_bytes(self, asked: Exchange | None) -> int:
        """How much to pass at once: what is slow comes in many small pieces."""
        rate = self.file_bytes_per_s if asked is not None and asked.file_id else None
        return PIECE_BYTES if rate is None else min(PIECE_BYTES, max(1, int(rate * PIECE_S)))

    def _count(self, line: _Line, asked: Exchange, piece: bytes) -> None:
        if asked.status is not None:
            asked.passed += len(piece)
        else:
            line.head += piece
            head, end, body = bytes(line.head).partition(_END)
            if not end:
                return
            asked.status = int(head.split(b" ", 2)[1])
            length = _headers(head).get("content-length")
            asked.length = int(length) if length else None
            asked.passed = len(body)
        if asked.is_whole:
            asked.ended = time.time()


class Gate(Link):
    """A link that can keep back the bytes of files."""

    def __init__(self, port: int, *, delay_s: float = 0.0, file_bytes_per_s: float | None = None) -> None:
        super().__init__(port, delay_s=delay_s, file_bytes_per_s=file_bytes_per_s)
        self._kept: Collection[str] | None = ()
        self._is_moved = asyncio.Event()

    def shut(self, file_ids: Collection[str] | None = None) -> None:
        """From now on nothing of these files passes, or of any file; the others do."""
        self._kept = file_ids
        self._loop.call_soon_threadsafe(self._move)

    def open(self) -> None:
        self.shut(())

    def _move(self) -> None:
        self._is_moved.set()
        self._is_moved = asyncio.Event()

    async def before_answer(self, asked: Exchange) -> None:
        while asked.file_id and (self._kept is None or asked.file_id in self._kept):
            await self._is_moved.wait()


class Echo(Link):
    """A link through which a platform cannot see who uploads: what the agent sends comes into its own inbox.

    And it comes there first: the answer to the upload waits until the agent has read its inbox once more.
    """

    def forwarded(self, asked: Exchange, head: bytes) -> bytes:
        if not _is_upload(asked):
            return head
        return b"\r\n".join(line for line in head.split(b"\r\n") if not line.lower().startswith(b"authorization:"))

    async def before_answer(self, asked: Exchange) -> None:
        if _is_upload(asked):
            now, deadline = time.time(), time.monotonic() + READ_WITHIN_S
            while not any(each.began > now and each.is_whole for each in self.exchanges if _is_inbox(each)):
                assert time.monotonic() < deadline, "the agent did not read its inbox"
                await asyncio.sleep(PIECE_S)


def _is_upload(asked: Exchange) -> bool:
    return asked.method == "POST" and asked.path.endswith("/chat/uploads")


def _is_inbox(asked: Exchange) -> bool:
    return asked.method == "GET" and asked.path.endswith("/activity")


async def _pass_body(headers: dict[str, str], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    if headers.get("transfer-encoding", "").lower() == "chunked":
        while True:
            line = await reader.readline()
            size = int(line.partition(b";")[0], 16)
            writer.write(line + await reader.readexactly(size + 2))
            await writer.drain()
            if size == 0:
                return
    left = int(headers.get("content-length", "0"))
    while left > 0:
        piece = await reader.read(min(left, PIECE_BYTES))
        if not piece:
            raise ConnectionError("the request broke off")
        left -= len(piece)
        writer.write(piece)
        await writer.drain()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while piece := await reader.read(PIECE_BYTES):
        writer.write(piece)
        await writer.drain()


def _headers(head: bytes) -> dict[str, str]:
    lines = head.decode("latin-1").split("\r\n")[1:]
    return {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


async def _settled() -> None:
    """Let connections that were cut be closed before their loop is: what is left would complain in another test."""
    for _ in range(10):
        await asyncio.sleep(0)

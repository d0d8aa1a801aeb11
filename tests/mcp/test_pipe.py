"""The pipe: lines in and out over real descriptors, with bounds in both directions (mcp-sdk, the transport's table)."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from contextlib import suppress

import anyio
import pytest

from molecule_mcp.pipe import MAX_LINE_BYTES, MAX_UNREAD_BYTES, MAX_UNSENT_BYTES, End, Overlong, Pipe
from tests.support.platform import eventually

MIB = 1024 * 1024


class Ends:
    """A pipe of ours and the host's two descriptors of it."""

    def __init__(self) -> None:
        fd_in, self.host_out = os.pipe()
        self.host_in, fd_out = os.pipe()
        self._closed: set[int] = set()
        self.taken = 0
        """Bytes of `say` that the pipe has taken."""
        self.pipe = Pipe(fd_in, fd_out)
        self.pipe.start()

    def say(self, data: bytes) -> None:
        """Write as a host does, on a thread of its own because the pipe may make it wait."""

        def write() -> None:
            view = memoryview(data)
            with suppress(OSError):
                while view:
                    sent = os.write(self.host_out, view[:65_536])
                    self.taken, view = self.taken + sent, view[sent:]

        threading.Thread(target=write, daemon=True).start()

    def hear(self, size: int) -> bytes:
        """Read exactly `size` bytes of the server's."""
        got = bytearray()
        while len(got) < size:
            chunk = os.read(self.host_in, min(size - len(got), MIB))
            assert chunk
            got += chunk
        return bytes(got)

    def hang_up(self, *descriptors: int) -> None:
        for descriptor in set(descriptors) - self._closed:  # a number closed twice is somebody else's by then
            os.close(descriptor)
            self._closed.add(descriptor)

    def close(self) -> None:
        self.hang_up(self.host_out, self.host_in)
        eventually(lambda: self.pipe.ended, within_s=2)


@pytest.fixture
def ends() -> Iterator[Ends]:
    ends = Ends()
    yield ends
    ends.close()


async def test_lines_arrive_whole_and_in_order_however_they_are_cut(ends: Ends) -> None:
    """Mcp-sdk: splits at newlines alone, serves a last line without one, then tells the end."""
    ends.pipe.serve_from(asyncio.get_running_loop())
    for piece in (b"on", b"e\ntwo\n\nth", b"ree\r\n", b"fo\xff\xe2\x80\xa8ur"):
        os.write(ends.host_out, piece)
    ends.hang_up(ends.host_out)
    with anyio.fail_after(5):
        lines = [await ends.pipe.read_line() for _ in range(7)]
    assert lines == [b"one", b"two", b"", b"three\r", b"fo\xff\xe2\x80\xa8ur", None, None]
    assert ends.pipe.ended is End.EOF


async def test_lines_that_came_before_the_loop_are_served_first(ends: Ends) -> None:
    """Pipe: reading begins before the SDK is imported, so nothing that was said meanwhile may be lost."""
    os.write(ends.host_out, b"early\n")
    ends.hang_up(ends.host_out)
    eventually(lambda: ends.pipe.ended, within_s=5)
    ends.pipe.serve_from(asyncio.get_running_loop())
    with anyio.fail_after(5):
        assert [await ends.pipe.read_line() for _ in range(2)] == [b"early", None]


async def test_a_line_without_an_end_is_refused_and_the_next_one_is_served(ends: Ends) -> None:
    """Pipe: memory is bounded, and a runaway line costs itself, not the session."""
    ends.pipe.serve_from(asyncio.get_running_loop())
    ends.say(b"x" * (MAX_LINE_BYTES + 3 * MIB) + b"\nnext\n")
    with anyio.fail_after(20):
        assert isinstance(await ends.pipe.read_line(), Overlong)
        assert await ends.pipe.read_line() == b"next"


async def test_a_host_that_says_more_than_is_read_has_to_wait(ends: Ends) -> None:
    """Mcp-sdk, shape: back-pressure instead of memory; afterwards every line is there."""
    line = b"y" * (MIB - 1)
    count = MAX_UNREAD_BYTES // MIB + 16
    ends.say((line + b"\n") * count)
    looks = [-1]

    def stands_still() -> bool:
        looks.append(ends.taken)
        return looks[-1] == looks[-2] > MAX_UNREAD_BYTES

    eventually(stands_still, within_s=10)
    assert ends.taken < MAX_UNREAD_BYTES + 4 * MIB
    ends.pipe.serve_from(asyncio.get_running_loop())
    with anyio.fail_after(20):
        for _ in range(count):
            assert await ends.pipe.read_line() == line
    eventually(lambda: ends.taken == count * MIB, within_s=2)  # its thread counts after the write


async def test_a_host_that_does_not_read_makes_answers_wait_and_drops_what_may_be_dropped(ends: Ends) -> None:
    """Mcp-sdk, shape: a queue bounded by bytes; pushes dropped first, no answer lost or reordered."""
    ends.pipe.serve_from(asyncio.get_running_loop())
    answer = b"a" * (MIB - 1)
    queued = 0
    with anyio.move_on_after(0.3):
        while True:
            assert await ends.pipe.write(answer)
            queued += 1
    assert MAX_UNSENT_BYTES <= queued * len(answer) <= MAX_UNSENT_BYTES + 2 * MIB
    with anyio.fail_after(1):
        assert await ends.pipe.write(b"push", droppable=True) is False
        assert await ends.pipe.flush(0.05) is False
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ends.pipe.write, b"last")
        heard = await anyio.to_thread.run_sync(ends.hear, queued * MIB + len(b"last\n"))
    assert heard == (answer + b"\n") * queued + b"last\n"
    with anyio.fail_after(5):
        assert await ends.pipe.flush(5) is True
        assert await ends.pipe.write(b"push", droppable=True) is True
        assert await anyio.to_thread.run_sync(ends.hear, 5) == b"push\n"


async def test_after_the_end_a_full_queue_keeps_nobody_waiting(ends: Ends) -> None:
    """Agent-side 2: the way out is not barred by a host that reads nothing."""
    ends.pipe.serve_from(asyncio.get_running_loop())
    with anyio.move_on_after(0.3):
        while True:
            await ends.pipe.write(b"a" * MIB)
    ends.pipe.end(End.SIGTERM)
    with anyio.fail_after(1):
        assert await ends.pipe.write(b"an answer") is False


async def test_a_host_that_closes_its_end_of_stdout_ends_the_pipe(ends: Ends) -> None:
    """Mcp-sdk, table: noticed without writing a byte, while stdin stays open; later writes are dropped."""
    ends.pipe.serve_from(asyncio.get_running_loop())
    ends.hang_up(ends.host_in)
    with anyio.fail_after(2):
        assert await ends.pipe.read_line() is None
    assert ends.pipe.ended is End.STDOUT_CLOSED
    with anyio.fail_after(1):
        assert await ends.pipe.write(b"nobody hears this") is False
        assert await ends.pipe.flush(1) is False


async def test_an_end_by_signal_leaves_unread_lines_and_the_first_reason_stays(ends: Ends) -> None:
    """Clients 1.3: SIGINT, then SIGTERM, then EOF is one end, and its reason is the first."""
    ends.pipe.serve_from(asyncio.get_running_loop())
    os.write(ends.host_out, b"one\ntwo\n")
    with anyio.fail_after(5):
        assert await ends.pipe.read_line() == b"one"
    ends.pipe.end(End.SIGINT)
    ends.pipe.end(End.SIGTERM)
    ends.hang_up(ends.host_out)
    with anyio.fail_after(1):
        assert await ends.pipe.read_line() is None
    assert ends.pipe.ended is End.SIGINT


async def test_a_reader_that_waits_is_woken_by_the_end(ends: Ends) -> None:
    """Agent-side 2: an idle server leaves at once."""
    ends.pipe.serve_from(asyncio.get_running_loop())
    got: list[bytes | Overlong | None] = []

    async def read() -> None:
        got.append(await ends.pipe.read_line())

    with anyio.fail_after(2):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read)
            await anyio.lowlevel.checkpoint()
            ends.pipe.end(End.SIGTERM)
    assert got == [None]


def test_each_end_has_its_exit_code() -> None:
    """Agent-side 2: 0 ended normally, 130 and 143 for signals."""
    assert {end.name: end.exit_code for end in End} == {
        "EOF": 0,
        "PARENT_GONE": 0,
        "STDOUT_CLOSED": 0,
        "SIGTERM": 143,
        "SIGINT": 130,
    }

"""The pipe to the host: lines in, lines out, and every way it can end. Standard library only.

Private duplicates of stdin and stdout carry the protocol; descriptor 0 then reads nothing and descriptor 1 is stderr,
so that a stray print or a child process cannot tear a line. One daemon thread reads, one writes, one watches for what
neither would notice: a parent that died while somebody else keeps the pipe open, a host that closed its end of stdout.

Reading begins before the MCP SDK is imported (over a second of CPU), so that a host that only looks (its list and
health-check commands) is not kept waiting: until `serve_from` is called, the end of the pipe or a signal ends the
process at once. After that the end is reported, and the way out is bounded: what is left after `LEAVE_WITHIN_S` (a
blocked loop, a thread in a name look-up) is cut off. Nothing is lost by that: every file of ours survives a kill.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from enum import Enum
from types import FrameType
from typing import Self

READ_BYTES = 65_536
MAX_LINE_BYTES = 64 * 1024 * 1024
"""Longer lines are refused and skipped; no message of MCP comes near."""
MAX_UNREAD_BYTES = 32 * 1024 * 1024
"""How far reading runs ahead of the server before the host has to wait."""
MAX_UNSENT_BYTES = 8 * 1024 * 1024
"""How much may wait for a host that does not read; then answers wait too, and notifications are dropped."""
WATCH_EVERY_S = 0.25
"""How often the parent is looked at where the system cannot tell that it died."""
LEAVE_WITHIN_S = 0.75
"""Hosts send SIGKILL 0.4 s to 2 s after asking (clients.md 1.3); an ordinary way out takes a tenth of this."""


class End(Enum):
    """Why serving ends, with the exit code that follows (agent-side 2)."""

    EOF = 0
    PARENT_GONE = -1
    STDOUT_CLOSED = -2
    SIGTERM = 143
    SIGINT = 130

    @property
    def exit_code(self) -> int:
        return max(0, self.value)


def exit_on_signals() -> None:
    """A signal ends the process with its code at once: for the time before there is a `Pipe`. Main thread only."""

    def leave(number: int, _frame: FrameType | None) -> None:
        os._exit(End[signal.Signals(number).name].exit_code)

    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGINT, leave)


class Overlong:
    """Stands in the place of a line that was longer than `MAX_LINE_BYTES`."""


class Pipe:
    """A line-based duplex over two descriptors. Threads feed it; one event loop drains it."""

    def __init__(self, fd_in: int, fd_out: int, *, owns_process: bool = False) -> None:
        """`owns_process`: the end of this pipe is the end of the process, at once or within `LEAVE_WITHIN_S`."""
        self._fd_in = fd_in
        self._fd_out = fd_out
        self._owns_process = owns_process
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)
        self._work = threading.Condition(self._lock)
        self._unread: deque[bytes | Overlong] = deque()
        self._unread_bytes = 0
        self._unsent: deque[bytes] = deque()
        self._unsent_bytes = 0
        self._sent_at = 0.0
        self._broken = False
        self._end: End | None = None
        self._moved_at = 0.0
        self._signalled: End | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake = asyncio.Event()
        self._parent = os.getppid()
        self._bell, self._rope = os.pipe()
        """What wakes the watching thread: it otherwise sleeps until a descriptor has something to say."""
        for descriptor in (self._bell, self._rope):
            os.set_blocking(descriptor, False)

    @classmethod
    def claim_stdio(cls) -> Self:
        """Take stdin and stdout for the protocol, and point the standard descriptors away from it."""
        fd_in, fd_out = os.dup(0), os.dup(1)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
        os.dup2(2, 1)
        sys.stdout.flush()
        return cls(fd_in, fd_out, owns_process=True)

    @classmethod
    def claim_early(cls) -> Self | None:
        """The pipe of a host, taken and watched before anything heavy is imported; None in a terminal.

        A host that only looks is gone within a second: the end of its pipe must be noticed by then, however long the
        imports take on a busy machine.
        """
        if os.isatty(0):
            return None
        pipe = cls.claim_stdio()
        pipe.take_signals()
        pipe.start()
        return pipe

    def start(self) -> None:
        """Start the threads; from now on the end of the pipe is noticed."""
        for name, work in (("read", self._read), ("write", self._write), ("watch", self._watch)):
            threading.Thread(target=work, name=f"molecule-pipe-{name}", daemon=True).start()

    def take_signals(self) -> None:
        """SIGTERM and SIGINT end the pipe from now on; the first reason stays. Call in the main thread."""

        def on_signal(number: int, _frame: FrameType | None) -> None:
            reason, loop = End[signal.Signals(number).name], self._loop
            if loop is None:
                os._exit(reason.exit_code)
            self._signalled = reason  # the watching thread ends the pipe should the loop be blocked
            self._ring()
            try:
                loop.call_soon_threadsafe(self.end, reason)
            except RuntimeError:
                return  # the loop is closed: the process is on its way out

        signal.signal(signal.SIGTERM, on_signal)
        signal.signal(signal.SIGINT, on_signal)

    def ignore_signals(self) -> None:
        """The end has its reason and its code; a signal must not change them while the interpreter shuts down."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def serve_from(self, loop: asyncio.AbstractEventLoop) -> None:
        """From here on `read_line`, `write` and `ended` are used in `loop`, and ends are reported, not acted on."""
        with self._lock:
            self._loop = loop
            self._moved_at = time.monotonic()

    async def read_line(self) -> bytes | Overlong | None:
        """The next line without its newline; None when the pipe has ended (at EOF only when nothing is left)."""
        while True:
            with self._lock:
                if self._end not in {None, End.EOF}:
                    return None
                if self._unread:
                    line = self._unread.popleft()
                    self._moved_at = time.monotonic()
                    self._unread_bytes -= 0 if isinstance(line, Overlong) else len(line)
                    self._room.notify_all()
                    return line
                if self._end is not None:
                    return None
                self._wake.clear()
            await self._wake.wait()

    async def write(self, line: bytes, *, droppable: bool = False) -> bool:
        """Queue a line (its newline is added); waits while the host does not read. False when it was dropped.

        Once the pipe has ended nothing waits any more: what a full queue cannot take is dropped.
        """
        while True:
            with self._lock:
                if self._broken:
                    return False
                if self._unsent_bytes < MAX_UNSENT_BYTES:
                    if not self._unsent:
                        self._sent_at = time.monotonic()
                    self._unsent.append(line)
                    self._unsent_bytes += len(line)
                    self._work.notify()
                    return True
                if droppable or self._end is not None:
                    return False
            await asyncio.sleep(0.02)

    async def flush(self, timeout_s: float) -> bool:
        """Wait until everything queued is written; False when the host did not read it in time."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        while True:
            with self._lock:
                if not self._unsent_bytes or self._broken:
                    return not self._broken
            if asyncio.get_running_loop().time() >= deadline:
                return False
            await asyncio.sleep(0.005)

    def end(self, reason: End) -> None:
        """Stop reading for `reason`; the first reason stays. Callable from any thread."""
        with self._lock:
            if self._end is None:
                self._end, self._moved_at = reason, time.monotonic()
            loop = self._loop
            has_asker = reason is End.EOF and self._unread
            if loop is None and self._owns_process and not has_asker:
                os._exit(reason.exit_code)  # nobody asked anything, or nobody is left to answer: leave as a kill would
        self._ring()
        if loop is not None:
            self._call_in(loop)

    @property
    def ended(self) -> End | None:
        return self._end

    def _call_in(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            loop.call_soon_threadsafe(self._wake.set)
        except RuntimeError:
            return  # the loop is closed: the process is on its way out

    def _push(self, line: bytes | Overlong) -> None:
        with self._lock:
            while self._unread_bytes > MAX_UNREAD_BYTES:
                self._room.wait()
            self._unread.append(line)
            self._unread_bytes += 0 if isinstance(line, Overlong) else len(line)
            loop = self._loop
        if loop is not None:
            self._call_in(loop)

    def _read(self) -> None:
        pending = bytearray()
        skipping = False
        while True:
            try:
                chunk = os.read(self._fd_in, READ_BYTES)
            except OSError:
                chunk = b""
            if not chunk:
                break
            *whole, rest = chunk.split(b"\n")
            for piece in whole:
                if not skipping:
                    self._push(bytes(pending + piece))
                pending, skipping = bytearray(), False
            if not skipping:
                pending += rest
                if len(pending) > MAX_LINE_BYTES:
                    self._push(Overlong())
                    pending, skipping = bytearray(), True
        if pending:
            self._push(bytes(pending))
        self.end(End.EOF)

    def _write(self) -> None:
        while True:
            with self._lock:
                while not self._unsent:
                    self._work.wait()
                line = self._unsent[0]
            try:
                _write_all(self._fd_out, line + b"\n")
            except OSError:
                with self._lock:
                    self._broken = True
                self.end(End.STDOUT_CLOSED)
                return
            with self._lock:
                self._unsent.popleft()
                self._unsent_bytes -= len(line)
                self._sent_at = time.monotonic()

    def _ring(self) -> None:
        """Wake the watching thread; takes no lock, so that a signal's handler may call it."""
        with suppress(OSError):  # full: it has been rung often enough
            os.write(self._rope, b"!")

    def _watch(self) -> None:
        """Notice what neither reading nor writing would; then see to it that the process leaves in time."""
        poll = select.poll()
        poll.register(self._fd_out, 0)
        poll.register(self._bell, select.POLLIN)
        parent = _watched(self._parent)
        if parent is not None:
            poll.register(parent, select.POLLIN)
        while self._end is None:
            events = dict(poll.poll(None if parent is not None else WATCH_EVERY_S * 1000))
            if parent in events or os.getppid() != self._parent:  # a parent that died: its place is taken by another
                self.end(End.PARENT_GONE)
            elif events.get(self._fd_out, 0) & (select.POLLERR | select.POLLHUP):  # the host closed its end of stdout
                with self._lock:
                    self._broken = True
                self.end(End.STDOUT_CLOSED)
            elif self._signalled is not None:
                self.end(self._signalled)
            elif self._bell in events:
                os.read(self._bell, 4096)
        if self._owns_process:
            while self._loop is None or time.monotonic() < self._last_movement() + LEAVE_WITHIN_S:
                time.sleep(WATCH_EVERY_S)
            os._exit(self._end.exit_code)

    def _last_movement(self) -> float:
        """When the way out last went on: a line was taken from the host, or, while answers queue, given to it."""
        with self._lock:
            return self._sent_at if self._unsent else self._moved_at


def _watched(parent: int) -> int | None:
    """A descriptor that becomes readable when the parent dies; None where there is no such thing."""
    try:
        descriptor: int = os.pidfd_open(parent)
    except (AttributeError, OSError):  # not Linux, an old kernel, a sandbox, a parent outside of this container
        return None
    if os.getppid() != parent:  # it died meanwhile, and this may be another process of that number
        os.close(descriptor)
        return None
    return descriptor


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]

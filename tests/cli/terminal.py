"""A command of ours on a terminal of its own, as a person has it; and one behind pipes."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import queue
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from types import TracebackType
from typing import Any, Self

from tests.support.platform import clean_env

ANSWER_S = 20.0
COMMAND = (sys.executable, "-m", "molecule_mcp")


def _as_in_the_foreground() -> None:
    """With the terminal as its own; and with Ctrl-C, which a shell takes from what it starts in the background."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Terminal:
    """`molecule-mcp ARGUMENTS` in a session of its own on a pty; what it writes is kept in `screen`."""

    def __init__(self, *arguments: str, columns: int = 100, python_options: tuple[str, ...] = (), **env: str) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
        self.slave = slave
        self._written = b""
        self.process = subprocess.Popen(
            [COMMAND[0], *python_options, *COMMAND[1:], *arguments],
            env=clean_env(TERM="xterm", PROMPT_TOOLKIT_NO_CPR="1", **env),
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=_as_in_the_foreground,
        )
        self._open = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)
        self.hang_up()

    def screen(self) -> str:
        """Everything written so far, escape sequences included."""
        if self._open:
            os.set_blocking(self._master, False)
            try:
                while chunk := os.read(self._master, 65_536):
                    self._written += chunk
            except OSError:
                pass
        return self._written.decode("utf-8", "replace")

    def wait_for(self, text: str, *, times: int = 1, within_s: float = ANSWER_S) -> str:
        """Wait until `text` was written; the screen."""
        deadline = time.monotonic() + within_s
        while (screen := self.screen()).count(text) < times:
            assert time.monotonic() < deadline, f"no {text!r} on the screen: {screen!r}"
            time.sleep(0.02)
        return screen

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def typed_to_the_end(self, key: str) -> bool:
        """Press a key; True once the program has ended."""
        if self.process.poll() is None:
            self.type(key)
            self.screen()
            time.sleep(0.2)
        return self.process.poll() is not None

    def modes(self) -> list[object]:
        """The terminal's modes: echo, line by line or key by key ..."""
        return termios.tcgetattr(self.slave)

    def hang_up(self) -> None:
        """Close the terminal, as a window that is closed."""
        if self._open:
            self._open = False
            os.close(self._master)
            os.close(self.slave)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def exit_code(self, within_s: float) -> int:
        """The exit code; AssertionError when it is still alive after `within_s`."""
        deadline = time.monotonic() + within_s
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"still alive after {within_s} s: {self.screen()!r}"
            self.screen()
            time.sleep(0.01)
        return self.process.returncode


class Piped:
    """`molecule-mcp ARGUMENTS` behind pipes; its lines of stdout come through a queue."""

    def __init__(self, *arguments: str, python_options: tuple[str, ...] = (), **env: str) -> None:
        self.process = subprocess.Popen(
            [COMMAND[0], *python_options, *COMMAND[1:], *arguments],
            env=clean_env(**env),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._stderr: list[str] = []
        for read in (self._read_stdout, self._read_stderr):
            threading.Thread(target=read, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)
        assert self.process.stdin
        if not self.process.stdin.closed:
            self.process.stdin.close()

    def line(self, within_s: float = ANSWER_S) -> str:
        """The next line of stdout. AssertionError when there is none in time, or no more."""
        try:
            line = self._lines.get(timeout=within_s)
        except queue.Empty:
            raise AssertionError(f"no line within {within_s} s; stderr: {self.stderr()}") from None
        assert line is not None, f"stdout ended; stderr: {self.stderr()}"
        return line

    def json_line(self, **wanted: Any) -> dict[str, Any]:
        """The next JSON object that has all of `wanted`; others are passed over."""
        while True:
            found: dict[str, Any] = json.loads(self.line())
            if all(found.get(key) == value for key, value in wanted.items()):
                return found

    def rest(self) -> list[str]:
        """Every line that nothing has asked for, up to the end of stdout."""
        lines = []
        while (line := self._lines.get(timeout=ANSWER_S)) is not None:
            lines.append(line)
        return lines

    def say(self, text: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(text.encode())
        self.process.stdin.flush()

    def close_stdin(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def exit_code(self, within_s: float) -> int:
        try:
            return self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still alive after {within_s} s; stderr: {self.stderr()}") from None

    def stderr(self) -> str:
        return "".join(self._stderr)

    def _read_stdout(self) -> None:
        assert self.process.stdout
        with self.process.stdout as stream:
            for line in stream:
                self._lines.put(line.decode().rstrip("\n"))
        self._lines.put(None)

    def _read_stderr(self) -> None:
        assert self.process.stderr
        with self.process.stderr as stream:
            for line in stream:
                self._stderr.append(line.decode())

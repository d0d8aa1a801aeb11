"""A host that spawns the server on raw pipes and keeps them open: it shows what an SDK's client would hide."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support.platform import clean_env

CONSOLE_SCRIPT = str(Path(sys.executable).with_name("molecule-mcp"))
"""What a host is told to spawn: the installed command beside this interpreter."""
ANSWER_S = 20.0
"""Nothing a test asks for takes longer; importing the SDK on a busy machine takes a few seconds."""


class Host:
    """One spawned server. `settings` is its env block; `state` its state directory."""

    def __init__(
        self,
        settings: dict[str, str],
        *,
        state: Path,
        command: Sequence[str] = (CONSOLE_SCRIPT,),
        reads: bool = True,
        preexec_fn: Callable[[], None] | None = None,
        **env: str,
    ) -> None:
        """`reads` False is a host that never reads the server's answers; `preexec_fn` runs in the child."""
        self.process = subprocess.Popen(
            list(command),
            env=clean_env(CONFIGS_DIR=str(state), **settings, **env),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=preexec_fn,
        )
        self.spawned_at = time.monotonic()
        self._lines: queue.Queue[bytes | None] = queue.Queue()
        self._stderr: list[bytes] = []
        self._kept: list[dict[str, Any]] = []
        self._next_id = 0
        self._reader = threading.Thread(target=self._read_stdout, daemon=True)
        if reads:
            self._reader.start()
        threading.Thread(target=self._read_stderr, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None and not stream.closed:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()

    # lines

    def send_raw(self, data: bytes) -> None:
        """Write bytes as they are; the caller ends its lines."""
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def send(self, message: dict[str, Any] | list[Any]) -> None:
        self.send_raw(json.dumps(message, ensure_ascii=False).encode() + b"\n")

    def receive(self, timeout_s: float = ANSWER_S) -> dict[str, Any]:
        """The next message in order of arrival. AssertionError when stdout closed or nothing came in time."""
        try:
            line = self._lines.get(timeout=timeout_s)
        except queue.Empty:
            raise AssertionError(f"no line within {timeout_s} s; stderr: {self.stderr()}") from None
        assert line is not None, f"stdout closed; stderr: {self.stderr()}"
        message: dict[str, Any] = json.loads(line)
        return message

    def receive_nothing(self, for_s: float) -> None:
        """AssertionError when any line arrives within `for_s`."""
        try:
            line = self._lines.get(timeout=for_s)
        except queue.Empty:
            return
        raise AssertionError(f"unexpected line: {line!r}")

    def answer_to(self, request_id: str | int | None, timeout_s: float = ANSWER_S) -> dict[str, Any]:
        """The answer with this id; other messages that come first are kept in `others`."""
        for index, message in enumerate(self._kept):
            if message.get("id", "") == request_id and "method" not in message:
                return self._kept.pop(index)
        while True:
            message = self.receive(timeout_s)
            if message.get("id", "") == request_id and "method" not in message:
                return message
            self._kept.append(message)

    @property
    def others(self) -> list[dict[str, Any]]:
        """Messages that arrived while an answer was waited for (notifications, other answers)."""
        return list(self._kept)

    # JSON-RPC

    def request(self, method: str, params: dict[str, Any] | None = None, *, id: str | int | None = None) -> str | int:
        """Send a request without waiting; its id."""
        if id is None:
            self._next_id += 1
            id = self._next_id
        self.send({"jsonrpc": "2.0", "id": id, "method": method, "params": params or {}})
        return id

    def ask(self, method: str, params: dict[str, Any] | None = None, timeout_s: float = ANSWER_S) -> dict[str, Any]:
        """Send a request and wait for its answer, an error answer included."""
        return self.answer_to(self.request(method, params), timeout_s)

    def initialize(self, version: str = "2025-11-25") -> dict[str, Any]:
        """The handshake; the result of `initialize`."""
        params = {"protocolVersion": version, "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
        answer = self.ask("initialize", params)
        self.send({"jsonrpc": "2.0", "method": "notifications/initialized"})
        result: dict[str, Any] = answer["result"]
        return result

    def call(self, tool: str, timeout_s: float = ANSWER_S, /, **arguments: Any) -> dict[str, Any]:
        """Call a tool; its structured result. AssertionError with its text when it is an error."""
        result = self.call_raw(tool, timeout_s, **arguments)
        assert not result.get("isError"), result["content"][0]["text"]
        payload: dict[str, Any] = result["structuredContent"]
        return payload

    def call_error(self, tool: str, timeout_s: float = ANSWER_S, /, **arguments: Any) -> str:
        """Call a tool that must fail; the text of its error result."""
        result = self.call_raw(tool, timeout_s, **arguments)
        assert result.get("isError") is True, result
        text: str = result["content"][0]["text"]
        return text

    def call_raw(self, tool: str, timeout_s: float = ANSWER_S, /, **arguments: Any) -> dict[str, Any]:
        answer = self.ask("tools/call", {"name": tool, "arguments": arguments}, timeout_s)
        assert "result" in answer, answer
        result: dict[str, Any] = answer["result"]
        return result

    def begin(self, tool: str, /, **arguments: Any) -> str | int:
        """Call a tool without waiting; the request's id, for `answer_to` or `finish`."""
        return self.request("tools/call", {"name": tool, "arguments": arguments})

    def finish(self, request_id: str | int, timeout_s: float = ANSWER_S) -> dict[str, Any]:
        """The structured result of a call that was begun."""
        result: dict[str, Any] = self.answer_to(request_id, timeout_s)["result"]
        assert not result.get("isError"), result["content"][0]["text"]
        payload: dict[str, Any] = result["structuredContent"]
        return payload

    # ends

    def close_stdin(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()

    def close_stdout(self) -> None:
        """Close the host's end of the server's stdout and nothing else; only for a host that does not read."""
        assert self.process.stdout is not None
        assert not self._reader.is_alive()
        self.process.stdout.close()

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def received_lines(self) -> list[bytes]:
        """Every line of stdout that nothing has asked for yet, as it came; waits until stdout is closed."""
        lines = []
        while (line := self._lines.get(timeout=ANSWER_S)) is not None:
            lines.append(line)
        return lines

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)

    def exit_code(self, within_s: float) -> int:
        """The exit code; AssertionError when it is still alive after `within_s`."""
        try:
            return self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still alive after {within_s} s") from None

    def stderr(self) -> str:
        return b"".join(self._stderr).decode("utf-8", "replace")

    def _read_stdout(self) -> None:
        assert self.process.stdout is not None
        fd = self.process.stdout.fileno()
        pending = bytearray()
        while True:
            try:
                chunk = os.read(fd, 65_536)
            except OSError:
                chunk = b""
            if not chunk:
                break
            *ends, rest = chunk.split(b"\n")
            for end in ends:
                self._lines.put(bytes(pending + end))
                pending = bytearray()
            pending += rest
        self._lines.put(None)

    def _read_stderr(self) -> None:
        assert self.process.stderr is not None
        fd = self.process.stderr.fileno()
        while True:
            try:
                chunk = os.read(fd, 65_536)
            except OSError:
                return
            if not chunk:
                return
            self._stderr.append(chunk)

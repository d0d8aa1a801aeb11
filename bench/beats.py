"""The load of many beating workspaces, as a process of its own: `python -m bench.beats URL FILE PERIOD_S SECONDS`.

Open loop: every workspace has a grid of instants at which its beats leave, whatever became of the earlier ones, and a
latency counts from that instant. A platform that stalls therefore shows the whole stall, not one slow beat. Each has a
keep-alive connection of its own, as far as open files go. Sockets are handled raw, because client and platform share
the machine's cores.

FILE is a JSON list of [workspace id, token]. One JSON line comes out: sent, answered, failed, p50_ms, p99_ms, worst_ms,
late_ms (the p99 of how late the client itself was, which is in the latencies), cpu_s.
"""

from __future__ import annotations

import asyncio
import gc
import json
import resource
import sys
import time
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

import uvloop

TICK_S = 0.001
OPENED_AT_ONCE = 100
SPARE_FILES = 1_000
"""Of what a process may open; beyond that workspaces share connections, seconds apart."""
GRACE_S = 5.0
"""Seconds after the last beat in which answers still count; a beat without one has failed."""


class Line(asyncio.Protocol):
    """A connection; its requests are answered in their order."""

    def __init__(self, latencies: list[float], failures: list[bytes]) -> None:
        self._latencies = latencies
        self._failures = failures
        self._due: list[float] = []
        self._held = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance

    def beat(self, request: bytes, due: float) -> None:
        """Send a beat that was due at this instant."""
        self._due.append(due)
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._held += data
        if not self._held.endswith(b"}"):
            return  # head and body come in pieces; the body is one JSON object
        if self._held.startswith(b"HTTP/1.1 200"):
            self._latencies.append(time.perf_counter() - self._due.pop(0))
        else:
            self._failures.append(self._held[:200])
        self._held = b""


def request_of(netloc: str, workspace_id: str, token: str) -> bytes:
    """What an agent's beat is on the wire (contract 2.3)."""
    beat = {"workspace_id": workspace_id, "error_rate": 0.0, "sample_error": "", "active_tasks": 0, "uptime_seconds": 7}
    body = json.dumps(beat | {"current_task": ""}, separators=(",", ":")).encode()
    head = (
        f"POST /registry/heartbeat HTTP/1.1\r\nHost: {netloc}\r\nOrigin: http://{netloc}\r\nAccept: */*\r\n"
        f"User-Agent: bench\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def run(url: str, members: list[tuple[str, str]], period_s: float, seconds: float) -> dict[str, float]:
    """Beat for `seconds`; the figures of the top of the module."""
    address = urlsplit(url)
    loop = asyncio.get_running_loop()
    latencies: list[float] = []
    failures: list[bytes] = []
    lines: list[Line] = []
    requests = [request_of(address.netloc, *member) for member in members]
    connections = min(len(members), resource.getrlimit(resource.RLIMIT_NOFILE)[0] - SPARE_FILES)
    while len(lines) < connections:
        made = [
            loop.create_connection(lambda: Line(latencies, failures), address.hostname, address.port)
            for _ in range(min(OPENED_AT_ONCE, connections - len(lines)))
        ]
        lines += [line for _, line in await asyncio.gather(*made)]
    gc.freeze()
    gc.disable()  # its pauses would be the client's, not the platform's
    spacing = period_s / len(members)
    total = int(seconds / spacing)
    began = time.perf_counter() + 0.1
    cpu = time.process_time()
    lateness: list[float] = []
    sent = 0
    while sent < total:
        now = time.perf_counter()
        while sent < total and (due := began + sent * spacing) <= now:
            lines[sent % len(lines)].beat(requests[sent % len(requests)], due)
            lateness.append(now - due)
            sent += 1
        await asyncio.sleep(TICK_S)
    deadline = time.perf_counter() + GRACE_S
    while len(latencies) + len(failures) < total and time.perf_counter() < deadline:  # noqa: ASYNC110 - a bench
        await asyncio.sleep(0.01)
    latencies.sort()
    lateness.sort()
    if failures:
        sys.stderr.write(f"first failure: {failures[0]!r}\n")
    return {
        "sent": total,
        "answered": len(latencies),
        "failed": total - len(latencies),
        "p50_ms": at(latencies, 0.5),
        "p99_ms": at(latencies, 0.99),
        "worst_ms": at(latencies, 1.0),
        "late_ms": at(lateness, 0.99),
        "cpu_s": time.process_time() - cpu,
    }


def at(ordered: list[float], share: float) -> float:
    """A percentile in milliseconds; infinite when there is nothing."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] * 1000 if ordered else float("inf")


def main() -> None:
    url, file, period_s, seconds = sys.argv[1:]
    members = [(workspace_id, token) for workspace_id, token in json.loads(Path(file).read_text())]
    figures = uvloop.run(run(url, members, float(period_s), float(seconds)))
    sys.stdout.write(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()

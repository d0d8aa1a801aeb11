"""What the platform counts, and its `/metrics` page in the Prometheus text format (contract 9.1, R19).

The families are collected by hand rather than through `prometheus_client.Counter`, whose `_created` rows are not part
of the contract and can be switched off only for the whole process.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from enum import StrEnum

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
UNMATCHED = "unmatched"
"""The `path` label of a request that no route took: the raw path would make a row per scanner's guess."""


class SweepOutcome(StrEnum):
    """What became of an upload row in a sweep (contract 5.6)."""

    ACKED = "acked"
    EXPIRED = "expired"
    ERROR = "error"


class Metrics(Collector):
    """The counters of one platform. Every family is present from the start, with 0 where nothing happened yet."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: dict[tuple[str, str, str], int] = {}
        self._request_seconds: dict[tuple[str, str, str], float] = {}
        self._sockets = 0
        self._phantom_busy_resets = 0
        self._uploads_swept = dict.fromkeys(SweepOutcome, 0)
        self.registry = CollectorRegistry()
        self.registry.register(self)

    def request_done(self, *, method: str, path: str, status: int, seconds: float) -> None:
        """Count one answered request; `path` is the route's pattern, never the path itself."""
        key = (method, path, str(status))
        with self._lock:
            self._requests[key] = self._requests.get(key, 0) + 1
            self._request_seconds[key] = self._request_seconds.get(key, 0.0) + seconds

    def socket_opened(self) -> None:
        with self._lock:
            self._sockets += 1

    def socket_closed(self) -> None:
        with self._lock:
            self._sockets -= 1

    def phantom_busy_reset(self, count: int = 1) -> None:
        """Count workspaces whose busy mark was cleared because nothing happened there (contract 9.3)."""
        with self._lock:
            self._phantom_busy_resets += count

    def uploads_swept(self, outcome: SweepOutcome, count: int = 1) -> None:
        with self._lock:
            self._uploads_swept[outcome] += count

    def collect(self) -> Iterator[Metric]:
        labels = ("method", "path", "status")
        with self._lock:
            requests = CounterMetricFamily("molecule_http_requests", "Requests answered.", labels=labels)
            for key, count in self._requests.items():
                requests.add_metric(key, count)
            seconds = CounterMetricFamily(
                "molecule_http_request_duration_seconds", "Time spent answering requests.", labels=labels
            )
            for key, total in self._request_seconds.items():
                seconds.add_metric(key, total)
            sockets = GaugeMetricFamily("molecule_websocket_connections_active", "Open /ws connections.")
            sockets.add_metric((), self._sockets)
            resets = CounterMetricFamily("molecule_phantom_busy_resets", "Busy marks cleared on idle workspaces.")
            resets.add_metric((), self._phantom_busy_resets)
            swept = CounterMetricFamily(
                "molecule_pending_uploads_swept", "Staged uploads removed by the sweeper.", labels=("outcome",)
            )
            for outcome, count in self._uploads_swept.items():
                swept.add_metric((outcome,), count)
        yield from (requests, seconds, sockets, resets, swept)

    def render(self) -> bytes:
        """The page, UTF-8 text."""
        return generate_latest(self.registry)

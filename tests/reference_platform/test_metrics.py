"""The /metrics page."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from molecule_runtime.reference_platform.metrics import Metrics, SweepOutcome

from .support import Platform

FAMILIES = {
    "molecule_http_requests_total": "counter",
    "molecule_http_request_duration_seconds_total": "counter",
    "molecule_websocket_connections_active": "gauge",
    "molecule_phantom_busy_resets_total": "counter",
    "molecule_pending_uploads_swept_total": "counter",
}


async def test_page_names_types_and_helps_every_family_from_the_start(platform: Platform) -> None:
    """HELP and TYPE for each of the names, zeroes where nothing happened, nothing else (contract 9.1, R19)."""
    reply = await platform.http.get("/metrics")
    assert reply.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    lines = reply.text.splitlines()
    assert [line for line in lines if line.startswith("# TYPE")] == [
        f"# TYPE {n} {kind}" for n, kind in FAMILIES.items()
    ]
    assert [line.split()[2] for line in lines if line.startswith("# HELP")] == list(FAMILIES)
    assert [line for line in lines if not line.startswith("#")] == [
        "molecule_websocket_connections_active 0.0",
        "molecule_phantom_busy_resets_total 0.0",
        'molecule_pending_uploads_swept_total{outcome="acked"} 0.0',
        'molecule_pending_uploads_swept_total{outcome="expired"} 0.0',
        'molecule_pending_uploads_swept_total{outcome="error"} 0.0',
    ]
    assert len(list(text_string_to_metric_families(reply.text))) == len(FAMILIES)


async def test_requests_are_counted_by_route_pattern(platform: Platform) -> None:
    """Ids never become labels; what no route takes is `unmatched` (contract 9.1)."""
    for _ in range(2):
        member = await platform.create()
        await platform.http.get(f"/workspaces/{member.id}")
    await platform.http.get("/workspaces/nope")
    await platform.http.get("/no/such/route")
    await platform.http.put("/workspaces")
    await platform.http.get("/health", headers={"Host": "evil.example"})
    lines = (await platform.http.get("/metrics")).text.splitlines()
    counted = {
        'molecule_http_requests_total{method="POST",path="/workspaces",status="201"} 2.0',
        'molecule_http_requests_total{method="GET",path="/workspaces/:id",status="200"} 2.0',
        'molecule_http_requests_total{method="GET",path="/workspaces/:id",status="400"} 1.0',
        'molecule_http_requests_total{method="GET",path="unmatched",status="404"} 1.0',
        'molecule_http_requests_total{method="PUT",path="/workspaces",status="405"} 1.0',
        'molecule_http_requests_total{method="GET",path="unmatched",status="403"} 1.0',
    }
    assert counted == {line for line in lines if line.startswith("molecule_http_requests_total")}
    durations = [line for line in lines if line.startswith("molecule_http_request_duration_seconds_total{")]
    assert len(durations) == len(counted)
    assert member.id not in "".join(lines)


def test_two_platforms_in_one_process_count_apart() -> None:
    """Each has its own registry (ours)."""
    one, other = Metrics(), Metrics()
    one.phantom_busy_reset(2)
    one.uploads_swept(SweepOutcome.ACKED, 3)
    assert b"molecule_phantom_busy_resets_total 2.0" in one.render()
    assert b'molecule_pending_uploads_swept_total{outcome="acked"} 3.0' in one.render()
    assert b"molecule_phantom_busy_resets_total 0.0" in other.render()

"""`/health`, `/metrics` and `/canvas/viewport`: open to everybody (contract 1.8, 9.1)."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from molecule_runtime.reference_platform.metrics import CONTENT_TYPE
from molecule_runtime.reference_platform.parts import parts_of


def routes() -> list[Route]:
    return [
        Route("/health", _health),
        Route("/healthz", _health),
        Route("/metrics", _metrics),
        Route("/canvas/viewport", _viewport),
    ]


async def _health(_request: Request) -> Response:
    return JSONResponse({"status": "ok"})


async def _metrics(request: Request) -> Response:
    return Response(parts_of(request).metrics.render(), headers={"Content-Type": CONTENT_TYPE})


async def _viewport(_request: Request) -> Response:
    """Where a canvas begins to look; it keeps its own place afterwards."""
    return JSONResponse({"x": 0, "y": 0, "zoom": 1})

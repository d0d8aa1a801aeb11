"""The floor of the platform's bench: Starlette on uvicorn with one route that reads a JSON body and does nothing."""

from __future__ import annotations

import json
import logging
import socket
import sys

import uvicorn
import uvloop
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route


async def beat(request: Request) -> Response:
    await request.json()
    return JSONResponse({"status": "ok"})


async def main() -> None:
    app = Starlette(routes=[Route("/registry/heartbeat", beat, methods=["POST"])])
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listener:
        sys.stdout.write(json.dumps({"url": f"http://127.0.0.1:{listener.getsockname()[1]}"}) + "\n")
        sys.stdout.flush()
        config = uvicorn.Config(app, access_log=False, log_level=logging.WARNING, timeout_keep_alive=75)
        await uvicorn.Server(config).serve(sockets=[listener])


if __name__ == "__main__":
    uvloop.run(main())

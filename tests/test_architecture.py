"""Who may import whom, read from the source of both packages; and that importing does nothing (docs/architecture.md).

Lazy imports and imports for types count like all others. Every module has a place in the table below: a new one fails
until it is given one. The last tests plant a violation of each kind, so that the checker itself cannot go blind.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.platform import clean_env

ROOT = Path(__file__).parents[1]
PACKAGES = ("molecule_runtime", "molecule_mcp")
DOOR = "molecule_runtime.a2a_mcp_server"
BEHIND_THE_DOOR = ("molecule_mcp.serve", "molecule_mcp.pipe")
"""The one door that goes up, inside main(): to serve, and to the pipe's signals before that. Nothing imports it."""
PLATFORM = "molecule_runtime.reference_platform"
PLUGIN = "molecule_runtime.memory_plugin"
"""The memory plugin stands in the platform's column and uses its machinery; the platform talks to it by HTTP alone."""


@dataclass(frozen=True)
class Place:
    """A layer (0 the floor) and a column: "floor" is shared, "agent" and "platform" never import each other."""

    layer: int
    column: str


def _places(column: str, prefix: str, layers: dict[int, str]) -> dict[str, Place]:
    return {
        f"{prefix}{name}": Place(layer, column)
        for layer, names in layers.items()
        for name in names.replace(",", "").split()
    }


PLACES = {
    **_places("floor", "molecule_runtime.", {0: "errors clock text logs wire"}),
    **_places(
        "agent",
        "molecule_runtime.",
        {
            1: "settings credentials retry state",
            2: "connections answers upload_body client doorbell",
            3: "presence ownership inbox peers messages attachments history cards delegation memory",
            4: "runtime workspace survey agent",
            8: "a2a_mcp_server",
        },
    ),
    **_places(
        "platform",
        f"{PLATFORM}.",
        {
            1: "config metrics identifiers refusals strict_json text_search",
            2: "store bus",
            3: "services auth relay",
            4: "routes sweeper parts middleware rate_limit memory_sidecar serving",
            5: "app attach",
        },
    ),
    **_places(
        "platform",
        f"{PLUGIN}.",
        {1: "config ending", 2: "store", 3: "namespaces memories", 4: "requests routes sweeper parts", 5: "app"},
    ),
    **_places(
        "agent",
        "molecule_mcp.",
        {
            5: "tools instructions prompts resources transport pipe startup channel hosts",
            6: "server serve doctor",
            7: "cli __main__",
        },
    ),
    # The packages themselves: names and versions only.
    "molecule_runtime": Place(0, "floor"),
    "molecule_mcp": Place(0, "floor"),
    PLATFORM: Place(0, "platform"),
    PLUGIN: Place(0, "platform"),
}
"""A module has the place of its longest known prefix: `inbox.journal` that of `inbox`."""


@dataclass(frozen=True)
class Import:
    """One import of a module of ours by a module of ours; `scope` is the function it stands in, "" at the top."""

    importer: str
    imported: str
    line: int
    scope: str

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.imported}"


def modules(root: Path) -> dict[str, Path]:
    """Every module of both packages by its dotted name."""
    found = {}
    for package in PACKAGES:
        for file in sorted((root / package).rglob("*.py")):
            parts = list(file.relative_to(root).with_suffix("").parts)
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imports(name: str, file: Path, known: set[str]) -> Iterator[Import]:
    """Every import of ours in a file, at the top, in functions, and under TYPE_CHECKING."""
    tree = ast.parse(file.read_text(encoding="utf-8"), str(file))
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]

    def visit(node: ast.AST, scope: str) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            inner = child.name if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) else scope
            targets: list[str] = []
            if isinstance(child, ast.Import):
                targets = [alias.name for alias in child.names]
            elif isinstance(child, ast.ImportFrom):
                base = child.module or ""
                if child.level:
                    above = package.split(".")[: len(package.split(".")) - child.level + 1]
                    base = ".".join([*above, *([base] if base else [])])
                targets = [full if (full := f"{base}.{alias.name}") in known else base for alias in child.names]
            if not isinstance(child, ast.Import | ast.ImportFrom):
                yield from visit(child, inner)
                continue
            for target in targets:
                if target.split(".")[0] in PACKAGES:
                    yield Import(name, target, child.lineno, scope)

    yield from visit(tree, "")


def place_of(module: str) -> Place | None:
    """The place of the longest known prefix; a package's own name is no prefix of its modules."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        prefix = ".".join(parts[:length])
        if prefix in PLACES and (length == len(parts) or prefix not in (*PACKAGES, PLATFORM, PLUGIN)):
            return PLACES[prefix]
    return None


def violations(root: Path) -> list[str]:
    """Everything in the tree that breaks a rule, as sentences."""
    files = modules(root)
    known = set(files)
    found = [f"{name} has no place in the table" for name in files if place_of(name) is None]
    for name, file in files.items():
        for one in imports(name, file, known):
            reason = reason_against(one)
            if reason is not None:
                found.append(f"{one}: {reason}")
    return found


def reason_against(one: Import) -> str | None:
    """Why an import may not be, or None."""
    importer, imported = place_of(one.importer), place_of(one.imported)
    if importer is None or imported is None:
        return None if importer is None else "it has no place in the table"
    if one.imported == DOOR:
        return "nothing imports the door"
    if one.importer == DOOR:
        if not one.imported.startswith("molecule_mcp"):
            return None
        is_open = one.imported in BEHIND_THE_DOOR and one.scope == "main"
        return None if is_open else "the door opens inside main() to serve only"
    if _within(PLUGIN, one.imported) and _within(PLATFORM, one.importer):
        return "the platform talks to the plugin by HTTP alone"
    if _is_platform(one.imported) and not _is_platform(one.importer):
        return None if one.importer.startswith("molecule_mcp.cli") else "only molecule_mcp.cli knows the platform"
    if _is_platform(one.importer) and imported.column != "floor" and not _is_platform(one.imported):
        return "the two columns never import each other"
    if one.importer.startswith("molecule_runtime") and one.imported.startswith("molecule_mcp"):
        return "the runtime does not know MCP"
    if imported.layer > importer.layer:
        return f"upwards, from layer {importer.layer} to {imported.layer}"
    return None


def _is_platform(module: str) -> bool:
    return _within(PLATFORM, module) or _within(PLUGIN, module)


def _within(package: str, module: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def test_every_import_goes_down() -> None:
    """design, Who may import whom."""
    assert violations(ROOT) == []


def test_the_reader_sees_this_tree() -> None:
    """Ours: a checker that reads nothing finds nothing."""
    files = modules(ROOT)
    assert {"molecule_runtime.inbox.journal", "molecule_mcp.serve", f"{PLATFORM}.app"} <= files.keys()
    read = [one for name, file in files.items() for one in imports(name, file, set(files))]
    scopes = {(one.importer, one.imported): one.scope for one in read}
    assert scopes[DOOR, "molecule_mcp.serve"] == "main"
    assert scopes["molecule_runtime.workspace", "molecule_runtime.inbox.journal"] == ""
    assert len(read) > 150


def test_there_is_no_circle() -> None:
    """design: also within a layer, and for types."""
    files = modules(ROOT)
    edges: dict[str, set[str]] = {
        name: {one.imported for one in imports(name, file, set(files)) if one.imported != name}
        for name, file in files.items()
    }
    done: set[str] = set()

    def walk(name: str, trail: tuple[str, ...]) -> list[str]:
        if name in trail:
            return [" -> ".join((*trail[trail.index(name) :], name))]
        if name in done:
            return []
        found = [circle for other in sorted(edges.get(name, ())) for circle in walk(other, (*trail, name))]
        done.add(name)
        return found

    # A package that lists its own modules, and modules that read the package's table of them, are one unit.
    units = {"molecule_mcp.cli", "molecule_mcp.tools"}
    circles = [circle for name in files for circle in walk(name, ())]
    assert [circle for circle in circles if not any(circle.count(unit) > 1 for unit in units)] == []


PLANTED = {
    "upwards": ("molecule_runtime/client.py", "import molecule_runtime.presence\n", "upwards, from layer 2 to 3"),
    "upwards in a function": (
        "molecule_runtime/state.py",
        "def f():\n    from molecule_runtime.inbox.journal import Journal\n",
        "upwards, from layer 1 to 3",
    ),
    "upwards for a type": (
        "molecule_runtime/clock.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from molecule_runtime import settings\n",
        "upwards, from layer 0 to 1",
    ),
    "relative": ("molecule_runtime/inbox/journal.py", "from ..runtime import Runtime\n", "upwards, from layer 3 to 4"),
    "agent to platform": (
        "molecule_runtime/runtime.py",
        "from molecule_runtime.reference_platform.bus import EventBus\n",
        "only molecule_mcp.cli knows the platform",
    ),
    "platform to agent": (
        "molecule_runtime/reference_platform/app.py",
        "from molecule_runtime.settings import environment\n",
        "the two columns never import each other",
    ),
    "platform to plugin": (
        "molecule_runtime/reference_platform/app.py",
        "from molecule_runtime.memory_plugin.config import PluginConfig\n",
        "the platform talks to the plugin by HTTP alone",
    ),
    "agent to plugin": (
        "molecule_runtime/runtime.py",
        "from molecule_runtime.memory_plugin.config import PluginConfig\n",
        "only molecule_mcp.cli knows the platform",
    ),
    "plugin to agent": (
        "molecule_runtime/memory_plugin/app.py",
        "from molecule_runtime.settings import environment\n",
        "the two columns never import each other",
    ),
    "tools to platform": (
        "molecule_mcp/tools/inbox.py",
        "import molecule_runtime.reference_platform\n",
        "only molecule_mcp.cli knows the platform",
    ),
    "runtime to mcp": (
        "molecule_runtime/workspace.py",
        "from molecule_mcp.pipe import Pipe\n",
        "the runtime does not know MCP",
    ),
    "tools to server": ("molecule_mcp/tools/inbox.py", "import molecule_mcp.server\n", "upwards, from layer 5 to 6"),
    "the door from outside": (
        "molecule_mcp/serve.py",
        "from molecule_runtime.a2a_mcp_server import main\n",
        "nothing imports the door",
    ),
    "the door opened at import": (
        "molecule_runtime/a2a_mcp_server.py",
        "from molecule_mcp.serve import serve\n",
        "the door opens inside main() to serve only",
    ),
    "another door": (
        "molecule_runtime/a2a_mcp_server.py",
        "def main():\n    from molecule_mcp.server import build_server\n",
        "the door opens inside main() to serve only",
    ),
    "unknown module": ("molecule_runtime/helpers.py", "", "molecule_runtime.helpers has no place in the table"),
    "unknown platform module": (
        "molecule_runtime/reference_platform/misc.py",
        "",
        f"{PLATFORM}.misc has no place in the table",
    ),
}


@pytest.mark.parametrize("kind", list(PLANTED))
def test_a_planted_violation_is_found(tmp_path: Path, kind: str) -> None:
    """Ours: each kind of rule, broken once in an otherwise clean tree."""
    path, source, reason = PLANTED[kind]
    for file in modules(ROOT).values():
        copy = tmp_path / file.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text("")
    assert violations(tmp_path) == []
    (tmp_path / path).write_text(source)
    found = violations(tmp_path)
    assert len(found) == 1
    assert found[0].endswith(reason)


IMPORT_EVERYTHING = """
import logging, os, socket, sys, threading
names = sys.argv[1:]
import asyncio, sqlite3, ssl  # what they do at import is theirs
for heavy in ("httpx", "httpx2", "mcp", "mcp.server.lowlevel", "pydantic", "structlog", "tenacity", "typer", "rich",
              "uvicorn", "starlette.applications", "sqlalchemy.ext.asyncio", "alembic.command", "websockets",
              "websockets.asyncio.client", "filelock", "prometheus_client", "anyio.to_thread", "click",
              "starlette.middleware.cors"):
    try:
        __import__(heavy)
    except ImportError:
        pass

for method in ("__getitem__", "__contains__", "__iter__", "get", "copy", "items", "keys", "values"):
    def watched(self, *arguments, _real=getattr(type(os.environ), method), **more):
        frame = sys._getframe(1)
        while frame.f_globals["__name__"] in ("os", "collections.abc", "_collections_abc", __name__):
            frame = frame.f_back
        if frame.f_globals["__name__"].split(".")[0] in ("molecule_runtime", "molecule_mcp"):
            raise SystemExit(f"{frame.f_globals['__name__']}:{frame.f_lineno} read the environment at import")
        return _real(self, *arguments, **more)
    setattr(type(os.environ), method, watched)

def no_socket(*_arguments, **_more):
    raise SystemExit("a socket was made at import")

handlers, threads = list(logging.getLogger().handlers), threading.active_count()
level = logging.getLogger().level
socket.socket.__init__ = no_socket
for name in names:
    __import__(name)
ours = [logger for key, logger in logging.root.manager.loggerDict.items()
        if key.split(".")[0] in ("molecule_runtime", "molecule_mcp") and getattr(logger, "handlers", [])]
assert threading.active_count() == threads, threading.enumerate()
assert (logging.getLogger().handlers, logging.getLogger().level) == (handlers, level)
assert ours == []
import structlog
assert not structlog.is_configured()
print(len(names))
"""


def test_importing_has_no_effect() -> None:
    """design: no environment read, no network, no logger, no client; migrations run only from Alembic."""
    names = [name for name in modules(ROOT) if not name.endswith("__main__") and ".migrations" not in name]
    broken = {"PLATFORM_URL": "not a url", "WORKSPACE_ID": "not a uuid", "MOLECULE_MCP_HEARTBEAT_SECS": "often"}
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_EVERYTHING, *names],
        cwd=ROOT,
        env=clean_env(PYTHONPATH=str(ROOT), **broken),
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert (done.stdout, done.stderr, done.returncode) == (f"{len(names)}\n", "", 0)

"""The golden exchanges of every route, sent to a real plugin on both databases."""

from __future__ import annotations

import json

import pytest

from molecule_runtime.memory_plugin.routes import routes
from molecule_runtime.wire import memories as wire
from tests.reference_platform.support import Database
from tests.reference_platform.test_golden import GOLDEN, MEMORY, PEER, WORKSPACE, differences

from .support import Plugin

REPLIES: dict[str, type[wire.WireModel]] = {
    "plugin_health": wire.PluginHealth,
    "plugin_put_namespace": wire.PluginNamespace,
    "plugin_patch_namespace": wire.PluginNamespace,
    "plugin_write": wire.MemoryWritten,
    "plugin_search": wire.SearchReply,
}
"""What those who call a route read from its answers."""
FILES = {path.stem: json.loads(path.read_text()) for path in sorted(GOLDEN.glob("plugin_*.json"))}


@pytest.mark.parametrize("file", FILES)
async def test_golden_exchanges_are_answered_as_recorded(plugin: Plugin, database: Database, file: str) -> None:
    """Status and shape, of refusals the very words, and the wire models read what they hold (contract 7.4)."""
    document = FILES[file]
    for exchange in document["exchanges"]:
        await set_the_scene(plugin)
        if exchange["name"] == "degraded":
            database.sql("ALTER TABLE memory_namespaces RENAME TO hidden")
        method, path = document["endpoint"].split(" ")
        content = exchange.get("raw", json.dumps(exchange["request"]) if "request" in exchange else None)
        reply = await plugin.http.request(method, exchange.get("path", path), content=content)
        where = f"{file}: {exchange['name']}"
        assert reply.status_code == exchange["status"], where
        if reply.status_code == 204:
            assert reply.content == b"", where
            continue
        assert reply.headers["Content-Type"] == "application/json", where
        if reply.is_success or reply.status_code == 503:
            assert differences(exchange["response"], reply.json()) == [], where
            for answer in (exchange["response"], reply.json()):
                REPLIES[file].model_validate(answer)
        else:
            assert reply.json() == exchange["response"], where
            wire.PluginError.model_validate(reply.json())


async def set_the_scene(plugin: Plugin) -> None:
    """The namespaces of the files: one with one memory, and an empty one."""
    here, team = f"workspace:{WORKSPACE}", f"team:{PEER}"
    for namespace, kind in ((here, "workspace"), (team, "team")):
        await plugin.http.delete(f"/v1/namespaces/{namespace}")
        put = await plugin.http.put(f"/v1/namespaces/{namespace}", json={"kind": kind})
        assert put.status_code == 200
    propagation = {"source_workspace_id": WORKSPACE}
    await plugin.write("部署在星期五", here, id=MEMORY, pin=True, propagation=propagation)


def test_every_route_has_its_file() -> None:
    """A new route cannot be forgotten (ours)."""
    recorded = [document["endpoint"].split(" ") for document in FILES.values()]
    for route in routes():
        (method,) = route.methods - {"HEAD"} if route.methods else ()
        assert any(method == verb and route.path_regex.match(path) for verb, path in recorded), route.path

"""`molecule-mcp memory-plugin`: the service that keeps memories, for any platform."""

from __future__ import annotations

import asyncio
import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from molecule_mcp.cli import _output
from molecule_mcp.cli._directories import make_private

if TYPE_CHECKING:
    from molecule_runtime.memory_plugin.config import PluginConfig

LISTEN_ADDR = "MEMORY_PLUGIN_LISTEN_ADDR"
DATABASE_URL = "MEMORY_PLUGIN_DATABASE_URL"
DEFAULT_DATABASE = Path("~/.molecule-workspace/memory/memory.sqlite3")


def memory_plugin(
    port: Annotated[
        int | None,
        typer.Option(help=f"Port; 0 picks a free one. Default: that of {LISTEN_ADDR}, else 9100.", min=0, max=65535),
    ] = None,
    db: Annotated[
        str | None,
        typer.Option(
            help=f"SQLite file, database URL, or the word postgresql: the URL is then in {DATABASE_URL}, which is "
            f"required. Default: {DATABASE_URL} if it is set (empty is refused), else {DEFAULT_DATABASE}.",
            metavar="PATH|URL|postgresql",
        ),
    ] = None,
    parent_pipe: Annotated[
        bool, typer.Option("--parent-pipe", help="End when stdin is closed: a parent holds the other end of a pipe.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON line once it answers.")] = False,
) -> None:
    """Run the memory plugin: memories over HTTP, for a platform on this machine.

    It asks nobody who he is, so it listens on 127.0.0.1 unless MEMORY_PLUGIN_LISTEN_ADDR says otherwise.
    """
    try:
        from molecule_runtime.memory_plugin.config import PluginConfig
        from molecule_runtime.settings import environment
    except ModuleNotFoundError as missing:
        raise typer.Exit(_output.missing_extra("platform", missing.name)) from None
    default = DEFAULT_DATABASE.expanduser()
    config = PluginConfig.from_env(environment(), port=port, database=db, default_database=default)
    if config.database_url == f"sqlite:///{default}":
        make_private(default.parent)
    raise typer.Exit(_run(config, parent_pipe=parent_pipe, as_json=as_json))


def _run(config: PluginConfig, *, parent_pipe: bool, as_json: bool) -> int:
    from molecule_runtime import logs

    try:
        import uvloop

        from molecule_runtime.memory_plugin.app import serve
        from molecule_runtime.memory_plugin.ending import end_in_time, end_with_the_parent
        from molecule_runtime.reference_platform.config import is_loopback
        from molecule_runtime.reference_platform.store.engine import StoreError, shown
    except ModuleNotFoundError as missing:
        return _output.missing_extra("platform", missing.name)
    try:
        if config.database_url.startswith("postgresql"):
            importlib.import_module("asyncpg")
    except ModuleNotFoundError as missing:
        return _output.missing_extra("postgres", missing.name)
    logs.configure(stderr_level="WARNING", file=None)
    if parent_pipe:
        end_with_the_parent(sys.stdin.fileno())
    if not is_loopback(config.host):
        _output.complain(f"Listening on {config.host}: everyone who reaches it can read and change every memory.")
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(config, on_ready=lambda url: _announce(url, as_json=as_json), on_end=end_in_time))
    except StoreError as error:
        _output.complain(
            f"The database {shown(config.database_url)} cannot be used: {error.reason}. Check --db or {DATABASE_URL}."
        )
        return 5
    except KeyboardInterrupt:
        return 130
    return 0


def _announce(url: str, *, as_json: bool) -> None:
    if as_json:
        _output.json_line({"url": url})
    else:
        _output.line(f"The memory plugin answers at {url} (stop it with Ctrl-C).")

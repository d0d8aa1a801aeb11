"""`molecule-mcp platform`: the bundled reference platform, for one machine, a test or a first look."""

from __future__ import annotations

import asyncio
import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from molecule_mcp.cli import _output
from molecule_mcp.cli._directories import make_private
from molecule_runtime.errors import Problem, SettingsError

if TYPE_CHECKING:
    from molecule_runtime.reference_platform.attach import Attached
    from molecule_runtime.reference_platform.config import PlatformConfig

POSTGRESQL = "postgresql+asyncpg://"
DATABASE_URLS = ("sqlite://", POSTGRESQL)
DEFAULT_DATABASE = Path("~/.molecule-workspace/platform/platform.sqlite3")


def platform(
    host: Annotated[str, typer.Option(help="Address to listen on; anything but loopback needs ADMIN_TOKEN.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="Port; 0 picks a free one.", min=0, max=65535)] = 8080,
    db: Annotated[str, typer.Option(help="SQLite file or database URL.", metavar="PATH|URL", show_default=True)] = str(
        DEFAULT_DATABASE
    ),
    workspace: Annotated[
        str | None, typer.Option(help="Create or reuse a workspace of this name and print its settings.")
    ] = None,
    memory: Annotated[
        bool,
        typer.Option(
            "--memory",
            help="Run a memory plugin beside it: on a free port unless MEMORY_PLUGIN_LISTEN_ADDR names one, with "
            "<db>.memory.sqlite3 unless there is a MEMORY_PLUGIN_DATABASE_URL.",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON line once it answers.")] = False,
) -> None:
    """Run the bundled reference platform."""
    try:
        from molecule_runtime.reference_platform.config import PlatformConfig
        from molecule_runtime.settings import environment
    except ModuleNotFoundError as missing:
        raise typer.Exit(_output.missing_extra("platform", missing.name)) from None
    config = PlatformConfig.from_env(environment(), host=host, port=port, database=_database(db), memory=memory)
    if memory and config.memory_sidecar is None and not config.memory_plugin_url:
        _output.complain("--memory: MEMORY_PLUGIN_DISABLE=1 forbids it, so there is no memory plugin.")
    raise typer.Exit(_run(config, workspace, as_json=as_json))


def _run(config: PlatformConfig, workspace: str | None, *, as_json: bool) -> int:
    from molecule_runtime import logs

    try:
        import uvloop

        from molecule_runtime.reference_platform.app import serve
        from molecule_runtime.reference_platform.attach import attach
        from molecule_runtime.reference_platform.memory_sidecar import SidecarFailed
        from molecule_runtime.reference_platform.refusals import Refusal
        from molecule_runtime.reference_platform.store.engine import StoreError, shown
    except ModuleNotFoundError as missing:
        return _output.missing_extra("platform", missing.name)
    try:
        if config.database.startswith(POSTGRESQL):
            importlib.import_module("asyncpg")
    except ModuleNotFoundError as missing:
        return _output.missing_extra("postgres", missing.name)
    logs.configure(stderr_level="WARNING", file=None)

    async def main() -> None:
        attached = await attach(config, workspace) if workspace is not None else None
        await serve(config, on_ready=lambda url: _announce(url, config, attached, as_json=as_json))

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # half the cost of asyncio's own
            runner.run(main())
    except Refusal as refusal:
        _output.complain(f"--workspace: {refusal.body()['error']}. Use at most 255 characters and none of {{}}[]|>*&!")
        return 2
    except StoreError as error:
        _output.complain(
            f"The database {shown(config.database_url)} cannot be used: {error.reason}. Check the path or URL of --db."
        )
        return 5
    except SidecarFailed as failure:
        _output.complain(f"The memory plugin did not start: {failure}. What it said itself stands above, if anything.")
        return 5
    except KeyboardInterrupt:
        return 130
    return 0


def _announce(url: str, config: PlatformConfig, attached: Attached | None, *, as_json: bool) -> None:
    if config.development:
        _output.complain("Development mode: everyone on this machine may use the canvas and admin routes.")
    settings = None
    if attached is not None:
        settings = {
            "PLATFORM_URL": url,
            "WORKSPACE_ID": attached.workspace_id,
            "MOLECULE_WORKSPACE_TOKEN": attached.auth_token,
        }
    if as_json:
        _output.json_line({"url": url} | ({"workspace": settings} if settings else {}))
        return
    _output.line(f"The platform answers at {url} (stop it with Ctrl-C).")
    if config.memory_sidecar is not None and config.memory_sidecar.database and not config.memory_plugin_url:
        _output.line(f"A memory plugin beside it keeps memories in {config.memory_sidecar.database}.")
    if settings is not None and attached is not None:
        _output.line(
            f"Workspace {attached.name!r} is {'new' if attached.created else 'reused'}; for the host's env block:"
        )
        for name, value in settings.items():
            _output.line(f"  {name}={value}")


def _database(given: str) -> str:
    """A URL as it is; a path with its directory made, so that the first start needs no preparation.

    Raises:
        SettingsError: a URL of a database the platform does not know.
    """
    if "://" in given:
        if not given.startswith(DATABASE_URLS):
            summary = f"--db: no database of the kind {given.partition('://')[0]!r} is known"
            fix = f"Give the path of a SQLite file, or a URL that starts with {' or '.join(DATABASE_URLS)}."
            raise SettingsError((Problem("platform.database", summary, fix),))
        return given
    path = Path(given).expanduser().absolute()
    if path == DEFAULT_DATABASE.expanduser():
        make_private(path.parent)
    return str(path)

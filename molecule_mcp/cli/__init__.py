"""The commands of `molecule-mcp`, one file each; each imports its heavy part when it runs."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from molecule_mcp.cli import _output, chat, demo, memory_plugin, platform, presence, send, status
from molecule_runtime import __version__
from molecule_runtime.errors import MoleculeError, outcome

app = typer.Typer(
    name="molecule-mcp",
    help="Makes an AI agent on this machine a member of a Molecule canvas team. Without a command: serve.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"molecule-mcp {__version__}\n")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _main(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        raise typer.Exit(_serve(strict=False))


@app.command("serve")
def _serve_command(
    strict: Annotated[bool, typer.Option("--strict", help="End with exit code 2 when a setting is wrong.")] = False,
) -> None:
    """Serve MCP on stdin and stdout: what a host spawns."""
    raise typer.Exit(_serve(strict=strict))


app.command("presence")(presence.presence)
app.command("status")(status.status)
app.command("send")(send.send)
app.command("chat")(chat.chat)
app.command("platform")(platform.platform)
app.command("memory-plugin")(memory_plugin.memory_plugin)
app.command("demo")(demo.demo)


def _serve(*, strict: bool) -> int:
    from molecule_mcp.pipe import Pipe

    pipe = Pipe.claim_early()
    from molecule_mcp.serve import serve

    return serve(pipe, strict=strict)


def run() -> int:
    """Run the command line and give its exit code; expected failures are two sentences on stderr."""
    try:
        app(prog_name="molecule-mcp")
    except SystemExit as leave:
        return leave.code if isinstance(leave.code, int) else 0
    except MoleculeError as error:
        from molecule_mcp.startup import explanation

        _output.complain(explanation(error))
        return outcome(error).exit_code
    return 0

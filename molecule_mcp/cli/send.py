"""`molecule-mcp send`: one message from the agent to its user, or, on a development platform, the other way round."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from molecule_mcp.cli import _output

if TYPE_CHECKING:
    from molecule_runtime.settings import Settings, WorkspaceSettings


def send(
    text: Annotated[str, typer.Argument(metavar="TEXT", help="The message; - reads it from stdin.")],
    workspace: Annotated[str | None, typer.Option(metavar="ID", help="Which workspace, when several are set.")] = None,
    as_user: Annotated[
        bool, typer.Option("--as-user", help="Write to the agent as the user, on a development platform.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Send the user a message in the agent's name."""
    from molecule_mcp.startup import choose_workspace
    from molecule_runtime import logs
    from molecule_runtime.settings import Settings, environment

    settings = Settings.from_env(environment())
    told = choose_workspace(settings, workspace)
    message = _message(text)
    logs.configure(stderr_level=settings.effective_log_level, file=None)
    try:
        asyncio.run(_as_user(told, message) if as_user else _as_agent(settings, told, message))
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    if as_json:
        _output.json_line({"status": "sent", "workspace_id": told.id})
    else:
        _output.line(f"Sent to {'the agent' if as_user else 'the user'} of {told.id}.")


def _message(text: str) -> str:
    """The text of the argument, or of stdin without the newline at its end.

    Raises:
        InvalidArgument: there is nothing to send.
    """
    from molecule_runtime.errors import InvalidArgument
    from molecule_runtime.text import well_formed

    if text == "-":
        given = sys.stdin.buffer.read() if sys.stdin is not None else b""
        text = given.decode("utf-8", "replace").rstrip("\r\n")
    if not text.strip():
        raise InvalidArgument(argument="TEXT", reason="there is nothing to send, the text is blank")
    return well_formed(text)


async def _as_agent(settings: Settings, told: WorkspaceSettings, message: str) -> None:
    from molecule_runtime.client import PlatformClient
    from molecule_runtime.credentials import Credentials
    from molecule_runtime.messages import send_to_user
    from molecule_runtime.state import StateDir, WorkspaceState

    root = StateDir.to_look(settings.configs_dir, home=Path.home()).root
    credentials = Credentials(told, WorkspaceState(root / told.id))
    async with PlatformClient(told.platform_url, told.id, credentials, org_id=settings.org_id) as client:
        await send_to_user(client, message)


async def _as_user(told: WorkspaceSettings, message: str) -> None:
    from molecule_mcp.cli._canvas import Canvas

    async with Canvas(told.platform_url, told.id) as canvas:
        await canvas.say(message)

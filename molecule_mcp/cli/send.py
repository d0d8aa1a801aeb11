"""`molecule-mcp send`: one message from the agent to its user, or, on a development platform, the other way round."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from molecule_mcp.cli import _output, _progress

if TYPE_CHECKING:
    from molecule_runtime.client import PlatformClient
    from molecule_runtime.inbox.mailbox import Mailbox
    from molecule_runtime.messages import Enclosed
    from molecule_runtime.settings import Settings, WorkspaceSettings
    from molecule_runtime.state import WorkspaceState
    from molecule_runtime.wire.uploads import UploadedFile


def send(
    text: Annotated[str, typer.Argument(metavar="TEXT", help="The message; - reads it from stdin.")],
    file: Annotated[
        list[str] | None, typer.Option(metavar="PATH", help="A file to send along; may be given again.")
    ] = None,
    workspace: Annotated[str | None, typer.Option(metavar="ID", help="Which workspace, when several are set.")] = None,
    as_user: Annotated[
        bool, typer.Option("--as-user", help="Write to the agent as the user, on a development platform.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Send the user a message in the agent's name."""
    from molecule_mcp.startup import choose_workspace
    from molecule_runtime import logs
    from molecule_runtime.messages import listing
    from molecule_runtime.settings import Settings, environment

    settings = Settings.from_env(environment())
    told = choose_workspace(settings, workspace)
    message = _message(text)
    logs.configure(stderr_level=settings.effective_log_level, file=None)
    enclosed = _enclosed(settings, file or [])
    sending = _as_user(told, message, enclosed) if as_user else _as_agent(settings, told, message, enclosed)
    if file and not as_json and _progress.has_terminal():
        sending = _progress.with_bar(sending, enclosed.progress)
    try:
        files = asyncio.run(sending)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    if as_json:
        _output.json_line({"status": "sent", "workspace_id": told.id, "attachments": listing(files)})
    else:
        along = f", with {'a file' if len(files) == 1 else f'{len(files)} files'}" if files else ""
        _output.line(f"Sent to {'the agent' if as_user else 'the user'} of {told.id}{along}.")


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


def _enclosed(settings: Settings, paths: list[str]) -> Enclosed:
    """The files that were named, from wherever they are: a person chose them. Secrets are refused all the same."""
    from molecule_runtime.attachments import AttachmentPolicy
    from molecule_runtime.messages import Enclosed
    from molecule_runtime.state import StateDir

    state_dir = StateDir.to_look(settings.configs_dir, home=Path.home()).root
    with suppress(FileNotFoundError):  # the working directory was removed
        paths = [os.path.join(Path.cwd(), path) for path in paths]
    return Enclosed(paths, AttachmentPolicy.for_operator(settings, state_dir))


async def _as_agent(
    settings: Settings, told: WorkspaceSettings, message: str, enclosed: Enclosed
) -> list[UploadedFile]:
    from molecule_runtime.client import PlatformClient
    from molecule_runtime.credentials import Credentials
    from molecule_runtime.messages import send_to_user
    from molecule_runtime.state import StateDir, WorkspaceState

    state = WorkspaceState(StateDir.to_look(settings.configs_dir, home=Path.home()).root / told.id)
    credentials = Credentials(told, state)
    async with PlatformClient(told.platform_url, told.id, credentials, org_id=settings.org_id) as client:
        if not enclosed.paths:
            return await send_to_user(client, message)
        with _inbox_beside(client, settings, state) as echoes:
            return await send_to_user(client, message, replace(enclosed, echoes=echoes))


@contextmanager
def _inbox_beside(client: PlatformClient, settings: Settings, state: WorkspaceState) -> Iterator[Mailbox | None]:
    """The inbox of a server that lives, or lived, here: it is told of what this command uploads."""
    from molecule_runtime.clock import SystemClock
    from molecule_runtime.errors import JournalUnusable
    from molecule_runtime.inbox.journal import Journal
    from molecule_runtime.inbox.mailbox import Mailbox
    from molecule_runtime.peers import PeerDirectory

    if not state.journal.exists():
        yield None
        return
    try:
        journal = Journal.open(state.journal)
    except JournalUnusable:
        yield None
        return
    clock = SystemClock()
    directory = PeerDirectory(client, clock=clock)
    try:
        yield Mailbox(
            journal,
            state,
            workspace_id=client.workspace_id,
            clock=clock,
            directory=directory,
            lease_s=settings.lease_secs,
        )
    finally:
        journal.close()


async def _as_user(told: WorkspaceSettings, message: str, enclosed: Enclosed) -> list[UploadedFile]:
    from molecule_mcp.cli._canvas import Canvas
    from molecule_runtime.messages import upload

    async with Canvas(told.platform_url, told.id) as canvas:
        files = await upload(canvas, enclosed) if enclosed.paths else []
        await canvas.say(message, files)
    return files

"""`molecule-mcp status`: one screen about every workspace of this machine. It looks and touches nothing."""

from __future__ import annotations

import asyncio
import dataclasses
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from molecule_mcp.cli import _output

if TYPE_CHECKING:
    from molecule_runtime.inbox.journal import Counts
    from molecule_runtime.survey import LogLine, Told, WorkspaceFacts

_COLOURS = {"online": "green", "starting": "yellow", "stopped": "dim"}


def status(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Show how the workspaces of this machine stand."""
    from molecule_mcp.startup import explanation
    from molecule_runtime import logs
    from molecule_runtime.errors import SettingsError
    from molecule_runtime.settings import environment
    from molecule_runtime.survey import Told, log_file_of, recent_problems, survey

    logs.configure(stderr_level="CRITICAL", file=None)  # what goes wrong here is shown as a fact
    told = Told.by(environment(), home=Path.home())
    try:
        found = asyncio.run(survey(told))
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    log_file = log_file_of(told.state)
    problems = recent_problems(log_file)
    if as_json:
        _output.json_line(_payload(told, found, log_file, problems))
    else:
        _show(told, found, log_file, problems)
    if told.settings is None and not told.is_missing:
        _output.complain(explanation(SettingsError(told.problems)))
        raise typer.Exit(2)


def _payload(told: Told, found: list[WorkspaceFacts], log_file: Path, problems: list[LogLine]) -> dict[str, Any]:
    from molecule_runtime import __version__

    return {
        "workspaces": [_workspace_json(one) for one in found],
        "version": __version__,
        "settings": "ok" if told.settings is not None else "missing" if told.is_missing else "wrong",
        "problems": [dataclasses.asdict(problem) for problem in told.problems],
        "state_dir": str(told.state.root),
        "log_file": str(log_file) if log_file.exists() else None,
        "recent": [dataclasses.asdict(line) for line in problems],
    }


def _workspace_json(one: WorkspaceFacts) -> dict[str, Any]:
    """The shape of `runtime_status`, and what only an onlooker can tell."""
    asked = one.platform_status is not None or one.platform_error is not None
    return {
        "id": one.id,
        "name": one.name,
        "platform_url": one.platform_url,
        "presence": {
            "state": one.state,
            "since": one.since,
            "last_ok_at": one.last_ok_at,
            "last_error": one.last_error,
        },
        "inbox": _inbox(one.counts) if one.counts is not None else None,
        "inbox_error": one.trouble,
        "owner": {"beat_pid": one.beat_pid, "inbox_pid": one.inbox_pid},
        "platform": {"status": one.platform_status, "error": one.platform_error} if asked else None,
    }


def _inbox(counts: Counts) -> dict[str, int]:
    """As in runtime_status."""
    shown = dataclasses.asdict(counts)
    del shown["held"]
    return shown


def _show(told: Told, found: list[WorkspaceFacts], log_file: Path, problems: list[LogLine]) -> None:
    workspaces = [_rows(one, told) for one in found]
    notes = _notes(told, found)
    recent = [f"{_clock(line.time)}  {_line(line, several=len(found) > 1)}" for line in problems]
    log = f"Log: {log_file}" if log_file.exists() else f"No log yet in {told.state.root}"
    if sys.stdout is not None and sys.stdout.isatty():
        _show_table(workspaces, notes, recent, log)
        return
    for note in notes:
        _output.line(note)
    for rows in workspaces:
        for key, value, _ in rows:
            _output.line(f"{key:<10}{value}")
        _output.line("")
    _output.line(log)
    for text in recent:
        _output.line(f"  {text}")


def _show_table(workspaces: list[list[tuple[str, str, str]]], notes: list[str], recent: list[str], log: str) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from molecule_runtime.text import printable

    console = Console(highlight=False)
    for note in notes:
        console.print(Text(printable(note)))
    table = Table(box=box.ROUNDED, show_header=False, pad_edge=True)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for rows in workspaces:
        for key, value, style in rows:
            table.add_row(key, Text(printable(value), style=style))
        table.add_section()
    if workspaces:
        console.print(table)
    console.print(Text(printable(log)), soft_wrap=True)
    if recent:
        console.print("Recent problems:")
    for text in recent:
        console.print(Text(f"  {printable(text)}"))


def _notes(told: Told, found: list[WorkspaceFacts]) -> list[str]:
    """What has to be said before the facts, a line each."""
    notes = []
    if told.settings is None and told.is_missing:
        missing = ", ".join(problem.id.removeprefix("settings.") for problem in told.problems)
        notes.append(f"Not set in this shell: {missing}. What {told.state.root} tells is shown.")
    elif told.settings is not None and {one.id for one in found} - {one.id for one in told.settings.workspaces}:
        notes.append(f"No workspace of the settings was served from {told.state.root}; these were:")
    if told.settings is not None:
        notes += [f"{problem.summary}. {problem.fix}" for problem in told.problems]
    if not found:
        notes.append(f"No workspace was served from {told.state.root} yet.")
    return notes


def _rows(one: WorkspaceFacts, told: Told) -> list[tuple[str, str, str]]:
    """(what, value, style) of one workspace."""
    rows = [("workspace", f"{one.name}  {one.id}", "bold"), _presence_row(one)]
    if one.last_error and one.state not in {"online", "starting"}:
        rows.append(("", one.last_error, "yellow"))
    if one.trouble is not None:
        rows.append(("inbox", f"cannot be read: {one.trouble}", "red"))
    elif one.counts is None:
        rows.append(("inbox", "none yet", "dim"))
    else:
        counts = one.counts
        text = f"{counts.new} new, {counts.leased} in hand, {counts.parked} parked"
        if counts.files_pending:
            text += f", {counts.files_pending} file{'s' if counts.files_pending > 1 else ''} still to come"
        rows.append(("inbox", text, "" if not (counts.new or counts.parked) else "yellow"))
    rows.append(("process", _processes(one), ""))
    if one.platform_status is not None:
        style = _COLOURS.get(one.platform_status, "yellow")
        rows.append(("platform", f"{one.platform_url} says {one.platform_status}", style))
    elif one.platform_error is not None:
        rows.append(("platform", one.platform_error, "red"))
    elif told.settings is None:
        rows.append(("platform", "not asked: its address is not set here", "dim"))
    return rows


def _presence_row(one: WorkspaceFacts) -> tuple[str, str, str]:
    parts = [one.state]
    if one.since is not None:
        parts.append(f"since {_clock(one.since)} ({_ago(one.since)})")
    elif one.state == "stopped":
        parts.append("never served from here")
    if one.last_ok_at is not None:
        parts.append(f"last beat {_ago(one.last_ok_at)} ago")
    return ("presence", ", ".join(parts), _COLOURS.get(one.state, "red"))


def _processes(one: WorkspaceFacts) -> str:
    beats, reads = one.beat_pid, one.inbox_pid
    if beats is None and reads is None:
        return "none"
    if beats == reads:
        return f"{beats} beats and reads the inbox"
    said = [
        f"{beats} beats" if beats else "none beats",
        f"{reads} reads the inbox" if reads else "none reads the inbox",
    ]
    return ", ".join(said)


def _line(line: LogLine, *, several: bool) -> str:
    whose = f"{line.workspace_id[:8]} " if several and line.workspace_id else ""
    text = line.text if len(line.text) <= 200 else line.text[:200] + "…"
    return f"{whose}{line.event}  {text}".rstrip()


def _clock(moment: str) -> str:
    """Local time, with the day when it is not today's."""
    try:
        local = datetime.fromisoformat(moment).astimezone()
    except ValueError:
        return moment
    return f"{local:%H:%M:%S}" if local.date() == datetime.now().date() else f"{local:%Y-%m-%d %H:%M:%S}"


def _ago(moment: str) -> str:
    """`40 s`, `5 min`, `3 h`, `2 days`."""
    try:
        seconds = max(0.0, (datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds())
    except ValueError:
        return "?"
    for unit, size in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{int(seconds // size)} {unit}"
    return f"{int(seconds)} s"

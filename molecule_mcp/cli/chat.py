"""`molecule-mcp chat`: a terminal chat as the user, on a development platform.

What the agent says is shown as it says it, also while something is being typed. When /ws drops it is opened again and
what was missed is read from the history; `Transcript` sees to it that nothing is shown twice.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections import Counter, defaultdict
from collections.abc import Coroutine
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from molecule_mcp.cli import _output

if TYPE_CHECKING:
    from molecule_mcp.cli._canvas import Canvas
    from molecule_runtime.history import Line, Page
    from molecule_runtime.settings import WorkspaceSettings
    from molecule_runtime.wire.events import Event

SHOWN_AT_FIRST = 20
READ_AT_ONCE = 500
"""Bubbles fetched after /ws was down: more than a person misses."""
DEFAULT_WAIT_S = 60.0
UNSENT_LIMIT_S = 5.0
"""How long Ctrl-D waits for a line that is on its way."""


def chat(
    workspace: Annotated[str | None, typer.Option(metavar="ID", help="Which workspace, when several are set.")] = None,
    wait: Annotated[
        float, typer.Option(metavar="SECONDS", min=0, help="How long to wait for an answer after the end of a pipe.")
    ] = DEFAULT_WAIT_S,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines, read plain lines.")] = False,
) -> None:
    """Talk to the agent as its user, on a development platform."""
    from molecule_mcp.startup import choose_workspace
    from molecule_runtime import logs
    from molecule_runtime.settings import Settings, environment

    settings = Settings.from_env(environment())
    told = choose_workspace(settings, workspace)
    logs.configure(stderr_level="ERROR", file=None)
    is_terminal = sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty() and not as_json
    if is_terminal:
        try:
            import prompt_toolkit  # noqa: F401 - only to name the extra before anything is shown
        except ModuleNotFoundError as missing:
            raise typer.Exit(_output.missing_extra("platform", missing.name)) from None
    screen: Screen = TerminalScreen() if is_terminal else JsonScreen() if as_json else PlainScreen()
    try:
        code = asyncio.run(_chat(told, screen, is_terminal=is_terminal, wait_s=wait))
    except KeyboardInterrupt:
        code = 130
    raise typer.Exit(code)


async def _chat(told: WorkspaceSettings, screen: Screen, *, is_terminal: bool, wait_s: float) -> int:
    """Talk until the input ends or the canvas does; the exit code.

    Raises:
        PlatformError: it could not be opened, or the workspace is gone.
    """
    from molecule_mcp.cli._canvas import Canvas

    ended_by: list[int] = []
    task = asyncio.current_task()
    assert task is not None

    def on_sigterm() -> None:
        ended_by.append(143)
        task.cancel()

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, on_sigterm)
    try:
        async with Canvas(told.platform_url, told.id) as canvas:
            talk = Talk(canvas, screen)
            return await _first_of(talk.follow(), talk.type_lines() if is_terminal else talk.read_lines(wait_s))
    except asyncio.CancelledError:
        if ended_by:
            return ended_by[0]
        raise


async def _first_of(*works: Coroutine[Any, Any, int]) -> int:
    """Run all until one ends, and end the others; its result or its error."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return done.pop().result()


class Screen(Protocol):
    """Where the chat is shown."""

    def line(self, line: Line, name: str) -> None:
        """Something that was said; `name` is the agent's."""

    def status(self, status: str, name: str) -> None:
        """The agent's status, at first and when it changes."""

    def note(self, text: str, **facts: object) -> None:
        """A word about the chat itself; `facts` say the same to a program."""


class Transcript:
    """What was shown, so that live events and pages of history together show each line once.

    An event and the row that is written after it share no id: they are told to be one by side, text and order in time.
    Bubbles of a page are known again by their time, which is their row's.
    """

    def __init__(self) -> None:
        self._known: set[tuple[str, str, str]] = set()
        self._begins_at = ""
        self._live: Counter[tuple[str, str]] = Counter()
        self._read: defaultdict[tuple[str, str], list[str]] = defaultdict(list)

    def begin(self, page: Page) -> list[Line]:
        """Take the first page; what to show of it."""
        lines = self.missed(page)
        if not page.reached_end and page.lines:
            self._begins_at = page.lines[0].created_at
        return lines[-SHOWN_AT_FIRST:]

    def missed(self, page: Page) -> list[Line]:
        """The lines of a page that were not shown yet."""
        found = []
        for line in page.lines:
            said = (_side(line.speaker), line.text)
            if (line.created_at, *said) in self._known or line.created_at < self._begins_at:
                continue
            self._known.add((line.created_at, *said))
            if self._live[said]:
                self._live[said] -= 1
                continue
            self._read[said].append(line.created_at)
            found.append(line)
        return found

    def heard(self, text: str, at: str) -> bool:
        """An event of the agent's message; False when a page has shown it: then its row is younger than the event."""
        said = ("agent", text)
        shown = [moment for moment in self._read[said] if moment >= at]
        if shown:
            self._read[said].remove(shown[0])
            return False
        self._live[said] += 1
        return True

    def said(self, text: str) -> None:
        """The user is saying this; it stands on the screen."""
        self._live["user", text] += 1

    def unsaid(self, text: str) -> None:
        """It could not be sent."""
        self._live["user", text] -= 1


def _side(speaker: str) -> str:
    """The canvas shows an agent's error as the system's; here it is one side."""
    return "user" if speaker == "user" else "agent"


class Talk:
    """One chat: what comes from the platform, and what goes there."""

    def __init__(self, canvas: Canvas, screen: Screen) -> None:
        self._canvas = canvas
        self._screen = screen
        self._transcript = Transcript()
        self._status: str | None = None
        self._name = "agent"
        self._began = asyncio.Event()
        self._answered = asyncio.Event()

    # what comes

    async def follow(self) -> int:
        """Show what is said and what changes, for ever; /ws is opened again when it drops.

        Raises:
            PlatformError: the first time, or when opening it again is of no use.
        """
        from molecule_runtime.errors import Unavailable, Unreachable
        from molecule_runtime.retry import CANVAS

        failures = 0
        while True:
            try:
                await self._canvas.get_workspace()  # says more about a wrong address than a handshake that fails
                async with self._canvas.listen() as events:
                    await self._catch_up()
                    await self._tell_status()
                    if failures:
                        self._screen.note("Connected again.", connected=True)
                    failures = 0
                    self._began.set()
                    async for event in events:
                        await self._take(event)
            except (Unreachable, Unavailable):
                if not self._began.is_set():
                    raise
            if not failures:
                self._screen.note("The connection is lost; trying again.", connected=False)
            failures += 1
            await asyncio.sleep(CANVAS.delay(failures))

    async def _catch_up(self) -> None:
        from molecule_runtime.history import with_user

        is_first = not self._began.is_set()
        page = await with_user(self._canvas, 5 * SHOWN_AT_FIRST if is_first else READ_AT_ONCE)
        if is_first:
            self._name = (await self._canvas.get_workspace()).name
        lines = self._transcript.begin(page) if is_first else self._transcript.missed(page)
        for line in lines:
            self._show(line)

    async def _take(self, event: Event) -> None:
        from molecule_runtime.history import Line, Speaker
        from molecule_runtime.wire._base import rfc3339
        from molecule_runtime.wire.events import STATUS_EVENTS, EventName

        if event.event == EventName.AGENT_MESSAGE:
            at, text = rfc3339(event.timestamp), str(event.payload.get("message", ""))
            if self._transcript.heard(text, at):
                self._show(Line(Speaker.AGENT, text, at, _files(event)))
        elif event.event == EventName.A2A_RESPONSE:
            await self._catch_up()  # an agent that is called answers in the row, which is there by now
        elif event.event in STATUS_EVENTS:
            await self._tell_status()

    async def _tell_status(self) -> None:
        status = await self._canvas.status()
        if status != self._status:
            self._status = status
            self._screen.status(status, self._name)

    def _show(self, line: Line) -> None:
        self._screen.line(line, self._name)
        if line.speaker != "user":
            self._answered.set()

    # what goes

    async def type_lines(self) -> int:
        """Send what is typed on a terminal until Ctrl-D (0) or Ctrl-C (130)."""
        from prompt_toolkit import PromptSession
        from prompt_toolkit.patch_stdout import patch_stdout

        unsent: asyncio.Queue[str] = asyncio.Queue()
        session: PromptSession[str] = PromptSession()
        await self._began.wait()
        sender = asyncio.ensure_future(self._send_all(unsent))
        try:
            with patch_stdout():
                while True:
                    try:
                        text = await session.prompt_async("you> ")
                    except EOFError:
                        break
                    except KeyboardInterrupt:
                        return 130
                    if text.strip():
                        unsent.put_nowait(text)
            try:
                await asyncio.wait_for(unsent.join(), UNSENT_LIMIT_S)
            except TimeoutError:
                self._screen.note("The last line may not have been sent.")
            return 0
        finally:
            sender.cancel()

    async def _send_all(self, unsent: asyncio.Queue[str]) -> None:
        from molecule_runtime.errors import MoleculeError, advice

        while True:
            text = await unsent.get()
            try:
                await self._say(text)
            except MoleculeError as error:
                self._screen.note(f"Not sent: {text}\n{advice(error)}")
            finally:
                unsent.task_done()

    async def read_lines(self, wait_s: float) -> int:
        """Send the lines of stdin, then wait for an answer to the last one.

        Raises:
            PlatformError: a line could not be sent.
        """
        await self._began.wait()
        lines = _stdin_lines()
        has_spoken = False
        while (text := await lines.get()) is not None:
            if text.strip():
                self._answered.clear()
                await self._say(text)
                has_spoken = True
        if has_spoken:
            try:
                await asyncio.wait_for(self._answered.wait(), wait_s)
            except TimeoutError:
                self._screen.note(f"No answer within {wait_s:g} s.", answered=False)
        return 0

    async def _say(self, text: str) -> None:
        self._transcript.said(text)
        try:
            await self._canvas.say(text)
        except BaseException:
            self._transcript.unsaid(text)
            raise


def _stdin_lines() -> asyncio.Queue[str | None]:
    """The lines of stdin as they come, and None at their end; read by a thread that nobody has to wait for.

    Read from the descriptor: a thread that waits in Python's buffered reader holds a lock that the interpreter wants on
    its way out.
    """
    loop = asyncio.get_running_loop()
    lines: asyncio.Queue[str | None] = asyncio.Queue()

    def put(line: str | None) -> None:
        try:
            loop.call_soon_threadsafe(lines.put_nowait, line)
        except RuntimeError:
            return  # the chat has ended

    def read() -> None:
        rest = b""
        with suppress(OSError, ValueError, AttributeError):  # there is no stdin, or it was closed
            while chunk := os.read(sys.stdin.fileno(), 65_536):
                *lines_read, rest = (rest + chunk).split(b"\n")
                for raw in lines_read:
                    put(raw.decode("utf-8", "replace").rstrip("\r"))
        if rest:
            put(rest.decode("utf-8", "replace"))
        put(None)

    threading.Thread(target=read, name="molecule-stdin", daemon=True).start()
    return lines


def _files(event: Event) -> tuple[Any, ...]:
    """The attachments of a live message."""
    from molecule_runtime.inbox.classify import FilePart

    given = event.payload.get("attachments")
    files = [one for one in given if isinstance(one, dict)] if isinstance(given, list) else []
    return tuple(FilePart(str(one.get("name", "file")), str(one.get("uri", "")), None, None) for one in files)


# the screens


def _parts(line: Line, name: str) -> tuple[str, str, str]:
    """(who, when, what) as a person reads it; later lines of a text are set in, so that none can pass for another's."""
    from molecule_runtime.text import clean_name, printable

    who = "you" if line.speaker == "user" else clean_name(name) or "agent"
    text = printable(line.text)
    for file in line.files:
        text += ("\n" if text else "") + f"[file: {clean_name(file.name) or 'file'}]"
    return who, _clock(line.created_at), text.replace("\n", "\n    ")


def _clock(moment: str) -> str:
    local = datetime.fromisoformat(moment).astimezone()
    return f"{local:%H:%M}" if local.date() == datetime.now().date() else f"{local:%Y-%m-%d %H:%M}"


class TerminalScreen:
    """Above the line that is being typed."""

    def line(self, line: Line, name: str) -> None:
        who, when, text = _parts(line, name)
        colour = "ansigreen" if who == "you" else "ansicyan"
        self._print([(f"bold {colour}", who), ("ansibrightblack", f" {when}  "), ("", text)])

    def status(self, status: str, name: str) -> None:
        from molecule_runtime.text import clean_name

        self.note(f"{clean_name(name) or 'The agent'} is {status}.")

    def note(self, text: str, **facts: object) -> None:
        from molecule_runtime.text import printable

        self._print([("ansibrightblack italic", f"· {printable(text)}")])

    def _print(self, parts: list[tuple[str, str]]) -> None:
        from prompt_toolkit import print_formatted_text
        from prompt_toolkit.formatted_text import FormattedText

        print_formatted_text(FormattedText(parts))


class PlainScreen:
    """Messages on stdout, all else on stderr."""

    def line(self, line: Line, name: str) -> None:
        who, when, text = _parts(line, name)
        _output.line(f"{who} {when}  {text}")

    def status(self, status: str, name: str) -> None:
        self.note(f"{name} is {status}.")

    def note(self, text: str, **facts: object) -> None:
        _output.complain(f"· {text}")


class JsonScreen:
    """One object a line, for a program."""

    def line(self, line: Line, name: str) -> None:
        said = {"type": "message", "from": str(line.speaker), "text": line.text, "created_at": line.created_at}
        _output.json_line(said | {"attachments": [{"name": file.name, "uri": file.uri} for file in line.files]})

    def status(self, status: str, name: str) -> None:
        _output.json_line({"type": "status", "status": status})

    def note(self, text: str, **facts: object) -> None:
        _output.json_line({"type": "note", "text": text, **facts})

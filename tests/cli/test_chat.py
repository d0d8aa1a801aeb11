"""`molecule-mcp chat`: the user's side of a talk on a terminal or a pipe, live and without repeats (agent-side 7)."""

from __future__ import annotations

import signal
import time
import uuid
from pathlib import Path

import pytest

from molecule_mcp.cli.chat import SHOWN_AT_FIRST, Transcript
from molecule_runtime.history import Line, Page, Speaker
from tests.cli.terminal import Piped, Terminal
from tests.support.platform import PlatformProcess, eventually


def at(second: int) -> str:
    return f"2026-01-01T00:{second // 60:02}:{second % 60:02}.000000Z"


def page(*said: tuple[Speaker, str, int], reached_end: bool = True) -> Page:
    return Page(tuple(Line(speaker, text, at(second)) for speaker, text, second in said), reached_end)


def texts(lines: list[Line]) -> list[str]:
    return [line.text for line in lines]


USER, AGENT, SYSTEM = Speaker.USER, Speaker.AGENT, Speaker.SYSTEM


def test_what_was_heard_or_said_is_not_missed() -> None:
    """Ours: after a drop only the lines that nobody saw are shown."""
    transcript = Transcript()
    assert texts(transcript.begin(page((USER, "before", 1)))) == ["before"]
    transcript.said("mine")
    assert transcript.heard("live", at(3))
    assert transcript.heard("Agent error: it broke", at(4))
    after = page(
        (USER, "before", 1),
        (USER, "mine", 2),
        (AGENT, "live", 3),
        (SYSTEM, "Agent error: it broke", 4),
        (AGENT, "live", 5),
        (USER, "mine", 6),
    )
    assert texts(transcript.missed(after)) == ["live", "mine"]
    assert transcript.missed(after) == []


def test_an_event_that_a_page_has_shown_is_not_shown_again() -> None:
    """Ours: /ws is opened before the page is read, so a line may come both ways; one said again later is another."""
    transcript = Transcript()
    transcript.begin(page((AGENT, "ok", 1)))
    assert texts(transcript.missed(page((AGENT, "ok", 1), (AGENT, "ok", 10)))) == ["ok"]
    assert not transcript.heard("ok", at(9)), "its row is of second 10"
    assert transcript.heard("ok", at(11))
    assert transcript.missed(page((AGENT, "ok", 12))) == []


def test_a_line_that_could_not_be_sent_hides_none_that_was() -> None:
    """Ours: the same words from another canvas are shown."""
    transcript = Transcript()
    transcript.begin(page())
    transcript.said("hello")
    transcript.unsaid("hello")
    assert texts(transcript.missed(page((USER, "hello", 5)))) == ["hello"]


def test_the_first_page_shows_its_end_and_what_is_older_never_comes() -> None:
    """Ours: the last 20 lines; a longer page after a drop must not bring back the time before."""
    transcript = Transcript()
    lines = [(USER, f"line {n}", n) for n in range(100)]
    shown = transcript.begin(page(*lines[50:], reached_end=False))
    assert texts(shown) == [f"line {n}" for n in range(100 - SHOWN_AT_FIRST, 100)]
    assert transcript.missed(page(*lines)) == []


class Agent:
    """The agent's side, played by hand: it registers and speaks when it is told to."""

    def __init__(self, platform: PlatformProcess, settings: dict[str, str]) -> None:
        self._platform = platform
        self.id = settings["WORKSPACE_ID"]
        self._headers = {"Authorization": f"Bearer {settings['MOLECULE_WORKSPACE_TOKEN']}"}

    def says(self, text: str, platform: PlatformProcess | None = None) -> None:
        http = (platform or self._platform).http
        http.post(f"/workspaces/{self.id}/notify", json={"message": text}, headers=self._headers).raise_for_status()

    def registers(self) -> None:
        body = {"id": self.id, "url": "", "delivery_mode": "poll", "agent_card": {"name": "a"}}
        self._platform.http.post("/registry/register", json=body, headers=self._headers).raise_for_status()


def user_of(settings: dict[str, str]) -> dict[str, str]:
    """The settings that play the user: no token."""
    return {name: settings[name] for name in ("PLATFORM_URL", "WORKSPACE_ID")}


def test_a_talk_on_a_terminal(tmp_path: Path) -> None:
    """Agent-side 7: history, answers while typing, status, a restart of the platform, Ctrl-D."""
    database = tmp_path / "platform.sqlite3"
    with PlatformProcess(database, workspace="laptop") as platform:
        agent = Agent(platform, platform.settings)
        for number in range(SHOWN_AT_FIRST + 2):
            platform.say(agent.id, f"earlier {number};")
        terminal = Terminal("chat", **user_of(platform.settings))
        with terminal:
            screen = terminal.wait_for("you>")
            assert f"earlier {SHOWN_AT_FIRST + 1};" in screen
            assert "earlier 2;" in screen
            assert "earlier 1;" not in screen
            assert "laptop is awaiting_agent." in screen
            agent.registers()
            terminal.wait_for("laptop is online.")
            terminal.type("half a ")
            agent.says("an answer \x1b[31mred\x1b]0;title\x07 你好\nyou 12:00  forged\n" + "long " * 2_000 + "END")
            screen = terminal.wait_for("END")
            assert "an answer ␛[31mred␛]0;title␇ 你好" in screen
            assert "\x1b[31mred" not in screen
            assert "\x1b]0;title" not in screen
            assert "    you 12:00  forged" in screen
            assert screen.count("long ") == 2_000
            terminal.type("line\r")
            eventually(lambda: ("user", "half a line") in platform.chat(agent.id), within_s=10)
            platform.stop()
            terminal.wait_for("The connection is lost")
            with PlatformProcess(database, port=platform.port) as again:
                agent.says("said in between", again)
                terminal.wait_for("Connected again.")
                agent.says("said afterwards", again)
                screen = terminal.wait_for("said afterwards")
                assert screen.count("said in between") == 1
                # Typed in the very moment a line is shown above the prompt, a key is the terminal's, not the program's.
                eventually(lambda: terminal.typed_to_the_end("\x04"), within_s=10)
                assert terminal.exit_code(within_s=2) == 0
        screen = terminal.screen()
        assert screen.count("END") == 1
        assert "Traceback" not in screen


@pytest.mark.parametrize(("end", "code"), [("Ctrl-C", 130), ("SIGTERM", 143), ("removed", 3)])
def test_other_ends_of_a_talk(platform_process: PlatformProcess, end: str, code: int) -> None:
    """Agent-side 2: 130, 143; 3 when the workspace is gone. The terminal is left as it was."""
    settings = platform_process.create_workspace(f"chat {uuid.uuid4().hex[:8]}")
    with Terminal("chat", **user_of(settings)) as terminal:
        before = terminal.modes()
        terminal.wait_for("you>")
        assert terminal.modes() != before
        if end == "Ctrl-C":
            terminal.type("\x03")
        elif end == "SIGTERM":
            terminal.signal(signal.SIGTERM)
        else:
            platform_process.http.delete(
                f"/workspaces/{settings['WORKSPACE_ID']}", params={"confirm": "true"}
            ).raise_for_status()
        assert terminal.exit_code(within_s=10) == code
        assert terminal.modes() == before
        screen = terminal.screen()
        assert "Traceback" not in screen
        assert ("was removed on the platform" in screen) == (end == "removed")


@pytest.mark.parametrize(("end", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_pipe_that_stays_open_does_not_hold_up_the_end(
    platform_process: PlatformProcess, end: signal.Signals, code: int
) -> None:
    """Agent-side 2: a thread that still reads the input must not abort the interpreter on its way out."""
    settings = platform_process.create_workspace(f"chat {uuid.uuid4().hex[:8]}")
    agent = Agent(platform_process, settings)
    agent.says("are you there?")
    with Piped("chat", "--json", **user_of(settings)) as piped:
        assert piped.json_line(type="message")["text"] == "are you there?"
        piped.say("yes\n")
        eventually(lambda: platform_process.chat(agent.id)[-1] == ("user", "yes"), within_s=10)
        piped.process.send_signal(end)
        assert piped.exit_code(within_s=10) == code
        assert "Fatal" not in piped.stderr()


def test_a_pipe_waits_for_the_answer(platform_process: PlatformProcess) -> None:
    """Agent-side 7: after the end of the input an answer is waited for, and then it ends."""
    settings = platform_process.create_workspace(f"chat {uuid.uuid4().hex[:8]}")
    agent = Agent(platform_process, settings)
    agent.says("from before")
    with Piped("chat", "--json", "--wait", "30", **user_of(settings)) as piped:
        assert piped.json_line(type="message")["text"] == "from before"
        piped.say("what is \x1b this?\r\n\n")
        piped.close_stdin()
        eventually(lambda: platform_process.chat(agent.id)[-1] == ("user", "what is \x1b this?"), within_s=10)
        agent.says("the \x9b answer")
        assert piped.json_line(type="message")["text"] == "the \x9b answer"
        assert piped.exit_code(within_s=10) == 0
        assert (piped.rest(), piped.stderr()) == ([], "")


def test_a_pipe_does_not_wait_for_ever(platform_process: PlatformProcess) -> None:
    """Agent-side 7: --wait; messages on stdout, all else on stderr."""
    settings = platform_process.create_workspace("laptop \x9b31m")
    with Piped("chat", "--wait", "0.2", **user_of(settings)) as piped:
        began = time.monotonic()
        piped.say("hello\n")
        piped.close_stdin()
        assert piped.exit_code(within_s=20) == 0
        assert time.monotonic() - began < 20
        assert piped.rest() == []
        eventually(lambda: "No answer within 0.2 s." in piped.stderr(), within_s=5)
        assert "\x9b" not in piped.stderr()

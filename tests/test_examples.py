"""The examples as programs of a user, beyond what they check themselves (tests/test_docs.py runs each)."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from tests.support.platform import PlatformProcess, clean_env, eventually

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_the_embedded_agent_serves_a_workspace_until_it_is_told_to_end(
    platform_process: PlatformProcess, tmp_path: Path
) -> None:
    """examples/README.md: with settings in the environment, until Ctrl-C."""
    settings = platform_process.create_workspace("embedded for real")
    workspace_id = settings["WORKSPACE_ID"]
    platform_process.say(workspace_id, "one two three")
    with subprocess.Popen(
        [sys.executable, str(EXAMPLES / "embed_in_your_agent" / "embed_in_your_agent.py")],
        env=clean_env(HOME=str(tmp_path), **settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    ) as program:
        try:
            answered = ("agent", "3 words, backwards: three two one")
            eventually(lambda: answered in platform_process.chat(workspace_id), within_s=20)
            program.send_signal(signal.SIGINT)
            shown, errors = program.communicate(timeout=5)
        except BaseException:
            program.kill()
            raise
    assert (program.returncode, errors) == (0, "")
    assert shown.splitlines() == ["agent  canvas_user writes: one two three", "Bye."]


def test_every_example_is_listed() -> None:
    """examples/README.md has a line for each."""
    page = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    programs = [path.name for path in EXAMPLES.iterdir() if path.is_dir()]
    assert [name for name in programs if f"[{name}]({name}/{name}.py)" not in page] == []

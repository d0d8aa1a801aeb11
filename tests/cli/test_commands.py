"""The command line as an operator meets it: exit codes, sentences, what is loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.support.platform import PlatformProcess, clean_env

HEAVY = ("mcp", "httpx", "sqlalchemy", "starlette", "uvicorn", "alembic", "websockets", "prompt_toolkit")


def run(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """`molecule-mcp ARGUMENTS` without a terminal; ends within half a minute."""
    return subprocess.run(
        [sys.executable, "-m", "molecule_mcp", *arguments],
        env=clean_env(**env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize("option", ["--version", "--help"])
def test_version_and_help_load_nothing_heavy(option: str) -> None:
    """agent-side 7: no import of mcp, httpx or SQLAlchemy on the way."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "molecule_mcp", option],
        env=clean_env(),
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    loaded = {line.rsplit("|", 1)[-1].strip().partition(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert loaded.isdisjoint(HEAVY)
    assert "molecule-mcp" in done.stdout


def test_version_is_one_line() -> None:
    """ours: scripts read it."""
    done = run("--version")
    assert (done.returncode, done.stdout.count("\n"), done.stderr) == (0, 1, "")


@pytest.mark.parametrize(
    "arguments",
    [
        ("bogus",),
        ("--bogus",),
        ("serve", "--bogus"),
        ("platform", "--port", "99999"),
        ("platform", "--port", "nope"),
        ("platform", "extra"),
    ],
)
def test_a_wrong_command_line_shows_usage_and_exits_2(arguments: tuple[str, ...]) -> None:
    """agent-side 2: an unknown option or command is usage and exit 2."""
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Usage:" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--host", "0.0.0.0"), 2, "ADMIN_TOKEN"),
        (("--db", "mysql://somewhere/db"), 2, "sqlite://"),
        (("--db", "/proc/nowhere/platform.sqlite3"), 5, "--db"),
        (("--db", "postgresql+asyncpg://me:hunter2@127.0.0.1:9/d?password=hunter2"), 5, "me:***@127.0.0.1:9/d cannot"),
        (("--db", "postgresql+asyncpg://me:hunter2@127.0.0.1:hunter2/d"), 5, "not a database URL"),
        (("--workspace", "a{b"), 2, "--workspace"),
    ],
)
def test_a_platform_that_cannot_start_says_why_in_a_sentence(
    arguments: tuple[str, ...], code: int, said: str, tmp_path: Path
) -> None:
    """ours: bad input gets a clear error."""
    database = () if "--db" in arguments else ("--db", str(tmp_path / "platform.sqlite3"))
    done = run("platform", "--port", "0", *database, *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert "hunter2" not in done.stderr


def test_a_missing_driver_for_postgresql_is_named_with_its_pip_command() -> None:
    """ours: the extra [postgres] is needed only by those who ask for it."""
    program = "import sys; sys.modules['asyncpg'] = None; from molecule_mcp.__main__ import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", program, "platform", "--port", "0", "--db", "postgresql+asyncpg://127.0.0.1:9/d"],
        env=clean_env(),
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 2, done.stderr
    assert 'pip install "molecule-ai-workspace-runtime[postgres]"' in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_in_use_is_said(platform_process: PlatformProcess, tmp_path: Path) -> None:
    """ours: the address is named."""
    done = run("platform", "--port", str(platform_process.port), "--db", str(tmp_path / "platform.sqlite3"))
    assert done.returncode == 2
    assert str(platform_process.port) in done.stderr


def test_platform_prints_one_json_line_and_reuses_its_workspace(tmp_path: Path) -> None:
    """agent-side 7: `--workspace` creates or reuses one and prints its settings, which work."""
    database = tmp_path / "platform.sqlite3"
    with PlatformProcess(database, workspace="laptop") as first:
        settings = first.settings
        assert set(settings) == {"PLATFORM_URL", "WORKSPACE_ID", "MOLECULE_WORKSPACE_TOKEN"}
        assert settings["PLATFORM_URL"] == first.url
    with PlatformProcess(database, workspace="laptop") as second:
        assert second.settings["WORKSPACE_ID"] == settings["WORKSPACE_ID"]
        assert len(second.http.get("/workspaces").json()) == 1
        for token in (settings["MOLECULE_WORKSPACE_TOKEN"], second.settings["MOLECULE_WORKSPACE_TOKEN"]):
            state = second.http.get(
                f"/workspaces/{settings['WORKSPACE_ID']}/state", headers={"Authorization": f"Bearer {token}"}
            )
            assert state.status_code == httpx.codes.OK


def test_the_platform_for_a_person_names_address_and_settings(tmp_path: Path) -> None:
    """README: what is printed can be pasted."""
    process = subprocess.Popen(
        [sys.executable, "-m", "molecule_mcp", "platform", "--port", "0", "--workspace", "laptop"]
        + ["--db", str(tmp_path / "platform.sqlite3")],
        env=clean_env(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(5)]
    process.terminate()
    _, stderr = process.communicate(timeout=10)
    assert "answers at http://127.0.0.1:" in lines[0]
    assert "'laptop' is new" in lines[1]
    assert [line.strip().partition("=")[0] for line in lines[2:]] == [
        "PLATFORM_URL",
        "WORKSPACE_ID",
        "MOLECULE_WORKSPACE_TOKEN",
    ]
    assert stderr.count("\n") == 1
    assert "Development mode" in stderr


DEMO_STEPS = [
    "platform started",
    "workspace created",
    "agent online",
    "user's message in the agent",
    "reply live on /ws",
    "the same reply after a reload",
    "agent ended",
    "awaiting_agent",
]


def test_demo_shows_every_step_in_order_also_behind_a_dead_proxy(tmp_path: Path) -> None:
    """README: `make demo`; a proxy for the world outside is not asked about this machine."""
    done = run("demo", "--json", HTTP_PROXY="http://127.0.0.1:9", HOME=str(tmp_path))
    steps = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(step["step"], step["ok"]) for step in steps] == [(name, True) for name in DEMO_STEPS]
    assert done.returncode == 0
    assert all(step["seconds"] >= 0 for step in steps)
    assert list(tmp_path.iterdir()) == [], "the demo leaves nothing behind"


@pytest.mark.parametrize("broken", ["platform", "agent"])
def test_demo_fails_at_the_first_step_that_is_not_as_it_should_be(broken: str, tmp_path: Path) -> None:
    """A child that cannot start is said at its step, with a non-zero code, and later steps do not run."""
    program = "platform" if broken == "platform" else "molecule_mcp"
    start_up = (
        f"import os, sys\nif sys.orig_argv[-1] == {program!r} or {program!r} in sys.orig_argv[3:]:\n    os._exit(9)\n"
    )
    (tmp_path / "sitecustomize.py").write_text(start_up)
    shim = tmp_path / "python"
    shim.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path} exec {sys.executable} "$@"\n')
    shim.chmod(0o755)
    runner = f"import sys; sys.executable = {str(shim)!r}; from molecule_mcp.cli import run; sys.exit(run())"
    done = subprocess.run(
        [sys.executable, "-c", runner, "demo", "--json"],
        env=clean_env(HOME=str(tmp_path)),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    steps = [json.loads(line) for line in done.stdout.splitlines()]
    expected = "platform started" if broken == "platform" else "agent online"
    assert (steps[-1]["step"], steps[-1]["ok"]) == (expected, False)
    assert all(step["ok"] for step in steps[:-1])
    assert done.returncode == 1
    assert "Traceback" not in done.stderr


def test_a_demo_that_fails_is_shown_to_a_person_in_two_lines(tmp_path: Path) -> None:
    """README: a line for each step with its time; the last one says how it ended."""
    runner = "import sys; sys.executable = '/bin/false'; from molecule_mcp.cli import run; sys.exit(run())"
    done = subprocess.run(
        [sys.executable, "-c", runner, "demo"],
        env=clean_env(HOME=str(tmp_path)),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    first, last = done.stdout.splitlines()
    assert first.startswith("✗ ")
    assert "platform started" in first
    assert (last, done.returncode) == ("The demo stopped at the step marked ✗.", 1)


def test_a_reader_that_goes_away_does_not_break_a_command() -> None:
    """ours: `molecule-mcp demo --json | head -1`."""
    program = "from molecule_mcp.cli import _output\nfor number in range(20_000): _output.json_line({'n': number})"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f'{sys.executable} -c "{program}" | head -1'],
        env=clean_env(),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, '{"n": 0}\n', "")

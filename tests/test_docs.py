"""The documents keep what they say: generated pages, commands, settings, links, examples."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from docs.generate import PAGES
from molecule_mcp.prompts import PROMPTS
from molecule_mcp.resources import RESOURCES
from molecule_mcp.tools.memory import TOOLS as MEMORY_TOOLS
from molecule_runtime import DelegationRecord, __version__
from molecule_runtime.delegation import headed
from molecule_runtime.errors import OUTCOMES
from molecule_runtime.presence import PresenceState
from molecule_runtime.settings import Settings
from molecule_runtime.wire.delegations import DelegationStatus
from tests.support.platform import clean_env

ROOT = Path(__file__).parent.parent
PAGES_OF_DOCS = sorted((ROOT / "docs").glob("*.md")) + [ROOT / "README.md"]


@pytest.mark.parametrize("page", sorted(PAGES))
def test_a_generated_page_is_in_step_with_the_code(page: str) -> None:
    """`make docs` writes it."""
    assert (ROOT / "docs" / page).read_text(encoding="utf-8") == PAGES[page]()


def test_every_command_is_documented() -> None:
    """docs/operating.md has a row for each command of the help."""
    done = subprocess.run(
        [sys.executable, "-m", "molecule_mcp", "--help"], env=clean_env(), capture_output=True, text=True, check=True
    )
    commands = re.findall(r"^  ([a-z-]+)  ", done.stdout.partition("Commands:")[2], re.MULTILINE)
    operating = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (.*?) \| ", operating, re.MULTILINE)
    assert len(commands) >= 3
    assert [command for command in commands if not any(f"`molecule-mcp {command}" in row for row in rows)] == []


def test_every_presence_state_and_setting_is_documented() -> None:
    """docs/troubleshooting.md explains the states, docs/settings.md the variables."""
    troubleshooting = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    assert [state for state in PresenceState if f"| {state.value} |" not in troubleshooting] == []
    settings = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert [f.alias for f in Settings.model_fields.values() if f"`{f.alias}`" not in settings] == []


def test_every_state_of_a_job_is_documented() -> None:
    """docs/delegation.md: the states of the wire, and the one by which agents are shown two of them."""
    page = (ROOT / "docs" / "delegation.md").read_text(encoding="utf-8")
    shown = {headed(_job(status), None)["status"] for status in DelegationStatus}
    assert [status for status in shown if f"| {status} |" not in page] == []
    assert [status for status in DelegationStatus if status.value not in page] == []


def test_the_page_on_memory_names_all_of_it() -> None:
    """docs/memory.md: tools, resources and prompts, and the variables that platform and plugin read."""
    page = (ROOT / "docs" / "memory.md").read_text(encoding="utf-8")
    names = {tool.name for tool in MEMORY_TOOLS} | {one.uri for one in RESOURCES} | {one.name for one in PROMPTS}
    assert [name for name in sorted(names) if f"`{name}`" not in page] == []
    read = [ROOT / "molecule_runtime" / part / "config.py" for part in ("reference_platform", "memory_plugin")]
    variables = {name for path in read for name in re.findall(r'"(MEMORY_\w+)"', path.read_text(encoding="utf-8"))}
    assert len(variables) >= 7
    assert [name for name in sorted(variables) if f"| `{name}` |" not in page] == []


def _job(status: DelegationStatus) -> DelegationRecord:
    return DelegationRecord("key", "", "", None, status, None, None, True, 0, 0, None, None)


def test_every_exit_code_is_documented() -> None:
    """docs/operating.md lists the codes that serve and the commands can end with."""
    operating = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")
    codes = {outcome.exit_code for outcome in OUTCOMES.values()} - {1}
    assert [code for code in sorted(codes) if f"| {code} |" not in operating] == []


@pytest.mark.parametrize("page", PAGES_OF_DOCS, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    """Relative links name files that exist."""
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("example", sorted(p.name for p in (ROOT / "examples").iterdir() if p.is_dir()))
def test_an_example_runs_and_checks_itself(example: str, tmp_path: Path) -> None:
    """examples/: each is a program that ends with 0 when what it saw was right."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / example / f"{example}.py")],
        env=clean_env(HOME=str(tmp_path)),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_changelog_knows_the_version() -> None:
    """CHANGELOG.md: a released version has a heading, one in the making is Unreleased; hosts see the same version."""
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    released = re.findall(r"^## \[(\d+\.\d+\.\d+)\]", changelog, re.MULTILINE)
    assert __version__ in released or "## [Unreleased]" in changelog
    assert all(tuple(map(int, old.split("."))) <= tuple(map(int, __version__.split("."))) for old in released)


def test_no_registry_address_and_no_path_of_a_machine_is_in_the_repository() -> None:
    """ours: the project speaks of itself alone."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    forbidden = re.compile(
        "|".join(("py" + r"pi\.org", "index" + "-url", "find" + "-links", "/ro" + "ot/", "/wo" + "rk/"))
    )
    guilty = []
    for name in tracked:
        path = ROOT / name
        if path.is_file() and forbidden.search(path.read_text(encoding="utf-8", errors="ignore")):
            guilty.append(name)
    assert guilty == []

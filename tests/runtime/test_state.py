"""The state directory, its modes, and its locks."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from molecule_runtime.errors import StateDirUnwritable
from molecule_runtime.state import HOME_DIR_NAME, OwnerLock, StateDir, WorkspaceState

from .support import WORKSPACE, python, spawn, state_in

HOLD = """
import sys
from pathlib import Path
from molecule_runtime.state import OwnerLock
lock = OwnerLock(Path(sys.argv[1]))
print(lock.try_acquire(), flush=True)
sys.stdin.readline()
"""


def mode(path: Path) -> str:
    return oct(path.stat().st_mode & 0o777)


def test_directories_are_0700_and_files_0600(tmp_path: Path) -> None:
    """agent-side 1: state directory, 0700, files 0600."""
    opened = StateDir.open(tmp_path / "deep" / "state", home=tmp_path)
    assert opened == StateDir(tmp_path / "deep" / "state")
    workspace = opened.workspace(WORKSPACE)
    workspace.write_private(workspace.token_file, "t")
    assert workspace.owner_lock("beat").try_acquire()
    assert {str(path.relative_to(opened.root)): mode(path) for path in opened.root.rglob("*")} == {
        WORKSPACE: "0o700",
        f"{WORKSPACE}/files": "0o700",
        f"{WORKSPACE}/sessions": "0o700",
        f"{WORKSPACE}/texts": "0o700",
        f"{WORKSPACE}/token": "0o600",
        f"{WORKSPACE}/beat.lock": "0o600",
    }
    assert mode(opened.root) == "0o700"
    assert mode(opened.log_file.parent) == "0o700"


def test_without_a_configured_directory_home_is_used(tmp_path: Path) -> None:
    """agent-side 1: else ~/.molecule-workspace (/configs is not there on a test machine)."""
    if Path("/configs").is_dir():
        pytest.skip("this machine has a /configs")
    assert StateDir.open(None, home=tmp_path).root == tmp_path / HOME_DIR_NAME


@pytest.mark.parametrize("name", ["a file/below it", "~nobody-of-this-name/state"])
def test_a_directory_that_cannot_be_used_falls_back_and_says_so(tmp_path: Path, name: str) -> None:
    """agent-side 8: state directory read-only; an agent must not go silent for it."""
    (tmp_path / "a file").write_text("")
    configured = Path(name) if name.startswith("~") else tmp_path / name
    opened = StateDir.open(configured, home=tmp_path)
    assert opened.root == tmp_path / HOME_DIR_NAME
    assert opened.fallback_from is not None
    assert opened.fallback_from.path == str(configured)


def test_no_directory_at_all_is_an_error_that_names_the_configured_one(tmp_path: Path) -> None:
    """agent-side 2: local state, exit code 5."""
    file = tmp_path / "a file"
    file.write_text("")
    with pytest.raises(StateDirUnwritable) as raised:
        StateDir.open(file / "state", home=file)
    assert raised.value.path == str(file / "state")
    with pytest.raises(StateDirUnwritable):
        StateDir.open(None, home=file)
    (tmp_path / WORKSPACE).write_text("")
    with pytest.raises(StateDirUnwritable):
        StateDir(tmp_path).workspace(WORKSPACE)


def test_a_private_file_is_replaced_in_one_step(state: WorkspaceState) -> None:
    """Ours: a reader sees the old content or the new, never a part."""
    state.write_private(state.token_file, "old")
    inode = state.token_file.stat().st_ino
    state.write_private(state.token_file, "new 世界")
    assert state.token_file.read_text(encoding="utf-8") == "new 世界"
    assert state.token_file.stat().st_ino != inode
    assert mode(state.token_file) == "0o600"


def test_a_failed_write_leaves_the_old_file_and_no_other(state: WorkspaceState) -> None:
    """Ours: no temporary file stays behind, whatever failed."""
    (state.path / "taken").mkdir()
    (state.path / "taken" / "inside").write_text("")
    before = sorted(state.path.rglob("*"))
    with pytest.raises(StateDirUnwritable) as raised:
        state.write_private(state.path / "taken", "x")
    assert raised.value.path == str(state.path / "taken")
    with pytest.raises(UnicodeEncodeError):
        state.write_private(state.token_file, "\ud800")
    with pytest.raises(StateDirUnwritable):
        state.write_private(state.path / "missing" / "file", "x")
    assert sorted(state.path.rglob("*")) == before


@pytest.mark.skipif(not hasattr(os, "O_TMPFILE"), reason="files without a name are Linux's")
def test_no_name_is_left_by_a_kill_while_a_directory_is_probed(tmp_path: Path) -> None:
    """Agent-side 2: a life ends at any moment; Linux gives the file that is written no name at all."""
    child = spawn(
        "import os, signal, sys; from pathlib import Path; from molecule_runtime import state\n"
        "os.unlink = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "state.StateDir.open(Path(sys.argv[1]), home=Path(sys.argv[1])); print('done')",
        tmp_path,
    )
    assert child.communicate(timeout=30)[0] == "done\n"
    assert list(tmp_path.iterdir()) == []


def test_what_a_kill_left_half_written_is_cleared_away_and_what_is_being_written_stays(tmp_path: Path) -> None:
    """Agent-side 2: no temporary file stays for good; another process may be writing one right now."""
    state = state_in(tmp_path)
    for directory in (tmp_path, state.path, state.texts):
        for name in (".new-old", ".new-young", ".probe-old"):
            (directory / name).touch()
        os.utime(directory / ".new-old", (0, 0))
        os.utime(directory / ".probe-old", (0, 0))
    state_in(tmp_path)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob(".*")}
    assert left == {".new-young", f"{WORKSPACE}/.new-young", f"{WORKSPACE}/texts/.new-young"}


def test_a_lock_is_exclusive_and_says_who_has_it(state: WorkspaceState) -> None:
    """agent-side 4, Owners: two locks per workspace, independent of each other."""
    first, second = state.owner_lock("beat"), state.owner_lock("beat")
    assert (first.held, first.try_acquire(), first.try_acquire(), first.held) == (False, True, True, True)
    assert (second.try_acquire(), second.held) == (False, False)
    assert state.owner_lock("inbox").try_acquire() is True
    first.release()
    assert second.try_acquire() is True


def test_a_lock_holds_against_other_processes_and_ends_with_its_process(state: WorkspaceState) -> None:
    """agent-side 4: kept by whoever lives, free at once after kill -9."""
    file = state.path / "beat.lock"
    holder = spawn(HOLD, file)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "True\n"
    lock = OwnerLock(file)
    assert lock.try_acquire() is False
    assert python(HOLD.replace("sys.stdin.readline()", ""), file).stdout == "False\n"
    holder.send_signal(signal.SIGKILL)
    holder.communicate(timeout=10)
    assert lock.try_acquire() is True
    assert python(HOLD.replace("sys.stdin.readline()", ""), file).stdout == "False\n"


def test_a_lock_that_cannot_be_made_is_an_error_of_the_state(tmp_path: Path) -> None:
    """agent-side 2: directory, lock, disk."""
    (tmp_path / "a file").write_text("")
    with pytest.raises(StateDirUnwritable):
        OwnerLock(tmp_path / "a file" / "beat.lock").try_acquire()
    (tmp_path / "beat.lock").mkdir()
    with pytest.raises(StateDirUnwritable):
        OwnerLock(tmp_path / "beat.lock").try_acquire()


def test_every_path_lies_in_the_directory_of_its_workspace(tmp_path: Path) -> None:
    """design: layout."""
    state = state_in(tmp_path)
    names = (state.journal, state.token_file, state.inbound_secret_file, state.sessions, state.texts)
    assert [path.name for path in names] == [
        "inbox.sqlite3",
        "token",
        "platform_inbound_secret",
        "sessions",
        "texts",
    ]
    assert {path.parent for path in names} == {tmp_path / WORKSPACE}


def test_missing_parents_are_made_private_and_those_that_exist_are_left(tmp_path: Path) -> None:
    """agent-side 1: 0700; what others made is not ours to change."""
    tmp_path.chmod(0o755)
    opened = StateDir.open(tmp_path / "a" / "b", home=tmp_path)
    assert [oct(path.stat().st_mode & 0o777) for path in (tmp_path, tmp_path / "a", opened.root)] == [
        "0o755",
        "0o700",
        "0o700",
    ]

"""The state directory: where an agent's journal, token and locks live, who may read them, and who owns what.

Layout: `<root>/<workspace id>/` (0700) with `inbox.sqlite3`, `token`, `agent_card.json`, `beat.lock`, `inbox.lock`,
`sessions/`, `texts/`, `files/`; `<root>/log/`. Files are 0600. Locks are the operating system's (free at once after
kill -9); a lock file's content says who holds it, for people only.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from molecule_runtime.errors import StateDirUnwritable

SERVICE_DIR = Path("/configs")
"""Where a service's container mounts its state (agent-side 1)."""
HOME_DIR_NAME = ".molecule-workspace"
GUARD_TIMEOUT_S = 2.0
"""What is done under a guard takes milliseconds; a stopped process that holds one must not keep others out."""
LEFTOVER_S = 60.0
"""A file is replaced within milliseconds: what is older was left half-written by a kill, and nobody will end it."""


@dataclass(frozen=True)
class StateDir:
    """A state directory that exists and can be written. `fallback_from` names the one that could not."""

    root: Path
    fallback_from: StateDirUnwritable | None = None

    @classmethod
    def open(cls, configured: Path | None, *, home: Path) -> StateDir:
        """The configured directory, else /configs, else `~/.molecule-workspace`; the first that can be written.

        A configured directory that cannot be written is reported in `fallback_from`, not fatal: an agent must not
        go silent because a volume was mounted read-only.

        Raises:
            StateDirUnwritable: none of them can be written.
        """
        refused: StateDirUnwritable | None = None
        candidates = [configured] if configured else [SERVICE_DIR] if SERVICE_DIR.is_dir() else []
        for named in [*candidates, home / HOME_DIR_NAME]:
            candidate = named
            try:
                candidate = named.expanduser()
                _make_private_dir(candidate)
                _probe(candidate)
                _clear_leftovers(candidate)
            except (OSError, RuntimeError) as error:  # RuntimeError: "~name" of a user who does not exist
                failure = StateDirUnwritable(path=str(candidate), reason=getattr(error, "strerror", None) or str(error))
                if candidate == home / HOME_DIR_NAME:
                    raise refused or failure from None
                refused = failure if configured else None
            else:
                return cls(root=candidate, fallback_from=refused)
        raise AssertionError("the home directory is always a candidate")

    @classmethod
    def to_look(cls, configured: Path | None, *, home: Path) -> StateDir:
        """The directory that `open` would most likely choose, for reading: nothing is made or tried."""
        candidates = [configured] if configured else [SERVICE_DIR]
        for named in candidates:
            with suppress(RuntimeError):  # "~name" of a user who does not exist
                candidate = named.expanduser()
                if os.access(candidate, os.W_OK) or (configured and not candidate.exists()):
                    return cls(root=candidate)
        return cls(root=home / HOME_DIR_NAME)

    @property
    def log_file(self) -> Path:
        """`<root>/log/molecule-mcp.log`; its directory is made on the first call."""
        directory = self.root / "log"
        _make_private_dir(directory)
        return directory / "molecule-mcp.log"

    def workspace(self, workspace_id: str) -> WorkspaceState:
        """The directory of one workspace, made if need be.

        Raises:
            StateDirUnwritable: it cannot be made.
        """
        path = self.root / workspace_id
        try:
            for directory in (path, path / "sessions", path / "texts", path / "files"):
                _make_private_dir(directory)
                _clear_leftovers(directory)
        except OSError as error:
            raise StateDirUnwritable(path=str(path), reason=error.strerror or str(error)) from None
        return WorkspaceState(path)


@dataclass(frozen=True)
class WorkspaceState:
    """Paths and small files of one workspace."""

    path: Path

    @property
    def journal(self) -> Path:
        return self.path / "inbox.sqlite3"

    @property
    def token_file(self) -> Path:
        return self.path / "token"

    @property
    def inbound_secret_file(self) -> Path:
        return self.path / "platform_inbound_secret"

    @property
    def agent_card_file(self) -> Path:
        return self.path / "agent_card.json"

    @property
    def sessions(self) -> Path:
        return self.path / "sessions"

    @property
    def texts(self) -> Path:
        return self.path / "texts"

    @property
    def files(self) -> Path:
        """Where the files of messages are stored; an agent may send files from here, too."""
        return self.path / "files"

    def write_private(self, file: Path, content: str) -> None:
        """Replace `file` (0600) in one step: a reader sees the old content or the new, never a part.

        Raises:
            StateDirUnwritable: the directory is read-only or the disk is full.
        """
        try:
            descriptor, temporary = tempfile.mkstemp(dir=file.parent, prefix=".new-")
            try:
                with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
                    stream.write(content)
                    stream.flush()
                    os.fsync(stream.fileno())  # a token is issued once: a power cut must not leave an empty file
                os.replace(temporary, file)
            except BaseException:
                with suppress(FileNotFoundError):
                    os.unlink(temporary)
                raise
        except OSError as error:
            raise StateDirUnwritable(path=str(file), reason=error.strerror or str(error)) from None

    @contextmanager
    def guard(self, name: str) -> Iterator[bool]:
        """A short critical section among this workspace's processes; False when it is not free within seconds.

        Raises:
            StateDirUnwritable: the lock file cannot be opened.
        """
        lock = FileLock(self.path / f"{name}.lock", mode=0o600, thread_local=False)
        try:
            lock.acquire(timeout=GUARD_TIMEOUT_S)
        except Timeout:
            yield False
            return
        except OSError as error:
            raise StateDirUnwritable(path=str(self.path), reason=error.strerror or str(error)) from None
        try:
            yield True
        finally:
            lock.release()

    def owner_lock(self, job: str) -> OwnerLock:
        """The lock of a job ("beat" or "inbox") that one process at a time does for this workspace."""
        return OwnerLock(self.path / f"{job}.lock")


class OwnerLock:
    """An advisory lock of the operating system: taken without waiting, free the instant its process is gone."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lock = FileLock(file, mode=0o600, thread_local=False)

    def try_acquire(self) -> bool:
        """Take the lock if nobody holds it; True when it is ours, also when it was ours before.

        Raises:
            StateDirUnwritable: the lock file cannot be opened.
        """
        if self._lock.is_locked:
            return True
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            return False
        except OSError as error:
            raise StateDirUnwritable(path=str(self._file), reason=error.strerror or str(error)) from None
        return True

    @property
    def held(self) -> bool:
        return self._lock.is_locked

    def release(self) -> None:
        self._lock.release()


def _make_private_dir(path: Path) -> None:
    """Make a directory and its missing parents, all 0700 (`mkdir(parents=True)` leaves the parents to the umask)."""
    if not path.parent.exists():
        _make_private_dir(path.parent)
    path.mkdir(mode=0o700, exist_ok=True)


def _probe(path: Path) -> None:
    """Write and remove one file: the only honest test of "writable" (read-only mounts, quotas, full disks).

    Where the system can, the file never has a name, so that a kill leaves none behind.
    """
    with tempfile.TemporaryFile(dir=path, prefix=".probe-") as file:
        file.write(b"writable")


def _clear_leftovers(directory: Path) -> None:
    """Remove what kills left half-written; best effort, since it is in nobody's way."""
    for pattern in (".new-*", ".probe-*"):
        for file in directory.glob(pattern):
            with suppress(OSError):
                if time.time() - file.stat().st_mtime > LEFTOVER_S:
                    file.unlink()

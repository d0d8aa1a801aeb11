"""Files that go out with a message: each is opened and held, or refused with a sentence before anything is read.

Where a file may lie is checked on its real path, symlinks resolved. Never sent, wherever the settings point: what lies
in the state directory (tokens, locks, the inbox) but for a workspace's `files/` and `texts/`, and a configured token
file, also under another name of the same file. Between the check and the opening a path may come to mean another file:
it is opened without following a link at any step below its root, and what is open must be what was checked. From then
on only the descriptor is read; a file that changes while it is read ends the sending (agent-side 1, contract 5.1).
"""

from __future__ import annotations

import io
import mimetypes
import os
import stat
import tempfile
import threading
import uuid
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import anyio.to_thread

from molecule_runtime.errors import AttachmentRefused, InvalidArgument
from molecule_runtime.settings import Settings
from molecule_runtime.state import WorkspaceState
from molecule_runtime.text import cut_code_points, safe_file_name, well_formed
from molecule_runtime.upload_body import file_too_large
from molecule_runtime.wire.uploads import MAX_FILES, UploadLimits

SENDABLE = frozenset({"files", "texts"})
"""What is in a workspace's directory for people to have: files that came, and whole texts of long messages."""
PART_BYTES = 512
"""What the multipart form adds to a file at most: a boundary, its name (100), its type; and a little for the end."""
SHOWN_CODE_POINTS = 300

_DIRECTORY = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_PATH", 0)
"""O_PATH, where there is one, because a directory on the way may be entered without being readable."""
_NOT_THROUGH_A_LINK = getattr(os, "O_NOFOLLOW", 0)
_FILE = os.O_RDONLY | _NOT_THROUGH_A_LINK
for _flag in ("O_NONBLOCK", "O_NOCTTY", "O_BINARY"):  # a pipe must not block, a terminal not become ours
    _FILE |= getattr(os, _flag, 0)
_PACKED = {"gzip": "application/gzip", "bzip2": "application/x-bzip2", "xz": "application/x-xz"}
_ANY_TYPE = "application/octet-stream"

Identity = tuple[int, int]
"""Device and inode: what tells a file from another that has its name, and finds it again under another one."""


@dataclass(frozen=True)
class AttachmentPolicy:
    """Where files may lie that are sent, and what is never sent.

    `roots` None: anywhere, because a person at a shell chose the file. The paths need neither exist nor be resolved.
    """

    roots: tuple[Path, ...] | None
    state_dirs: tuple[Path, ...] = ()
    token_files: tuple[Path, ...] = ()

    @classmethod
    def for_agent(cls, settings: Settings, state: WorkspaceState | None) -> Self:
        """What an agent may send: files under the configured roots, else under the three of the settings' default."""
        roots = settings.attachment_roots
        if roots is None:
            own = (state.path / "files",) if state is not None else ()
            roots = (*_working_dir(), *own, *_temporary_dir())
        return cls(roots, *_secrets(settings, state.path.parent if state is not None else None))

    @classmethod
    def for_operator(cls, settings: Settings, state_dir: Path) -> Self:
        """What a person may send who named the file on a command line."""
        return cls(None, *_secrets(settings, state_dir))


class OutgoingFile:
    """An open file that may be sent; `name` is cleaned, `size` in bytes, `path` as it may be shown.

    To be read by one thread at a time; it may be closed by any, also in the middle of a reading.
    """

    def __init__(self, path: str, name: str, raw: io.FileIO) -> None:
        self.path = path
        self.name = safe_file_name(name)
        self.mime_type = _mime_type(self.name)
        self._raw = raw
        self._opened = os.fstat(raw.fileno())
        self._reading = threading.Lock()
        self._is_to_close = False

    @property
    def size(self) -> int:
        return self._opened.st_size

    @property
    def is_regular(self) -> bool:
        return stat.S_ISREG(self._opened.st_mode)

    @property
    def identity(self) -> Identity:
        return self._opened.st_dev, self._opened.st_ino

    def read(self, count: int = -1) -> bytes:
        """The next bytes, at most `count`; b"" at the end.

        Raises:
            AttachmentRefused: it is not as long any more as it was, or was written to since it was opened.
        """
        with self._reading:
            try:
                return self._read(count)
            except OSError as error:
                raise self.refused(f"it cannot be read ({_words(error)})", "Look at the disk it lies on.") from None
            finally:
                self._close_if_told()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_END:
            offset, whence = self.size + offset, os.SEEK_SET
        return self._raw.seek(offset, whence)

    def tell(self) -> int:
        return self._raw.tell()

    def close(self) -> None:
        """Close it now, or, while a thread still reads from it, when that reading ends: its number must stay taken."""
        self._is_to_close = True
        if self._reading.acquire(blocking=False):
            self._close_if_told()
            self._reading.release()

    def refused(self, reason: str, cure: str) -> AttachmentRefused:
        return AttachmentRefused(path=self.path, reason=reason, cure=cure)

    def _read(self, count: int) -> bytes:
        left = self.size - self._raw.tell()
        piece = self._raw.read(left if count < 0 else min(count, left)) or b""
        now = os.fstat(self._raw.fileno())
        is_same = (now.st_size, now.st_mtime_ns) == (self.size, self._opened.st_mtime_ns)
        if not is_same or (left and count and not piece):
            raise self.refused(
                "it was written to while it was being sent", "Send it again when it is finished, or send a copy."
            )
        return piece

    def _close_if_told(self) -> None:
        if self._is_to_close:
            self._raw.close()


@asynccontextmanager
async def held(paths: Sequence[str], policy: AttachmentPolicy) -> AsyncIterator[list[OutgoingFile]]:
    """The files at these absolute paths, open, in this order; closed on the way out. Nothing of them is read here.

    Raises:
        AttachmentRefused: one of them cannot or may not be sent; the first in their order.
        InvalidArgument: there are too many.
    """
    files = await anyio.to_thread.run_sync(_open_all, paths, policy)
    try:
        yield files
    finally:
        for file in files:
            file.close()


def check_sizes(files: Sequence[OutgoingFile], limits: UploadLimits) -> None:
    """Refuse what the platform would refuse after it had all been sent.

    Raises:
        AttachmentRefused: a file is larger than the platform takes.
        InvalidArgument: together they are.
    """
    for file in files:
        if file.size > limits.per_file_bytes:
            raise file_too_large(file.path, file.size, limits.per_file_bytes)
    whole = sum(file.size + PART_BYTES for file in files)
    if whole > limits.per_request_bytes:
        raise InvalidArgument(
            argument="attachments",
            reason=f"together they have {whole:,} bytes as they are sent, and the platform takes"
            f" {limits.per_request_bytes:,} with one message; nothing was sent, use several messages",
        )


# opening


def _open_all(paths: Sequence[str], policy: AttachmentPolicy) -> list[OutgoingFile]:
    if len(paths) > MAX_FILES:
        reason = f"there are {len(paths)} files, and at most {MAX_FILES} go with one message; nothing was sent"
        raise InvalidArgument(argument="attachments", reason=reason)
    gate = _Gate(policy)
    files: list[OutgoingFile] = []
    try:
        for path in paths:
            file = gate.open(path)
            files.append(file)
            if any(file.identity == other.identity and file.name == other.name for other in files[:-1]):
                raise file.refused("it is named twice", "Name each file once.")
    except BaseException:
        for file in files:
            file.close()
        raise
    return files


class _Gate:
    """A policy with its paths resolved, for one call: directories come and go."""

    def __init__(self, policy: AttachmentPolicy) -> None:
        self._roots = _resolved(policy.roots) if policy.roots is not None else None
        self._state_dirs = _resolved(policy.state_dirs)
        self._secrets = frozenset(_secret_files(self._state_dirs, policy.token_files))

    def open(self, given: str) -> OutgoingFile:
        """Open one file, or raise AttachmentRefused."""
        path = _shown(given)

        def refused(reason: str, cure: str) -> AttachmentRefused:
            return AttachmentRefused(path=path, reason=reason, cure=cure)

        if not os.path.isabs(given):
            raise refused(
                "it is not an absolute path, and the working directory here is not yours", "Give the absolute path."
            )
        try:
            real = Path(os.path.realpath(given, strict=True))
            checked = os.lstat(real)
            above = {(about.st_dev, about.st_ino): one for one in real.parents for about in (os.stat(one),)}
        except FileNotFoundError:
            raise refused("there is no such file", "It must be on the machine that molecule-mcp runs on.") from None
        except (OSError, ValueError) as error:  # ValueError: a NUL, or half a surrogate pair
            raise refused(f"that is no path to a file ({_words(error)})", "Check the path.") from None
        if stat.S_ISDIR(checked.st_mode):
            raise refused("it is a directory", "Pack it into one file, or name the files in it.")
        if not stat.S_ISREG(checked.st_mode):
            raise refused("it is a pipe, a socket or a device", "Write what comes from it into a file and send that.")
        if self._is_secret(real, (checked.st_dev, checked.st_ino), above):
            raise refused("molecule-mcp keeps its tokens, locks and inbox there", "Send another file.")
        root = self._root_of(real, above)
        if root is None and self._roots is not None:
            real_path = f"it leads to {_shown(str(real))}, which" if str(real) != os.path.normpath(given) else "it"
            raise refused(f"{real_path} lies in no directory that files may be sent from", self._where())
        try:
            descriptor = _open_below(root, real)
        except PermissionError:
            raise refused("this user may not read it", "Change its permissions, or send a copy.") from None
        except OSError as error:
            raise refused(f"it cannot be opened ({_words(error)})", "Check the path, then call again.") from None
        file = OutgoingFile(path, os.path.basename(given) or real.name, io.FileIO(descriptor))
        try:
            if not file.is_regular or file.identity != (checked.st_dev, checked.st_ino):
                raise refused("another file took its place meanwhile", "Call again.")
            if not file.size:
                raise refused("it is empty", "The platform takes no empty file: write it first, or do without it.")
        except BaseException:
            file.close()
            raise
        return file

    def _is_secret(self, real: Path, identity: Identity, above: dict[Identity, Path]) -> bool:
        if identity in self._secrets:
            return True
        for directory, known in self._state_dirs.items():
            found = above.get(known) or (directory if real.is_relative_to(directory) else None)
            if found is not None:
                below = real.relative_to(found).parts
                if len(below) < 3 or below[1] not in SENDABLE or not _is_uuid(below[0]):
                    return True
        return False

    def _root_of(self, real: Path, above: dict[Identity, Path]) -> Path | None:
        """The root that a file lies under, as its path names it. Told by identity, too: names ignore case on a Mac."""
        for root, known in (self._roots or {}).items():
            if real.is_relative_to(root):
                return root
            if known in above:
                return above[known]
        return None

    def _where(self) -> str:
        roots = ", ".join(_shown(str(root)) for root in self._roots or ())
        return f"Copy it into one of these: {roots}." if roots else "Set MOLECULE_ATTACHMENT_ROOTS to a directory."


def _open_below(root: Path | None, real: Path) -> int:
    """A descriptor of the file; from `root` on no step on the way is a symlink, whoever put one there meanwhile."""
    if root is None or os.open not in os.supports_dir_fd:
        return os.open(real, _FILE)
    *directories, name = real.relative_to(root).parts
    at = os.open(root, _DIRECTORY | _NOT_THROUGH_A_LINK)
    try:
        for directory in directories:
            inner = os.open(directory, _DIRECTORY | _NOT_THROUGH_A_LINK, dir_fd=at)
            os.close(at)
            at = inner
        return os.open(name, _FILE, dir_fd=at)
    finally:
        os.close(at)


# what may be sent


def _working_dir() -> tuple[Path, ...]:
    with suppress(OSError):  # it was removed
        return _unless_too_wide(Path.cwd())
    return ()


def _temporary_dir() -> tuple[Path, ...]:
    with suppress(
        OSError
    ):  # nothing here can be written; where it is left to tempfile, that takes the working directory
        return _unless_too_wide(Path(tempfile.gettempdir()))
    return ()


def _unless_too_wide(directory: Path) -> tuple[Path, ...]:
    """Without the home directory and what is above it: hosts are started there, and everything lies below it."""
    home = Path(os.path.realpath(Path.home()))
    real = Path(os.path.realpath(directory))
    return () if home.is_relative_to(real) or real == Path(real.anchor) else (directory,)


def _secrets(settings: Settings, state_dir: Path | None) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """The state directories (the one in use, and the configured one where another had to be taken) and token files."""
    state_dirs = tuple(one for one in dict.fromkeys((state_dir, settings.configs_dir)) if one is not None)
    return state_dirs, tuple(told.token_file for told in settings.workspaces if told.token_file is not None)


def _resolved(directories: Iterable[Path]) -> dict[Path, Identity]:
    """The directories that exist, by their real paths."""
    found = {}
    for directory in directories:
        with suppress(OSError, RuntimeError):  # RuntimeError: "~name" of a user who does not exist
            real = Path(os.path.realpath(directory.expanduser(), strict=True))
            about = os.stat(real)
            if stat.S_ISDIR(about.st_mode):
                found[real] = (about.st_dev, about.st_ino)
    return found


def _secret_files(state_dirs: Iterable[Path], token_files: Iterable[Path]) -> Iterator[Identity]:
    """What must not be sent under any name: a hard link has the inode of its file."""
    for file in token_files:
        with suppress(OSError, RuntimeError):
            about = os.stat(file.expanduser())
            yield about.st_dev, about.st_ino
    for state_dir in state_dirs:
        yield from _files_in(state_dir)
        for directory in _directories_in(state_dir):
            if directory.name == "log" or _is_uuid(directory.name):
                yield from _files_in(directory)
                for inner in _directories_in(directory):
                    if inner.name not in SENDABLE:
                        yield from _files_in(inner)


def _files_in(directory: Path) -> Iterator[Identity]:
    for entry in _entries(directory):
        with suppress(OSError):
            about = os.stat(entry)  # a token may be a link to where it is mounted
            if stat.S_ISREG(about.st_mode):
                yield about.st_dev, about.st_ino


def _directories_in(directory: Path) -> Iterator[Path]:
    return (Path(entry) for entry in _entries(directory) if entry.is_dir())


def _entries(directory: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as entries:
            return list(entries)
    except OSError:
        return []


def _is_uuid(name: str) -> bool:
    try:
        return str(uuid.UUID(name)) == name
    except ValueError:
        return False


# words


def _mime_type(cleaned_name: str) -> str:
    """What a browser is told that the file is, by its name: ASCII, `a/b`."""
    kind, packing = mimetypes.guess_type(cleaned_name)
    return _PACKED.get(packing, _ANY_TYPE) if packing is not None else kind or _ANY_TYPE


def _shown(path: str) -> str:
    """A path as it may stand in a sentence: on one line, valid Unicode, not endless."""
    return cut_code_points("".join(one if one.isprintable() else "�" for one in well_formed(path)), SHOWN_CODE_POINTS)


def _words(error: OSError | ValueError) -> str:
    return (getattr(error, "strerror", None) or "a character that no path has").lower()

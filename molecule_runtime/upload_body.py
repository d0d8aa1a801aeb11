"""The body of an upload: a multipart form that is streamed from open files, made anew for every attempt.

Never a whole file in memory, and never a read of a disk in the event loop: the agent's beats share it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from typing import IO, Protocol, cast

import anyio.to_thread
import httpx

from molecule_runtime.errors import AttachmentRefused
from molecule_runtime.wire.uploads import FIELD

PIECE_BYTES = 256 * 1024
"""What is read at a time: much beside the way to a thread and back, little in memory."""


class UploadSource(Protocol):
    """An open file: can be read again from its beginning, and raises what is wrong with it as a typed error.

    `name` is cleaned, `size` in bytes; `path` is how an error names it.
    """

    @property
    def path(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def mime_type(self) -> str: ...
    @property
    def size(self) -> int: ...
    def read(self, count: int = -1) -> bytes: ...
    def seek(self, offset: int, whence: int = 0) -> int: ...
    def tell(self) -> int: ...


class UploadProgress:
    """How far an upload is, in bytes of its body; `total` is 0 before it begins. To be read from any thread."""

    def __init__(self) -> None:
        self.done = 0
        self.total = 0


class UploadBody:
    """The form of these files; `length` in bytes, `headers` its own."""

    def __init__(self, files: Sequence[UploadSource], progress: UploadProgress) -> None:
        parts = [(FIELD, (file.name, cast(IO[bytes], file), file.mime_type)) for file in files]
        form = httpx.Request("POST", "http://form", files=parts)  # only for httpx's encoder: it is never sent
        self.headers = {name: form.headers[name] for name in ("Content-Type", "Content-Length")}
        self.length = int(form.headers["Content-Length"])
        self._form = cast(Iterable[bytes], form.stream)
        self._progress = progress

    async def pieces(self) -> AsyncIterator[bytes]:
        """The form from its beginning; counted as they are taken."""
        self._progress.done, self._progress.total = 0, self.length
        chunks = iter(self._form)
        while piece := await anyio.to_thread.run_sync(_next_piece, chunks, abandon_on_cancel=True):
            yield piece
            self._progress.done += len(piece)


def file_too_large(path: str, size: int, limit: int) -> AttachmentRefused:
    """The refusal of a file above the platform's limit for one file, in bytes."""
    return AttachmentRefused(
        path=path,
        reason=f"it has {size:,} bytes, and the platform takes at most {limit:,} in one file",
        cure="Compress or split it, or tell the user where it lies.",
    )


def _next_piece(chunks: Iterator[bytes]) -> bytes:
    """Some chunks of the form in one; b"" at its end."""
    piece = bytearray()
    for chunk in chunks:
        piece += chunk
        if len(piece) >= PIECE_BYTES:
            break
    return bytes(piece)

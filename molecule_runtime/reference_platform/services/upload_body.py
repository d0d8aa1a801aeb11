"""Reading the body of an upload: multipart/form-data, bounded while it streams (contract 5.1).

A body is kept in one temporary file without a name, of which at most 1 MiB is in memory: a platform that is killed
leaves nothing behind. What is wrong with the files is told after the last byte of the body, as the existing platform
tells it, which knows them only then; a body that is no form or over its cap ends at once.
"""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self
from urllib.parse import unquote

import anyio.to_thread
import structlog
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from molecule_runtime.reference_platform.refusals import Refusal
from molecule_runtime.reference_platform.services.pending_uploads import CHUNK_BYTES
from molecule_runtime.text import well_formed
from molecule_runtime.wire.uploads import FIELD, MAX_FILES

MALFORMED = "malformed multipart body"
NOT_STAGED = "could not stage files"
IN_MEMORY_BYTES = 1024 * 1024
"""Bytes of a body that are kept in memory before it goes to a file."""
WRITE_BYTES = 256 * 1024
"""Bytes that are written to the file at once: each write costs a change of threads."""
MAX_PARTS = 200
"""Parts of a body, of any kind: MAX_FILES, and other fields in plenty."""
NAME_CODE_POINTS = 255
"""Of the name that a refusal quotes."""
_READABLE = frozenset({"", "binary", "7bit", "8bit"})
"""Transfer encodings that leave the bytes as they are; the others have no place in a form (RFC 7578, 4.7)."""
_PARAMETER = re.compile(
    r"""
    (?: ; [ \t]*+ )++
    (?:
        (?P<name> [^\s;="]++ ) [ \t]*+ = [ \t]*+
        (?: "(?P<quoted> (?: [^"\\] | \\ (?! "[ \t]*+\Z ) . | \\ )*+ )" | (?P<plain> [^\s;"]*+ ) ) [ \t]*+
    )?+
    """,
    re.ASCII | re.DOTALL | re.VERBOSE,
)
"""A parameter of a header, from its semicolon on. Nothing is tried twice, so a header takes time by its length."""
_ESCAPED = re.compile(r'\\(["\\])')
_CHARSETS = frozenset({"utf-8", "iso-8859-1"})
"""Of a `filename*` (RFC 5987, 3.2.1). Python knows others that are no charsets, or give what is no text."""
_UNHEARD = logging.Logger(__name__, logging.CRITICAL)
"""For the parser, which warns of each byte that it refuses: what a client sent wrong is told to the client."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class ReceivedFile:
    """A file of a body: name and type as they were sent, and where its bytes lie in the spool."""

    name: str
    content_type: str
    offset: int
    size: int


class Spool:
    """The bytes of one body's files, one after the other. Use as a context."""

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY_BYTES)  # noqa: SIM115 - closed by __exit__
        self.size = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    async def append(self, data: bytes) -> None:
        """Add bytes at the end.

        Raises:
            OSError: the disk is full or broken.
        """
        await anyio.to_thread.run_sync(self._file.write, data)
        self.size += len(data)

    def chunks(self, file: ReceivedFile) -> Iterator[bytes]:
        """The bytes of a file in pieces; blocks."""
        for start in range(0, file.size, CHUNK_BYTES):
            self._file.seek(file.offset + start)
            yield self._file.read(min(CHUNK_BYTES, file.size - start))


async def receive(
    stream: AsyncIterator[bytes], boundary: bytes, spool: Spool, *, max_file_bytes: int, max_request_bytes: int
) -> list[ReceivedFile]:
    """The files of a body, their bytes in the spool.

    Raises:
        Refusal: 400 or 413, by the table of the contract; 500, the spool's disk is full or broken.
    """
    try:
        form = _Form(boundary, max_file_bytes)
        async for data in capped(stream, max_request_bytes):
            form.feed(data)
            if len(form.unwritten) >= WRITE_BYTES:
                await spool.append(form.take())
        if form.unwritten:
            await spool.append(form.take())
    except FormParserError:
        raise Refusal(400, MALFORMED) from None
    except OSError:
        log.exception("uploads.spool_failed")
        raise Refusal(500, NOT_STAGED) from None
    return form.files()


async def capped(stream: AsyncIterator[bytes], max_bytes: int) -> AsyncIterator[bytes]:
    """The stream, until it is longer than that.

    Raises:
        Refusal: 400.
    """
    left = max_bytes
    async for data in stream:
        left -= len(data)
        if left < 0:
            raise too_long(max_bytes)
        yield data


def too_long(max_bytes: int) -> Refusal:
    """The body is over its cap: the text is the contract's, `max` tells it from a body that is torn."""
    return Refusal(400, MALFORMED, extra={"max": max_bytes})


def boundary_of(content_type: str) -> bytes:
    """What separates the parts of a form, by its Content-Type.

    Raises:
        Refusal: 400, it is no form.
    """
    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not boundary or not content_type.isascii():
        raise Refusal(400, MALFORMED)
    return boundary


@dataclass
class _Part:
    """A part of the form while it is read; `wanted` when it is a file of our field."""

    headers: dict[str, str] = field(default_factory=dict)
    wanted: bool = False
    name: str = ""
    offset: int = 0
    size: int = 0


class _Form:
    """Takes the parser's calls apart. What a file has over its cap is counted and not kept."""

    def __init__(self, boundary: bytes, max_file_bytes: int) -> None:
        self._max_file_bytes = max_file_bytes
        self._parts = 0
        self._part = _Part()
        self._header: tuple[bytearray, bytearray] = (bytearray(), bytearray())
        self._files: list[ReceivedFile] = []
        self._count = 0
        self._refusal: Refusal | None = None
        self._ended = False
        self._kept = 0
        self.unwritten = bytearray()
        """Bytes of files that are for the spool."""
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._on_part_begin,
                "on_header_field": self._on_header_field,
                "on_header_value": self._on_header_value,
                "on_header_end": self._on_header_end,
                "on_headers_finished": self._on_headers_finished,
                "on_part_data": self._on_part_data,
                "on_part_end": self._on_part_end,
                "on_end": self._on_end,
            },
        )
        self._parser.logger = _UNHEARD

    def feed(self, data: bytes) -> None:
        """Parse the next bytes; FormParserError when they are no form."""
        self._parser.write(data)

    def take(self) -> bytes:
        """What there is to write."""
        data = bytes(self.unwritten)
        self.unwritten.clear()
        return data

    def files(self) -> list[ReceivedFile]:
        """All files, after the last byte.

        Raises:
            Refusal: what was wrong with them.
        """
        if not self._ended:
            raise Refusal(400, MALFORMED)
        if not self._count:
            raise Refusal(400, f"no {FIELD} field in request")
        if self._count > MAX_FILES:
            raise Refusal(400, f"too many files (limit {MAX_FILES})")
        if self._refusal is not None:
            raise self._refusal
        return self._files

    def _on_part_begin(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise FormParserError("too many parts")
        self._part = _Part()

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header[0].extend(data[start:end])

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header[1].extend(data[start:end])

    def _on_header_end(self) -> None:
        name, value = (bytes(half).decode("utf-8", "replace") for half in self._header)
        self._part.headers[name.lower()] = value
        self._header = (bytearray(), bytearray())

    def _on_headers_finished(self) -> None:
        part = self._part
        field_name, part.name = _disposition(part.headers.get("content-disposition", ""))
        part.wanted = field_name == FIELD and bool(part.name)
        part.offset = self._kept

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        part = self._part
        if not part.wanted:
            return
        part.size += end - start
        if part.size <= self._max_file_bytes and self._refusal is None and self._count < MAX_FILES:
            self.unwritten += data[start:end]
            self._kept += end - start

    def _on_part_end(self) -> None:
        part = self._part
        if not part.wanted:
            return
        self._count += 1
        self._refusal = self._refusal or self._refuse(part)
        if self._refusal is None and self._count <= MAX_FILES:
            self._files.append(ReceivedFile(part.name, part.headers.get("content-type", ""), part.offset, part.size))

    def _refuse(self, part: _Part) -> Refusal | None:
        if part.headers.get("content-transfer-encoding", "").strip().lower() not in _READABLE:
            return Refusal(400, "could not read file part")
        if part.size > self._max_file_bytes:
            name = well_formed(part.name[:NAME_CODE_POINTS])
            facts = {"filename": name, "size": part.size, "max": self._max_file_bytes}
            return Refusal(413, "file exceeds per-file cap", extra=facts)
        return None

    def _on_end(self) -> None:
        self._ended = True


def _disposition(value: str) -> tuple[str, str]:
    """The field's name and the file's, "" for what is not there.

    Raises:
        FormParserError: it cannot be read.
    """
    kind, options = _options(value)
    if kind != "form-data":
        return "", ""
    name, filename = options.get("name", ""), options.get("filename", "")
    if "filename*" in options:
        filename = _decoded(options["filename*"]) or filename
    return name, filename


def _decoded(extended: str) -> str:
    """What a `charset'language'percent-encoded` says (RFC 5987, 3.2).

    Raises:
        FormParserError: it is none, or in another charset.
    """
    charset, *rest = extended.split("'", 2)
    if len(rest) != 2 or charset.lower() not in _CHARSETS:
        raise FormParserError("a file name in an unknown charset")
    return unquote(rest[1], charset, "replace")


def _options(value: str) -> tuple[str, dict[str, str]]:
    """A header's first word in lower case and its parameters; of several with one name the first.

    Our own reader: the time that Python's takes grows with the square of the length, and the multipart library's cuts a
    file name at its last backslash. A backslash escapes a quote and itself; before anything else
    it is part of the value, as in the path of a Windows user (contract 5.2), and before the header's last quote too: a
    browser escapes no backslash, so this is a name that ends in one.

    Raises:
        FormParserError: the header cannot be read to its end.
    """
    kind = value.partition(";")[0]
    options: dict[str, str] = {}
    position = len(kind)
    while position < len(value):
        found = _PARAMETER.match(value, position)
        if found is None:
            raise FormParserError("a header that cannot be read")
        name, quoted, plain = found.group("name", "quoted", "plain")
        if name is not None:
            options.setdefault(name.lower(), plain if quoted is None else _ESCAPED.sub(r"\1", quoted))
        position = found.end()
    return kind.strip().lower(), options

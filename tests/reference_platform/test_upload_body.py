"""The body of an upload: which files it holds, and every way in which it is refused."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from typing import Any

import pytest
from structlog.testing import capture_logs

from molecule_runtime.reference_platform.refusals import Refusal
from molecule_runtime.reference_platform.services.upload_body import Spool, boundary_of, receive
from molecule_runtime.reference_platform.services.uploads import hardened_type

from .uploads import BOUNDARY, FORM, form, named, part, pieces

CAPS = {"max_file_bytes": 1000, "max_request_bytes": 1_000_000}
MALFORMED = (400, {"error": "malformed multipart body"})
NO_FILES = (400, {"error": "no files field in request"})
OTHER = part(b"hello", 'Content-Disposition: form-data; name="note"')


async def parsed(
    body: bytes, content_type: str = FORM, *, size: int = 65_536, **caps: int
) -> list[tuple[str, str, bytes]]:
    """(name, type, bytes) of each file of a body that comes in pieces of `size`."""
    with Spool() as spool:
        files = await receive(pieces(body, size), boundary_of(content_type), spool, **CAPS | caps)
        return [(file.name, file.content_type, b"".join(spool.chunks(file))) for file in files]


async def refused(body: bytes, content_type: str = FORM, **caps: int) -> tuple[int, Any]:
    with pytest.raises(Refusal) as refusal:
        await parsed(body, content_type, **caps)
    return refusal.value.status, refusal.value.body()


@pytest.mark.parametrize("size", [1, 7, 64, 65_536])
async def test_files_come_out_as_they_were_sent_however_the_body_is_cut(size: int) -> None:
    """Order, names, types and bytes, line ends and half boundaries in them too; other fields are passed over."""
    tricky = f"\r\n--{BOUNDARY[:-1]}\r\n--{BOUNDARY}x\r".encode() * 3
    body = form(
        named("a.txt", tricky), OTHER, named("b 世.bin", bytes(range(256)), "x/y; q=1"), named("a.txt", b"\r\n")
    )
    assert await parsed(body, size=size) == [
        ("a.txt", "text/plain", tricky),
        ("b 世.bin", "x/y; q=1", bytes(range(256))),
        ("a.txt", "text/plain", b"\r\n"),
    ]


async def test_the_spool_keeps_files_apart_beyond_memory() -> None:
    """Several files, together larger than what stays in memory, one of them of several pieces (ours)."""
    contents = [os.urandom(size) for size in (900_000, 3, 2_500_000, 1_048_576)]
    body = form(*(named(str(number), content) for number, content in enumerate(contents)))
    found = await parsed(body, max_file_bytes=3_000_000, max_request_bytes=10_000_000)
    assert [content for _, _, content in found] == contents


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        ('filename="a.txt"', "a.txt"),
        ("filename=a.txt", "a.txt"),
        ('FileName="a.txt"', "a.txt"),
        (r'filename="a\"b\\c.txt"', r'a"b\c.txt'),
        (r'filename="C:\dir\a.txt"', r"C:\dir\a.txt"),
        (r'filename="\\server\a.txt"', r"\server\a.txt"),
        ('filename="a;b=c.txt"', "a;b=c.txt"),
        ('filename="../../etc/passwd"', "../../etc/passwd"),
        (r'filename="a\\\"b\c\\"', r"a\"b\c" + "\\"),
        (r'filename="a\';b=\c.txt"', r"a\';b=\c.txt"),
        ('filename="back\\"', "back\\"),
        ('filename="a\\"b\\" \t', 'a"b\\'),
        ('filename="<a.txt>"', "<a.txt>"),
        ('filename="報告 世界🌍.pdf"', "報告 世界🌍.pdf"),
        ("filename=報告.pdf", "報告.pdf"),
        ('filename = "a.txt"\t; ; x="1" ;', "a.txt"),
        ('filename="a.txt"; FILENAME="b.txt"', "a.txt"),
        ("filename=\"a.txt\"; filename*=UTF-8''b.txt", "b.txt"),
        ("filename*=utf-8'zh'b.txt; filename=\"a.txt\"", "b.txt"),
        ("filename=\"a.txt\"; filename*=UTF-8''", "a.txt"),
        ("filename*=UTF-8''%e4%b8%96.txt", "世.txt"),
        ("FileName*=\"UTF-8''it's%20%22a%22.txt\"", 'it\'s "a".txt'),
        ("filename*=Iso-8859-1'en'%A3.txt", "£.txt"),
        ("filename*=UTF-8''a%ff%ed%a0%80%zz%00", "a\ufffd\ufffd\ufffd\ufffd%zz\x00"),
        ('filename="a\nX-Evil: 1"', "a\nX-Evil: 1"),
        ('filename="a\x00b"', "a\x00b"),
    ],
)
async def test_the_name_is_what_the_sender_wrote(parameters: str, name: str) -> None:
    """Quotes and escapes are undone and nothing else: what is cut or replaced is the cleaning's business (5.2)."""
    body = form(part(b"x", f'Content-Disposition: form-data; name="files"; {parameters}'))
    assert await parsed(body) == [(name, "", b"x")]


@pytest.mark.parametrize(
    "disposition",
    [
        'form-data; name="files"',
        'form-data; name="files"; filename=""',
        'form-data; name="file"; filename="a"',
        'form-data; filename="a"',
        'attachment; name="files"; filename="a"',
        "",
        ";;;",
    ],
)
async def test_what_is_no_file_of_the_field_is_ignored(disposition: str) -> None:
    """No name of a file, another field, no form-data: as if it were not there (contract 5.1)."""
    lonely = part(b"x" * 2000, f"Content-Disposition: {disposition}")
    assert await refused(form(lonely)) == NO_FILES
    assert await parsed(form(lonely, named("a", b"1"))) == [("a", "text/plain", b"1")]
    assert await refused(form(part(b"x", "X: y"))) == NO_FILES
    assert await refused(form()) == NO_FILES


@pytest.mark.parametrize(
    "disposition",
    [
        'form-data; name="files"; filename="a.txt',
        'form-data; name="files"; filename="a.txt\\"; x=y',
        'form-data; name="y; filename="a.txt"',
        'form-data; name="files"; filename="a.txt"b',
        'form-data; name="files"; filename="a" name="b"',
        'form-data; name="files"; filename=a b.txt',
        'form-data; name="files"; filename',
        'form-data; name="files"; ="a.txt"',
        'attachment; filename="',
        ";;;=",
        *(
            f'form-data; name="files"; filename*={extended}'
            for extended in (
                "idna''abc",
                "undefined''abc",
                "unicode_escape''%5Cud800b",
                "utf-8\x00''abc",
                "utf-16''abc",
                "utf_8''abc",
                "''abc",
                "utf-8'abc",
                "abc",
                "",
            )
        ),
    ],
)
async def test_a_disposition_that_cannot_be_read_is_malformed(disposition: str) -> None:
    """An open quote, what is no parameter, a charset beyond the two: 400, nothing guessed and no traceback (5.1)."""
    with capture_logs() as logs:
        # Also in a form whose other part could be read, and in a file that would be over its cap.
        body = form(named("a"), part(b"x" * 2000, f"Content-Disposition: {disposition}"))
        assert await refused(body) == MALFORMED
    assert logs == []


WHOLE = form(named("a"))


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (WHOLE, ""),
        (WHOLE, "multipart/form-data"),
        (WHOLE, 'multipart/form-data; boundary=""'),
        (WHOLE, f"multipart/mixed; boundary={BOUNDARY}"),
        (WHOLE, "multipart/form-data; boundary=other"),
        (WHOLE, f"multipart/form-data; boundary={'x' * 5000}"),
        (WHOLE, "multipart/form-data; boundary=é"),
        (b'{"files": []}', "application/json"),
        (b"", FORM),
        (b"\r\n", FORM),
        (b"rubbish", FORM),
        (WHOLE[:-4], FORM),
        (WHOLE[: WHOLE.index(b"\r\n\r\n") + 4], FORM),
        (named("a"), FORM),
        (form(part(b"x", "no colon here")), FORM),
        (form(part(b"x", "X: " + "y" * 100_000)), FORM),
        (form(*[part(b"", "X: y")] * 201), FORM),
        (form(part(b"x", *[f"X-{n}: y" for n in range(100)])), FORM),
    ],
    ids=[
        "no type",
        "no boundary",
        "empty boundary",
        "another multipart",
        "boundary that is not there",
        "long boundary",
        "boundary beyond ASCII",
        "JSON",
        "empty",
        "a line end",
        "rubbish",
        "end missing",
        "ends in a part",
        "no closing boundary",
        "header without a colon",
        "long header",
        "201 parts",
        "100 headers",
    ],
)
async def test_what_is_no_form_is_malformed(body: bytes, content_type: str) -> None:
    """One text for all of them, and nothing in the log: it is the client's mistake (contract 5.1)."""
    with capture_logs() as logs:
        assert await refused(body, content_type) == MALFORMED
    assert logs == []


async def test_the_parser_warns_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """What a client sends must not fill an operator's screen (ours)."""
    await refused(b"--frontierX")
    assert caplog.records == []


async def test_each_cap_is_on_what_is_longer() -> None:
    """A file, a batch and a body of just the cap pass; one more does not (contract 5.1)."""
    most = form(*(named(str(number)) for number in range(64)))
    assert len(await parsed(form(named("a", b"x" * 1000)))) == 1
    assert len(await parsed(most)) == 64
    assert len(await parsed(most, max_request_bytes=len(most))) == 64
    too_long = (400, {"error": "malformed multipart body", "max": len(most) - 1})
    assert await refused(most, max_request_bytes=len(most) - 1) == too_long
    assert len(await parsed(form(named("a"), *[OTHER] * 199))) == 1
    one_more = form(*(named(str(number)) for number in range(65)))
    assert await refused(one_more) == (400, {"error": "too many files (limit 64)"})


def over(filename: str, size: int) -> tuple[int, Any]:
    return 413, {"error": "file exceeds per-file cap", "filename": filename, "size": size, "max": 1000}


async def test_a_file_over_its_cap_is_named_with_its_whole_size() -> None:
    """The first of them, by the name that its owner knows it by; what the body is wrong in comes first (5.1)."""
    good, bad, worse = named("a"), named("世界.bin", b"x" * 1001), named("c", b"x" * 9000)
    assert await refused(form(good, bad, worse)) == over("世界.bin", 1001)
    assert await refused(form(worse, bad)) == over("c", 9000)
    assert await refused(form(named("n" * 300, b"x" * 1001))) == over("n" * 255, 1001)
    encoded = "Content-Disposition: form-data; name=\"files\"; filename*=UTF-8''%ed%a0%80%ff%e4%b8%96"
    assert await refused(form(part(b"x" * 1001, encoded))) == over("\ufffd" * 4 + "世", 1001)
    assert await refused(form(bad)[:-4]) == MALFORMED
    assert await refused(form(bad), max_request_bytes=1100) == (400, {"error": MALFORMED[1]["error"], "max": 1100})
    assert (await refused(form(bad, *[good] * 64)))[1] == {"error": "too many files (limit 64)"}


async def test_what_is_over_a_cap_is_not_kept() -> None:
    """Neither the rest of a long file nor what comes behind a refusal takes room (ours)."""
    body = form(named("a", b"x" * 500_000), *[named("b", b"x" * 1000)] * 63)
    with Spool() as spool:
        with pytest.raises(Refusal):
            await receive(pieces(body, 65_536), BOUNDARY.encode(), spool, **CAPS)
        assert spool.size <= CAPS["max_file_bytes"]
    with Spool() as spool:
        with pytest.raises(Refusal):
            await receive(pieces(form(*[named("b", b"x" * 1000)] * 200), 65_536), BOUNDARY.encode(), spool, **CAPS)
        assert spool.size <= 64 * 1000


@pytest.mark.parametrize("encoding", ["base64", "quoted-printable", "x-packed"])
async def test_a_transfer_encoding_is_refused_and_not_stored_as_it_stands(encoding: str) -> None:
    """Stored encoded, the file would be another one; forms have no such encodings (RFC 7578 4.7, contract 5.1)."""
    disposition = 'Content-Disposition: form-data; name="files"; filename="a"'
    packed = part(b"eA==", disposition, f"Content-Transfer-Encoding: {encoding}")
    assert await refused(form(packed)) == (400, {"error": "could not read file part"})
    plain = part(b"eA==", disposition, "Content-Transfer-Encoding: Binary")
    assert await parsed(form(plain)) == [("a", "", b"eA==")]


async def test_a_full_disk_is_the_platforms_failure() -> None:
    """500 and a line in the log, since trying again may help; nothing is said about the client's form (ours)."""

    class FullDisk(Spool):
        async def append(self, data: bytes) -> None:
            raise OSError(28, "No space left on device")

    with capture_logs() as logs, FullDisk() as spool, pytest.raises(Refusal) as refusal:
        await receive(pieces(WHOLE, 100), BOUNDARY.encode(), spool, **CAPS)
    assert (refusal.value.status, refusal.value.body()) == (500, {"error": "could not stage files"})
    assert [entry["event"] for entry in logs] == ["uploads.spool_failed"]


async def test_a_body_over_its_cap_is_not_parsed_further() -> None:
    """What comes behind the cap is never asked for by the reader (ours)."""
    asked = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal asked
        yield WHOLE[:50]
        while True:
            asked += 1
            yield b"x" * 1000

    with Spool() as spool, pytest.raises(Refusal):
        await receive(endless(), BOUNDARY.encode(), spool, max_file_bytes=100, max_request_bytes=5000)
    assert asked == 5


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("text/plain", "text/plain"),
        ("text/plain; charset=utf-8", "text/plain"),
        ("  image/png ;x", "image/png"),
        ("\timage/png\t", "image/png"),
        ("Application/PDF", "Application/PDF"),
        ("application/vnd.x+json", "application/vnd.x+json"),
        ('a"b/c<d', 'a"b/c<d'),
        ("", ""),
        (";", ""),
        ("   ;charset=x", ""),
        ("text", "application/octet-stream"),
        ("text/", "application/octet-stream"),
        ("/plain", "application/octet-stream"),
        ("/", "application/octet-stream"),
        ("a/b/c", "application/octet-stream"),
        ("text /plain", "application/octet-stream"),
        ("text/plain\r\nX-Evil: 1", "application/octet-stream"),
        ("text/plain\nSet-Cookie: a", "application/octet-stream"),
        ("text/pl\x00ain", "application/octet-stream"),
        ("text/\x7f", "application/octet-stream"),
        ("text/plän", "application/octet-stream"),
        ("文本/纯", "application/octet-stream"),
        ("text/\ufffd", "application/octet-stream"),
        ("\x1ctext/plain", "application/octet-stream"),
    ],
)
def test_a_type_is_two_visible_words_or_none(sent: str, kept: str) -> None:
    """The table of the contract (5.3)."""
    assert hardened_type(sent) == kept

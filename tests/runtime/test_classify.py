"""Rows of the feed as what they are for an agent."""

from __future__ import annotations

import json
from typing import Any

import pytest

from molecule_runtime.inbox.classify import Classified, Echo, FilePart, Kind, Message, UploadNotice, classify
from molecule_runtime.wire.activity import ActivityRow

from .support import PEER, WORKSPACE, golden, row

FILE_ID = "44444444-4444-4444-8444-444444444444"
PDF = FilePart("a.pdf", f"platform-pending:{WORKSPACE}/{FILE_ID}", "application/pdf", 123, FILE_ID)
WHEN = "2026-05-05T10:00:00.123456Z"


def of(raw: dict[str, Any]) -> Classified:
    return classify(ActivityRow.model_validate(raw), own_id=WORKSPACE)


def id_of(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012d}"


def user(number: int, text: str, **more: Any) -> Message:
    return Message(id_of(number), Kind.CANVAS_USER, "", text, WHEN, "message/send", **more)


def result(n: int, text: str, outcome: str) -> Message:
    """The result of a delegation."""
    kind, method = Kind.DELEGATION_RESULT, "delegate_result"
    return Message(id_of(n), kind, "", text, WHEN, method, delegation_id=FILE_ID, outcome=outcome)


EXPECTED: list[Classified] = [
    user(1, "hello 世界 🌍"),
    Echo(id_of(2)),
    Echo(id_of(3)),
    UploadNotice(id_of(4), FILE_ID, PDF),
    result(5, "the whole result", "completed"),
    result(6, "peer went away", "failed"),
    Message(id_of(7), Kind.PEER_AGENT, PEER, "hello", WHEN, "message/send"),
    Message(id_of(8), Kind.PEER_AGENT, PEER, "something new", WHEN, "tasks/unheard_of"),
    user(9, "v0 parts"),
    user(10, "bare parts"),
    user(11, "", files=(PDF,)),
]
GOLDEN_ROWS = golden("activity_rows")["exchanges"][0]["response"]


@pytest.mark.parametrize(("raw", "expected"), list(zip(GOLDEN_ROWS, EXPECTED, strict=True)))
def test_every_recorded_row_is_what_the_table_says(raw: dict[str, Any], expected: Classified) -> None:
    """Contract 4.3, rows an inbox must filter; history is context, never the message."""
    assert of(raw) == expected


@pytest.mark.parametrize("message", [one for one in EXPECTED if isinstance(one, Message)])
def test_a_message_survives_the_journal(message: Message) -> None:
    """design: nothing lives only in memory."""
    assert Message.from_json(json.loads(json.dumps(message.to_json()))) == message


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        pytest.param({"method": "notify", "source_id": PEER}, Kind.PEER_AGENT, id="a peer's own method notify"),
        pytest.param({"method": "notify", "source_id": WORKSPACE}, None, id="our notify with our id"),
        pytest.param({"method": None, "source_id": PEER}, Kind.PEER_AGENT, id="no method"),
        pytest.param({"source_id": ""}, Kind.CANVAS_USER, id="an empty source is the user"),
        pytest.param({"source_id": "", "method": "notify"}, None, id="an echo with an empty source"),
        pytest.param({"method": "delegate_result", "source_id": PEER}, Kind.DELEGATION_RESULT, id="result of a peer"),
    ],
)
def test_who_speaks_is_told_by_source_and_method(fields: dict[str, Any], expected: Kind | None) -> None:
    """Contract 4.3: drop own notify rows and self echoes, nothing else."""
    found = of(row(1, **fields))
    assert (found.kind if isinstance(found, Message) else None) == expected


DELEGATION = "66666666-6666-4666-8666-666666666666"


def test_a_delegation_is_known_by_its_metadata() -> None:
    """Contract 0.8: params.message.metadata.delegation_id, when it is a text."""
    message = {"parts": [{"kind": "text", "text": "do it"}], "metadata": {"delegation_id": DELEGATION}}
    found = of(row(1, source_id=PEER, request_body={"params": {"message": message}}))
    assert isinstance(found, Message)
    assert (found.text, found.delegation_id, found.peer_id) == ("do it", DELEGATION, PEER)
    message["metadata"] = {"delegation_id": {"not": "a text"}}
    found = of(row(1, source_id=PEER, request_body={"params": {"message": message}}))
    assert isinstance(found, Message)
    assert found.delegation_id is None


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"params": {"message": {"parts": [{"kind": "text", "text": "a"}, {"type": "text", "text": "b"}]}}}, "ab"),
        ({"params": {"message": {"parts": []}, "parts": [{"kind": "text", "text": "no"}]}}, "…"),
        ({"params": {"message": None, "parts": [{"kind": "text", "text": "yes"}]}}, "yes"),
        ({"params": {"parts": "no", "message": 1}, "parts": [{"kind": "text", "text": "yes"}]}, "yes"),
        ({"params": {"metadata": {"history": [{"parts": [{"kind": "text", "text": "old"}]}]}}}, "…"),
        ({"params": {"message": {"parts": [{"kind": "data", "text": "no"}, {"kind": "text", "text": "yes"}]}}}, "yes"),
    ],
)
def test_the_text_is_the_first_list_of_parts_or_else_the_summary(body: Any, text: str) -> None:
    """agent-side 4: params.message.parts, else params.parts, else parts; joined without a separator."""
    found = of(row(1, request_body=body))
    assert isinstance(found, Message)
    assert found.text == text


@pytest.mark.parametrize(
    ("part", "file"),
    [
        ({"kind": "file", "file": {"uri": "x:/a/b.txt"}}, FilePart("b.txt", "x:/a/b.txt")),
        ({"type": "file", "file": {"uri": "x:y", "name": "n", "size": 1.5}}, FilePart("n", "x:y")),
        (
            {"kind": "file", "url": "http://h/f", "filename": "g", "mediaType": "text/plain", "size": 3},
            FilePart("g", "http://h/f", "text/plain", 3),
        ),
        ({"kind": "file", "file": {"bytes": "aGk=", "name": "inline"}}, FilePart("inline", "")),
        ({"kind": "file", "file": {"uri": 5, "name": 6, "size": True}}, FilePart("file", "")),
        ({"kind": "file"}, FilePart("file", "")),
        (
            {"kind": "file", "file": {"uri": f"platform-pending:{WORKSPACE.upper()}/{FILE_ID}", "name": "ours"}},
            FilePart("ours", f"platform-pending:{WORKSPACE.upper()}/{FILE_ID}", file_id=FILE_ID),
        ),
        (
            {"kind": "file", "file": {"uri": f"platform-pending:{PEER}/{FILE_ID}", "name": "a peer's"}},
            FilePart("a peer's", f"platform-pending:{PEER}/{FILE_ID}"),
        ),
        (
            {"kind": "file", "file": {"uri": f"platform-pending:{WORKSPACE}/../x", "name": "no id"}},
            FilePart("no id", f"platform-pending:{WORKSPACE}/../x"),
        ),
    ],
)
def test_a_file_of_any_form_is_shown_never_lost(part: Any, file: FilePart) -> None:
    """Contract 4.5, file part: nested, flat, and those that nobody can fetch."""
    found = of(row(1, request_body={"parts": [part]}))
    assert isinstance(found, Message)
    assert found.files == (file,)


def test_beside_files_no_summary_stands_for_a_text() -> None:
    """A platform's summary ("queued for poll") would read like words of the sender."""
    part = {"kind": "file", "file": {"uri": "x:y", "name": "n"}}
    found = of(row(1, summary="message/send (queued for poll)", request_body={"parts": [part]}))
    assert isinstance(found, Message)
    assert (found.text, found.files) == ("", (FilePart("n", "x:y"),))


def test_a_message_that_names_thousands_of_files_is_kept_within_bounds() -> None:
    """Contract 5.1: 64 in one message; the others are counted."""
    part = {"kind": "file", "file": {"uri": f"platform-pending:{WORKSPACE}/{FILE_ID}", "name": "n"}}
    found = of(row(1, request_body={"parts": [part] * 7_000}))
    assert isinstance(found, Message)
    assert (len(found.files), found.files_left_out) == (64, 6_936)


@pytest.mark.parametrize("file_id", [None, "", "../../etc/passwd", 7, f"{FILE_ID}x"])
def test_a_notice_without_an_id_to_ask_for_is_shown_as_a_message(file_id: Any) -> None:
    """Paths and routes are made of UUIDs only; nothing is lost."""
    found = of(row(1, method="chat_upload_receive", summary="an upload", request_body={"file_id": file_id}))
    assert isinstance(found, Message)
    assert found.text == "an upload"


@pytest.mark.parametrize(("size", "known"), [(0, 0), (7, 7), (-1, None), (2**53, None), (10**400, None), ("7", None)])
def test_a_size_that_no_file_has_is_not_believed(size: Any, known: int | None) -> None:
    """The journal could not store it, and the feed would stand still."""
    found = of(row(1, method="chat_upload_receive", request_body={"file_id": FILE_ID, "name": "a", "size": size}))
    assert isinstance(found, UploadNotice)
    assert found.part.size == known


BIG = 10**400
ODD_BODIES: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1.5,
    float("inf"),
    BIG,
    "",
    "text",
    "\x00",
    [],
    [[]],
    [None],
    {},
    {"": ""},
    {"params": None},
    {"params": []},
    {"params": "x"},
    {"params": {"message": []}},
    {"params": {"message": "x"}},
    {"params": {"message": {"parts": None}}},
    {"params": {"message": {"parts": {}}}},
    {"params": {"message": {"parts": "parts"}}},
    {"params": {"message": {"parts": [None, 1, "x", [], {}]}}},
    {"params": {"message": {"parts": [{"kind": "text"}]}}},
    {"params": {"message": {"parts": [{"kind": []}]}}},
    {"params": {"message": {"parts": [{"kind": "text", "text": None}]}}},
    {"params": {"message": {"parts": [{"kind": "text", "text": {"a": 1}}]}}},
    {"params": {"message": {"parts": [{"kind": {"text": 1}, "type": "text", "text": 5}]}}},
    {"params": {"message": {"parts": [{"kind": "file", "file": []}]}}},
    {"params": {"message": {"parts": [{"kind": "file", "file": "x"}]}}},
    {"params": {"message": {"parts": [{"kind": "file", "file": {"uri": [], "name": {}, "size": BIG}}]}}},
    {"params": {"message": {"parts": [{"kind": "file", "file": {"uri": "/", "mimeType": 7}}]}}},
    {"params": {"message": {"metadata": []}}},
    {"params": {"message": {"metadata": {"delegation_id": []}}}},
    {"params": {"message": {"metadata": "x"}}},
    {"parts": [[[]]]},
    {"parts": [{"file": {}}]},
    {"file_id": 1, "name": None, "uri": [], "mimeType": {}, "size": "big"},
    {"file_id": {}, "size": BIG},
    {"delegation_id": []},
    {"delegation_id": 0},
    {"text": ["x"]},
    {"text": {"a": "b"}, "delegation_id": {}},
]


@pytest.mark.parametrize("method", ["message/send", "chat_upload_receive", "delegate_result", "notify", "", None])
def test_no_body_is_too_odd_to_be_classified_and_kept(method: str | None) -> None:
    """agent-side 8: what a peer sends must not stop the inbox; every result can be journalled."""
    assert len(ODD_BODIES) >= 45
    for request in ODD_BODIES:
        for response in (None, request):
            for source in (None, PEER):
                fields = {"request_body": request, "response_body": response, "summary": None, "source_id": source}
                found = of(row(1, method=method, **fields))
                if isinstance(found, Message):
                    assert Message.from_json(json.loads(json.dumps(found.to_json()))) == found


QUEUED_ENVELOPE = '{"status":"queued","delivery_mode":"poll","method":"message/send"}'


@pytest.mark.parametrize(
    ("text", "fields", "is_message"),
    [
        (QUEUED_ENVELOPE, {"seq": None}, False),
        (QUEUED_ENVELOPE, {"seq": None, "status": "error"}, True),
        (QUEUED_ENVELOPE, {"seq": 7}, True),
        ('{"queued": true, "ticket": 7}', {"seq": None}, True),
        ('{"status": "queued", "delivery_mode": "poll", "ticket": 7}', {"seq": None}, True),
        ('{"queued": true, "queue_id": "q", "ticket": 7}', {"seq": None}, True),
    ],
    ids=["the envelope", "as an error", "where rows are numbered", "a peer's own JSON", "with more in it", "a ticket"],
)
def test_a_note_that_a_peer_will_be_asked_is_no_result(text: str, fields: dict[str, Any], is_message: bool) -> None:
    """Contract 6.1: some platforms close a delegation to a polling peer with that envelope as its text."""
    given = {"response_body": {"text": text, "delegation_id": FILE_ID}, "error_detail": text} | fields
    found = of(row(1, method="delegate_result", source_id=WORKSPACE, **given))
    assert isinstance(found, Message) is is_message
    assert not is_message or found.text == text  # type: ignore[union-attr]


def test_an_empty_result_is_empty() -> None:
    """The summary is the platform's: it must not stand for a peer's words."""
    body = {"text": "", "delegation_id": FILE_ID}
    found = of(row(1, method="delegate_result", source_id=WORKSPACE, summary="delivered", response_body=body))
    assert isinstance(found, Message)
    assert (found.text, found.outcome) == ("", "completed")

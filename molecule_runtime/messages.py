"""Saying something: to the user, to a peer, and back to whoever wrote.

An answer is sent first and the message marked handled after, so that a crash in between offers the message again
rather than losing the answer. Files go before the message that names them, all or none; only the user can be sent any.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, assert_never

import structlog

from molecule_runtime.attachments import AttachmentPolicy, check_sizes, held
from molecule_runtime.client import PlatformClient
from molecule_runtime.errors import InvalidArgument, JournalUnusable, MoleculeError, PeerRefused
from molecule_runtime.inbox.classify import Kind, Message
from molecule_runtime.inbox.mailbox import Mailbox
from molecule_runtime.text import cut_code_points
from molecule_runtime.upload_body import UploadProgress
from molecule_runtime.wire.a2a import Answered, Malformed, Method, Queued, Refused, TextPart
from molecule_runtime.wire.activity import ActivityReport, ActivityType
from molecule_runtime.wire.uploads import UploadedFile, parse_pending_uri

Recipient = Literal["user", "peer", "delegation"]


class Echoes(Protocol):
    """Who is told what is uploaded: some platforms put it into the sender's own inbox as if it had come (contract 5.7).

    In: (cleaned name, size) of each file. While it is held the ids of what was staged are put into the list.
    """

    def sending(self, files: Sequence[tuple[str, int]]) -> AbstractAsyncContextManager[list[str]]: ...


@dataclass(frozen=True)
class Enclosed:
    """What goes with a message: absolute paths, where they may lead, how far the upload is, who is told of its echo."""

    paths: Sequence[str]
    policy: AttachmentPolicy
    progress: UploadProgress = field(default_factory=UploadProgress)
    echoes: Echoes | None = None


@dataclass(frozen=True)
class Replied:
    """`popped`: whether the message was still open. `attachments` as the platform staged them."""

    to: Recipient
    popped: bool
    attachments: tuple[UploadedFile, ...] = ()


TEXT_BYTES = 1_000_000
"""A platform reads 1 MiB of a request (contract 4.1), and there is an envelope around the text."""

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


async def send_to_user(client: PlatformClient, text: str, enclosed: Enclosed | None = None) -> list[UploadedFile]:
    """Show `text` in the user's chat, live and after a reload (contract 4.2); the files that went with it.

    Raises:
        AttachmentRefused, InvalidArgument: a file cannot be sent, or the text is too long; nothing was shown.
        PlatformError: nothing was shown, or (Unreachable after the request was read) it is not known.
    """
    check_length("message", text)
    files = await upload(client, enclosed) if enclosed is not None and enclosed.paths else []
    await client.notify(text, attachments=files)
    log.info("messages.sent_to_user", count=len(text))
    return files


async def upload(client: PlatformClient, enclosed: Enclosed) -> list[UploadedFile]:
    """Stage files for a message, all or none.

    Raises:
        AttachmentRefused, InvalidArgument, PlatformError: none is staged, or no message will name it.
    """
    async with held(enclosed.paths, enclosed.policy) as files:
        check_sizes(files, await client.upload_limits())
        if enclosed.echoes is None:
            staged = await client.upload(files, progress=enclosed.progress)
        else:
            async with enclosed.echoes.sending([(file.name, file.size) for file in files]) as sent:
                staged = await client.upload(files, progress=enclosed.progress)
                sent.extend(named[1] for one in staged if (named := parse_pending_uri(one.uri)) is not None)
        log.info("messages.uploaded", count=len(files), size_bytes=sum(file.size for file in files))
    return staged


def listing(files: Sequence[UploadedFile]) -> list[dict[str, Any]]:
    """Files that were sent, as a result shows them."""
    return [{"name": file.name, "uri": file.uri, "size": file.size} for file in files]


async def send_to_peer(
    client: PlatformClient, peer_id: str, text: str, *, delegation_id: str | None = None
) -> str | None:
    """Put `text` into a peer's inbox; being queued is the ordinary success (contract 4.1).

    Returns the text of a peer that answered at once, as one that does not poll may; None otherwise.

    Raises:
        InvalidArgument: it is longer than a platform takes; nothing was sent.
        PlatformError, PeerRefused
    """
    check_length("message", text)
    metadata = {"delegation_id": delegation_id} if delegation_id else {}
    outcome = await client.send_message(peer_id, text, metadata=metadata)
    match outcome:
        case Queued() | Answered():
            log.info("messages.sent_to_peer", peer_id=peer_id, count=len(text))
            return outcome.text if isinstance(outcome, Answered) else None
        case Refused():
            raise PeerRefused(peer_id=peer_id, reason=outcome.message)
        case Malformed():
            raise PeerRefused(peer_id=peer_id, reason=f"an answer of an unknown shape: {outcome.excerpt}")
        case _:
            assert_never(outcome)


def check_length(argument: str, text: str) -> None:
    """Refuse a text that a platform would cut.

    Raises:
        InvalidArgument
    """
    size = len(json.dumps(text, ensure_ascii=False).encode("utf-8", "replace")) - 2  # quotes and line ends take two
    if size > TEXT_BYTES:
        reason = (
            f"as it is sent it has {size:,} bytes, and a platform takes {TEXT_BYTES:,}; nothing was sent:"
            " shorten it, or send it in parts"
        )
        raise InvalidArgument(argument=argument, reason=reason)


async def report_sent(client: PlatformClient, peer_id: str, text: str, *, answer: str | None) -> None:
    """Leave what was sent in this workspace's own log, where `history` finds it: a peer's log is not ours to read.

    The message is out: a report that fails is no failure of the call.
    """
    message = {"role": "agent", "parts": [TextPart(text=text).model_dump()]}
    report = ActivityReport(
        activity_type=ActivityType.A2A_SEND.value,
        method=Method.MESSAGE_SEND.value,
        summary=cut_code_points(text),
        target_id=peer_id,
        request_body={"params": {"message": message}},
        response_body={"text": answer} if answer else None,
    )
    try:
        await client.report(report)
    except MoleculeError as error:
        log.warning("messages.not_reported", peer_id=peer_id, error=type(error).__name__)


async def reply(
    client: PlatformClient, mailbox: Mailbox, activity_id: str, text: str, enclosed: Enclosed | None = None
) -> Replied:
    """Answer a message where it came from, then mark it handled.

    Raises:
        MessageUnknown: no such open message; nothing was sent.
        InvalidArgument: an answer to it is being sent already, it takes no answer, or it takes no files.
        AttachmentRefused: a file cannot be sent; nothing was, and the message stays open.
        PlatformError, PeerRefused: sending failed; the message stays open.

    A journal that fails after the answer is out raises nothing: told of an error, an agent would answer twice.
    """
    with mailbox.answering(activity_id):
        message = (await mailbox.find(activity_id)).message
        recipient = _recipient(message)
        answer: str | None = None
        files: list[UploadedFile] = []
        if recipient == "user":
            files = await send_to_user(client, text, enclosed)
        elif enclosed is not None and enclosed.paths:
            raise InvalidArgument(
                argument="attachments",
                reason="files can go to the user only, and this message came from a peer; nothing was sent:"
                " answer without them, and say in the text where they lie",
            )
        else:
            answer = await send_to_peer(client, message.peer_id, text, delegation_id=message.delegation_id)
        try:
            popped = await mailbox.pop(activity_id)
        except JournalUnusable as error:
            log.warning("messages.not_popped", activity_id=activity_id, detail=str(error))
            popped = False
    if recipient != "user":
        await report_sent(client, message.peer_id, text, answer=answer)
    return Replied(recipient, popped, tuple(files))


def _recipient(message: Message) -> Recipient:
    match message.kind:
        case Kind.CANVAS_USER:
            return "user"
        case Kind.PEER_AGENT:
            return "delegation" if message.delegation_id else "peer"
        case Kind.DELEGATION_RESULT:
            raise InvalidArgument(
                argument="activity_id",
                reason="this is the result of a delegation and nobody waits for an answer to it;"
                " use inbox_pop, and send_message_to_user to report it",
            )
        case _:
            assert_never(message.kind)

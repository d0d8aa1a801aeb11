"""Saying something: to the user, to a peer, and back to whoever wrote.

An answer is sent first and the message marked handled after, so that a crash in between offers the message again
rather than losing the answer.
"""

from __future__ import annotations

from typing import Literal, assert_never

import structlog

from molecule_runtime.client import PlatformClient
from molecule_runtime.errors import InvalidArgument, JournalUnusable, PeerRefused
from molecule_runtime.inbox.classify import Kind, Message
from molecule_runtime.inbox.mailbox import Mailbox
from molecule_runtime.wire.a2a import Answered, Malformed, Queued, Refused

Recipient = Literal["user", "peer", "delegation"]

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


async def send_to_user(client: PlatformClient, text: str) -> None:
    """Show `text` in the user's chat, live and after a reload (contract 4.2).

    Raises:
        PlatformError: nothing was shown, or (Unreachable after the request was read) it is not known.
    """
    await client.notify(text)
    log.info("messages.sent_to_user", count=len(text))


async def send_to_peer(client: PlatformClient, peer_id: str, text: str, *, delegation_id: str | None = None) -> None:
    """Put `text` into a peer's inbox; being queued is the ordinary success (contract 4.1).

    Raises:
        PlatformError, PeerRefused
    """
    metadata = {"delegation_id": delegation_id} if delegation_id else {}
    outcome = await client.send_message(peer_id, text, metadata=metadata)
    match outcome:
        case Queued() | Answered():
            log.info("messages.sent_to_peer", peer_id=peer_id, count=len(text))
        case Refused():
            raise PeerRefused(peer_id=peer_id, reason=outcome.message)
        case Malformed():
            raise PeerRefused(peer_id=peer_id, reason=f"an answer of an unknown shape: {outcome.excerpt}")
        case _:
            assert_never(outcome)


async def reply(client: PlatformClient, mailbox: Mailbox, activity_id: str, text: str) -> tuple[Recipient, bool]:
    """Answer a message where it came from, then mark it handled: (who got it, whether it was still open).

    Raises:
        MessageUnknown: no such open message; nothing was sent.
        InvalidArgument: an answer to it is being sent already, or it takes no answer.
        PlatformError, PeerRefused: sending failed; the message stays open.

    A journal that fails after the answer is out raises nothing: told of an error, an agent would answer twice.
    """
    with mailbox.answering(activity_id):
        entry = await mailbox.find(activity_id)
        recipient = _recipient(entry.message)
        match recipient:
            case "user":
                await send_to_user(client, text)
            case "peer":
                await send_to_peer(client, entry.message.peer_id, text)
            case "delegation":
                await send_to_peer(client, entry.message.peer_id, text, delegation_id=entry.message.delegation_id)
            case _:
                assert_never(recipient)
        try:
            return recipient, await mailbox.pop(activity_id)
        except JournalUnusable as error:
            log.warning("messages.not_popped", activity_id=activity_id, detail=str(error))
            return recipient, False


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

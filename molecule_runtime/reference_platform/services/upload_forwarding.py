"""Files for a workspace that does not poll: the body goes on to its agent as it comes (contract 5.1)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, assert_never

import structlog
from sqlalchemy import Connection, RowMapping, update

from molecule_runtime.reference_platform.refusals import Refusal
from molecule_runtime.reference_platform.services import tokens
from molecule_runtime.reference_platform.services.forwarding import BODILESS, json_object, status_text
from molecule_runtime.reference_platform.services.push import (
    Answered,
    Payload,
    PushAgents,
    Unanswered,
    Unreachable,
    Unreadable,
)
from molecule_runtime.reference_platform.store.engine import Store
from molecule_runtime.reference_platform.store.tables import workspaces
from molecule_runtime.wire.registry import DeliveryMode

INGEST_PATH = "/internal/chat/uploads/ingest"
"""Where an agent takes files, on the host and port of its URL. The URL's own path is that of its messages, so it is
left out; the workspace runtime of the existing platform listens here."""
TIMEOUT_S = 300
"""Seconds for the whole exchange, the user's own sending included."""
UNREACHABLE = "workspace unreachable"
"""The sender learns no more: the reason would tell it about the platform's own network."""
SECRET_RETRY_S = 30
"""Seconds until an agent has read its new secret, which comes with the answer to its next heartbeat (contract 5.1)."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class AgentReply:
    """What the agent said: a status and a JSON object."""

    status: int
    body: dict[str, Any]


class UploadForwarder:
    """Passes uploads on. It neither stores nor announces anything: the agent has the files then."""

    def __init__(self, store: Store, agents: PushAgents) -> None:
        self._store = store
        self._agents = agents

    async def forward(
        self, target: RowMapping, content: AsyncIterator[bytes], content_type: str, length: int | None
    ) -> AgentReply:
        """Send a body of `length` bytes, if that is known, to the workspace's agent, and give back what it says.

        What `content` raises comes through; the agent sees a body that breaks off then.

        Raises:
            Refusal: 422 or 503, the workspace has no URL; 503, it had no secret; 502, no answer came.
            StoreError: the database failed.
        """
        workspace_id, url = target["id"], target["url"]
        if not url:
            raise _without_url(target["delivery_mode"])
        secret = target["platform_inbound_secret"]
        if not secret:
            await self._store.write(_give_secret, workspace_id)
            text = "workspace had no inbound secret; retry when its agent has received the new one"
            raise Refusal(503, text, extra={"retry_after_seconds": SECRET_RETRY_S})
        outcome = await self._agents.post(url, secret, Payload(content, content_type, INGEST_PATH, length), TIMEOUT_S)
        match outcome:
            case Answered(status=status, body=body):
                return _reply(status, body)
            case Unreachable(reason=reason) | Unanswered(reason=reason) | Unreadable(reason=reason):
                log.info(
                    "uploads.forward_failed", workspace_id=workspace_id, outcome=type(outcome).__name__, detail=reason
                )
                raise Refusal(502, UNREACHABLE)
            case _:
                assert_never(outcome)


def _without_url(delivery_mode: str | None) -> Refusal:
    if delivery_mode == DeliveryMode.PUSH:
        return Refusal(503, "workspace url not registered yet")
    detail = "it neither polls nor has a url: register its agent with a delivery_mode"
    return Refusal(422, "workspace cannot take files", extra={"detail": detail})


def _reply(status: int, body: bytes) -> AgentReply:
    """The agent's own JSON; from 300 on `error` is a string, whatever it sent."""
    answer = json_object(body)
    if status < 300:
        if answer is None:
            raise Refusal(502, UNREACHABLE)
        return AgentReply(status, answer)
    error = None if answer is None else answer.get("error")
    if answer is None or not isinstance(error, str) or not error:
        answer = {"error": status_text(status)}
    return AgentReply(BODILESS.get(status, status), answer)


def _give_secret(connection: Connection, workspace_id: str) -> None:
    """Unless somebody else was quicker."""
    connection.execute(
        update(workspaces)
        .where(workspaces.c.id == workspace_id, workspaces.c.platform_inbound_secret.is_(None))
        .values(platform_inbound_secret=tokens.random_secret())
    )

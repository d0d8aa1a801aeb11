"""The agent card: who this agent says it is, told at registration and whenever the agent itself changes it.

A card that the agent set is kept in the state directory, so that the next registration, which may be another process's,
does not put the one of the settings back (agent-side 3).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import structlog

from molecule_runtime.client import PlatformClient
from molecule_runtime.errors import InvalidArgument
from molecule_runtime.state import WorkspaceState

MAX_CARD_BYTES = 64 * 1024
"""A card is shown in every listing of peers; a platform's limit for a whole registration is 1 MiB."""

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


def card_from_settings(name: str, *, description: str = "", skills: tuple[str, ...] = ()) -> dict[str, Any]:
    """The card that the settings describe (contract 2.2); `description` is left out when empty."""
    card: dict[str, Any] = {"name": name, "skills": [{"name": skill} for skill in skills]}
    if description:
        card["description"] = description
    return card


class AgentCard:
    """The card of one workspace: the one the agent set, else the one of the settings."""

    def __init__(self, default: Mapping[str, Any], state: WorkspaceState | None) -> None:
        self._default = dict(default)
        self._state = state

    def current(self) -> dict[str, Any]:
        """The card to register with; read anew each time, because another process may have set it."""
        if self._state is None:
            return self._default
        try:
            kept = json.loads(self._state.agent_card_file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return self._default
        except (OSError, ValueError) as error:
            log.warning("cards.unreadable", error=type(error).__name__, path=str(self._state.agent_card_file))
            return self._default
        return kept if isinstance(kept, dict) else self._default

    async def update(self, client: PlatformClient, card: Mapping[str, Any]) -> None:
        """Replace the card on the platform, then keep it. A card without a name keeps the current one.

        Raises:
            InvalidArgument: it is too large, or name or skills are of the wrong kind; nothing was changed.
            PlatformError: the platform did not take it; nothing was changed.
            StateDirUnwritable: the platform has it, but it could not be kept.
        """
        new = {"name": self.current().get("name"), **{key: value for key, value in card.items() if value is not None}}
        if not isinstance(new["name"], str) or not new["name"].strip():
            raise InvalidArgument(argument="card", reason="its name must be a text that is not empty")
        if not isinstance(new.get("skills", []), list):
            raise InvalidArgument(argument="card", reason="its skills must be a list")
        try:
            text = json.dumps(new, ensure_ascii=False, allow_nan=False)
        except ValueError:
            raise InvalidArgument(argument="card", reason="it holds a number that JSON cannot carry") from None
        if len(text.encode()) > MAX_CARD_BYTES:
            raise InvalidArgument(argument="card", reason=f"it is larger than {MAX_CARD_BYTES // 1024} kB")
        await client.update_card(new)
        log.info("cards.updated")
        if self._state is not None:
            self._state.write_private(self._state.agent_card_file, text + "\n")

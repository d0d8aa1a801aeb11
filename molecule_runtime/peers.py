"""The other members of the team: who they are, and what they are called in a message.

`GET /registry/:id/peers` (contract 2.6). Names and roles are other people's text: they are cleaned before an agent
sees them, because a name is a place where somebody could try to give orders.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import structlog

from molecule_runtime.client import PlatformClient
from molecule_runtime.clock import Clock
from molecule_runtime.errors import MoleculeError
from molecule_runtime.text import clean_name
from molecule_runtime.wire.registry import Peer

DIRECTORY_TTL_S = 300.0
"""How long a peer's name is believed (contract 2.7)."""

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclass(frozen=True)
class PeerView:
    """A peer as an agent sees it."""

    id: str
    name: str
    role: str | None
    status: str
    skills: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "name": self.name,
            "role": self.role,
            "status": self.status,
            "skills": list(self.skills),
        }


class PeerDirectory:
    """Lists peers, and remembers their names for the messages that they send."""

    def __init__(self, client: PlatformClient, *, clock: Clock) -> None:
        self._client = client
        self._clock = clock
        self._known: dict[str, PeerView] = {}
        self._read_at: float | None = None

    async def list(self, query: str = "") -> list[PeerView]:
        """Siblings, children and parent whose name or role holds `query`."""
        views = [view_of(peer) for peer in await self._client.peers(query)]
        self._known.update((view.id, view) for view in views)
        if not query:
            self._read_at = self._clock.monotonic()
        return views

    async def learn(self, peer_ids: set[str]) -> None:
        """Make sure that these peers' names are known and fresh; a platform that does not answer is no obstacle."""
        is_fresh = self._read_at is not None and self._clock.monotonic() - self._read_at < DIRECTORY_TTL_S
        if is_fresh and peer_ids <= self._known.keys():
            return
        try:
            await self.list()
        except MoleculeError as error:
            log.debug("peers.names_unknown", error=type(error).__name__)

    def known(self, peer_id: str) -> PeerView | None:
        """What was last heard of a peer, without asking."""
        return self._known.get(peer_id)


def view_of(peer: Peer) -> PeerView:
    """The wire's peer with its names cleaned and its card's skills as plain words (strings or objects)."""
    skills = (peer.agent_card or {}).get("skills")
    listed = skills if isinstance(skills, list) else []  # a card is other people's JSON, any shape of it
    names = [(skill.get("name") or skill.get("id")) if isinstance(skill, dict) else skill for skill in listed]
    return PeerView(
        id=peer.id,
        name=clean_name(peer.name) or peer.id[:8],
        role=clean_name(peer.role),
        status=peer.status,
        skills=tuple(cleaned for name in names if (cleaned := clean_name(name)) is not None),
    )

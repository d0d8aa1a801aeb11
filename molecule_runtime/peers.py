"""The other members of the team: who they are, what they are called in a message, and through whom they are reached.

`GET /registry/:id/peers` (contract 2.6). Names and roles are other people's text: they are cleaned before an agent
sees them, because a name is a place where somebody could try to give orders.

A process that serves several workspaces is a member of several teams, which may overlap. `reached` makes one list of
them, `find` looks up in it whom a model means, and `way` says which of the own workspaces writes to that peer.
"""

from __future__ import annotations

import unicodedata
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from molecule_runtime.client import PlatformClient
from molecule_runtime.clock import Clock
from molecule_runtime.errors import InvalidArgument, MoleculeError
from molecule_runtime.text import clean_name
from molecule_runtime.wire._base import rfc3339
from molecule_runtime.wire.registry import Peer, WorkspaceStatus

DIRECTORY_TTL_S = 300.0
"""How long a peer's name is believed (contract 2.7)."""
THERE = frozenset({WorkspaceStatus.ONLINE, WorkspaceStatus.DEGRADED})
"""The statuses of a peer whose agent beats (contract 2.4)."""
CHOICES_SHOWN = 10
"""An error that lists peers is a sentence to read; the whole list is `list_peers`."""

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclass(frozen=True)
class PeerView:
    """A peer as an agent sees it.

    `away_since` is the last beat (RFC3339) of one that is not there; None where that is not known.
    """

    id: str
    name: str
    role: str | None
    status: str
    skills: tuple[str, ...]
    away_since: str | None = None

    def to_json(self) -> dict[str, Any]:
        shown: dict[str, Any] = {
            "id": self.id,
            "name": self.name,
            "role": self.role,
            "status": self.status,
            "skills": list(self.skills),
        }
        return shown if self.away_since is None else shown | {"last_seen": self.away_since}


@dataclass(frozen=True)
class Reached:
    """A peer, and the ids of the own workspaces that list it, in the order of the settings."""

    peer: PeerView
    via: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return self.peer.to_json() | {"via": list(self.via)}


class PeerDirectory:
    """Lists peers, and remembers them: their names for the messages that they send, all of them for an outage."""

    def __init__(self, client: PlatformClient, *, clock: Clock) -> None:
        self._client = client
        self._clock = clock
        self._known: dict[str, PeerView] = {}
        self._seen_at: dict[str, float] = {}
        """When the platform last listed a peer; one that the last whole list left out is not in it."""
        self._read_at: float | None = None

    async def list(self, query: str = "") -> list[PeerView]:
        """Siblings, children and parent whose name or role holds `query`, as the platform has them now."""
        views = [view_of(peer) for peer in await self._client.peers(query)]
        now = self._clock.monotonic()
        if not query:
            self._read_at = now
            self._seen_at.clear()
        self._known.update((view.id, view) for view in views)
        self._seen_at.update((view.id, now) for view in views)
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

    def remembered(self) -> tuple[PeerView, ...]:
        """The peers that were listed within `DIRECTORY_TTL_S`, without asking; their status may have changed since."""
        now = self._clock.monotonic()
        return tuple(self._known[peer_id] for peer_id, at in self._seen_at.items() if now - at < DIRECTORY_TTL_S)


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
        away_since=_away_since(peer),
    )


def _away_since(peer: Peer) -> str | None:
    beat = peer.last_heartbeat_at
    if peer.status in THERE or beat is None or not 1970 <= beat.year < 9999:  # the year 1 is Go's word for never
        return None
    return rfc3339(beat)


def reached(lists: Iterable[tuple[str, Sequence[PeerView]]]) -> list[Reached]:
    """Each peer once, in the order of its first appearance in these (own workspace's id, its peers)."""
    peers: dict[str, PeerView] = {}
    via: dict[str, list[str]] = {}
    for workspace_id, views in lists:
        for view in views:
            peers.setdefault(view.id, view)
            ways = via.setdefault(view.id, [])
            if workspace_id not in ways:
                ways.append(workspace_id)
    return [Reached(view, tuple(via[peer_id])) for peer_id, view in peers.items()]


def peer_id_in(told: str) -> str | None:
    """The canonical id when `told` is one (a UUID in any of its spellings), else None: then it is a name."""
    try:
        return str(uuid.UUID(told.strip()))
    except ValueError:
        return None


def refuse_nobody(told: str) -> None:
    """Let pass what can be looked up.

    Raises:
        InvalidArgument: `told` is neither an id nor has anything of a name.
    """
    if peer_id_in(told) is None and clean_name(told) is None:
        raise _not_this_peer("must be a peer's id or its name; list_peers has both")


def refuse_self(told: str, workspace_id: str) -> None:
    """Let pass whoever is not the workspace of this id itself.

    Raises:
        InvalidArgument: `told` is the id of the workspace that is to hand the work out.
    """
    if peer_id_in(told) == workspace_id:
        raise _not_this_peer("a workspace cannot hand work to itself; list_peers has the others")


def find(told: str, among: Sequence[Reached]) -> Reached | None:
    """The peer of this id, or of this name if it is nobody's id; letters' case and what `clean_name` drops are alike.

    Raises:
        InvalidArgument: several have this name; it lists them.
    """
    peer_id = peer_id_in(told)
    if peer_id is not None:
        return next((one for one in among if one.peer.id.lower() == peer_id), None)
    wanted = _key(clean_name(told) or "")
    named = [one for one in among if _key(one.peer.name) == wanted]
    if len(named) > 1:
        listed = "; ".join(_described(one.peer) for one in named[:CHOICES_SHOWN])
        raise _not_this_peer(f"{len(named)} peers have this name, use the id of one: {listed}{_and_more(named)}")
    return named[0] if named else None


def way(found: Reached, *, last: str | None, own: Mapping[str, str]) -> str:
    """The id of the own workspace that writes to a peer: the only one that can, or where the last message came from.

    `own` has the names of the own workspaces by id, in the order of the settings.

    Raises:
        InvalidArgument: several can, and nothing says which.
    """
    if len(found.via) == 1:
        return found.via[0]
    if last is not None and last in found.via:
        return last
    choices = ", ".join(f"{workspace_id} ({name})" for workspace_id, name in own.items() if workspace_id in found.via)
    raise InvalidArgument(
        argument="source_workspace_id",
        reason=f"{quoted(found.peer.name)} is reached through several of your workspaces, name one of: {choices}",
    )


def unseen(told: str, among: Sequence[Reached], *, own: Mapping[str, str], unasked: str = "") -> InvalidArgument:
    """What is wrong with a peer that no own workspace lists. `unasked` says which of them could not be looked at."""
    peer_id = peer_id_in(told)
    if peer_id is not None and peer_id in own:
        said = "a workspace cannot hand work to itself, and none of your others sees this one"
    elif peer_id is not None:
        said = f"none of your workspaces sees the peer {peer_id}; list_peers has those that can be reached"
    elif among:
        listed = ", ".join(quoted(one.peer.name) for one in among[:CHOICES_SHOWN])
        whole = " (list_peers has them all)" if len(among) > CHOICES_SHOWN else ""
        said = (
            f"no peer has the name {quoted(clean_name(told) or '')}; these are there: {listed}{_and_more(among)}{whole}"
        )
    else:
        said = f"no peer has the name {quoted(clean_name(told) or '')}; list_peers shows nobody"
    return _not_this_peer(f"{said}. These could not be asked: {unasked.rstrip('.')}" if unasked else said)


def _not_this_peer(reason: str) -> InvalidArgument:
    return InvalidArgument(argument="workspace_id", reason=reason)


def quoted(name: str) -> str:
    """A name in a sentence of ours: where it begins and ends is to be seen, whatever it says."""
    return '"' + name.replace('"', "'") + '"'


def _key(name: str) -> str:
    """Two spellings of one name are equal: in upper case, or with its accents as characters of their own."""
    return unicodedata.normalize("NFC", name).casefold()


def _described(peer: PeerView) -> str:
    return f"{peer.id} ({', '.join(quoted(name) for name in (peer.name, peer.role) if name)})"


def _and_more(listed: Sequence[Reached]) -> str:
    left = len(listed) - CHOICES_SHOWN
    return f" and {left} more" if left > 0 else ""

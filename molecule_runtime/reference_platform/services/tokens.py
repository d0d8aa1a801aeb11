"""Workspace tokens: minting, listing, revoking, and telling whose a bearer is (contract 1.2, 3.8).

A token is 32 random bytes; the store holds only its SHA-256 digest and its first 8 characters. A token opens its own
workspace and nothing else, and nothing at all once it is revoked or the workspace removed.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, Connection, bindparam, exists, func, insert, select, update

from molecule_runtime.clock import Clock
from molecule_runtime.reference_platform.identifiers import new_id
from molecule_runtime.reference_platform.refusals import Refusal, workspace_not_found
from molecule_runtime.reference_platform.store.engine import Store
from molecule_runtime.reference_platform.store.lists import padded
from molecule_runtime.reference_platform.store.tables import workspace_tokens, workspaces
from molecule_runtime.wire.registry import WorkspaceStatus
from molecule_runtime.wire.workspaces import TokenRow

TOKEN_BYTES = 32
MAX_LIVE = 50
"""Live tokens of one workspace (contract 1.2)."""
FLUSH_ROWS = 250
"""Times of use written in one transaction."""
PREFIX_CHARS = 8
"""Characters of a token that are kept in clear, so that a person can tell tokens apart (contract 1.2)."""


@dataclass(frozen=True)
class Standing:
    """What the SELF-TOKEN rule needs to know of a workspace and of the bearer that was presented for it."""

    known: bool
    removed: bool
    has_live_token: bool
    bearer_owner: str | None


class Tokens:
    """Looks tokens up and remembers when each was last used."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._used: dict[str, datetime] = {}

    async def owner(self, bearer: str) -> str | None:
        """The workspace that a live token belongs to; None for everything else.

        Raises:
            StoreError: nobody can say.
        """
        found = await self._store.read(_live_token, bearer)
        return self._note_use(found)

    async def standing(self, workspace_id: str, bearer: str) -> Standing:
        """Where a workspace stands with respect to a bearer ("" for none), in one snapshot.

        Raises:
            StoreError: nobody can say.
        """
        status, live, found = await self._store.read(_standing, workspace_id, bearer)
        return Standing(
            known=status is not None,
            removed=status == WorkspaceStatus.REMOVED,
            has_live_token=live,
            bearer_owner=self._note_use(found),
        )

    async def any_live(self) -> bool:
        """Whether any workspace has a live token; without one the platform counts as freshly installed."""
        return await self._store.read(_any_live)

    async def issue(self, workspace_id: str) -> str:
        """A new token for a workspace; the return value is its only clear copy.

        Raises:
            Refusal: 404, unknown or removed workspace; 429, it has as many live tokens as it may.
            StoreError: the database failed.
        """
        return await self._store.write(mint_within_limit, workspace_id, self._clock.now(), make_room=False)

    async def page(self, workspace_id: str, *, limit: int, offset: int) -> list[TokenRow]:
        """The live tokens, newest first, with times of use up to now.

        Raises:
            StoreError: the database failed.
        """
        rows = await self._store.read(_select_live, workspace_id, limit, offset)
        # Times of use that no sweep has written yet are known here only.
        return [row.model_copy(update={"last_used_at": self._used.get(row.id, row.last_used_at)}) for row in rows]

    async def revoke(self, workspace_id: str, token_id: str) -> bool:
        """Revoke one token; False when this workspace has no such live token.

        Raises:
            StoreError: the database failed.
        """
        return await self._store.write(_revoke, workspace_id, token_id, self._clock.now())

    async def flush_last_used(self) -> None:
        """Write the times of use noted since the last flush.

        Noting is kept apart from writing so that an authenticated read never waits for a writer.
        """
        used, self._used = self._used, {}
        if used:
            # In portions, so that no beat waits for all of them, and in one order, so that two processes that write
            # the same rows wait for each other instead of locking each other out.
            rows = sorted(used.items())
            for start in range(0, len(rows), FLUSH_ROWS):
                await self._store.write(_write_last_used, rows[start : start + FLUSH_ROWS])

    def note_use(self, token_id: str) -> None:
        """Remember that a token has just opened a door."""
        self._used[token_id] = self._clock.now()

    def _note_use(self, found: tuple[str, str] | None) -> str | None:
        if found is None:
            return None
        token_id, workspace_id = found
        self.note_use(token_id)
        return workspace_id


def standings(
    connection: Connection, claims: Sequence[tuple[str, str]], statuses: Mapping[str, str]
) -> list[tuple[Standing, str | None]]:
    """Where each (workspace id, bearer) stands, and the id of the bearer's token; `statuses` are those of the rows.

    Two questions at most for all of them, inside the caller's transaction.
    """
    columns = workspace_tokens.c
    digests = [_digest(bearer) for _, bearer in claims]
    query = select(columns.digest, columns.id, columns.workspace_id).where(
        columns.digest.in_(padded(digests)), columns.revoked_at.is_(None)
    )
    bearers = {row.digest: row for row in connection.execute(query)}
    # A workspace whose own token was shown has one; of the others nobody knows yet.
    live = {row.workspace_id for row in bearers.values()}
    unsure = sorted({workspace_id for workspace_id, _ in claims} - live)
    if unsure:
        with_token = select(columns.workspace_id).where(
            columns.workspace_id.in_(padded(unsure)), columns.revoked_at.is_(None)
        )
        live.update(connection.execute(with_token).scalars())
    found = []
    for (workspace_id, _), digest in zip(claims, digests, strict=True):
        token = bearers.get(digest)
        standing = Standing(
            known=workspace_id in statuses,
            removed=statuses.get(workspace_id) == WorkspaceStatus.REMOVED,
            has_live_token=workspace_id in live,
            bearer_owner=None if token is None else token.workspace_id,
        )
        found.append((standing, None if token is None else token.id))
    return found


def mint(connection: Connection, workspace_id: str, now: datetime) -> str:
    """Create a live token inside the caller's transaction; the return value is its only clear copy."""
    token = random_secret()
    connection.execute(
        insert(workspace_tokens).values(
            id=new_id(),
            workspace_id=workspace_id,
            digest=_digest(token),
            prefix=token[:PREFIX_CHARS],
            created_at=now,
        )
    )
    return token


def mint_within_limit(connection: Connection, workspace_id: str, now: datetime, *, make_room: bool) -> str:
    """As `mint`, for a living workspace, with at most 50 live tokens. At the limit `make_room` revokes the one that has
    been idle longest.

    Raises:
        Refusal: 404, unknown or removed workspace; 429 at the limit, unless `make_room`.
    """
    # The lock makes counting and minting one step, also where several writers share the database.
    status = connection.execute(
        select(workspaces.c.status).where(workspaces.c.id == workspace_id).with_for_update()
    ).scalar_one_or_none()
    if status in (None, WorkspaceStatus.REMOVED):
        raise workspace_not_found()
    live = _live_of(workspace_id)
    count = connection.execute(select(func.count()).select_from(workspace_tokens).where(live)).scalar_one()
    if count >= MAX_LIVE:
        if not make_room:
            raise Refusal(429, f"maximum {MAX_LIVE} active tokens per workspace")
        idle = func.coalesce(workspace_tokens.c.last_used_at, workspace_tokens.c.created_at)
        oldest = connection.execute(select(workspace_tokens.c.id).where(live).order_by(idle).limit(1)).scalar_one()
        _revoke(connection, workspace_id, oldest, now)
    return mint(connection, workspace_id, now)


def revoke_all(connection: Connection, workspace_ids: Sequence[str], now: datetime) -> None:
    """Revoke every live token of these workspaces."""
    live = workspace_tokens.c.workspace_id.in_(workspace_ids) & workspace_tokens.c.revoked_at.is_(None)
    # Locked in the order in which times of use are written, or the two could lock each other out.
    connection.execute(select(workspace_tokens.c.id).where(live).order_by(workspace_tokens.c.id).with_for_update())
    connection.execute(update(workspace_tokens).where(live).values(revoked_at=now))


def has_live(connection: Connection, workspace_id: str) -> bool:
    """Whether the workspace has a token that is not revoked."""
    return bool(connection.execute(select(exists().where(_live_of(workspace_id)))).scalar_one())


def random_secret() -> str:
    """43 characters of base64url: 32 random bytes without padding."""
    return secrets.token_urlsafe(TOKEN_BYTES)


def _live_of(workspace_id: str) -> ColumnElement[bool]:
    return (workspace_tokens.c.workspace_id == workspace_id) & workspace_tokens.c.revoked_at.is_(None)


def _select_live(connection: Connection, workspace_id: str, limit: int, offset: int) -> list[TokenRow]:
    columns = workspace_tokens.c
    query = (
        select(columns.id, columns.prefix, columns.created_at, columns.last_used_at)
        .where(_live_of(workspace_id))
        .order_by(columns.created_at.desc(), columns.id)
        .limit(limit)
        .offset(offset)
    )
    return [TokenRow.model_validate(dict(row)) for row in connection.execute(query).mappings()]


def _revoke(connection: Connection, workspace_id: str, token_id: str, now: datetime) -> bool:
    done = connection.execute(
        update(workspace_tokens).where(_live_of(workspace_id), workspace_tokens.c.id == token_id).values(revoked_at=now)
    )
    return done.rowcount == 1


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def _live_token(connection: Connection, bearer: str) -> tuple[str, str] | None:
    """(token id, workspace id) of a live token of a workspace that is not removed."""
    if not bearer:
        return None
    query = (
        select(workspace_tokens.c.id, workspace_tokens.c.workspace_id)
        .join(workspaces, workspaces.c.id == workspace_tokens.c.workspace_id)
        .where(
            workspace_tokens.c.digest == _digest(bearer),
            workspace_tokens.c.revoked_at.is_(None),
            workspaces.c.status != WorkspaceStatus.REMOVED,
        )
    )
    row = connection.execute(query).one_or_none()
    return None if row is None else (row.id, row.workspace_id)


def _standing(
    connection: Connection, workspace_id: str, bearer: str
) -> tuple[str | None, bool, tuple[str, str] | None]:
    status = connection.execute(select(workspaces.c.status).where(workspaces.c.id == workspace_id)).scalar_one_or_none()
    return status, has_live(connection, workspace_id), _live_token(connection, bearer)


def _any_live(connection: Connection) -> bool:
    return bool(connection.execute(select(exists().where(workspace_tokens.c.revoked_at.is_(None)))).scalar_one())


def _write_last_used(connection: Connection, used: Sequence[tuple[str, datetime]]) -> None:
    statement = (
        update(workspace_tokens)
        .where(workspace_tokens.c.id == bindparam("token_id"))
        .values(last_used_at=bindparam("moment"))
    )
    connection.execute(statement, [{"token_id": token_id, "moment": moment} for token_id, moment in used])

"""Who is asking, and may they: the six door rules of the contract (0.2-0.6, 1.2-1.5, 4.1).

| rule | method | opens to |
|---|---|---|
| WS-AUTH | `require_workspace` | ADMIN_TOKEN, the workspace's own live token, development mode without a bearer |
| ADMIN | `require_admin` | ADMIN_TOKEN; without one: development mode, a fresh installation, any live token |
| test tokens | `require_admin_token` | ADMIN_TOKEN; without one: everybody |
| SELF-TOKEN | `require_self`, `require_reader` | as WS-AUTH, and anybody while the workspace has no live token |
| caller of /a2a | `a2a_caller` | names the sender; see there |
| listener of /ws | `listener` | names the listening workspace, or nobody for a canvas |

A store that fails opens no door: every method raises 503 then. All wrong tokens look alike.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeVar

import structlog
from starlette.requests import HTTPConnection

from molecule_runtime.reference_platform.config import PlatformConfig
from molecule_runtime.reference_platform.identifiers import canonical_uuid
from molecule_runtime.reference_platform.refusals import Refusal, platform_unavailable
from molecule_runtime.reference_platform.services.tokens import Standing, Tokens
from molecule_runtime.reference_platform.store.engine import StoreError

BEARER = "Bearer "
"""The prefix is matched with its case (contract 1.1)."""

T = TypeVar("T")

log = structlog.get_logger(__name__)


class Access(StrEnum):
    """Why a door opened."""

    ADMIN = "admin"  # ADMIN_TOKEN
    WORKSPACE = "workspace"  # the workspace's own token
    OPEN = "open"  # development mode, or nothing to check against yet


@dataclass(frozen=True)
class Who:
    """Whose words fill a 401: the contract has a pair for each kind of door."""

    missing: str
    invalid: str

    def refusal(self, bearer: str) -> Refusal:
        return Refusal(401, self.invalid if bearer else self.missing)


@dataclass(frozen=True)
class Claim:
    """What a caller shows, and the rule that says whether it opens the door, given where that stands.

    `judge` raises a Refusal (401) when it does not.
    """

    bearer: str = field(repr=False)
    judge: Callable[[Standing], Access]


WORKSPACE = Who("missing workspace auth token", "invalid workspace auth token")
CALLER = Who("missing caller auth token", "invalid caller auth token")
ADMIN = Who("admin auth required", "invalid admin auth token")


class Auth:
    """The door rules over one set of tokens."""

    def __init__(self, config: PlatformConfig, tokens: Tokens) -> None:
        self._admin_token = config.admin_token.encode()
        self._development = config.development
        self._tokens = tokens

    async def require_workspace(self, connection: HTTPConnection, workspace_id: str) -> Access:
        """WS-AUTH for `/workspaces/:id/*` (contract 1.3).

        Raises:
            Refusal: 401, or 503 when the store cannot say.
        """
        bearer = bearer_of(connection)
        if self._is_admin(bearer):
            return Access.ADMIN
        if bearer and await _known(self._tokens.owner(bearer)) == workspace_id:
            return Access.WORKSPACE
        if not bearer and self._development:
            return Access.OPEN
        raise WORKSPACE.refusal(bearer)

    async def require_admin(self, connection: HTTPConnection) -> Access:
        """ADMIN (contract 1.4).

        Raises:
            Refusal: 401, or 503 when the store cannot say.
        """
        if self._development:
            return Access.OPEN
        bearer = bearer_of(connection)
        if self._is_admin(bearer):
            return Access.ADMIN
        if not self._admin_token:
            if bearer and await _known(self._tokens.owner(bearer)) is not None:
                return Access.WORKSPACE
            if not await _known(self._tokens.any_live()):
                return Access.OPEN
        raise ADMIN.refusal(bearer)

    def require_admin_token(self, connection: HTTPConnection) -> None:
        """The door of the route that mints tokens for tests: ADMIN_TOKEN where one is set (contract 1.8).

        Raises:
            Refusal: 401, with one text for no bearer and a wrong one.
        """
        if self._admin_token and not self._is_admin(bearer_of(connection)):
            raise ADMIN.refusal("")

    async def require_self(self, connection: HTTPConnection, workspace_id: str, *, creates: bool = False) -> Access:
        """SELF-TOKEN as register and heartbeat have it: a bearer that is presented must be good (contract 1.5).

        `creates` says that an unknown id would come into being, which with ADMIN_TOKEN set only its holder may do
        (contract 0.4).

        Raises:
            Refusal: 401, also for a removed workspace whatever the bearer; 503 when the store cannot say.
        """
        claim = self.claim_self(connection, workspace_id, creates=creates)
        return claim.judge(await _known(self._tokens.standing(workspace_id, claim.bearer)))

    def claim_self(self, connection: HTTPConnection, workspace_id: str, *, creates: bool = False) -> Claim:
        """The same rule for those who look the standing up themselves, in the transaction that acts on it."""
        bearer = bearer_of(connection)

        def judge(standing: Standing) -> Access:
            if standing.removed:
                raise WORKSPACE.refusal(bearer)
            if self._is_admin(bearer):
                return Access.ADMIN
            if bearer and standing.bearer_owner == workspace_id:
                return Access.WORKSPACE
            locked = standing.has_live_token or (creates and not standing.known and bool(self._admin_token))
            if bearer or locked:
                raise WORKSPACE.refusal(bearer)
            return Access.OPEN

        return Claim(bearer, judge)

    async def require_reader(self, connection: HTTPConnection, workspace_id: str) -> Access:
        """SELF-TOKEN as the registry's reading routes have it: open while there is no live token (contract 2.6).

        Raises:
            Refusal: 401, or 503 when the store cannot say.
        """
        bearer = bearer_of(connection)
        if self._is_admin(bearer):
            return Access.ADMIN
        standing = await _known(self._tokens.standing(workspace_id, bearer))
        if bearer and standing.bearer_owner == workspace_id:
            return Access.WORKSPACE
        if not standing.has_live_token or (not bearer and self._development):
            return Access.OPEN
        raise WORKSPACE.refusal(bearer)

    async def a2a_caller(self, connection: HTTPConnection) -> str | None:
        """The workspace a message comes from, or None for the user (contract 4.1, 0.2, 0.3).

        Named by X-Workspace-ID, which needs that workspace's bearer, else by the bearer. Whoever is neither is the
        user, and needs the admin token where one is set.

        Raises:
            Refusal: 403 for a name that is no workspace's; 401; 503 when the store cannot say.
        """
        bearer = bearer_of(connection)
        named = connection.headers.get("x-workspace-id")
        if named is not None and canonical_uuid(named) is None:
            raise Refusal(403, "invalid caller ID")
        if named is None and self._is_admin(bearer):
            return None
        owner = await _known(self._tokens.owner(bearer)) if bearer else None
        if named is not None and owner != canonical_uuid(named):
            raise CALLER.refusal(bearer)
        if owner is None and self._admin_token:
            raise CALLER.refusal(bearer)
        return owner

    async def listener(self, connection: HTTPConnection) -> str | None:
        """The workspace that opens /ws, or None for a canvas, which hears everything (contract 8.2, 0.2, 0.5).

        Unlike on /a2a a bearer that opens nothing is refused: here it could only be a mistake.

        Raises:
            Refusal: 401; 503 when the store cannot say.
        """
        bearer = bearer_of(connection)
        named = connection.headers.get("x-workspace-id")
        if named is None and self._is_admin(bearer):
            return None
        owner = await _known(self._tokens.owner(bearer)) if bearer else None
        if named is not None and (owner is None or owner != canonical_uuid(named)):
            raise WORKSPACE.refusal(bearer)
        if owner is None and (bearer or self._admin_token):
            raise ADMIN.refusal(bearer)
        return owner

    def _is_admin(self, bearer: str) -> bool:
        if not self._admin_token or not bearer:
            return False
        return hmac.compare_digest(bearer.encode("utf-8", "surrogatepass"), self._admin_token)


def bearer_of(connection: HTTPConnection) -> str:
    """The bearer of the Authorization header, trimmed; "" when there is none."""
    header = connection.headers.get("authorization", "")
    return header.removeprefix(BEARER).strip() if header.startswith(BEARER) else ""


async def _known(lookup: Awaitable[T]) -> T:
    """The result of a look-up, or 503 when the store failed (contract 0.6)."""
    try:
        return await lookup
    except StoreError:
        log.exception("auth.lookup_failed")
        raise platform_unavailable() from None

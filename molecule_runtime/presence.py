"""Presence: the canvas shows this workspace online exactly while this loop runs and the platform hears it.

`POST /registry/register` once, then `POST /registry/heartbeat` every 20 s (contract 2.1, 2.3). The platform calls a
workspace stale 90 s after its last beat (contract 2.4), so four beats in a row may be lost unseen. Nothing is sent in
the first second of a life: a host's one-second health check must not make an absent agent look online (agent-side 2).

`run` never raises for a failure of network, platform or token, never ends the process, never logs a token: it changes
state, slows down and goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

import structlog
from pydantic import SecretStr

from molecule_runtime.client import PlatformClient
from molecule_runtime.clock import Clock
from molecule_runtime.credentials import Credentials
from molecule_runtime.errors import (
    CredentialError,
    LocalStateError,
    MoleculeError,
    NotFound,
    NotThePlatform,
    PlatformError,
    Unauthorized,
    Unavailable,
    Unreachable,
    WorkspaceRemoved,
    advice,
)
from molecule_runtime.retry import REGISTER, REJECTED

QUIET_START_S = 1.0
REMOVAL_CHECK_S = 300.0
"""An upstream platform answers 200 to a removed workspace's beats, so the row itself is asked (agent-side 3)."""
SLEEP_SLICE_S = 5.0
"""How soon a jump of the wall clock (a laptop that slept) is noticed."""
CLOCK_JUMP_S = 5.0
REFUSALS_TO_ACT_ON = 3
"""From the third refusal in a row the log, too, names the cure (agent-side 3): this one does not pass by itself."""
PURGED = "workspace not found"
"""What a platform says of a row that it has deleted for good, after some time of being removed (contract 3.4)."""
TOO_MANY_CALLS = 429

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class PresenceState(StrEnum):
    STARTING = "starting"
    ONLINE = "online"
    DEGRADED = "degraded"
    UNREACHABLE = "unreachable"
    UNAUTHORIZED = "unauthorized"
    REMOVED = "removed"
    WRONG_ADDRESS = "wrong_address"
    STOPPED = "stopped"


@dataclass(frozen=True)
class PresenceSnapshot:
    """What is true now: `since` when the state began, `last_ok_at` the last answered call, both aware UTC."""

    state: PresenceState
    since: datetime
    last_ok_at: datetime | None = None
    consecutive_failures: int = 0
    last_error: str | None = None


class Presence:
    """One workspace's sign of life. `load` gives the number of tasks in hand, `agent_card` the card of this moment."""

    def __init__(
        self,
        client: PlatformClient,
        *,
        clock: Clock,
        credentials: Credentials,
        agent_card: Callable[[], Mapping[str, Any]],
        load: Callable[[], int],
        interval_s: float = 20.0,
        keep_secret: Callable[[str], None] = lambda secret: None,
        on_snapshot: Callable[[PresenceSnapshot], None] = lambda snapshot: None,
    ) -> None:
        self._client = client
        self._clock = clock
        self._credentials = credentials
        self._agent_card = agent_card
        self._load = load
        self._interval_s = interval_s
        self._keep_secret = keep_secret
        self._on_snapshot = on_snapshot
        self._snapshot = PresenceSnapshot(PresenceState.STARTING, since=clock.now())
        self._failure: MoleculeError | None = None
        self._refusals = 0
        self._started_at = clock.monotonic()
        self._drift_s = self._drift()
        self._removal_checked_at = clock.monotonic()

    def snapshot(self) -> PresenceSnapshot:
        return self._snapshot

    def failure(self) -> MoleculeError | None:
        """Why the platform does not hear this workspace now; None while it does."""
        return self._failure

    async def run(self) -> None:
        """Register, then beat until cancelled; register again after a refusal: that restores card and delivery mode."""
        with structlog.contextvars.bound_contextvars(workspace_id=self._client.workspace_id):
            try:
                await self._clock.sleep(QUIET_START_S)
                while True:
                    await self._register()
                    await self._beat()
            finally:
                self._enter(PresenceState.STOPPED)

    async def _register(self) -> None:
        """Repeat until the platform accepts; a register that succeeds shows the workspace online at once."""
        while True:
            error = await self._attempt(self._register_once)
            if error is None:
                log.info("presence.registered")
                return
            await self._pause(self._retry_in_s(error))

    async def _beat(self) -> None:
        """Beat on a fixed grid of deadlines, after a failure sooner, until the token or the workspace is refused."""
        deadline = self._clock.monotonic()
        while True:
            error = await self._attempt(self._beat_once)
            if isinstance(error, Unauthorized | CredentialError | WorkspaceRemoved):
                await self._pause(self._retry_in_s(error))
                return
            now = self._clock.monotonic()
            while deadline <= now:
                deadline += self._interval_s
            wait = deadline - now
            if error is not None:
                wait = max(min(wait, self._retry_in_s(error)), _retry_after_s(error))
            if await self._pause(wait):
                deadline = self._clock.monotonic()

    async def _register_once(self) -> None:
        if self._snapshot.state is PresenceState.REMOVED:
            await self._check_removal()  # an upstream platform would answer with a token that opens nothing
        reply = await self._client.register(self._agent_card())
        if reply.auth_token is not None:
            await self._keep_issued_token(reply.auth_token)
        self._keep_inbound_secret(reply.platform_inbound_secret)

    async def _beat_once(self) -> None:
        reply = await self._client.heartbeat(
            active_tasks=self._load(), uptime_seconds=int(self._clock.monotonic() - self._started_at)
        )
        self._keep_inbound_secret(reply.platform_inbound_secret)
        if self._clock.monotonic() - self._removal_checked_at >= REMOVAL_CHECK_S:
            try:
                await self._check_removal()
            except WorkspaceRemoved:
                raise
            except PlatformError as error:  # the beat itself was heard, and that is what the state says
                log.debug("presence.removal_check_failed", error=type(error).__name__)

    async def _attempt(self, call: Callable[[], Any]) -> MoleculeError | None:
        """Make one call and note what it means. The one place of this module where every error is met."""
        try:
            await call()
        except Unauthorized as refused:
            error: MoleculeError = await self._explain_refusal(refused)
        except MoleculeError as failed:
            error = failed
        except Exception as bug:
            log.exception("presence.iteration_failed")
            error = Unreachable(endpoint="presence", base_url=self._client.base_url, detail=type(bug).__name__)
        else:
            self._note_success()
            return None
        self._note_failure(error)
        return error

    async def _explain_refusal(self, refused: Unauthorized) -> MoleculeError:
        """A 401 is a removed workspace or a wrong token (a rotated one was re-read by the client): look which."""
        try:
            await self._check_removal()
        except (WorkspaceRemoved, CredentialError) as cause:
            return cause
        except PlatformError:
            return refused
        return refused

    async def _check_removal(self) -> None:
        """Raises WorkspaceRemoved when the row is gone: removed, or purged after we had known it."""
        self._removal_checked_at = self._clock.monotonic()
        try:
            await self._client.get_workspace()
        except NotFound as unknown:
            was_there = self._snapshot.last_ok_at is not None or self._snapshot.state is PresenceState.REMOVED
            if not was_there or unknown.detail != PURGED:
                raise
            raise WorkspaceRemoved(
                endpoint=unknown.endpoint,
                base_url=unknown.base_url,
                workspace_id=unknown.workspace_id,
                status=unknown.status,
                detail=unknown.detail,
            ) from None

    async def _keep_issued_token(self, token: str) -> None:
        """Store a token issued by register, unless the workspace is removed: then it opens nothing (contract 1.5).

        When that cannot be found out it is stored: a token is issued once, and a lost one locks the workspace.
        """
        try:
            await self._check_removal()
        except WorkspaceRemoved:
            raise
        except PlatformError as error:
            log.debug("presence.removal_check_failed", error=type(error).__name__)
        try:
            self._credentials.save_issued(SecretStr(token))
        except LocalStateError as error:
            log.warning("presence.token_not_saved", error=type(error).__name__, detail=str(error))

    def _keep_inbound_secret(self, secret: str | None) -> None:
        if secret:
            self._keep_secret(secret)

    def _note_success(self) -> None:
        self._refusals = 0
        self._enter(PresenceState.ONLINE, ok=True)

    def _note_failure(self, error: MoleculeError) -> None:
        self._enter(_state_after(error), error=error)
        self._refusals = self._refusals + 1 if isinstance(error, Unauthorized) else 0
        if self._refusals == REFUSALS_TO_ACT_ON:
            log.warning("presence.keeps_being_refused", attempt=self._refusals, detail=str(advice(error)))

    def _enter(self, state: PresenceState, *, ok: bool = False, error: MoleculeError | None = None) -> None:
        """The one writer of the snapshot; logs a change of state once, not once a beat."""
        before, now = self._snapshot, self._clock.now()
        self._snapshot = PresenceSnapshot(
            state=state,
            since=before.since if before.state is state else now,
            last_ok_at=now if ok else before.last_ok_at,
            consecutive_failures=0 if ok else before.consecutive_failures + (error is not None),
            last_error=str(advice(error)) if error is not None else (None if ok else before.last_error),
        )
        if ok or error is not None:
            self._failure = error
        if before.state is not state:
            level = log.info if state in {PresenceState.ONLINE, PresenceState.STOPPED} else log.warning
            level("presence.state_changed", state_from=before.state.value, state_to=state.value, **_facts(error))
        self._on_snapshot(self._snapshot)

    def _retry_in_s(self, error: MoleculeError) -> float:
        failures = self._snapshot.consecutive_failures
        if isinstance(error, WorkspaceRemoved):
            return REMOVAL_CHECK_S
        policy = REJECTED if isinstance(error, Unauthorized | CredentialError) else REGISTER
        return policy.delay(failures, retry_after_s=_retry_after_s(error))

    async def _pause(self, seconds: float) -> bool:
        """Sleep in slices; True when the wall clock jumped ahead meanwhile (a suspend), which ends the pause."""
        end = self._clock.monotonic() + seconds
        while (remaining := end - self._clock.monotonic()) > 0:
            await self._clock.sleep(min(remaining, SLEEP_SLICE_S))
            before, self._drift_s = self._drift_s, self._drift()
            if self._drift_s - before > CLOCK_JUMP_S:
                log.info("presence.clock_jumped")
                return True
        return False

    def _drift(self) -> float:
        return self._clock.now().timestamp() - self._clock.monotonic()


def _facts(error: MoleculeError | None) -> dict[str, Any]:
    """What a line of the log says of a failure."""
    if error is None:
        return {}
    call = {"endpoint": error.endpoint, "status": error.status} if isinstance(error, PlatformError) else {}
    return {"error": type(error).__name__, **call, "detail": str(error)}


def _retry_after_s(error: MoleculeError) -> float:
    return (error.retry_after_s or 0.0) if isinstance(error, Unavailable) else 0.0


def _state_after(error: MoleculeError) -> PresenceState:
    """The state that a failed call leads to (agent-side 3)."""
    match error:
        case Unauthorized() | CredentialError():
            return PresenceState.UNAUTHORIZED
        case WorkspaceRemoved():
            return PresenceState.REMOVED
        case NotThePlatform():
            return PresenceState.WRONG_ADDRESS
        case Unavailable(status=status) if status == TOO_MANY_CALLS:
            return PresenceState.DEGRADED
        case Unreachable() | Unavailable():
            return PresenceState.UNREACHABLE
        case _:
            return PresenceState.DEGRADED

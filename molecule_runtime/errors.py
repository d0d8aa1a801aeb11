"""Every error the product raises, and the one table that says what each means to a model, an operator and a loop.

MoleculeError
├── SettingsError          the environment is incomplete or wrong; carries every problem at once
├── CredentialError        a token was named but cannot be read
├── PlatformError          a call to the platform failed: endpoint, workspace_id, status, base_url
│   ├── Unreachable        no answer: refused, reset, DNS, TLS, timeout
│   ├── Unavailable        429 or 5xx; retry_after_s when the platform named a time
│   ├── Unauthorized       401 or 403: the token does not open this workspace
│   ├── CanvasRefused      401 or 403 to a command that plays the user: not a platform in development mode
│   ├── WorkspaceRemoved   410 on the workspace itself
│   ├── NotFound           404 with a JSON body: the platform answered, the thing is not there
│   ├── NotThePlatform     404 without a JSON body, HTML, or a redirect: a wrong address or a missing Origin
│   ├── CursorExpired      410 on an activity cursor; ordinary
│   ├── TooLarge           413: more bytes than the platform takes; max_bytes when it said how many
│   ├── Rejected           any other 4xx
│   ├── BadReply           2xx that cannot be read
│   └── TransferFailed     a file's bytes broke off, came to a standstill, or were not what was announced
├── LocalStateError        this machine: directory, disk, journal
│   ├── StateDirUnwritable
│   ├── JournalUnusable    written by a newer version, or the disk is full
│   └── FileNotStored      a file that was sent here found no place: disk or quota full, directory not writable
├── FileTooLarge           a file that is more than was announced, or than is taken
└── CallerError            what the agent asked for cannot be done as asked
    ├── InvalidArgument
    ├── AttachmentRefused  a file that cannot, or may not, be sent
    ├── MessageUnknown     no such message in this inbox
    ├── TaskUnknown        no such job was handed out from here
    ├── MemoryUnknown      no such memory, or not this workspace's
    ├── ToolRefused        the platform's own tool, called for the agent, failed there
    └── PeerRefused        the peer, or the platform on its behalf, answered with an error

A branch is what a caller catches, a leaf is a cause. Errors carry facts; only `advice` makes sentences of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class MoleculeError(Exception):
    """Base of all expected failures. `str(error)` is the sentence of what happened."""

    def __str__(self) -> str:
        return advice(self).what


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with the set-up: a stable id, what it is, and what to do about it."""

    id: str
    summary: str
    fix: str


class SettingsError(MoleculeError):
    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__(problems)
        self.problems = problems

    @property
    def listing(self) -> str:
        """All problems in one line: `PLATFORM_URL is not set; WORKSPACE_ID ...`."""
        return "; ".join(problem.summary for problem in self.problems)

    @property
    def fixes(self) -> str:
        return " ".join(dict.fromkeys(problem.fix for problem in self.problems))


class CredentialError(MoleculeError):
    """`source` names where the token should have come from, never the token."""

    def __init__(self, *, source: str, reason: str) -> None:
        super().__init__(source, reason)
        self.source = source
        self.reason = reason


class PlatformError(MoleculeError):
    """`endpoint` is `GET /workspaces/:id/activity`, `status` the HTTP status or None, `detail` the platform's words."""

    def __init__(
        self,
        *,
        endpoint: str,
        base_url: str,
        workspace_id: str | None = None,
        status: int | None = None,
        detail: str = "",
    ) -> None:
        super().__init__(endpoint, status, detail)
        self.endpoint = endpoint
        self.base_url = base_url
        self.workspace_id = workspace_id
        self.status = status
        self.detail = detail


class WhyUnreachable(StrEnum):
    """Where a call without an answer came to its end."""

    NAME = "name"
    REFUSED = "refused"
    TLS = "tls"
    FOREIGN = "foreign"  # something answered that is no HTTP
    TIMEOUT = "timeout"
    CUT = "cut"
    OTHER = "other"


class Unreachable(PlatformError):
    """`may_have_arrived`: the request left this machine, and to send it again could do twice what it does."""

    why: WhyUnreachable = WhyUnreachable.OTHER
    may_have_arrived: bool = False

    @property
    def cure(self) -> str:
        if self.may_have_arrived:
            return "It may have arrived all the same: look with chat_history before you send it again."
        if self.why is WhyUnreachable.NAME:
            return "Check the host name in PLATFORM_URL and this machine's network, then call again."
        if self.why is WhyUnreachable.TLS:
            return (
                "Check scheme and port of PLATFORM_URL; a certificate authority of your own is named by SSL_CERT_FILE."
            )
        if self.why is WhyUnreachable.FOREIGN:
            return "Check scheme and port of PLATFORM_URL."
        return "Check that it runs and that PLATFORM_URL is right, then call again."


class Unavailable(PlatformError):
    """`retry_after_s`: seconds the platform asked us to wait, or None."""

    retry_after_s: float | None = None

    @property
    def complaint(self) -> str:
        return "wants fewer calls" if self.status == 429 else "is not available now"

    @property
    def pause(self) -> str:
        return f"in {math.ceil(self.retry_after_s)} s" if self.retry_after_s else "in a moment"


class Unauthorized(PlatformError):
    """`has_token`: whether a token was presented at all."""

    has_token: bool = True

    @property
    def complaint(self) -> str:
        return (
            "refuses this workspace's token" if self.has_token else "wants a token for this workspace, and none is set"
        )

    @property
    def cure(self) -> str:
        if not self.has_token:
            return (
                "Set MOLECULE_WORKSPACE_TOKEN_FILE to a file that holds the token the canvas showed at creation;"
                f" if it is lost, {TOKENS_TAB}."
            )
        return f"Check that WORKSPACE_ID and token belong together, or {TOKENS_TAB}."


class CanvasRefused(PlatformError):
    pass


class WorkspaceRemoved(PlatformError):
    """`removed_at` and `hint` as the platform's 410 gave them."""

    removed_at: datetime | None = None
    hint: str = ""


class NotFound(PlatformError):
    pass


class NotThePlatform(PlatformError):
    pass


class CursorExpired(PlatformError):
    pass


class TooLarge(PlatformError):
    """`max_bytes`: what the platform takes, as its 413 said it, or None."""

    max_bytes: int | None = None

    @property
    def limit(self) -> str:
        return f"takes at most {self.max_bytes:,} bytes" if self.max_bytes is not None else "takes no call of this size"


class Rejected(PlatformError):
    pass


class BadReply(PlatformError):
    pass


class TransferFailed(PlatformError):
    pass


class LocalStateError(MoleculeError):
    def __init__(self, *, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason


class StateDirUnwritable(LocalStateError):
    pass


class JournalUnusable(LocalStateError):
    pass


class FileNotStored(LocalStateError):
    pass


class FileTooLarge(MoleculeError):
    """`limit` in bytes: what was announced, or what is taken at most."""

    def __init__(self, *, limit: int) -> None:
        super().__init__(limit)
        self.limit = limit


class CallerError(MoleculeError):
    pass


class InvalidArgument(CallerError):
    """`argument` is the name in the tool's schema, `reason` a sentence about the value."""

    def __init__(self, *, argument: str, reason: str) -> None:
        super().__init__(argument, reason)
        self.argument = argument
        self.reason = reason


class AttachmentRefused(CallerError):
    """`path` as it may be shown, `reason` what is wrong with the file, `cure` a sentence of what to do."""

    def __init__(self, *, path: str, reason: str, cure: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason
        self.cure = cure


class MessageUnknown(CallerError):
    def __init__(self, *, activity_id: str) -> None:
        super().__init__(activity_id)
        self.activity_id = activity_id


class TaskUnknown(CallerError):
    def __init__(self, *, task_id: str) -> None:
        super().__init__(task_id)
        self.task_id = task_id


class MemoryUnknown(CallerError):
    def __init__(self, *, memory_id: str) -> None:
        super().__init__(memory_id)
        self.memory_id = memory_id


class ToolRefused(CallerError):
    """`tool` is the platform's, `reason` its own words."""

    def __init__(self, *, tool: str, base_url: str, reason: str) -> None:
        super().__init__(tool, reason)
        self.tool = tool
        self.base_url = base_url
        self.reason = reason


class PeerRefused(CallerError):
    def __init__(self, *, peer_id: str, reason: str) -> None:
        super().__init__(peer_id, reason)
        self.peer_id = peer_id
        self.reason = reason


class Retry(StrEnum):
    """Whether the same call can succeed later by itself."""

    NO = "no"
    BACKOFF = "backoff"
    AFTER = "after"  # the platform names the time, else back-off


@dataclass(frozen=True)
class Outcome:
    """What an error means: may it be retried, the exit code of a command, and the two sentences for people and models.

    `what` and `next` are format strings over the error's own attributes (`{error.base_url}`).
    """

    retry: Retry
    exit_code: int
    what: str
    next: str


TOKENS_TAB = "regenerate workspace and token from the canvas, Tokens tab"
"""The cure for a removed workspace or a refused token (contract 3.4, agent-side 3)."""

OUTCOMES: dict[type[MoleculeError], Outcome] = {
    SettingsError: Outcome(Retry.NO, 2, "molecule-mcp cannot run like this: {error.listing}.", "{error.fixes}"),
    CredentialError: Outcome(
        Retry.BACKOFF,
        3,
        "The workspace token cannot be read from {error.source}: {error.reason}.",
        "Put the token there again; it is re-read without a restart.",
    ),
    Unreachable: Outcome(
        Retry.BACKOFF,
        4,
        "The platform at {error.base_url} cannot be reached ({error.detail}).",
        "{error.cure}",
    ),
    Unavailable: Outcome(
        Retry.AFTER,
        4,
        "The platform at {error.base_url} {error.complaint} (HTTP {error.status}).",
        "Try again {error.pause}.",
    ),
    Unauthorized: Outcome(
        Retry.BACKOFF,
        3,
        "The platform at {error.base_url} {error.complaint} (HTTP {error.status}).",
        "{error.cure}",
    ),
    CanvasRefused: Outcome(
        Retry.NO,
        3,
        "The platform at {error.base_url} wants to know who the user is (HTTP {error.status}).",
        "Only a platform in development mode lets a command play the user; use its canvas, or send without --as-user.",
    ),
    WorkspaceRemoved: Outcome(
        Retry.NO,
        3,
        "This workspace was removed on the platform at {error.base_url}.",
        f"To come back, {TOKENS_TAB}.",
    ),
    NotFound: Outcome(
        Retry.NO, 1, "The platform at {error.base_url} says: {error.detail}.", "Check the id you passed."
    ),
    NotThePlatform: Outcome(
        Retry.BACKOFF,
        4,
        "{error.base_url} answers, but not as a Molecule platform (HTTP {error.status} on {error.endpoint}).",
        "Check PLATFORM_URL: scheme, host and port; a proxy in between must keep the Origin header.",
    ),
    CursorExpired: Outcome(
        Retry.NO, 1, "The inbox cursor is too old for the platform at {error.base_url}.", "It is renewed by itself."
    ),
    TooLarge: Outcome(
        Retry.NO,
        1,
        "The platform at {error.base_url} {error.limit} (HTTP {error.status}): {error.detail}.",
        "Send less at once.",
    ),
    Rejected: Outcome(
        Retry.NO,
        1,
        "The platform at {error.base_url} refused the call (HTTP {error.status}): {error.detail}.",
        "Change what the message names and call again.",
    ),
    BadReply: Outcome(
        Retry.BACKOFF,
        4,
        "The platform at {error.base_url} gave an answer that cannot be read ({error.detail}).",
        "Check PLATFORM_URL and what stands between; then try again.",
    ),
    TransferFailed: Outcome(
        Retry.BACKOFF,
        4,
        "The file did not come whole from the platform at {error.base_url}: {error.detail}.",
        "It is tried again by itself; fetch_attachment tries at once.",
    ),
    StateDirUnwritable: Outcome(
        Retry.NO,
        5,
        "The state directory {error.path} cannot be used: {error.reason}.",
        "Set CONFIGS_DIR to a directory that this user can write, then restart.",
    ),
    JournalUnusable: Outcome(
        Retry.NO,
        5,
        "The inbox file {error.path} cannot be used: {error.reason}.",
        "See runtime_status; messages stay on the platform until this is mended.",
    ),
    FileNotStored: Outcome(
        Retry.BACKOFF,
        5,
        "The file cannot be stored in {error.path}: {error.reason}.",
        "Make room there; it is tried again by itself, and fetch_attachment tries at once.",
    ),
    FileTooLarge: Outcome(
        Retry.NO,
        1,
        "The file is larger than the {error.limit:,} bytes that were announced or are taken.",
        "Ask the sender for it in another way.",
    ),
    InvalidArgument: Outcome(Retry.NO, 2, "{error.argument}: {error.reason}.", "Correct the argument and call again."),
    AttachmentRefused: Outcome(
        Retry.NO, 2, "The file {error.path} cannot be sent: {error.reason}.", "{error.cure} Nothing was sent."
    ),
    MessageUnknown: Outcome(
        Retry.NO,
        1,
        "This inbox has no open message {error.activity_id}.",
        "Call inbox_peek for the ids of open messages; nothing was sent.",
    ),
    TaskUnknown: Outcome(
        Retry.NO,
        1,
        "No task {error.task_id} was handed out from here.",
        "Call check_task_status without task_id for the latest ones.",
    ),
    MemoryUnknown: Outcome(
        Retry.NO,
        1,
        "There is no memory {error.memory_id} that this workspace may forget.",
        "recall_memory shows ids; only what this workspace wrote can be forgotten.",
    ),
    ToolRefused: Outcome(
        Retry.NO,
        1,
        "The platform at {error.base_url} says: {error.reason}.",
        "Change what the message names and call again.",
    ),
    PeerRefused: Outcome(
        Retry.NO,
        1,
        "The peer {error.peer_id} answered with an error: {error.reason}.",
        "Change the message or choose another peer (list_peers).",
    ),
}


@dataclass(frozen=True)
class Advice:
    """One sentence of what happened, one of what to do next."""

    what: str
    next: str

    def __str__(self) -> str:
        return f"{self.what} {self.next}".strip()


def outcome(error: MoleculeError) -> Outcome:
    """The row of the error's type, or of its nearest ancestor that has one."""
    for kind in type(error).__mro__:
        if kind in OUTCOMES:
            return OUTCOMES[kind]
    raise KeyError(f"{type(error).__name__} has no row in OUTCOMES")


def advice(error: MoleculeError) -> Advice:
    """The sentences for this very error, its facts filled in."""
    row = outcome(error)
    return Advice(what=row.what.format(error=error), next=row.next.format(error=error))

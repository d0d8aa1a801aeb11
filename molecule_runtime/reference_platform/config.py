"""The platform's configuration: one frozen object, read once from a mapping (contract 0.1, 0.11, 1.8).

Nothing else of the platform reads the environment. A bad number falls back to its default, as operators of the
existing platform expect; a set-up that would leave the platform open to a network is refused.
"""

from __future__ import annotations

import ipaddress
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from molecule_runtime.errors import Problem, SettingsError
from molecule_runtime.wire.uploads import MAX_FILE_BYTES, MAX_REQUEST_BYTES

STALE_AFTER_S = 90.0
"""Silence after which an external workspace shows as awaiting its agent (contract 2.4)."""
SWEEP_INTERVAL_S = 15.0
"""Period of the stale sweep: an agent shows as gone 90-105 s after its last beat (contract 2.4)."""
ACTIVITY_RETENTION_DAYS = 7.0
"""Age at which activity rows, and with them the chat, are deleted (contract 4.3)."""
ACTIVITY_CLEANUP_INTERVAL_HOURS = 6.0
PENDING_UPLOADS_TTL_S = 86_400.0
"""How long a staged file waits to be fetched and acked (contract 5.6)."""
PENDING_UPLOADS_ACK_RETENTION_S = 3600.0
"""How long an acked file stays for the canvas (contract 5.6)."""
PENDING_UPLOADS_SWEEP_S = 300.0
DELEGATION_SWEEPER_INTERVAL_S = 300.0
DELEGATION_STUCK_THRESHOLD_S = 600.0
"""Silence of a worker that had sent heartbeats, after which its delegation is stuck (contract 6.7)."""
MEMORY_PLUGIN_TIMEOUT_S = 2.0
"""How long a call of the memory plugin may take (contract 7.4)."""
LONGEST_RETENTION_DAYS = 36_500.0
"""A century stands for "never" and still makes a date."""
CORS_ORIGINS = ("http://localhost:3000", "http://localhost:3001")
"""Where a separately served canvas lives during development (contract 1.8)."""
PRODUCTION = "production"
DEVELOPMENT_NAMES = frozenset({"development", "dev"})
OFF = frozenset({"0", "false", "no", "off"})
"""What switches off what is on by default."""
MEMORY_PLUGIN_LISTEN_ADDR = "127.0.0.1:9100"
"""Where a memory plugin is expected (contract 7.5)."""
ANY_PORT = "127.0.0.1:0"


@dataclass(frozen=True)
class SidecarConfig:
    """How to start a memory plugin of our own: its address, its SQLite file, its environment.

    `database` "" means that the environment has a MEMORY_PLUGIN_DATABASE_URL; None that there is no database for it.
    """

    listen_addr: str
    database: str | None
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class PlatformConfig:
    """Everything the platform needs to know. `port` 0 lets the system choose; `database` is a path or a URL.

    `rate_limit` is the requests a minute that one address may make; 0 is no limit. A whole request of files may be
    `upload_max_request_bytes` long with all that is around them.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    database: str = "molecule-platform.sqlite3"
    admin_token: str = field(default="", repr=False)
    environment: str = ""
    enable_test_tokens: bool = False
    cors_origins: tuple[str, ...] = CORS_ORIGINS
    external_url: str = ""
    stale_after_s: float = STALE_AFTER_S
    sweep_interval_s: float = SWEEP_INTERVAL_S
    rate_limit: int = 0
    activity_retention_days: float = ACTIVITY_RETENTION_DAYS
    activity_cleanup_interval_hours: float = ACTIVITY_CLEANUP_INTERVAL_HOURS
    upload_max_file_bytes: int = MAX_FILE_BYTES
    upload_max_request_bytes: int = MAX_REQUEST_BYTES
    pending_uploads_ttl_s: float = PENDING_UPLOADS_TTL_S
    pending_uploads_ack_retention_s: float = PENDING_UPLOADS_ACK_RETENTION_S
    pending_uploads_sweep_s: float = PENDING_UPLOADS_SWEEP_S
    delegation_ledger_write: bool = True
    delegation_result_inbox_push: bool = True
    delegation_sweeper_interval_s: float = DELEGATION_SWEEPER_INTERVAL_S
    delegation_stuck_threshold_s: float = DELEGATION_STUCK_THRESHOLD_S
    memory_plugin_url: str = field(default="", repr=False)
    memory_plugin_timeout_s: float = MEMORY_PLUGIN_TIMEOUT_S
    memory_sidecar: SidecarConfig | None = None
    mcp_allow_send_message: bool = False

    def __post_init__(self) -> None:
        if not is_loopback(self.host) and not self.admin_token:
            raise SettingsError(
                (
                    Problem(
                        id="admin_token_missing",
                        summary=f"the platform would listen on {self.host} without an ADMIN_TOKEN",
                        fix="Set ADMIN_TOKEN to a long random value, or listen on 127.0.0.1.",
                    ),
                )
            )

    @classmethod
    def from_env(
        cls, env: Mapping[str, str] | None = None, *, host: str, port: int, database: str | Path, memory: bool = False
    ) -> PlatformConfig:
        """Read the configuration from `env` (the process environment when None).

        `memory` asks for a memory plugin whatever the environment says, save for MEMORY_PLUGIN_DISABLE.

        Raises:
            SettingsError: `host` is not loopback and ADMIN_TOKEN is not set; MEMORY_PLUGIN_URL is no address.
        """
        values = os.environ if env is None else env
        memory_plugin_url = _plugin_url(values.get("MEMORY_PLUGIN_URL"))
        return cls(
            host=host,
            port=port,
            database=str(database),
            admin_token=values.get("ADMIN_TOKEN", "").strip(),
            environment=values.get("MOLECULE_ENV", "").strip().lower(),
            enable_test_tokens=values.get("MOLECULE_ENABLE_TEST_TOKENS", "").strip() == "1",
            cors_origins=_origins(values.get("CORS_ORIGINS")),
            external_url=values.get("EXTERNAL_PLATFORM_URL", "").strip().rstrip("/"),
            stale_after_s=_positive(values.get("REMOTE_LIVENESS_STALE_AFTER"), STALE_AFTER_S),
            sweep_interval_s=_positive(values.get("REMOTE_LIVENESS_SWEEP_S"), SWEEP_INTERVAL_S),
            rate_limit=_count(values.get("RATE_LIMIT")),
            activity_retention_days=min(
                _positive(values.get("ACTIVITY_RETENTION_DAYS"), ACTIVITY_RETENTION_DAYS), LONGEST_RETENTION_DAYS
            ),
            activity_cleanup_interval_hours=_positive(
                values.get("ACTIVITY_CLEANUP_INTERVAL_HOURS"), ACTIVITY_CLEANUP_INTERVAL_HOURS
            ),
            upload_max_file_bytes=_count(values.get("UPLOAD_MAX_FILE_BYTES")) or MAX_FILE_BYTES,
            upload_max_request_bytes=_count(values.get("UPLOAD_MAX_REQUEST_BYTES")) or MAX_REQUEST_BYTES,
            pending_uploads_ttl_s=min(
                _positive(values.get("PENDING_UPLOADS_TTL_S"), PENDING_UPLOADS_TTL_S), LONGEST_RETENTION_DAYS * 86_400
            ),
            pending_uploads_ack_retention_s=min(
                _positive(values.get("PENDING_UPLOADS_ACK_RETENTION_S"), PENDING_UPLOADS_ACK_RETENTION_S),
                LONGEST_RETENTION_DAYS * 86_400,
            ),
            pending_uploads_sweep_s=_positive(values.get("PENDING_UPLOADS_SWEEP_S"), PENDING_UPLOADS_SWEEP_S),
            delegation_ledger_write=_switched_on(values.get("DELEGATION_LEDGER_WRITE")),
            delegation_result_inbox_push=_switched_on(values.get("DELEGATION_RESULT_INBOX_PUSH")),
            delegation_sweeper_interval_s=_positive(
                values.get("DELEGATION_SWEEPER_INTERVAL_S"), DELEGATION_SWEEPER_INTERVAL_S
            ),
            delegation_stuck_threshold_s=min(
                _positive(values.get("DELEGATION_STUCK_THRESHOLD_S"), DELEGATION_STUCK_THRESHOLD_S),
                LONGEST_RETENTION_DAYS * 86_400,
            ),
            memory_plugin_url=memory_plugin_url,
            memory_plugin_timeout_s=_go_duration_s(values.get("MEMORY_PLUGIN_TIMEOUT"), MEMORY_PLUGIN_TIMEOUT_S),
            memory_sidecar=_sidecar(values, memory_plugin_url, str(database), asked=memory),
            mcp_allow_send_message=values.get("MOLECULE_MCP_ALLOW_SEND_MESSAGE", "").strip().lower() == "true",
        )

    @property
    def development(self) -> bool:
        """Canvas and admin routes are open: on loopback, without ADMIN_TOKEN, unless MOLECULE_ENV says otherwise."""
        named = not self.environment or self.environment in DEVELOPMENT_NAMES
        return named and not self.admin_token and is_loopback(self.host)

    @property
    def test_tokens(self) -> bool:
        """Whether tokens for tests are handed out: everywhere but in production, and there when asked for."""
        return self.enable_test_tokens or self.environment != PRODUCTION

    @property
    def database_url(self) -> str:
        """An SQLAlchemy URL; a bare path means a SQLite file."""
        if "://" in self.database:
            return self.database
        return f"sqlite:///{self.database}"


def is_loopback(host: str) -> bool:
    """Whether `host` (a name or an address, IPv6 with or without brackets) can only be reached from this machine."""
    bare = host.strip().lower().removeprefix("[").removesuffix("]")
    if bare == "localhost":
        return True
    try:
        return ipaddress.ip_address(bare).is_loopback
    except ValueError:
        return False


def _positive(text: str | None, default: float) -> float:
    try:
        value = float(text) if text else default
    except ValueError:
        return default
    return value if math.isfinite(value) and value > 0 else default


_GO_UNITS_S = {"ns": 1e-9, "us": 1e-6, "\u00b5s": 1e-6, "\u03bcs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_GO_PART = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|\u00b5s|\u03bcs|ms|s|m|h)", re.ASCII)


def _go_duration_s(text: str | None, default: float) -> float:
    """Seconds of a duration as Go writes it, such as 1m30s or 500ms; a bad one is the default like every number."""
    bare = (text or "").strip().removeprefix("+")
    parts = _GO_PART.findall(bare)
    if "".join(number + unit for number, unit in parts) != bare:
        return default
    return sum(float(number) * _GO_UNITS_S[unit] for number, unit in parts) or default


def _plugin_url(text: str | None) -> str:
    """The plugin's address without a slash at its end.

    Raises:
        SettingsError: it is no address.
    """
    bare = (text or "").strip().rstrip("/")
    try:
        parts = urlsplit(bare)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if bare and not usable:
        fix = "Write an address such as http://127.0.0.1:9100, or unset it."
        raise SettingsError((Problem("memory_plugin_url", "MEMORY_PLUGIN_URL is not an http address", fix),))
    return bare


def _sidecar(values: Mapping[str, str], url: str, database: str, *, asked: bool) -> SidecarConfig | None:
    """Whether, where and on what the platform runs a plugin of its own (contract 7.5).

    It does when it is asked to, after the cut-over, or when the plugin's address is one where it can serve itself; if
    somebody serves there already, that one is used. A plugin on another machine or behind TLS is never started.
    """
    cutover = values.get("MEMORY_V2_CUTOVER", "").strip().lower() == "true"
    if values.get("MEMORY_PLUGIN_DISABLE", "").strip() == "1" or not (asked or cutover or url):
        return None
    there = urlsplit(url)
    if url and not (there.scheme == "http" and is_loopback(there.hostname or "") and not there.path):
        return None
    default = MEMORY_PLUGIN_LISTEN_ADDR if cutover and not asked else ANY_PORT
    if url:
        default = there.netloc.rpartition("@")[2] if there.port else f"{there.netloc.rpartition('@')[2]}:80"
    is_file = "://" not in database
    own = f"{database}.memory.sqlite3" if is_file else None
    return SidecarConfig(
        listen_addr=values.get("MEMORY_PLUGIN_LISTEN_ADDR", "").strip() or default,
        database="" if values.get("MEMORY_PLUGIN_DATABASE_URL", "").strip() else own,
        environment={name: value for name, value in values.items() if name != "ADMIN_TOKEN"},
    )


def _switched_on(text: str | None) -> bool:
    return (text or "").strip().lower() not in OFF


def _count(text: str | None) -> int:
    """A positive number in at most twelve ASCII digits, else 0."""
    bare = (text or "").strip()
    return int(bare) if bare.isascii() and bare.isdigit() and len(bare) <= 12 else 0


def _origins(text: str | None) -> tuple[str, ...]:
    if text is None:
        return CORS_ORIGINS
    return tuple(origin.strip().rstrip("/") for origin in text.split(",") if origin.strip())

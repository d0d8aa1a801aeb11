"""Structured logs: one line of `noun.verb key=value` on stderr for people, JSON in a rotating file for everything.

Nothing here runs at import; a command calls `configure` once. Every event passes the redaction processor: the keys
that could hold a secret or a person's words are dropped, and all other text is searched for credentials.
"""

from __future__ import annotations

import logging
import logging.handlers
import os
import sys
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import structlog
from structlog.typing import EventDict, WrappedLogger

from molecule_runtime.text import redact

SECRET_KEYS = frozenset({"token", "auth_token", "authorization", "headers", "secret", "platform_inbound_secret"})
BODY_KEYS = frozenset({"message", "text", "content", "body", "request_body", "response_body"})
LOG_FILE_BYTES = 2_000_000
LOG_FILES_KEPT = 3


def drop_secrets(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Remove secrets and message bodies from an event, whatever its level."""
    for key in list(event):
        if key in SECRET_KEYS or key in BODY_KEYS:
            event[key] = "[redacted]"
        elif isinstance(event[key], str):
            event[key] = redact(event[key])
        elif not isinstance(event[key], int | float | bool | None):
            event[key] = redact(str(event[key]))
    return event


def configure(*, stderr_level: str, file: Path | None, file_level: str = "INFO") -> None:
    """Send logs to stderr at `stderr_level` and, when `file` is given, as JSON lines to a rotating file (0600).

    Call once at the start of a command. Foreign loggers (httpx, websockets, uvicorn) keep to WARNING.
    """
    pre_chain: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        drop_secrets,
    ]
    stderr = logging.StreamHandler(sys.stderr)
    stderr.setLevel(stderr_level)
    stderr.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=pre_chain, processors=[_for_people, structlog.processors.KeyValueRenderer()]
        )
    )
    handlers: list[logging.Handler] = [stderr]
    if file is not None:
        handlers.append(_file_handler(file, file_level, pre_chain))
    root = logging.getLogger()
    root.handlers[:] = handlers
    root.setLevel(logging.WARNING)
    ours = min(logging.getLevelName(stderr_level), logging.getLevelName(file_level))
    for name in ("molecule_runtime", "molecule_mcp"):
        logging.getLogger(name).setLevel(ours)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *pre_chain,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


def _file_handler(file: Path, level: str, pre_chain: list[Any]) -> logging.Handler:
    handler = _PrivateRotatingFile(
        file, maxBytes=LOG_FILE_BYTES, backupCount=LOG_FILES_KEPT, encoding="utf-8", delay=False
    )
    handler.setLevel(level)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=pre_chain,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    return handler


class _PrivateRotatingFile(logging.handlers.RotatingFileHandler):
    """Every file it opens is 0600, the ones that a rotation begins included."""

    def _open(self) -> TextIOWrapper:
        stream = super()._open()
        os.chmod(self.baseFilename, 0o600)
        return stream


def _for_people(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Order a line for the eye: level and event first, the machine's own keys left out."""
    shown: dict[str, Any] = {"level": event.pop("level", ""), "event": event.pop("event", "")}
    for key, value in event.items():
        if not key.startswith("_") and key not in {"timestamp", "logger"}:
            shown[key] = value
    return shown

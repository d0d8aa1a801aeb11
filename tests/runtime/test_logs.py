"""Logs: for people on stderr, for machines in a file, without secrets in either."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from molecule_runtime import logs
from molecule_runtime.logs import configure, drop_secrets

from .support import TOKEN, python


@pytest.fixture(autouse=True)
def _root_logger() -> Iterator[None]:
    """The standard library's logging as it was."""
    root = logging.getLogger()
    before = list(root.handlers), root.level
    yield
    for handler in root.handlers:
        if handler not in before[0]:
            handler.close()
    root.handlers[:], level = before[0], before[1]
    root.setLevel(level)


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(
    ("event", "clean"),
    [
        ({"token": "x", "auth_token": 1, "headers": {"a": "b"}}, dict.fromkeys(("token", "auth_token", "headers"))),
        ({"message": "hello", "text": "", "request_body": {}}, dict.fromkeys(("message", "text", "request_body"))),
        ({"detail": f"Bearer {TOKEN}"}, {"detail": "Bearer [redacted]"}),
        ({"detail": {"auth_token": "abcdefgh"}}, {"detail": "{'auth_token': [redacted]'}"}),
        (
            {"count": 3, "ok": True, "wait_s": 1.5, "peer_id": None},
            {"count": 3, "ok": True, "wait_s": 1.5, "peer_id": None},
        ),
        ({"error": ValueError(f"at {TOKEN}")}, {"error": "at [redacted]"}),
        ({"event": f"odd {TOKEN}"}, {"event": "odd [redacted]"}),
    ],
)
def test_secrets_and_peoples_words_are_taken_out_of_every_event(event: dict[str, Any], clean: dict[str, Any]) -> None:
    """agent-side 1: never logged; keys that could hold a secret or a text go, all else is searched."""
    expected = {
        key: "[redacted]" if value is None and event[key] is not None else value for key, value in clean.items()
    }
    assert drop_secrets(None, "info", dict(event)) == expected


def test_the_file_holds_json_and_is_private(tmp_path: Path) -> None:
    """agent-side 1: the file gets INFO, whatever stderr gets."""
    file = tmp_path / "molecule-mcp.log"
    configure(stderr_level="CRITICAL", file=file)
    log = structlog.get_logger("molecule_runtime.test")
    log.debug("presence.heartbeat_sent")
    log.info("presence.registered", workspace_id="w", size_bytes=7)
    logging.getLogger("httpx").info("not ours")
    logging.getLogger("websockets.client").warning("theirs, %s", f"Bearer {TOKEN}")
    found = lines(file)
    assert [(one["level"], one["event"]) for one in found] == [
        ("info", "presence.registered"),
        ("warning", "theirs, Bearer [redacted]"),
    ]
    assert found[0].items() >= {"workspace_id": "w", "size_bytes": 7, "logger": "molecule_runtime.test"}.items()
    assert oct(file.stat().st_mode & 0o777) == "0o600"


def test_every_file_of_a_rotation_is_private(tmp_path: Path) -> None:
    """agent-side 1: files 0600, the one that a rotation begins too; three are kept."""
    file = tmp_path / "molecule-mcp.log"
    configure(stderr_level="CRITICAL", file=file)
    handler = next(one for one in logging.getLogger().handlers if isinstance(one, logging.FileHandler))
    handler.maxBytes = 500  # type: ignore[attr-defined]
    log = structlog.get_logger("molecule_runtime.test")
    for number in range(50):
        log.info("poller.messages_received", count=number)
    files = sorted(tmp_path.iterdir())
    assert [one.name for one in files] == ["molecule-mcp.log", *(f"molecule-mcp.log.{n}" for n in (1, 2, 3))]
    assert {oct(one.stat().st_mode & 0o777) for one in files} == {"0o600"}
    assert lines(file)[-1]["count"] == 49


def test_no_canary_reaches_stderr_or_the_file(tmp_path: Path) -> None:
    """agent-side 1: tokens and texts by every way into the log, tracebacks and foreign loggers included."""
    file = tmp_path / "molecule-mcp.log"
    code = """
import logging, sys, warnings
from pathlib import Path
import structlog
from molecule_runtime.logs import configure
canary = sys.argv[2]
configure(stderr_level="DEBUG", file=Path(sys.argv[1]), file_level="DEBUG")
log = structlog.get_logger("molecule_runtime.test")
structlog.contextvars.bind_contextvars(token=canary, detail=f"Bearer {canary}")
log.info("a.b", message=canary, headers={"Authorization": f"Bearer {canary}"})
log.warning(f"c.d {canary}", anything=[canary, {"x": canary}])
try:
    raise RuntimeError(f"Illegal header value b'Bearer {canary}'")
except RuntimeError:
    log.exception("e.f")
    logging.getLogger("anyio").error("g %s", canary, exc_info=True)
logging.getLogger("molecule_mcp.x").info("h", extra={"token": canary})
"""
    done = python(code, file, TOKEN)
    written = file.read_text(encoding="utf-8")
    assert TOKEN not in done.stderr + done.stdout + written
    assert [json.loads(line)["event"] for line in written.splitlines()] == [
        "a.b",
        "c.d [redacted]",
        "e.f",
        "g [redacted]",
        "h",
    ]
    assert "Traceback" in written
    for event in ("a.b", "c.d", "e.f"):
        assert event in done.stderr
    assert done.stdout == ""


def test_stderr_shows_what_it_is_told_to_and_nothing_below(capsys: pytest.CaptureFixture[str]) -> None:
    """agent-side 1: MOLECULE_MCP_LOG_LEVEL; no file is no obstacle."""
    configure(stderr_level="WARNING", file=None)
    log = structlog.get_logger("molecule_runtime.test")
    log.info("a.quiet")
    log.warning("b.loud", count=1)
    assert capsys.readouterr().err == "level='warning' event='b.loud' count=1\n"


def test_configured_twice_a_line_is_written_once(tmp_path: Path) -> None:
    """Ours: a command inside another must not double its lines."""
    file = tmp_path / "log"
    configure(stderr_level="CRITICAL", file=file)
    logging.getLogger().handlers[1].close()
    configure(stderr_level="CRITICAL", file=file)
    structlog.get_logger("molecule_mcp.x").info("once")
    assert len(lines(file)) == 1
    assert logs.LOG_FILES_KEPT == 3

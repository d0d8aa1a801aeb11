"""Long texts: an agent is shown the beginning, the whole lies in a file; hosts cut results at 10 kB (agent-side 4)."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import structlog

from molecule_runtime.errors import LocalStateError
from molecule_runtime.state import WorkspaceState

TEXT_CODE_POINTS = 8_000
"""Longer texts go to a file."""

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Texts:
    """The files of one workspace, each named by a digest of what it belongs to, never by an id from outside."""

    def __init__(self, state: WorkspaceState) -> None:
        self._state = state

    def shown(self, owner: str, text: str) -> dict[str, Any]:
        """`text` as it is shown, with `text_truncated` and `text_path` when it is longer than a host shows."""
        if len(text) <= TEXT_CODE_POINTS:
            return {"text": text}
        return {
            "text": text[:TEXT_CODE_POINTS],
            "text_truncated": True,
            "text_path": self.write(self.file_of(owner), text),
        }

    def write(self, file: Path, content: str) -> str | None:
        """The path of the file with this content; None when it cannot be written."""
        try:
            if not file.exists() or file.read_bytes() != content.encode():
                self._state.write_private(file, content)
        except (LocalStateError, OSError) as error:
            log.warning("texts.not_written", detail=str(error))
            return None
        return os.fspath(file)

    def file_of(self, owner: str) -> Path:
        return self._state.texts / f"{hashlib.sha256(owner.encode()).hexdigest()[:32]}.txt"

    def list_of(self, owner: str) -> Path:
        """Where a long list of attachments lies."""
        return self.file_of(owner).with_suffix(".attachments.json")

    def discard(self, owner: str) -> None:
        for file in (self.file_of(owner), self.list_of(owner)):
            file.unlink(missing_ok=True)

    def here(self) -> set[Path]:
        return {*self._state.texts.glob("*.txt"), *self._state.texts.glob("*.attachments.json")}

    def discard_all_but(self, files: set[Path], owners: Iterable[str]) -> None:
        """Remove those of `files` that belong to none of the owners: what a kill left behind."""
        kept = {file for owner in owners for file in (self.file_of(owner), self.list_of(owner))}
        for file in files - kept:
            with suppress(OSError):
                file.unlink()

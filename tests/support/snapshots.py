"""What others rely on, kept as files: a change of it is a change that a reviewer sees."""

from __future__ import annotations

import os
from pathlib import Path

SNAPSHOTS = Path(__file__).parent.parent / "snapshots"


def assert_snapshot(name: str, text: str) -> None:
    """Compare `text` with `tests/snapshots/<name>`; UPDATE_SNAPSHOTS=1 writes it instead. A missing file fails."""
    file = SNAPSHOTS / name
    if os.environ.get("UPDATE_SNAPSHOTS") == "1":
        file.write_text(text, encoding="utf-8")
    assert file.exists(), f"{file.name} is missing; look at the text and run with UPDATE_SNAPSHOTS=1"
    assert text == file.read_text(encoding="utf-8")

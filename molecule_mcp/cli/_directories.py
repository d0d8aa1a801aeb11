"""Directories that commands make."""

from __future__ import annotations

from pathlib import Path


def make_private(directory: Path) -> None:
    """Make what is missing of the path for its owner alone; mkdir(parents=True) would leave parents to the umask."""
    missing = [part for part in (directory, *directory.parents) if not part.exists()]
    for part in reversed(missing):
        part.mkdir(mode=0o700, exist_ok=True)

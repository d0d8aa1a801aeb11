"""What commands write: JSON lines or text on stdout, complaints on stderr."""

from __future__ import annotations

import json
import os
import sys
from typing import Any


def line(text: str) -> None:
    """One line of text on stdout, at once. A reader that has gone (`... | head`) ends the output, not the command."""
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def json_line(payload: dict[str, Any]) -> None:
    """One JSON object on one line of stdout, at once."""
    line(json.dumps(payload, ensure_ascii=False))


def complain(text: str) -> None:
    """One line on stderr."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def missing_extra(extra: str, module: str | None) -> int:
    """Say which pip command adds what is missing; the exit code."""
    complain(
        f"This command needs the extra [{extra}] ({module} is not installed). "
        f'Run: pip install "molecule-ai-workspace-runtime[{extra}]"'
    )
    return 2

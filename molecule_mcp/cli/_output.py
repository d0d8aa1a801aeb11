"""What commands write: JSON lines or text on stdout, complaints on stderr.

Names, messages and errors of a platform are other people's text: on its way out every line loses what a terminal would
obey. A reader that has gone (`... | head`) or a terminal that was closed ends the output, not the command.
"""

from __future__ import annotations

import errno
import json
import os
import re
import sys
from typing import Any, TextIO

from molecule_runtime.text import printable

_GONE = frozenset({errno.EPIPE, errno.EIO})
_NOT_ESCAPED_BY_JSON = re.compile("[\x7f-\x9f\u2028\u2029]")


def line(text: str) -> None:
    """One line of text on stdout, at once (more lines if the text has them)."""
    _write(sys.stdout, printable(text))


def json_line(payload: dict[str, Any]) -> None:
    """One JSON object on one line of stdout, at once."""
    text = json.dumps(payload, ensure_ascii=False)
    _write(sys.stdout, _NOT_ESCAPED_BY_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", text))


def complain(text: str) -> None:
    """One line on stderr."""
    _write(sys.stderr, printable(text))


def missing_extra(extra: str, module: str | None) -> int:
    """Say which pip command adds what is missing; the exit code."""
    complain(
        f"This command needs the extra [{extra}] ({module} is not installed). "
        f'Run: pip install "molecule-ai-workspace-runtime[{extra}]"'
    )
    return 2


def _write(stream: TextIO | None, text: str) -> None:
    if stream is None:  # it was closed before this process began
        return
    try:
        stream.write(text + "\n")
        stream.flush()
    except OSError as error:
        if error.errno not in _GONE:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())

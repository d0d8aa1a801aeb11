"""Text that stays whole: cuts on code points, names made safe to show, secrets taken out.

A preview cut by bytes tears CJK and emoji and the row that holds it is lost (users of the existing system reported
exactly that), so every cut of the product is one of the three functions here.
"""

from __future__ import annotations

import re
import unicodedata

ELLIPSIS = "…"
PREVIEW_CODE_POINTS = 80
"""Code points of a message in a row's summary (contract 4.2)."""
LEDGER_PREVIEW_BYTES = 4096
"""Bytes of a delegation's preview (contract 6.5)."""
NAME_CODE_POINTS = 64
"""Longest peer name or role shown to an agent (agent-side 4)."""

FILE_NAME_CHARS = 100
EXTENSION_CHARS = 16
"""Longest file name, and longest extension (its dot included) that a cut spares (contract 5.2)."""

_ANGLES = frozenset("<>＜＞﹤﹥")
"""Brackets by use, though Unicode files them as mathematics."""
_CONTROLS = frozenset({"Cc", "Cf", "Cs", "Co"})
_NOT_IN_NAMES = _CONTROLS | {"Ps", "Pe"}
"""Unicode categories: control, format (bidi), surrogate, private use, opening and closing brackets."""
_NOT_IN_FILE_NAMES = re.compile(r"[^a-zA-Z0-9._-]")
_SIGNS = (
    {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\n\t"}
    | {0x7F: "\u2421"}
    | dict.fromkeys((*range(128, 160), *range(8234, 8239), *range(8294, 8298)), "�")
    | {0x2028: "\n", 0x2029: "\n"}
)
"""What stands for a code that a terminal would obey: C0, DEL and C1 controls, and the marks that turn what follows."""
_SECRETS = (
    (re.compile(r"(?i)\b(authorization\s*[:=]\s*)(bearer\s+)?\S+"), r"\1[redacted]"),
    (re.compile(r"(?i)\bbearer\s+[A-Za-z0-9._~+/=-]{6,}"), "Bearer [redacted]"),
    (
        re.compile(r"(?i)\b([A-Z0-9_]*(?:token|secret|password|api_key)[\"']?\s*[:=]\s*)[\"']?[^\s\"',}]{6,}"),
        r"\1[redacted]",
    ),
    (re.compile(r"(?<![A-Za-z0-9_-])[A-Za-z0-9_-]{43}(?![A-Za-z0-9_-])"), "[redacted]"),
    (re.compile(r"(?i)(://)[^/\s:@]+:[^/\s@]+@"), r"\1[redacted]@"),
)


def cut_code_points(text: str, limit: int = PREVIEW_CODE_POINTS) -> str:
    """The first `limit` code points, and "…" after them only when something was cut."""
    return text if len(text) <= limit else text[:limit] + ELLIPSIS


def cut_bytes(text: str, limit: int = LEDGER_PREVIEW_BYTES) -> str:
    """The longest prefix of at most `limit` UTF-8 bytes that ends on a code point; no mark is added."""
    return text.encode("utf-8", "replace")[:limit].decode("utf-8", "ignore")


def shortened_to_bytes(text: str, limit: int) -> str:
    """At most `limit` UTF-8 bytes, the "…" counted inside that ends it when something was cut (contract 6.1)."""
    whole = cut_bytes(text, limit)
    return whole if len(whole) == len(text) else cut_bytes(text, limit - len(ELLIPSIS.encode())) + ELLIPSIS


def well_formed(text: str) -> str:
    """The text with U+FFFD for each lone surrogate: JSON can carry one, UTF-8, SQLite and a host's pipe cannot."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def clean_name(name: object) -> str | None:
    """A peer's name or role as it may stand in a prompt: no control, bidi or bracket characters, 64 code points.

    Letters of every script stay. None when nothing is left.
    """
    if not isinstance(name, str):
        return None
    kept = "".join(
        " " if char.isspace() else char
        for char in name
        if char.isspace() or (char not in _ANGLES and unicodedata.category(char) not in _NOT_IN_NAMES)
    )
    return " ".join(kept.split())[:NAME_CODE_POINTS].strip() or None


def safe_file_name(name: str) -> str:
    """A file's name as it may stand on any disk and in any header: `[a-zA-Z0-9._-]`, at most 100 (contract 5.2).

    Platform and agent must agree case by case. "/" and "a/" name no file and become "file", as does a name of dots.
    """
    cleaned = _NOT_IN_FILE_NAMES.sub("_", name.rpartition("/")[2])
    cleaned = _shortened(cleaned)
    return "file" if cleaned in ("", ".", "..") else cleaned


def shown_file_name(name: str) -> str:
    """A file's name as it may stand in a prompt: its own letters and brackets, nothing that a reader would obey.

    At most 100 code points, the extension kept. "file" when nothing is left.
    """
    kept = "".join(
        " " if char.isspace() else char
        for char in well_formed(name)
        if char.isspace() or (char not in _ANGLES and unicodedata.category(char) not in _CONTROLS)
    )
    kept = " ".join(kept.split())
    return _shortened(kept) or "file"


def _shortened(name: str) -> str:
    """At most 100 characters: of a longer name the beginning, and the extension when it is a short one."""
    if len(name) <= FILE_NAME_CHARS:
        return name
    dot = name.rfind(".")
    extension = name[dot:] if dot >= 0 and len(name) - dot <= EXTENSION_CHARS else ""
    return name[: FILE_NAME_CHARS - len(extension)] + extension


def printable(text: str) -> str:
    """The text as it may be written to a terminal: its words are other people's, its control codes would be orders.

    Line ends and tabs stay; every other control character and every mark that turns the direction of what follows is
    shown as a sign in its place. Letters, emoji and combining marks of every script stay.
    """
    text = text.replace("\r\n", "\n")
    return text if text.isprintable() else well_formed(text).translate(_SIGNS)


def redact(text: str) -> str:
    """The text without anything that looks like a credential: bearer values, `…TOKEN=…`, 43-character tokens."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text

"""Secrets in what an agent wants to remember: taken out before anything is written (contract 7.1). Pure."""

from __future__ import annotations

import re

_START = "(?<![A-Za-z0-9_])"
"""Where a name begins. Not \\b, for which a Chinese character is a letter: text without spaces holds secrets too."""
_ASSIGNED = rf"(?i){_START}(?:[A-Z0-9_]+_)?{{}}[^\S\n]*=(?!=\s)[^\S\n]*\S+"
"""A name with a value. Two "=" with a space behind compare, and what is compared is seldom a secret."""
_PATTERNS = tuple(
    (re.compile(pattern), f"[REDACTED:{label}]")
    for pattern, label in (
        (_ASSIGNED.format("API_KEY"), "API_KEY"),
        (_ASSIGNED.format("TOKEN"), "TOKEN"),
        (_ASSIGNED.format("SECRET"), "SECRET"),
        (rf"{_START}Bearer\s+\S+", "BEARER_TOKEN"),
        (r"(?<![A-Za-z0-9])sk-[A-Za-z0-9_-]{16,}", "SK_TOKEN"),  # not in the middle of "risk-..." and "task-..."
        (r"ctx7_[A-Za-z0-9_-]+", "CTX7_TOKEN"),
        (r"[A-Za-z0-9+/]{33,}={0,2}", "BASE64_BLOB"),
    )
)
"""In the contract's order: what an earlier one took out, a later one does not see."""


def redacted(text: str) -> str:
    """The text with every secret that the contract's patterns know replaced by its kind."""
    for pattern, mark in _PATTERNS:
        text = pattern.sub(mark, text)
    return text

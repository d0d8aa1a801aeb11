"""Secrets in what an agent wants to remember: taken out before anything is written (contract 7.1). Pure."""

from __future__ import annotations

import re

_PATTERNS = tuple(
    (re.compile(pattern), f"[REDACTED:{label}]")
    for pattern, label in (
        # One "=": two of them compare, and what is compared is seldom a secret.
        (r"(?i)\b(?:[A-Z0-9_]+_)?API_KEY[^\S\n]*=(?!=)[^\S\n]*\S+", "API_KEY"),
        (r"(?i)\b(?:[A-Z0-9_]+_)?TOKEN[^\S\n]*=(?!=)[^\S\n]*\S+", "TOKEN"),
        (r"(?i)\b(?:[A-Z0-9_]+_)?SECRET[^\S\n]*=(?!=)[^\S\n]*\S+", "SECRET"),
        (r"\bBearer\s+\S+", "BEARER_TOKEN"),
        (r"(?<![A-Za-z0-9])sk-[A-Za-z0-9_-]{16,}", "SK_TOKEN"),  # not in the middle of "risk-..." and "task-..."
        (r"\bctx7_[A-Za-z0-9_-]+", "CTX7_TOKEN"),
        (r"[A-Za-z0-9+/]{33,}={0,2}", "BASE64_BLOB"),
    )
)
"""In the contract's order: what an earlier one took out, a later one does not see."""


def redacted(text: str) -> str:
    """The text with every secret that the contract's patterns know replaced by its kind."""
    for pattern, mark in _PATTERNS:
        text = pattern.sub(mark, text)
    return text

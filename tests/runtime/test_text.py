"""Text that stays whole: cuts, names, redaction."""

from __future__ import annotations

import pytest

from molecule_runtime.text import (
    LEDGER_PREVIEW_BYTES,
    NAME_CODE_POINTS,
    PREVIEW_CODE_POINTS,
    clean_name,
    cut_bytes,
    cut_code_points,
    printable,
    redact,
    shortened_to_bytes,
    well_formed,
)

from .support import TOKEN

FAMILY = "👨\u200d👩\u200d👧"


@pytest.mark.parametrize("unit", ["a", "é", "世", "🌍", FAMILY[0]])
def test_a_preview_is_exactly_eighty_code_points(unit: str) -> None:
    """Requirement R4: 80 code points and an ellipsis, which comes only when something was cut."""
    assert cut_code_points(unit * PREVIEW_CODE_POINTS) == unit * 80
    cut = cut_code_points(unit * 81)
    assert cut == unit * 80 + "…"
    assert cut.encode().decode() == cut
    assert cut_code_points("") == ""


@pytest.mark.parametrize(
    ("text", "limit", "cut"),
    [
        ("", 4, ""),
        ("abcd", 4, "abcd"),
        ("abcde", 4, "abcd"),
        ("abc世", 6, "abc世"),
        ("abc世", 5, "abc"),
        ("abc世", 4, "abc"),
        ("abc世", 3, "abc"),
        ("🌍🌍", 7, "🌍"),
        ("🌍🌍", 8, "🌍🌍"),
        ("🌍", 3, ""),
        ("é" * 3, 5, "éé"),
        (FAMILY, 8, "👨\u200d"),
        ("a\ud800b", 9, "a?b"),
    ],
)
def test_bytes_are_cut_between_code_points(text: str, limit: int, cut: str) -> None:
    """Requirement R4: at most so many bytes, always valid UTF-8."""
    assert cut_bytes(text, limit) == cut
    assert len(cut_bytes(text, limit).encode()) <= limit


@pytest.mark.parametrize("size", [4095, 4096, 4097])
def test_ascii_fills_the_ledger_preview_exactly(size: int) -> None:
    """Requirement R4: 4096 bytes."""
    assert len(cut_bytes("a" * size)) == min(size, LEDGER_PREVIEW_BYTES)
    assert len(cut_bytes("世" * size).encode()) == 4095


@pytest.mark.parametrize(
    ("text", "limit", "cut"),
    [
        ("abc", 3, "abc"),
        ("世", 3, "世"),
        ("abcd", 3, "…"),
        ("abcde", 4, "a…"),
        ("世界世", 8, "世…"),
        ("世界世", 9, "世界世"),
        ("🌍🌍", 7, "🌍…"),
        ("", 3, ""),
    ],
)
def test_a_text_shortened_to_bytes_counts_its_mark(text: str, limit: int, cut: str) -> None:
    """Contract 6.1: the "…" is inside the limit, and stands only where something was cut."""
    assert shortened_to_bytes(text, limit) == cut
    assert len(cut.encode()) <= limit


@pytest.mark.parametrize(
    ("name", "clean"),
    [
        ("ops-agent", "ops-agent"),
        ("  Ops \t\n agent  ", "Ops agent"),
        ("世界 Ω ñ עברית عربي हिन्दी", "世界 Ω ñ עברית عربي हिन्दी"),
        ("🌍 café", "🌍 café"),
        ("[system] {do} <this> (now)", "system do this now"),
        ("【系统】「x」＜y＞（z）", "系统xyz"),
        ("evil\u202egnp.exe\u2066\u200f", "evilgnp.exe"),
        ("nul\x00bell\x07esc\x1b[0m", "nulbellesc0m"),
        ("zero\u200bwidth\ufeff", "zerowidth"),
        (FAMILY, "👨👩👧"),
        ("half \ud800", "half"),
        ("line\u2028break\u2029", "line break"),
        ("a" * 65, "a" * NAME_CODE_POINTS),
        ("世" * 70, "世" * 64),
        ("a" * 63 + " b", "a" * 63),
        ("", None),
        (" \u202e[] ", None),
        (None, None),
        (7, None),
        ({"name": "x"}, None),
    ],
)
def test_a_name_is_safe_to_show(name: object, clean: str | None) -> None:
    """agent-side 4: control, bidi and bracket characters removed, letters of every script kept, 64 characters."""
    assert clean_name(name) == clean


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        (f"Authorization: Bearer {TOKEN}", "Authorization: [redacted]"),
        ("authorization=abc", "authorization=[redacted]"),
        ("b'Bearer abcdefgh'", "b'Bearer [redacted]'"),
        (f"the token is {TOKEN}, yes", "the token is [redacted], yes"),
        ("MOLECULE_WORKSPACE_TOKEN=abcdefgh", "MOLECULE_WORKSPACE_TOKEN=[redacted]"),
        ('{"auth_token":"abcdefgh"}', '{"auth_token":[redacted]"}'),
        ("{'auth_token': 'abcdefgh'}", "{'auth_token': [redacted]'}"),
        ("https://user:pass@host/x", "https://[redacted]@host/x"),
        ("api_key: 12345678", "api_key: [redacted]"),
        ("no secret here", "no secret here"),
        ("a token is needed", "a token is needed"),
        ("8c0f7b9e-2f0a-4b6e-9f0f-3f2f6c1d7a55", "8c0f7b9e-2f0a-4b6e-9f0f-3f2f6c1d7a55"),
        ("a" * 44, "a" * 44),
    ],
)
def test_what_looks_like_a_credential_is_taken_out(text: str, safe: str) -> None:
    """agent-side 1: never printed, never logged."""
    assert redact(text) == safe


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("plain", "plain"),
        ("世界 🌍", "世界 🌍"),
        ("a\ud800b", "a\ufffdb"),
        ("\ud83c\udf0d", "🌍"),
        ("\udc00", "\ufffd"),
    ],
)
def test_half_a_character_becomes_a_replacement_character(text: str, whole: str) -> None:
    """Ours: JSON can carry a lone surrogate, UTF-8 cannot."""
    assert well_formed(text) == whole
    assert whole.encode().decode() == whole


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain 你好 👩‍👩‍👧 שלום\u200f e\u0301", None),
        ("a\tb\nc\r\nd", "a\tb\nc\nd"),
        ("\x1b[31mred\x1b]0;title\x07", "␛[31mred␛]0;title␇"),
        ("ok\rgone\x08\x7f\x00", "ok␍gone␈␡␀"),
        ("\x9b31m \u202egnp.exe\u2066", "\ufffd31m \ufffdgnp.exe\ufffd"),
        ("one\u2028two", "one\ntwo"),
        ("torn \ud83d", "torn \ufffd"),
    ],
)
def test_what_is_shown_on_a_terminal_holds_no_orders_for_it(text: str, shown: str | None) -> None:
    """Ours: an answer is other people's text; letters and emoji of every script stay as they are."""
    assert printable(text) == (text if shown is None else shown)

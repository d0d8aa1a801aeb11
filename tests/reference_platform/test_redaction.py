"""Which secrets are taken out of memories, and what is left alone."""

from __future__ import annotations

import pytest

from molecule_runtime.reference_platform.services.redaction import redacted

BASE64_33 = "QUJD" * 8 + "Q"


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        ("OPENAI_API_KEY=abc123", "[REDACTED:API_KEY]"),
        ("export openai_api_key = 'abc' now", "export [REDACTED:API_KEY] now"),
        ("API_KEY=abc", "[REDACTED:API_KEY]"),
        ("GITHUB_TOKEN=ghp_x!$%^ and more", "[REDACTED:TOKEN] and more"),
        ("Deploy_Secret=hunter2\nnext line", "[REDACTED:SECRET]\nnext line"),
        ("Authorization: Bearer abc.def-ghi", "Authorization: [REDACTED:BEARER_TOKEN]"),
        ("use sk-abcdefghijklmnop please", "use [REDACTED:SK_TOKEN] please"),
        ("(sk-proj_0123456789-ABCDEF)", "([REDACTED:SK_TOKEN])"),
        ("ctx7_a1B2c3", "[REDACTED:CTX7_TOKEN]"),
        (f"blob {BASE64_33}== end", "blob [REDACTED:BASE64_BLOB] end"),
        ("密钥 X_TOKEN=秘密 世界", "密钥 [REDACTED:TOKEN] 世界"),
        # Text without spaces around a secret.
        ("密钥X_TOKEN=秘密 世界", "密钥[REDACTED:TOKEN] 世界"),
        ("令牌是Bearer abc", "令牌是[REDACTED:BEARER_TOKEN]"),
        ("密钥ctx7_a1B2，旧MY_ctx7_b", "密钥[REDACTED:CTX7_TOKEN]，旧MY_[REDACTED:CTX7_TOKEN]"),
        ("密钥sk-abcdefghijklmnop", "密钥[REDACTED:SK_TOKEN]"),
        ("X_TOKEN==abc", "[REDACTED:TOKEN]"),
        # The order: what is a token by its name is none by its form.
        (f"A_TOKEN=sk-{'a' * 40}", "[REDACTED:TOKEN]"),
        ("B_API_KEY=Bearer", "[REDACTED:API_KEY]"),
        ("A_TOKEN=x B_SECRET=y", "[REDACTED:TOKEN] [REDACTED:SECRET]"),
    ],
)
def test_each_pattern_of_the_contract_is_taken_out(text: str, stored: str) -> None:
    """The label tells what it was, nothing of the value stays (contract 7.1)."""
    assert redacted(text) == stored
    assert redacted(stored) == stored


@pytest.mark.parametrize(
    "text",
    [
        "the token is in the vault, the secret too",
        "if max_token == 3: stop",
        "the bearer of bad news",
        "risk-assessment-framework-2026 and task-management-of-the-team",
        "sk-tooshort",
        "id 11111111-1111-4111-8111-111111111111",
        BASE64_33[:-1],
        "記憶は残る。" * 20,
        "https://example.org/a?b=c",
        "",
    ],
)
def test_what_is_no_secret_stays_as_it_is(text: str) -> None:
    """A memory that lost its words would be none (ours)."""
    assert redacted(text) == text

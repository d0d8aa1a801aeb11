"""Back-off as data."""

from __future__ import annotations

import pytest

from molecule_runtime.retry import DOORBELL, POLL, REGISTER, REJECTED, Backoff


@pytest.mark.parametrize(
    ("policy", "full"),
    [
        (REGISTER, [1, 2, 4, 8, 16, 32, 60, 60]),
        (REJECTED, [5, 10, 20, 40, 60, 60]),
        (POLL, [1, 2, 4, 8, 16, 30, 30]),
        (DOORBELL, [1, 2, 4, 8, 16, 32, 60, 60]),
    ],
)
def test_waits_double_up_to_their_cap_and_jitter_only_shortens(policy: Backoff, full: list[float]) -> None:
    """agent-side 2, 4: 1 s doubling to 60 s, the inbox to 30 s, with jitter."""
    for failures, wait in enumerate(full, start=1):
        drawn = {policy.delay(failures) for _ in range(50)}
        assert 0.8 * wait <= min(drawn) < max(drawn) <= wait


def test_a_long_outage_is_no_arithmetic_problem() -> None:
    """Ours: a week of failures, and a count that nobody passes."""
    policy = Backoff(first_s=1, cap_s=60, jitter=0)
    assert [policy.delay(failures) for failures in (0, 1, 10_000, 100_000)] == [1, 1, 60, 60]


@pytest.mark.parametrize(("asked", "wait"), [(None, 4.0), (0.0, 4.0), (1.0, 4.0), (90.0, 90.0)])
def test_the_platforms_word_wins_when_it_is_the_longer_one(asked: float | None, wait: float) -> None:
    """agent-side 3: Retry-After obeyed, beyond the cap too."""
    assert Backoff(first_s=1, cap_s=60, jitter=0).delay(3, retry_after_s=asked) == wait

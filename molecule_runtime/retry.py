"""Retry policies as data: how long to wait after the n-th failure in a row.

The loops that use a policy (presence, poller, doorbell) never give up; they only slow down. The arithmetic is
tenacity's, and tenacity appears only here.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from tenacity import RetryCallState, Retrying, wait_exponential


@dataclass(frozen=True)
class Backoff:
    """Waits that double from `first_s` to `cap_s`, each shortened by up to `jitter` of itself (never lengthened)."""

    first_s: float
    cap_s: float
    jitter: float = 0.2

    def delay(self, failures: int, *, retry_after_s: float | None = None) -> float:
        """Seconds before the next attempt after `failures` failures in a row (at least 1).

        A Retry-After of the platform wins when it is the longer one: asking earlier is what starts retry storms.
        """
        state = RetryCallState(Retrying(), None, (), {})
        state.attempt_number = max(1, failures)
        wait = wait_exponential(multiplier=self.first_s, max=self.cap_s)(state)
        wait *= 1 - random.uniform(0, self.jitter)
        return max(wait, retry_after_s or 0.0)


REGISTER = Backoff(first_s=1.0, cap_s=60.0)
"""agent-side 2: register until it succeeds, 1 s doubling to 60 s."""
REJECTED = Backoff(first_s=5.0, cap_s=60.0)
"""After a 401/403: slow, the token is re-read each time (agent-side 2)."""
POLL = Backoff(first_s=1.0, cap_s=30.0)
"""agent-side 4: the inbox backs off to 30 s."""
DOORBELL = Backoff(first_s=1.0, cap_s=60.0)
"""The WebSocket is a convenience: polling goes on meanwhile."""
CANVAS = Backoff(first_s=0.5, cap_s=5.0)
"""A person looks at the chat and waits for it to come back."""
FILES = Backoff(first_s=1.0, cap_s=30.0)
"""A file of a message, while the message waits for it or calls it pending."""
MEMORIES = Backoff(first_s=2.0, cap_s=60.0)
"""A memory that waits for the platform; nobody waits for it."""

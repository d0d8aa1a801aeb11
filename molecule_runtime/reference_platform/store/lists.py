"""Lists in statements."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def padded(values: Sequence[T]) -> list[T]:
    """The values for an IN (...), the last one repeated up to a power of two.

    A list of another length is another statement to parse and plan; so there are few of them, and they stay prepared.
    """
    if not values:
        return []
    missing = (1 << (len(values) - 1).bit_length()) - len(values)
    return [*values, *[values[-1]] * missing]

"""JSON from outside, as it may be stored and sent on.

That is UTF-8, nested no deeper than can be read back, with finite numbers of at most 64 bits and valid Unicode text.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from typing import Any, NoReturn

MAX_INT = 2**63 - 1
MAX_DEPTH = 64
"""Levels of arrays and objects. pydantic writes about 255, the json module about 900; rows and events wrap a body in a
few more, and one body that cannot be written would take down every list it stands in."""
_SURROGATES = re.compile("[\ud800-\udfff]")


def parse(raw: bytes | bytearray) -> Any:
    """The parsed text.

    Raises:
        ValueError: it is no JSON in UTF-8, is nested too deeply, or holds a number that no database column can.
    """
    text = raw.decode("utf-8-sig")  # json.loads would also take other encodings, and surrogates as bytes
    try:
        parsed = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite, parse_int=_bounded)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if raw.count(b"[") + raw.count(b"{") > MAX_DEPTH and _deeper_than(MAX_DEPTH, parsed):
        raise ValueError("nested too deeply")
    # A lone surrogate can be written in JSON but not stored or sent as UTF-8.
    return _without_surrogates(parsed) if b"\\ud" in raw.lower() else parsed


def _deeper_than(levels: int, value: Any) -> bool:
    """Whether arrays and objects stand in each other more than `levels` deep; a level at a time, never recursing."""
    containers = _containers([value])
    for _ in range(levels):
        if not containers:
            return False
        containers = [inner for outer in containers for inner in _containers(_items(outer))]
    return bool(containers)


def _containers(items: Iterable[Any]) -> list[Any]:
    return [item for item in items if isinstance(item, dict | list)]


def _items(container: Any) -> Iterable[Any]:
    return container.values() if isinstance(container, dict) else container


def _refuse_constant(_name: str) -> NoReturn:
    raise ValueError("NaN and Infinity are not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("number out of range")
    return value


def _bounded(text: str) -> int:
    value = int(text)
    if abs(value) > MAX_INT:
        raise ValueError("number out of range")
    return value


def _without_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return _SURROGATES.sub("\ufffd", value)
    if isinstance(value, list):
        return [_without_surrogates(item) for item in value]
    if isinstance(value, dict):
        return {_without_surrogates(key): _without_surrogates(item) for key, item in value.items()}
    return value

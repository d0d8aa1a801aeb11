"""JSON from outside, as it may be stored and sent on: finite numbers of at most 64 bits, text that is valid Unicode."""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

MAX_INT = 2**63 - 1
_SURROGATES = re.compile("[\ud800-\udfff]")


def parse(raw: bytes | bytearray) -> Any:
    """The parsed text.

    Raises:
        ValueError: it is no JSON, is nested too deeply, or holds a number that no database column can.
    """
    try:
        parsed = json.loads(raw, parse_constant=_refuse_constant, parse_float=_finite, parse_int=_bounded)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    # A lone surrogate can be written in JSON but not stored or sent as UTF-8.
    return _without_surrogates(parsed) if b"\\ud" in raw.lower() else parsed


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

"""list_peers as a host gets it: small enough to be shown whole, and no peer that keeps the others out."""

from __future__ import annotations

import json
from typing import Any

import pytest

from molecule_mcp.tools.messages import MAX_RESULT_BYTES
from molecule_mcp.tools.peers import LEFT_OUT, SKILLS_BYTES, fit
from molecule_runtime.peers import PeerView

WARNING = "desk (3): The platform cannot be reached. " * 20


def peers(count: int, *skills: str) -> list[dict[str, Any]]:
    return [PeerView(f"{n:036}", "世" * 20, None, "online", skills).to_json() for n in range(count)]


def size(result: dict[str, Any]) -> int:
    return len(json.dumps(result, ensure_ascii=False, separators=(",", ":")).encode())


def test_a_short_list_is_given_whole() -> None:
    """agent-side 5: peers and nothing else, or a warning beside them."""
    shown = peers(3, "deploy")
    assert fit(shown) == {"peers": shown}
    assert fit(shown, warning="x") == {"peers": shown, "warning": "x"}
    assert fit([]) == {"peers": []}


@pytest.mark.parametrize("warning", ["", WARNING])
def test_of_a_long_list_the_first_that_fit_are_given(warning: str) -> None:
    """clients.md 4: results over about 10 kB are cut by hosts; how many are missing is said, and how to find them."""
    at_once = next(count for count in range(200) if "left_out" in fit(peers(count), warning=warning)) - 1
    assert size(fit(peers(at_once), warning=warning)) <= MAX_RESULT_BYTES
    for count in (at_once + 1, 200):
        whole = peers(count)
        result = fit(whole, warning=warning)
        left = result["left_out"]
        assert (result["peers"], result["hint"], left > 0) == (whole[: count - left], LEFT_OUT, True)
        assert size(result) <= MAX_RESULT_BYTES < size(result) + size(whole[0]) + 2
        assert result.get("warning", "") == warning


def test_one_card_of_many_skills_leaves_room_for_the_others() -> None:
    """A card is other people's text: the first of the list could hide all others."""
    loud = peers(1, *(f"{n:04}" + "技" * 60 for n in range(1_000)))
    (first, *others) = fit([*loud, *peers(5, "deploy")])["peers"]
    assert others == peers(5, "deploy")
    assert 0 < len(json.dumps(first["skills"], ensure_ascii=False).encode()) <= SKILLS_BYTES + 2
    assert len(first["skills"]) + first["skills_left_out"] == 1_000

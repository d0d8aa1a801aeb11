"""chat_history as a host gets it: small enough to be shown whole, and nothing lost between pages."""

from __future__ import annotations

import json

import pytest

from molecule_mcp.tools._base import _validate
from molecule_mcp.tools.messages import LINE_CODE_POINTS, TOOLS, fit
from molecule_runtime.errors import InvalidArgument
from molecule_runtime.history import Line, Page, Speaker

SHOWN_WHOLE = 10_000


def lines(count: int, size: int = 400) -> tuple[Line, ...]:
    return tuple(Line(Speaker.USER, f"{n}:" + "界" * size, f"2026-01-01T00:00:{n:02d}.000000Z") for n in range(count))


def texts(result: dict[str, object]) -> list[str]:
    found = result["messages"]
    assert isinstance(found, list)
    return [one["text"].partition(":")[0] for one in found]


def test_a_short_page_is_given_whole() -> None:
    """agent-side 5: oldest first."""
    result = fit(Page(lines(3), reached_end=True))
    assert (texts(result), result["reached_end"], "before_ts" in result) == (["0", "1", "2"], True, False)


def test_a_long_page_is_cut_at_its_old_end_and_says_where_to_go_on() -> None:
    """clients.md 4: results over about 10 kB are cut by hosts, so page."""
    whole = lines(20)
    seen: list[str] = []
    page = whole
    while page:
        result = fit(Page(page, reached_end=True))
        assert len(json.dumps(result, ensure_ascii=False).encode()) <= SHOWN_WHOLE
        seen = texts(result) + seen
        page = tuple(line for line in page if line.created_at < result.get("before_ts", ""))
    assert seen == [str(n) for n in range(20)]


def test_lines_of_one_moment_are_not_parted() -> None:
    """Contract 4.5: both halves of a row have its time, and the next page begins strictly before it."""
    half = "x" * 1_990
    same = [Line(Speaker.USER, f"{n}:{half}", "2026-01-01T00:00:00.000000Z") for n in range(3)]
    newest = Line(Speaker.USER, "new:" + "x" * 1_900, "2026-01-01T00:00:01.000000Z")
    result = fit(Page((*same, newest, newest), reached_end=True))
    assert texts(result) == ["new", "new"]
    assert result["reached_end"] is False
    alone = fit(Page((*same, *same), reached_end=True))
    assert len(texts(alone)) == 6


def test_a_very_long_text_is_cut_and_said_to_be() -> None:
    """One message must not push out all others."""
    (shown,) = fit(Page(lines(1, 5_000), reached_end=True))["messages"]
    assert (len(shown["text"]), shown["text_truncated"]) == (LINE_CODE_POINTS, True)


def test_a_line_of_a_job_names_it() -> None:
    """check_task_status takes this id and has the whole result; other lines have none."""
    moment, job = "2026-01-01T00:00:00.000000Z", "55555555-5555-4555-8555-555555555555"
    talk = (Line(Speaker.AGENT, "Count", moment, delegation_id=job), Line(Speaker.PEER, "hm", moment))
    shown = fit(Page(talk, reached_end=True))["messages"]
    assert [one.get("delegation_id") for one in shown] == [job, None]
    assert "delegation_id" not in shown[1]


def test_a_page_without_a_line_still_leads_to_the_next() -> None:
    """agent-side 5: rows that are no part of the talk must not be its end."""
    result = fit(Page((), reached_end=False, oldest="2026-01-01T00:00:00.000000Z"))
    assert result == {"messages": [], "reached_end": False, "before_ts": "2026-01-01T00:00:00.000000Z"}


def test_what_a_model_writes_for_nothing_counts_as_not_given() -> None:
    """agent-side 5: null is how some models leave an argument out; ids and times are read kindly or refused."""
    tool = next(one for one in TOOLS if one.name == "chat_history")
    args = _validate(tool, {"limit": None, "peer_id": "{22222222-2222-4222-8222-222222222222}", "before_ts": None})
    assert args.model_dump() == {"limit": 20, "peer_id": "22222222-2222-4222-8222-222222222222", "before_ts": ""}
    for moment in ("12", "1700000000", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "2026-01-01T00:00:00"):
        with pytest.raises(InvalidArgument) as refused:
            _validate(tool, {"before_ts": moment})
        assert refused.value.argument == "before_ts"

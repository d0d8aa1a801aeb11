"""How deeply JSON may be nested: what is accepted can be read back everywhere, all else is the usual 400."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial

import anyio
import httpx
import pytest
from starlette.responses import Response

from molecule_runtime.reference_platform import strict_json
from molecule_runtime.reference_platform.config import PlatformConfig

from .push_agents import push_agent
from .support import NOBODY, Platform, served
from .test_ws import frames, join, socket

SHAPES: dict[str, Callable[[int], str]] = {
    "arrays": lambda levels: "[" * levels + "]" * levels,
    "objects": lambda levels: '{"a":' * levels + "0" + "}" * levels,
    "mixed": lambda levels: (
        '[{"a":' * (levels // 2) + "[]" * (levels % 2) + "0" * (1 - levels % 2) + "}]" * (levels // 2)
    ),
    "after wide ones": lambda levels: '[[],{"a":[]},' + "[" * (levels - 1) + "]" * levels,
}
TOO_DEEP = (65, 66, 255, 256, 934, 935, 1001, 100_000)
HUGE = "9" * 5000


def message(filler: str) -> str:
    """A canvas message of 3 levels around `filler`."""
    parts = '[{"kind": "text", "text": "hello"}]'
    return f'{{"method": "message/send", "params": {{"message": {{"parts": {parts}, "metadata": {filler}}}}}}}'


@pytest.mark.parametrize("shape", SHAPES)
def test_64_levels_are_parsed_and_no_more(shape: str) -> None:
    """pydantic and the json module stop at depths of their own, far above ours (strict_json.MAX_DEPTH)."""
    build = SHAPES[shape]
    assert strict_json.parse(build(64).encode()) == json.loads(build(64))
    for levels in TOO_DEEP:
        with pytest.raises(ValueError):
            strict_json.parse(build(levels).encode())
        with pytest.raises(ValueError):
            strict_json.parse(b'{"a": 1, "b": [' + build(levels).encode())


def test_brackets_in_texts_and_neighbours_are_no_levels() -> None:
    """Only what stands inside something else is deeper (strict_json.MAX_DEPTH)."""
    text = "[{" * 1000 + '"\\'
    assert strict_json.parse(json.dumps({text: text}).encode()) == {text: text}
    wide = [[[0]] for _ in range(10_000)]
    assert strict_json.parse(json.dumps(wide).encode()) == wide


@pytest.mark.parametrize("value", [HUGE, f"-{HUGE}", f"{HUGE}.5", str(2**63), *(SHAPES["arrays"](n) for n in TOO_DEEP)])
async def test_every_route_refuses_what_it_could_not_show(platform: Platform, value: str) -> None:
    """Too deep or too large a number is no JSON here, whichever field it stands in (contract, conventions)."""
    member = await platform.join()
    before = (await platform.http.get("/workspaces")).json()
    card = f'"agent_card": {{"name": "a", "x": {value}}}'
    for method, path, body in (
        ("POST", f"/workspaces/{member.id}/a2a", message(value)),
        ("POST", f"/workspaces/{member.id}/notify", f'{{"message": "x", "attachments": [], "x": {value}}}'),
        ("POST", f"/workspaces/{member.id}/activity", f'{{"activity_type": "agent_log", "metadata": {value}}}'),
        ("PATCH", f"/workspaces/{member.id}", f'{{"name": "b", "extra": {value}}}'),
        ("POST", "/workspaces", f'{{"name": "b", "external": true, "extra": {value}}}'),
        ("POST", "/registry/register", f'{{"id": "{member.id}", "delivery_mode": "poll", {card}}}'),
        ("POST", "/registry/update-card", f'{{"workspace_id": "{member.id}", {card}}}'),
        ("POST", "/registry/heartbeat", f'{{"workspace_id": "{member.id}", "runtime_metadata": {{"x": {value}}}}}'),
        ("POST", "/registry/check-access", f'{{"caller_id": "{NOBODY}", "target_id": "{NOBODY}", "x": {value}}}'),
    ):
        reply = await platform.http.request(method, path, content=body, headers=member.headers)
        assert (path, reply.status_code) == (path, 400)
        assert reply.json()["error"] in ("invalid JSON", "invalid request body", "invalid workspace payload")
    assert await platform.rows(member) == []
    assert (await platform.http.get("/workspaces")).json() == before


@pytest.mark.parametrize("shape", SHAPES)
async def test_64_levels_come_back_from_every_route_that_shows_them(config: PlatformConfig, shape: str) -> None:
    """What was accepted is in the feed, the chat, the lists, discovery and the frames (contract 2.5-2.8, 4, 8.2)."""
    build = SHAPES[shape]
    async with served(config) as url, httpx.AsyncClient(base_url=url) as http, socket(url) as canvas:
        ours = await join(http)
        peer = await join(http, "peer", parent_id=ours.id)
        named = peer.headers | {"X-Workspace-ID": peer.id}
        card = {"name": "deep", "x": json.loads(build(62))}
        for path, body in (
            ("/registry/register", {"id": ours.id, "delivery_mode": "poll", "agent_card": card}),
            ("/registry/update-card", {"workspace_id": ours.id, "agent_card": card}),
            ("/registry/heartbeat", {"workspace_id": ours.id, "runtime_metadata": {"x": json.loads(build(62))}}),
            (f"/workspaces/{ours.id}/a2a", json.loads(message(build(61)))),
            (f"/workspaces/{ours.id}/activity", {"activity_type": "agent_log", "metadata": json.loads(build(63))}),
            (f"/workspaces/{ours.id}/notify", {"message": "done", "x": json.loads(build(63))}),
        ):
            headers = {} if path.endswith("/a2a") else ours.headers
            reply = await http.post(path, json=body, headers=headers)
            assert (path, reply.status_code) == (path, 200), reply.text
        change = {"name": "desk", "extra": json.loads(build(63))}
        reply = await http.patch(f"/workspaces/{ours.id}", json=change, headers=ours.headers)
        assert reply.status_code == 200

        told, logged, posted = (await http.get(f"/workspaces/{ours.id}/activity", headers=ours.headers)).json()
        assert told["response_body"] == {"result": "done"}
        assert logged["request_body"] == json.loads(build(63))
        assert posted["request_body"]["params"]["message"]["metadata"] == json.loads(build(61))
        chat = (await http.get(f"/workspaces/{ours.id}/chat-history", headers=ours.headers)).json()
        assert [bubble["content"] for bubble in chat["messages"]] == ["hello", "done"]
        (row,) = [row for row in (await http.get("/workspaces")).json() if row["id"] == ours.id]
        (seen,) = (await http.get(f"/registry/{peer.id}/peers", headers=named)).json()
        found = (await http.get(f"/registry/discover/{ours.id}", headers=named)).json()
        one = (await http.get(f"/workspaces/{ours.id}")).json()
        assert [shown["agent_card"] for shown in (row, one, seen, found)] == [card] * 4
        heard = [frame["payload"] for frame in await frames(canvas, "AGENT_MESSAGE", ours)]
        assert card in [payload.get("agent_card") for payload in heard]
        assert {json.dumps(payload.get("request_body")) for payload in heard} >= {
            json.dumps(each["request_body"]) for each in (logged, posted)
        }


async def test_a_called_agent_may_answer_with_64_levels_and_no_more(platform: Platform) -> None:
    """A deeper answer could not be shown any more, so it is one that cannot be read (contract 4.1)."""
    async with push_agent() as agent:
        member = await platform.create()
        await platform.register(member, delivery_mode="push", url=agent.url())
        for levels, status in ((64, 200), (65, 502), (256, 502), (935, 502)):
            content = f'{{"result": {SHAPES["arrays"](levels - 1)}}}'
            agent.answer = partial(_answer, content)
            body = message(SHAPES["arrays"](61))
            with anyio.fail_after(10):
                reply = await platform.http.post(f"/workspaces/{member.id}/a2a", content=body)
            assert (levels, reply.status_code) == (levels, status)
            row = (await platform.rows(member))[0]
            assert row.get("response_body") == (json.loads(content) if status == 200 else None)
        assert len(agent.called) == 4


def _answer(content: str, _body: object) -> Response:
    return Response(content, media_type="application/json")


@pytest.mark.parametrize("content", [b'{"name": "\xed\xa0\x80"}', '{"name": "\\ud800"}'.encode("utf-16")])
async def test_what_is_not_utf_8_is_no_json(platform: Platform, content: bytes) -> None:
    """A surrogate in raw bytes, or in another encoding, would get past the replacement and break the store (R4)."""
    reply = await platform.http.post("/workspaces", content=content)
    assert (reply.status_code, reply.json()) == (400, {"error": "invalid workspace payload"})

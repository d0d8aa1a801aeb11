"""The tools about the team (agent-side 5)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from pydantic import Field

from molecule_mcp.tools._base import Arguments, Hints, Tool, ToolContext
from molecule_mcp.tools.messages import MAX_RESULT_BYTES
from molecule_runtime.runtime import Runtime, said_of
from molecule_runtime.text import cut_code_points, redact

SKILLS_BYTES = 800
"""Of one peer's skills: a card of a thousand of them must not leave the other peers out."""
WARNING_CODE_POINTS = 1_000
LEFT_OUT = "q with a part of a name or role finds the others."


class ListPeersArguments(Arguments):
    q: str = Field("", description="Part of a name or role.")


async def list_peers(context: ToolContext, args: ListPeersArguments) -> dict[str, Any]:
    """The peers of the named workspace, or of all with the ways to each; a workspace that fails keeps no other."""

    async def look(runtime: Runtime) -> dict[str, Any]:
        found, troubles = await runtime.peers(context.workspace_id, args.q.strip())
        several = len(runtime.chosen(context.workspace_id)) > 1
        peers = [one.to_json() if several else one.peer.to_json() for one in found]
        return fit(peers, warning=cut_code_points(redact(said_of(troubles)), WARNING_CODE_POINTS))

    return await context.bridge.call(look)


def fit(peers: Sequence[dict[str, Any]], *, warning: str = "") -> dict[str, Any]:
    """As many of these peers as a host shows whole, from the first; how many are left out, and what finds them."""
    shown = [_with_few_skills(peer) for peer in peers]
    result: dict[str, Any] = {"peers": shown} | ({"warning": warning} if warning else {})
    if _size(result) <= MAX_RESULT_BYTES:
        return result
    result |= {"peers": [], "left_out": len(shown), "hint": LEFT_OUT}
    sizes = accumulate((_size(peer) + 1 for peer in shown), initial=_size(result))
    count = sum(size <= MAX_RESULT_BYTES for size in sizes) - 1
    return result | {"peers": shown[:count], "left_out": len(shown) - count}


def _with_few_skills(peer: dict[str, Any]) -> dict[str, Any]:
    sizes = accumulate(_size(skill) + 1 for skill in peer["skills"])
    count = sum(size <= SKILLS_BYTES for size in sizes)
    left = len(peer["skills"]) - count
    return peer | {"skills": peer["skills"][:count], "skills_left_out": left} if left else peer


def _size(shown: Any) -> int:
    """Bytes of its compact JSON."""
    return len(json.dumps(shown, ensure_ascii=False, separators=(",", ":")).encode())


TOOLS = (
    Tool(
        name="list_peers",
        title="List peers",
        description="List the other agents of the team with status and skills.",
        arguments=ListPeersArguments,
        hints=Hints(read_only=True, destructive=False, idempotent=True, open_world=True),
        handler=list_peers,
    ),
)

"""Bringing a posted message into its one stored form, JSON-RPC with parts and a message id (contract 4.1).

Canvases leave `jsonrpc` and `id` out, old clients say `content` instead of `parts`. What is stored is what an inbox
reads, so all of that is settled here, before anything branches on the target.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from molecule_runtime.reference_platform.identifiers import new_id
from molecule_runtime.reference_platform.refusals import Refusal
from molecule_runtime.wire.a2a import RESERVED_METHODS, Method

_HINT = 'send params.message.parts, for example [{"kind": "text", "text": "hello"}]'


@dataclass(frozen=True)
class Envelope:
    """`method` as rows and answers name it, `body` the whole normalised request."""

    method: str
    body: dict[str, Any]


def normalise(posted: object) -> Envelope:
    """The stored form of a posted body; the argument is not changed.

    Raises:
        Refusal: 400, not an object, a reserved method, or a message without readable parts.
    """
    if not isinstance(posted, dict):
        raise Refusal(400, "invalid JSON")
    method = posted.get("method")
    if isinstance(method, str) and method in RESERVED_METHODS:
        raise Refusal(400, "reserved method")
    if "jsonrpc" in posted:
        body = dict(posted)
    else:
        body = {"jsonrpc": "2.0", "id": new_id(), "method": method, "params": posted.get("params")}
    params = body.get("params")
    if isinstance(params, dict) and isinstance(params.get("message"), dict):
        body["params"] = params | {"message": _message(params["message"])}
    name = method if isinstance(method, str) and method else Method.MESSAGE_SEND
    return Envelope(method=str(name), body=body)


def _message(posted: dict[str, Any]) -> dict[str, Any]:
    message = dict(posted)
    if "parts" not in message:
        message["parts"] = _parts_of_content(message)
        del message["content"]
    if not message.get("messageId"):
        message["messageId"] = new_id()
    return message


def _parts_of_content(message: dict[str, Any]) -> list[Any]:
    if "content" not in message:
        text = "params.message must contain either 'parts' (v0.3) or 'content' (v0.2 compat)"
        raise Refusal(400, text, extra={"hint": _HINT})
    match message["content"]:
        case str(text):
            return [{"kind": "text", "text": text}]
        case list(parts):
            return parts
        case _:
            raise Refusal(400, "invalid params.message.content type", extra={"hint": _HINT})

"""What a push says of a message (agent-side 6)."""

from __future__ import annotations

from typing import Any

import pytest

from molecule_mcp.channel import notification

MESSAGE: dict[str, Any] = {
    "activity_id": "a",
    "kind": "canvas_user",
    "workspace_id": "w",
    "peer_id": "",
    "peer_name": None,
    "peer_role": None,
    "text": "hello",
    "attachments": [],
    "created_at": "2026-01-01T00:00:00.000000Z",
}


@pytest.mark.parametrize(
    ("text", "files", "content"),
    [("hello", 2, "hello"), ("", 1, "(no text, 1 file)"), ("", 2, "(no text, 2 files)")],
)
def test_a_message_of_files_only_is_seen_all_the_same(text: str, files: int, content: str) -> None:
    """agent-side 6: content is the text; a host shows nothing for an empty one. meta has strings only."""
    shown = notification(MESSAGE | {"text": text, "attachments": [{}] * files}).params
    assert shown.content == content
    assert shown.meta["attachments"] == str(files)
    assert {type(value) for value in shown.meta.values()} == {str}

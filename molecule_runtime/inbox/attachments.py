"""Attachments as an agent sees them: what a message names, and what became of it (agent-side 4)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from molecule_runtime.inbox.classify import FilePart
from molecule_runtime.inbox.files import FileRecord, FileState
from molecule_runtime.text import cut_code_points, printable, safe_file_name, shown_file_name
from molecule_runtime.wire.uploads import parse_pending_uri

OWN_FILE = "this workspace sent this file itself"
REMOVED = "it was removed from this disk some time after its message was handled"
OLD = "it came before this version of molecule-mcp and was not fetched"
ELSEWHERE = "only files uploaded to the canvas are fetched; this one is at {uri}"
OF_ANOTHER = "it waits on the platform for another workspace, whose files cannot be read from here"
INSIDE = "it names no place to fetch it from; files sent inside a message are not stored"
URI_CODE_POINTS = 300
_MEDIA_TYPE = re.compile(r"[A-Za-z0-9!#$&^_.+-]{1,127}/[A-Za-z0-9!#$&^_.+-]{1,127}")


def shown_attachments(parts: Sequence[FilePart], records: Iterable[FileRecord]) -> list[dict[str, Any]]:
    """The attachments of a message, in the order in which it names them."""
    known = {record.file_id: record for record in records}
    return [_shown(part, known.get(part.file_id) if part.file_id is not None else None) for part in parts]


def named(name: str, parts: Iterable[FilePart], records: Sequence[FileRecord]) -> list[FileRecord]:
    """The files of a message that are called so: as it is shown, as the sender wrote it, or as it lies on the disk."""
    ids = {part.file_id for part in parts if name in (part.name, shown_file_name(part.name))}
    return [record for record in records if record.file_id in ids or record.name == safe_file_name(name)]


def shown_records(records: Iterable[FileRecord]) -> list[dict[str, Any]]:
    """The same from the records alone, where the message is gone."""
    return [_shown(FilePart(record.name, "", record.mime_type, file_id=record.file_id), record) for record in records]


def _shown(part: FilePart, record: FileRecord | None) -> dict[str, Any]:
    status, reason = _standing(part, record)
    is_staged = record is not None and record.state is FileState.STAGED
    mime_type = record.mime_type if record is not None and record.mime_type else part.mime_type
    return {
        "name": shown_file_name(part.name),
        "mime_type": mime_type if mime_type and _MEDIA_TYPE.fullmatch(mime_type) else None,
        "size": record.size if record is not None and record.size is not None else part.size,
        "status": status.value,
        "path": record.path if record is not None and is_staged else None,
        "reason": reason,
    }


def _standing(part: FilePart, record: FileRecord | None) -> tuple[FileState, str | None]:
    """One of pending, staged, failed, and why it is not staged."""
    if record is None:
        return FileState.FAILED, _why_unknown(part)
    match record.state:
        case FileState.SENT:
            return FileState.FAILED, OWN_FILE
        case FileState.REMOVED:
            return FileState.FAILED, REMOVED
        case state:
            return state, record.reason


def _why_unknown(part: FilePart) -> str:
    if part.file_id is not None:
        return OLD
    if not part.uri:
        return INSIDE
    if parse_pending_uri(part.uri) is not None:
        return OF_ANOTHER
    return ELSEWHERE.format(uri=cut_code_points(printable(part.uri), URI_CODE_POINTS))

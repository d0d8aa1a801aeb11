"""Files of the chat on the wire: the upload's answer, the notice in the inbox, the ack (contract 5)."""

from __future__ import annotations

import uuid
from typing import Literal

from molecule_runtime.wire._base import WireModel
from molecule_runtime.wire.chat import Attachment

FIELD = "files"
"""The repeated field of the multipart body."""
MAX_FILES = 64
"""Files in one upload (contract 5.1)."""
MAX_FILE_BYTES = 25 * 1024 * 1024
MAX_REQUEST_BYTES = 50 * 1024 * 1024
"""What a platform takes that says nothing else."""
_SCHEME = "platform-pending:"


class UploadedFile(Attachment):
    """One file of an upload's answer; passed on as it is in `attachments` of /notify."""

    size: int


class UploadReply(WireModel):
    """200 of POST /workspaces/:id/chat/uploads, in the order of the request."""

    files: list[UploadedFile]


class UploadRow(WireModel):
    """`request_body` of the activity row that an upload leaves in the inbox; `name` is cleaned already."""

    file_id: str
    name: str
    mimeType: str
    size: int
    uri: str


class UploadLimits(WireModel):
    """GET /uploads/limits, where a platform has it. The number of files is advice; 64 is what is checked."""

    per_file_bytes: int
    per_request_bytes: int
    max_attachments_per_message: int


class AckReply(WireModel):
    """200 of POST …/ack; `raced` when the row vanished between look-up and ack."""

    acked: Literal[True] = True
    raced: bool | None = None


def pending_uri(workspace_id: str, file_id: str) -> str:
    """`platform-pending:<workspace id>/<file id>`."""
    return f"{_SCHEME}{workspace_id}/{file_id}"


def parse_pending_uri(uri: str) -> tuple[str, str] | None:
    """(workspace id, file id) as canonical UUIDs; None for any other URI."""
    if not uri.startswith(_SCHEME):
        return None
    workspace_id, _, file_id = uri.removeprefix(_SCHEME).partition("/")
    try:
        return str(uuid.UUID(workspace_id)), str(uuid.UUID(file_id))
    except ValueError:
        return None

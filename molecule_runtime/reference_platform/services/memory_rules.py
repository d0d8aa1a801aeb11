"""What both kinds of memories share: how a text is cleaned, marked and noted for an audit (contract 7.1, 7.3)."""

from __future__ import annotations

import hashlib
from datetime import datetime

from sqlalchemy import Connection

from molecule_runtime.reference_platform.refusals import Refusal
from molecule_runtime.reference_platform.services.activity import NewRow, append
from molecule_runtime.reference_platform.services.redaction import redacted
from molecule_runtime.wire.activity import ActivityType
from molecule_runtime.wire.memories import MemoryAudit, MemoryScope

MARK = "[MEMORY "
ESCAPED_MARK = "[_MEMORY "
"""A memory that everybody reads must not look like a second one inside."""
DEFAULT_LABEL = "general"
LABEL_CHARS = 50
"""The namespace of v1, which only sorts (contract 7.1)."""


def cleaned(content: str, *, for_everybody: bool) -> str:
    """The text as it is stored: without secrets, without NUL characters, which PostgreSQL cannot store."""
    text = redacted(content.replace("\x00", ""))
    return text.replace(MARK, ESCAPED_MARK) if for_everybody else text


def cleaned_label(label: str) -> str:
    """The namespace of v1 as it is stored and looked for: what is taken out of a text is taken out here too."""
    return redacted(label.replace("\x00", ""))


def marked_global(memory_id: str, workspace_id: str | None, content: str) -> str:
    """How v1 shows a memory of scope GLOBAL: who says so is part of the text."""
    return f"{MARK}id={memory_id} scope={MemoryScope.GLOBAL} from={workspace_id or 'unknown'}]: {content}"


def marked_org(memory_id: str, namespace: str, content: str) -> str:
    """How v2 shows a memory of an organisation to an agent."""
    return f"{MARK}id={memory_id} scope=ORG ns={namespace}]: {content}"


def audit(
    connection: Connection,
    workspace_id: str,
    what: MemoryAudit,
    memory_id: str,
    namespace: str,
    content: str,
    now: datetime,
) -> None:
    """Note in the activity of a workspace what it told everybody, by the hash of the stored text; no event.

    Raises:
        Refusal: 404, the workspace is unknown or removed.
    """
    digest = hashlib.sha256(content.encode()).hexdigest()
    row = NewRow(
        workspace_id=workspace_id,
        activity_type=ActivityType.MEMORY_WRITE,
        method=what,
        source_id=workspace_id,
        summary=f"memory {memory_id} in {namespace}",
        request_body={"memory_id": memory_id, "namespace": namespace, "sha256": digest},
    )
    append(connection, row, now)


def memory_not_owned() -> Refusal:
    return Refusal(404, "memory not found or not owned by this workspace")

"""Files of the chat: staging what was uploaded, and handing it out (contract 5)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import partial

import structlog
from sqlalchemy import Connection, RowMapping, select
from sqlalchemy.exc import SQLAlchemyError

from molecule_runtime.clock import Clock
from molecule_runtime.reference_platform.identifiers import new_id
from molecule_runtime.reference_platform.refusals import Refusal, workspace_not_found
from molecule_runtime.reference_platform.services.activity import ActivityLog, NewRow, append
from molecule_runtime.reference_platform.services.pending_uploads import NewUpload, PendingUpload, PendingUploads
from molecule_runtime.reference_platform.services.upload_body import NOT_STAGED, ReceivedFile, Spool
from molecule_runtime.reference_platform.store.engine import Store, StoreError
from molecule_runtime.reference_platform.store.tables import workspaces
from molecule_runtime.text import safe_file_name
from molecule_runtime.wire.a2a import Method
from molecule_runtime.wire.activity import ActivityRow, ActivityType
from molecule_runtime.wire.registry import WorkspaceStatus
from molecule_runtime.wire.uploads import AckReply, UploadedFile, UploadRow, pending_uri

UNKNOWN_TYPE = "application/octet-stream"
NOT_FOUND = "pending upload not found, expired, or already acked"
NOT_YOURS = "pending upload not found"

log = structlog.get_logger(__name__)


class _NotLogged(Exception):
    """The activity rows could not be written."""


class ChatUploads:
    """Stages files for a polling workspace, and gives them out until they are acked or expire."""

    def __init__(self, store: Store, pending: PendingUploads, activity: ActivityLog, clock: Clock) -> None:
        self._store = store
        self._pending = pending
        self._activity = activity
        self._clock = clock

    async def target(self, workspace_id: str) -> RowMapping:
        """The row of the workspace that files are for.

        Raises:
            Refusal: 404, unknown or removed.
            StoreError: the database failed.
        """
        row = await self._store.read(_select_workspace, workspace_id)
        if row is None or row["status"] == WorkspaceStatus.REMOVED:
            raise workspace_not_found()
        return row

    async def stage(
        self, workspace_id: str, files: Sequence[ReceivedFile], spool: Spool, *, silent: bool
    ) -> list[UploadedFile]:
        """Stage all files, or none; in the order of the request.

        Each leaves a row in the inbox and an event, unless `silent`: so a workspace's own files, which it sends to the
        user, do not come back to it (contract 5.7).

        Raises:
            Refusal: 500, an empty file or a failing database; 404, the workspace was removed meanwhile.
        """
        if not all(file.size for file in files):
            raise Refusal(500, NOT_STAGED, extra={"detail": "a file is empty"})
        uploads = [_new(workspace_id, file, spool) for file in files]
        notices = [] if silent else [_notice(upload) for upload in uploads]
        try:
            rows = await self._pending.put_batch(uploads, partial(_append_all, rows=notices, now=self._clock.now()))
        except StoreError:
            log.exception("uploads.stage_failed", workspace_id=workspace_id)
            raise Refusal(500, NOT_STAGED) from None
        except _NotLogged:
            log.exception("uploads.log_failed", workspace_id=workspace_id)
            raise Refusal(500, "could not log upload activity") from None
        for row in rows:
            await self._activity.announce(row)
        return [_answer(upload) for upload in uploads]

    async def find(self, workspace_id: str, file_id: str, *, own: bool) -> PendingUpload:
        """A file that may be read now. An acked one is gone for the workspace itself (`own`) and is there for others.

        Raises:
            Refusal: 404.
            StoreError: the store failed.
        """
        upload = await self._lookup(workspace_id, file_id)
        if own and upload.acked_at is not None:
            raise Refusal(404, NOT_FOUND)
        return upload

    async def ack(self, workspace_id: str, file_id: str) -> AckReply:
        """Note that the file has arrived. Again is fine.

        Raises:
            Refusal: 404.
            StoreError: the store failed.
        """
        upload = await self._lookup(workspace_id, file_id)
        if upload.acked_at is not None or await self._pending.ack(file_id):
            return AckReply()
        return AckReply(raced=True)

    async def mark_fetched(self, upload: PendingUpload) -> None:
        """Note that the bytes were read; a failure is logged, since the bytes are out by then."""
        try:
            await self._pending.mark_fetched(upload.file_id)
        except StoreError:
            log.exception("uploads.mark_failed", workspace_id=upload.workspace_id)

    async def _lookup(self, workspace_id: str, file_id: str) -> PendingUpload:
        upload = await self._pending.get(file_id)
        if upload is None:
            raise Refusal(404, NOT_FOUND)
        if upload.workspace_id != workspace_id:
            raise Refusal(404, NOT_YOURS)
        if upload.acked_at is None and upload.expires_at <= self._clock.now():
            raise Refusal(404, NOT_FOUND)
        return upload


def hardened_type(content_type: str) -> str:
    """A part's Content-Type as it may be stored and sent again: `a/b` in visible ASCII, or "" (contract 5.3)."""
    kind = content_type.partition(";")[0].strip(" \t\n\v\f\r")
    if not kind:
        return ""
    halves = kind.split("/")
    visible = all("\x21" <= char <= "\x7e" for char in kind)
    return kind if visible and len(halves) == 2 and all(halves) else UNKNOWN_TYPE


def _new(workspace_id: str, file: ReceivedFile, spool: Spool) -> NewUpload:
    return NewUpload(
        file_id=new_id(),
        workspace_id=workspace_id,
        filename=safe_file_name(file.name),
        mimetype=hardened_type(file.content_type),
        size_bytes=file.size,
        chunks=partial(spool.chunks, file),
    )


def _notice(upload: NewUpload) -> NewRow:
    answer = _answer(upload)
    return NewRow(
        workspace_id=upload.workspace_id,
        activity_type=ActivityType.A2A_RECEIVE,
        method=Method.CHAT_UPLOAD_RECEIVE,
        summary=f"{Method.CHAT_UPLOAD_RECEIVE}: {upload.filename}",
        target_id=upload.workspace_id,
        request_body=UploadRow(
            file_id=upload.file_id,
            name=upload.filename,
            mimeType=upload.mimetype,
            size=upload.size_bytes,
            uri=answer.uri,
        ).model_dump(mode="json"),
    )


def _answer(upload: NewUpload) -> UploadedFile:
    return UploadedFile(
        uri=pending_uri(upload.workspace_id, upload.file_id),
        name=upload.filename,
        mimeType=upload.mimetype,
        size=upload.size_bytes,
    )


def _append_all(connection: Connection, *, rows: Sequence[NewRow], now: datetime) -> list[ActivityRow]:
    try:
        return [append(connection, row, now) for row in rows]
    except SQLAlchemyError as error:
        raise _NotLogged from error


def _select_workspace(connection: Connection, workspace_id: str) -> RowMapping | None:
    return connection.execute(select(workspaces).where(workspaces.c.id == workspace_id)).mappings().one_or_none()

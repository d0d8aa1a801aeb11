"""Files that a tool sends along: the argument, and the sending with its progress."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, Field

from molecule_mcp.tools._base import ToolContext
from molecule_runtime.runtime import Runtime
from molecule_runtime.upload_body import UploadProgress
from molecule_runtime.wire.uploads import MAX_FILE_BYTES, MAX_FILES, MAX_REQUEST_BYTES

PROGRESS_EVERY_S = 0.5

T = TypeVar("T")


def _paths(value: Any) -> Any:
    """Kindly read: one path is a list of one, the text of a list is the list, and blank ones are none."""
    if isinstance(value, str):
        listed = _list_in(value)
        value = [value] if listed is None else listed
    if isinstance(value, list):
        return [path for path in value if path is not None and path != ""]
    return value


def _list_in(text: str) -> list[Any] | None:
    """Some models write a list as the text of one; no absolute path begins like that."""
    try:
        found = json.loads(text) if text.lstrip().startswith("[") else None
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, list) else None


def _mb(size: int) -> int:
    return size // 1024 // 1024


Attachments = Annotated[
    list[str] | None,
    BeforeValidator(_paths),
    Field(
        description=f"Absolute paths of files for the user: at most {MAX_FILES}, {_mb(MAX_FILE_BYTES)} MB each,"
        f" {_mb(MAX_REQUEST_BYTES)} MB together."
    ),
]


async def send_with_progress(
    context: ToolContext, send: Callable[[Runtime], Awaitable[T]], progress: UploadProgress
) -> T:
    """Send to the end, whoever still waits for it, and tell the host meanwhile how far the upload is."""
    sending = asyncio.ensure_future(context.bridge.call(send, to_the_end=True))
    told = 0
    try:
        while not (await asyncio.wait((sending,), timeout=PROGRESS_EVERY_S))[0]:
            if progress.done > told:  # never back, as after a token that was renewed: hosts want it to rise
                told = progress.done
                await context.progress(told, progress.total, "uploading")
        return sending.result()
    finally:
        sending.cancel()

"""A bar on a terminal's stderr while files are uploaded; nothing anywhere else."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from molecule_runtime.upload_body import UploadProgress

LOOK_EVERY_S = 0.1

T = TypeVar("T")


def has_terminal() -> bool:
    """Whether there is somebody to look at a bar."""
    return sys.stderr is not None and sys.stderr.isatty()


async def with_bar(work: Coroutine[Any, Any, T], progress: UploadProgress) -> T:
    """Do the work, and show meanwhile how far its upload is; the bar is gone when it ends, however it ends."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    task = asyncio.ensure_future(work)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns, console=Console(file=sys.stderr), transient=True) as bar:
            upload = bar.add_task("Uploading", total=None)
            while not (await asyncio.wait((task,), timeout=LOOK_EVERY_S))[0]:
                bar.update(upload, completed=progress.done, total=progress.total or None)
        return task.result()
    finally:
        task.cancel()

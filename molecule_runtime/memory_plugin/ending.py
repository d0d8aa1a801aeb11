"""Ends this process in time, whatever its database or its parent does.

The parent holds the other end of a pipe, which even SIGKILL closes. A write that waits for another process's lock, or a
server that does not answer, can hold up an orderly end for 10 s and more; what was confirmed is on the disk by then.
"""

from __future__ import annotations

import os
import signal
import threading
import time

GRACE_S = 1.5
"""Seconds for an orderly end; then the process ends as it is, within 2 s of what ended it."""


def end_with_the_parent(pipe: int) -> None:
    """Watch a pipe, from a thread, until its other end is closed; then end as after SIGTERM."""
    threading.Thread(target=_watch, args=(pipe,), name="parent-pipe", daemon=True).start()


def end_in_time() -> None:
    """The end has begun: end the process, from a thread, if it is still there after `GRACE_S`."""
    threading.Thread(target=_end_after_grace, name="end-in-time", daemon=True).start()


def _watch(pipe: int) -> None:
    try:
        while os.read(pipe, 4096):
            pass
    except OSError:
        pass  # a pipe that cannot be read has no parent behind it
    os.kill(os.getpid(), signal.SIGTERM)


def _end_after_grace() -> None:
    time.sleep(GRACE_S)
    os._exit(128 + signal.SIGTERM)

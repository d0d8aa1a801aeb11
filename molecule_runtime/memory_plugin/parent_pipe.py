"""Ends this process when its parent has gone: the parent holds the other end of a pipe, which even SIGKILL closes."""

from __future__ import annotations

import os
import signal
import threading
import time

GRACE_S = 1.5
"""Seconds for an orderly end, as after SIGTERM; then the process ends as it is."""


def end_with_the_parent(pipe: int) -> None:
    """Watch a pipe, from a thread, until its other end is closed; what comes out of it is thrown away."""
    threading.Thread(target=_watch, args=(pipe,), name="parent-pipe", daemon=True).start()


def _watch(pipe: int) -> None:
    try:
        while os.read(pipe, 4096):
            pass
    except OSError:
        pass  # a pipe that cannot be read has no parent behind it
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_S)
    os._exit(128 + signal.SIGTERM)

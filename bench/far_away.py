"""A platform that is far away: `python -m bench.far_away PORT SECONDS` prints an address and lives until stdin ends.

A process of its own, so that the way costs the one that is measured nothing.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.link import Link


@contextmanager
def far_away(port: int, delay_s: float) -> Iterator[str]:
    """The address at which a platform on this machine answers so much later."""
    command = [sys.executable, "-m", "bench.far_away", str(port), str(delay_s)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()


if __name__ == "__main__":
    with Link(int(sys.argv[1]), delay_s=float(sys.argv[2])) as link:
        print(link.url, flush=True)
        sys.stdin.read()

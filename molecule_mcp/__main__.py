"""The console script: decides what runs, and imports it only then.

Spawned by a host without arguments it serves, and the first import on that way is the pipe. `--version` and `--help`
load no HTTP client, no MCP and no database.
"""

from __future__ import annotations

import sys

SERVE_FORMS = {(): False, ("serve",): False, ("serve", "--strict"): True}


def main() -> int:
    """Run the command of `sys.argv`; the exit code (agent-side 2)."""
    arguments = tuple(sys.argv[1:])
    if arguments == ("--version",):
        from molecule_runtime import __version__

        sys.stdout.write(f"molecule-mcp {__version__}\n")
        return 0
    if arguments in SERVE_FORMS:
        from molecule_mcp.pipe import Pipe, exit_on_signals

        exit_on_signals()
        pipe = Pipe.claim_early()
        from molecule_mcp.serve import serve

        return serve(pipe, strict=SERVE_FORMS[arguments])
    from molecule_mcp.cli import run

    return run()


if __name__ == "__main__":
    sys.exit(main())

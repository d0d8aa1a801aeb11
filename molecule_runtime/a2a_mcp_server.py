"""`python -m molecule_runtime.a2a_mcp_server`: the tools without presence, for hosts that register and beat themselves.

The one door that leads from the runtime up to the MCP package; nothing imports this module.
"""

from __future__ import annotations

import sys


def main() -> int:
    """Serve MCP on stdin and stdout; nothing here beats. The exit code is that of `molecule-mcp serve`."""
    from molecule_mcp.pipe import Pipe, exit_on_signals

    exit_on_signals()
    pipe = Pipe.claim_early()
    from molecule_mcp.serve import serve
    from molecule_runtime.workspace import Roles

    return serve(pipe, strict=False, roles=Roles(beats=False))


if __name__ == "__main__":
    sys.exit(main())

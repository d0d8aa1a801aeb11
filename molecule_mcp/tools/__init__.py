"""Every tool of the server, in the one order in which they are listed."""

from __future__ import annotations

from molecule_mcp.tools import delegation, files, inbox, memory, messages, peers, status, workspace
from molecule_mcp.tools._base import Tool

ALL_TOOLS: tuple[Tool, ...] = (
    *inbox.TOOLS,
    *messages.TOOLS,
    *files.TOOLS,
    *peers.TOOLS,
    *delegation.TOOLS,
    *memory.TOOLS,
    *workspace.TOOLS,
    *status.TOOLS,
)

"""The MCP server and the command `molecule-mcp`: how a host's agent uses `molecule_runtime`."""

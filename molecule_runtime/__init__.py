"""The agent side of a Molecule workspace: presence, inbox, messages, peers. No MCP, no web framework.

`import molecule_runtime` costs nothing: the public names below are loaded when they are first used, so that
`molecule-mcp --version` does not pay for an HTTP client.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "Agent": "molecule_runtime.agent",
    "DelegationRecord": "molecule_runtime.inbox.delegations",
    "ManualClock": "molecule_runtime.clock",
    "MoleculeError": "molecule_runtime.errors",
    "PlatformClient": "molecule_runtime.client",
    "Runtime": "molecule_runtime.runtime",
    "RuntimeThread": "molecule_runtime.runtime",
    "Settings": "molecule_runtime.settings",
    "SystemClock": "molecule_runtime.clock",
}

__all__ = [
    "Agent",
    "DelegationRecord",
    "ManualClock",
    "MoleculeError",
    "PlatformClient",
    "Runtime",
    "RuntimeThread",
    "Settings",
    "SystemClock",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)

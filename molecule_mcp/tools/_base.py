"""What a tool is: one record from which its listing, its schema, its dispatch and its documentation all come.

A handler gets typed arguments and returns a JSON object. Expected failures are `MoleculeError`s and become a result
the model can act on; anything else becomes a generic text, with its traceback in the log.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import structlog
from pydantic import BaseModel, ConfigDict, ValidationError

from molecule_runtime.errors import InvalidArgument, MoleculeError, advice
from molecule_runtime.runtime import RuntimeThread
from molecule_runtime.settings import Settings, ToolSet
from molecule_runtime.text import redact

T = TypeVar("T")
log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

ACTING_WORKSPACE = "Your workspace that this is for; runtime_status lists them."

Progress = Callable[[float, float | None, str], Awaitable[None]]
"""(done, total or None, text) -> tell the host; nothing happens when it did not ask for progress."""


class Arguments(BaseModel):
    """Base of all argument models: unknown arguments are ignored, because hosts add their own (clients.md 1.5)."""

    model_config = ConfigDict(extra="ignore", frozen=True, str_strip_whitespace=False)


class NoArguments(Arguments):
    """Nothing to say."""


@dataclass(frozen=True)
class ToolContext:
    """What a handler works with: the settings, the bridge to the runtime, and the caller's progress.

    `workspace_id` is the workspace that the caller named; None leaves the choice to `Runtime.route`.
    """

    settings: Settings
    bridge: RuntimeThread
    progress: Progress
    workspace_id: str | None = None


@dataclass(frozen=True)
class Hints:
    """MCP's four annotations; some hosts ask the user before tools that lack them (clients.md 2)."""

    read_only: bool
    destructive: bool
    idempotent: bool
    open_world: bool


@dataclass(frozen=True)
class Tool:
    """A tool. The first sentence of `description` must stand alone: some hosts show nothing else."""

    name: str
    title: str
    description: str
    arguments: type[Arguments]
    hints: Hints
    handler: Callable[[ToolContext, Any], Awaitable[dict[str, Any]]]
    set: ToolSet = ToolSet.CORE
    acts_for: str | None = "workspace_id"
    """The argument that names the acting workspace; listed only where several are served. None: it acts for none."""

    def input_schema(self, *, several_workspaces: bool = False) -> dict[str, Any]:
        """A flat JSON schema: no $ref, no combinators, no titles (clients.md 4)."""
        schema = self.arguments.model_json_schema()
        properties = {name: _plain(prop) for name, prop in schema.get("properties", {}).items()}
        if several_workspaces and self.acts_for is not None:
            properties[self.acts_for] = {"type": "string", "description": ACTING_WORKSPACE}
        flat: dict[str, Any] = {"type": "object", "properties": properties, "additionalProperties": False}
        if schema.get("required"):
            flat["required"] = schema["required"]
        return flat


@dataclass(frozen=True)
class ToolResult:
    """What goes back: an object on success, a text on failure."""

    payload: dict[str, Any] = field(default_factory=dict)
    error_text: str | None = None

    @property
    def text(self) -> str:
        """Compact JSON of the payload, or the error's sentences."""
        if self.error_text is not None:
            return self.error_text
        return json.dumps(self.payload, ensure_ascii=False, separators=(",", ":"))


async def run_tool(tool: Tool, context: ToolContext, arguments: Mapping[str, Any] | None) -> ToolResult:
    """Validate, run, and shape: every way a call can end except cancellation is a `ToolResult`."""
    with structlog.contextvars.bound_contextvars(tool=tool.name):
        try:
            context = replace(context, workspace_id=_acting_workspace(tool, arguments))
            payload = await tool.handler(context, _validate(tool, arguments))
            # No await from here on: a cancellation would lose what the handler has leased for this caller.
            waiting = context.bridge.glance(lambda runtime: runtime.waiting())
        except MoleculeError as error:
            log.info("tool.failed", error=type(error).__name__, detail=str(error))
            return ToolResult(error_text=_error_text(context, error))
        except Exception as bug:
            log.exception("tool.crashed", error=type(bug).__name__)
            return ToolResult(
                error_text=f"{tool.name} failed inside molecule-mcp ({type(bug).__name__}). "
                "The log file named by runtime_status has the details; try again."
            )
    if waiting and "waiting" not in payload:
        payload = {**payload, "waiting": waiting}
    return ToolResult(payload=payload)


def failure(error: MoleculeError) -> ToolResult:
    """The result of every tool while the settings are wrong: all problems and their fixes."""
    return ToolResult(error_text=redact(str(advice(error))))


def _error_text(context: ToolContext, error: MoleculeError) -> str:
    presence = context.bridge.glance(lambda runtime: runtime.presence_sentence(context.workspace_id))
    return redact(" ".join(part for part in (str(advice(error)), presence) if part))


def _validate(tool: Tool, arguments: Mapping[str, Any] | None) -> Arguments:
    try:
        given = {name: value for name, value in (arguments or {}).items() if value is not None}  # null says: not given
        return tool.arguments.model_validate(given)
    except ValidationError as invalid:
        first = invalid.errors()[0]
        name = ".".join(str(part) for part in first["loc"]) or "arguments"
        reason = "it is required" if first["type"] == "missing" else _lower_first(first["msg"])
        raise InvalidArgument(argument=name, reason=reason) from None


def _acting_workspace(tool: Tool, arguments: Mapping[str, Any] | None) -> str | None:
    """The workspace named in a call. `source_workspace_id` is the name that existing configurations know."""
    names = (tool.acts_for, "source_workspace_id") if tool.acts_for is not None else ()
    for name in names:
        value = (arguments or {}).get(name)
        if value in (None, ""):
            continue
        if not isinstance(value, str):
            raise InvalidArgument(argument=name, reason="must be a workspace id, a UUID")
        return value.strip().lower()
    return None


def _lower_first(text: str) -> str:
    text = text.removeprefix("Value error, ")
    return text[:1].lower() + text[1:]


def _plain(prop: dict[str, Any]) -> dict[str, Any]:
    """A property without pydantic's title, and `X or null` told as X: a missing argument is how one says null."""
    prop = {key: value for key, value in prop.items() if key != "title"}
    choices = [choice for choice in prop.pop("anyOf", []) if choice.get("type") != "null"]
    if len(choices) == 1:
        prop = {**choices[0], **prop}
    if prop.get("default", ...) is None:
        del prop["default"]
    if prop.get("type") == "object":
        prop.pop("additionalProperties", None)
    return prop

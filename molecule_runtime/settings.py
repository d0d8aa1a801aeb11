"""The only reader of the environment: a mapping in, a frozen `Settings` out, or *all* problems at once.

Every field names its variable (alias), its default and its meaning; `docs/settings.md` is generated from here.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError

from molecule_runtime.errors import Problem, SettingsError
from molecule_runtime.text import well_formed

WAIT_CAP_SECS = 50
"""No request of a host stays open longer: the shortest call limit met is 60 s (clients.md 1.4)."""
DEFAULT_POLL_TIMEOUT_SECS = 2
MIN_TOKEN_CHARS = 32
"""A word of so many letters and digits is a token, not a file name (a token has 43, contract 1.2)."""

_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"", "0", "false", "no", "off"})


class ToolSet(StrEnum):
    CORE = "core"
    FULL = "full"


def _base_url(value: Any) -> str:
    text = str(value).strip().rstrip("/")
    if any(char.isspace() for char in text):
        raise ValueError("must not hold white space")
    if not (text.isascii() and text.isprintable()):
        raise ValueError("must hold ASCII characters only; write an international host name in its xn-- form")
    try:
        parts = urlsplit(text)
        port = parts.port
        port_is_valid = port is None or port > 0
    except ValueError:
        raise ValueError("is not a URL; an address and port look like https://host:8443") from None
    if parts.scheme not in {"http", "https"} or not parts.hostname or not port_is_valid:
        raise ValueError("must be a URL such as https://canvas.example.com")
    if parts.username or parts.password:
        raise ValueError("must not hold a user name or password; the token has a variable of its own")
    if parts.query or parts.fragment:
        raise ValueError("must not hold a query or a fragment")
    netloc = parts.netloc.lower()
    if port == {"http": 80, "https": 443}[parts.scheme]:
        netloc = netloc.removesuffix(f":{port}")  # an Origin never names the default port, and platforms compare it
    return f"{parts.scheme}://{netloc}{parts.path}"


def _uuid(value: Any) -> str:
    text = str(value).strip()
    try:
        parsed = uuid.UUID(text)
    except ValueError:
        raise ValueError("must be a UUID such as 8c0f7b9e-2f0a-4b6e-9f0f-3f2f6c1d7a55") from None
    if text.lower() != str(parsed):
        raise ValueError("must be a UUID in its usual form: five groups of hex digits with hyphens")
    return str(parsed)


def _flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower()
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise ValueError("must be 1 or 0")


def token_flaw(token: str) -> str | None:
    """What keeps a text from being a bearer token, as a sentence that does not repeat it; None when nothing does."""
    if any(char.isspace() for char in token):
        return "must be one token without white space inside"
    if token.startswith("<") and token.endswith(">"):
        return "is a placeholder; paste the token that the canvas showed at creation"
    if not (token.isascii() and token.isprintable()):
        return "holds a character that no token has and that no HTTP header can carry"
    return None


def _token(value: Any) -> Any:
    text = value.get_secret_value() if isinstance(value, SecretStr) else str(value)
    text = text.strip()
    flaw = token_flaw(text)
    if flaw is not None:
        raise ValueError(flaw)
    return text


def _unicode(value: Any) -> Any:
    if isinstance(value, str) and well_formed(value) != value:
        raise ValueError("must be UTF-8 text")
    return value


def _header(value: Any) -> Any:
    text = str(value).strip()
    if not (text.isascii() and text.isprintable()):
        raise ValueError("must hold printable ASCII characters only")
    return text


def _token_path(value: Any) -> Any:
    """A path; a token put here by mistake is refused, and so never repeated in an error."""
    text = str(value)
    if len(text) >= MIN_TOKEN_CHARS and all(char.isalnum() or char in "-_" for char in text):
        raise ValueError("must be the path of a file, not the token itself")
    return value


def _absolute_dir(value: Any) -> Any:
    """An absolute path: the working directory is the host's, another one each time."""
    if not str(value).startswith("~") and not Path(str(value)).is_absolute():
        raise ValueError("must be an absolute path")
    return value


def _poll_timeout(value: Any) -> int:
    """Bad values become the default, large ones the cap: a wrong number must not keep an agent offline."""
    try:
        number = int(float(str(value)))
    except (ValueError, OverflowError):
        return DEFAULT_POLL_TIMEOUT_SECS
    return DEFAULT_POLL_TIMEOUT_SECS if number < 0 else min(number, WAIT_CAP_SECS)


def _skills(value: Any) -> tuple[str, ...]:
    if isinstance(value, tuple):
        return value
    return tuple(skill for part in str(_unicode(value)).split(",") if (skill := part.strip()))


def _lower(value: Any) -> Any:
    return value.strip().lower() if isinstance(value, str) else value


def _level(value: Any) -> str:
    word = str(value).strip().upper()
    if word not in {"DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"}:
        raise ValueError("must be DEBUG, INFO, WARNING, ERROR or CRITICAL")
    return word


class Settings(BaseModel):
    """What a process was told. Values are checked; nothing is opened, resolved or created here."""

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)

    platform_url: Annotated[str, BeforeValidator(_base_url)] = Field(
        alias="PLATFORM_URL", description="Base URL of the platform, http or https; trailing slashes are cut."
    )
    workspace_id: Annotated[str, BeforeValidator(_uuid)] = Field(
        alias="WORKSPACE_ID", description="The workspace's UUID, as the canvas shows it."
    )
    token: Annotated[SecretStr | None, BeforeValidator(_token)] = Field(
        None, alias="MOLECULE_WORKSPACE_TOKEN", description="The workspace's bearer token, inline."
    )
    token_file: Annotated[Path | None, BeforeValidator(_token_path)] = Field(
        None, alias="MOLECULE_WORKSPACE_TOKEN_FILE", description="A file that holds the token and nothing else."
    )
    configs_dir: Annotated[Path | None, BeforeValidator(_absolute_dir)] = Field(
        None,
        alias="CONFIGS_DIR",
        description="State directory; default /configs if it exists and is writable, else ~/.molecule-workspace.",
    )
    agent_name: Annotated[str, BeforeValidator(_unicode)] = Field(
        "", alias="MOLECULE_AGENT_NAME", description="Name on the agent card; default molecule-mcp-<first 8 of the id>."
    )
    agent_description: Annotated[str, BeforeValidator(_unicode)] = Field(
        "", alias="MOLECULE_AGENT_DESCRIPTION", description="What the agent does, shown to its peers."
    )
    agent_skills: Annotated[tuple[str, ...], BeforeValidator(_skills)] = Field(
        (), alias="MOLECULE_AGENT_SKILLS", description="Comma-separated skills on the agent card."
    )
    poll_timeout_secs: Annotated[int, BeforeValidator(_poll_timeout)] = Field(
        DEFAULT_POLL_TIMEOUT_SECS,
        alias="MOLECULE_MCP_POLL_TIMEOUT_SECS",
        description="Seconds that the agent is asked to wait for messages each turn; at most 50.",
    )
    tools: Annotated[ToolSet, BeforeValidator(_lower)] = Field(
        ToolSet.CORE, alias="MOLECULE_MCP_TOOLS", description="The tool set: core or full."
    )
    disable_heartbeat: Annotated[bool, BeforeValidator(_flag)] = Field(
        False, alias="MOLECULE_MCP_DISABLE_HEARTBEAT", description="1 when the host registers and beats itself."
    )
    disable_inbox: Annotated[bool, BeforeValidator(_flag)] = Field(
        False, alias="MOLECULE_MCP_DISABLE_INBOX", description="1 when the host reads the inbox itself."
    )
    heartbeat_secs: float = Field(
        20.0, alias="MOLECULE_MCP_HEARTBEAT_SECS", ge=1, le=60, description="Seconds between beats, 1 to 60."
    )
    lease_secs: float = Field(
        600.0,
        alias="MOLECULE_MCP_LEASE_SECS",
        ge=1,
        le=86_400,
        description="Seconds until a message that was handed out but not popped is offered again.",
    )
    org_id: Annotated[str, BeforeValidator(_header)] = Field(
        "", alias="MOLECULE_ORG_ID", description="Sent as X-Molecule-Org-Id on shared deployments."
    )
    log_level: Annotated[str, BeforeValidator(_level)] = Field(
        "WARNING", alias="MOLECULE_MCP_LOG_LEVEL", description="Level of the log lines on stderr."
    )
    verbose: Annotated[bool, BeforeValidator(_flag)] = Field(
        False, alias="MOLECULE_MCP_VERBOSE", description="1 shows INFO lines on stderr."
    )

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Settings:
        """Read a mapping such as `os.environ`; blank values count as not set.

        Raises:
            SettingsError: with one `Problem` for every variable that is missing or wrong.
        """
        given = {name: value for name, value in env.items() if value.strip()}
        problems = []
        if "MOLECULE_WORKSPACES" in given:
            problems.append(
                Problem(
                    "settings.MOLECULE_WORKSPACES",
                    "MOLECULE_WORKSPACES is not read by this version, which serves one workspace",
                    "Set PLATFORM_URL, WORKSPACE_ID and MOLECULE_WORKSPACE_TOKEN instead.",
                )
            )
        try:
            settings = cls.model_validate(given)
        except ValidationError as invalid:
            problems += [_problem(dict(error)) for error in invalid.errors()]
        if problems:
            raise SettingsError(tuple(problems))
        return settings

    @property
    def effective_log_level(self) -> str:
        return "INFO" if self.verbose and self.log_level == "WARNING" else self.log_level

    @property
    def default_agent_name(self) -> str:
        return f"molecule-mcp-{self.workspace_id[:8]}"


_MISSING_FIXES = {
    "PLATFORM_URL": "Set PLATFORM_URL to the platform's address, e.g. https://canvas.example.com.",
    "WORKSPACE_ID": "Set WORKSPACE_ID to the workspace's UUID, as the canvas shows it.",
}

_CORRECT_IT = "Correct this in the env block of this server in the host's configuration, then restart the host."


def _problem(error: dict[str, Any]) -> Problem:
    """One pydantic error as a sentence; the offending value is never repeated (it could be a misplaced token)."""
    name = str(error["loc"][0])
    if error["type"] == "missing":
        return Problem(f"settings.{name}", f"{name} is not set", _MISSING_FIXES[name])
    cause = error.get("ctx", {}).get("error")
    reason = str(cause) if cause is not None else str(error["msg"]).lower().replace("input should be", "must be")
    return Problem(f"settings.{name}", f"{name} {reason}", _CORRECT_IT)


def environment() -> dict[str, str]:
    """A copy of this process's environment: for `Settings.from_env`, and for child processes."""
    return dict(os.environ)

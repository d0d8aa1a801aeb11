"""The only reader of the environment: a mapping in, a frozen `Settings` out, or *all* problems at once.

Every field names its variable (alias), its default and its meaning; `docs/settings.md` is generated from here.
"""

from __future__ import annotations

import json
import os
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, SecretStr, ValidationError

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


class Push(StrEnum):
    """Whether arriving messages are also pushed to the host's session (agent-side 6)."""

    AUTO = "auto"
    OFF = "off"


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
    if value is None:
        return None
    text = value.get_secret_value() if isinstance(value, SecretStr) else str(value)
    text = text.strip()
    flaw = token_flaw(text) if text else "is empty"
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
    text = "" if value is None else str(value)
    if len(text) >= MIN_TOKEN_CHARS and all(char.isalnum() or char in "-_" for char in text):
        raise ValueError("must be the path of a file, not the token itself")
    return value


def _absolute_dir(value: Any) -> Any:
    """An absolute path: the working directory is the host's, another one each time."""
    if not str(value).startswith("~") and not Path(str(value)).is_absolute():
        raise ValueError("must be an absolute path")
    return value


def _roots(value: Any) -> tuple[Path, ...]:
    """Directories in the form of PATH; blank ones are passed over."""
    if isinstance(value, tuple):
        return value
    roots = tuple(Path(part.strip()) for part in str(_unicode(value)).split(os.pathsep) if part.strip())
    if not roots or not all(str(root).startswith("~") or root.is_absolute() for root in roots):
        raise ValueError(f"must be absolute paths with {os.pathsep!r} between them")
    return roots


def _poll_timeout(value: Any) -> int:
    """Bad values become the default, large ones the cap: a wrong number must not keep an agent offline."""
    number = _seconds(value)
    return DEFAULT_POLL_TIMEOUT_SECS if number is None else min(number, WAIT_CAP_SECS)


def _seconds(value: Any) -> int | None:
    """A number of whole seconds from 0; None when it is none."""
    try:
        number = int(float(str(value)))
    except (ValueError, OverflowError):
        return None
    return number if number >= 0 else None


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


class WorkspaceSettings(BaseModel):
    """One workspace: which, on which platform, and what proves it. An entry of MOLECULE_WORKSPACES has these keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Annotated[str, BeforeValidator(_uuid)]
    platform_url: Annotated[str, BeforeValidator(_base_url)]
    token: Annotated[SecretStr | None, BeforeValidator(_token)] = None
    token_file: Annotated[Path | None, BeforeValidator(_token_path)] = None
    _variable: str = PrivateAttr("MOLECULE_WORKSPACE_TOKEN")

    @property
    def token_variable(self) -> str:
        """The environment variable that an inline token came from."""
        return self._variable

    @property
    def default_agent_name(self) -> str:
        return f"molecule-mcp-{self.id[:8]}"


class Settings(BaseModel):
    """What a process was told. Values are checked; nothing is opened, resolved or created here.

    Which workspaces to serve is in `workspaces`, whether they were told one by one or as a list.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)

    platform_url: Annotated[str | None, BeforeValidator(_base_url)] = Field(
        None,
        alias="PLATFORM_URL",
        description="Base URL of the platform, http or https; trailing slashes are cut. Required, unless every entry "
        "of MOLECULE_WORKSPACES has its own.",
    )
    workspace_id: Annotated[str | None, BeforeValidator(_uuid)] = Field(
        None,
        alias="WORKSPACE_ID",
        description="The workspace's UUID, as the canvas shows it. Required, unless MOLECULE_WORKSPACES is set.",
    )
    token: Annotated[SecretStr | None, BeforeValidator(_token)] = Field(
        None, alias="MOLECULE_WORKSPACE_TOKEN", description="The workspace's bearer token, inline."
    )
    token_file: Annotated[Path | None, BeforeValidator(_token_path)] = Field(
        None, alias="MOLECULE_WORKSPACE_TOKEN_FILE", description="A file that holds the token and nothing else."
    )
    workspaces_json: SecretStr | None = Field(
        None,
        alias="MOLECULE_WORKSPACES",
        description='Several workspaces as JSON, [{"id", "token" or "token_file", "platform_url"}]; replaces '
        "WORKSPACE_ID and the two token variables. Without platform_url an entry is on PLATFORM_URL.",
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
    push: Annotated[Push, BeforeValidator(_lower)] = Field(
        Push.AUTO,
        alias="MOLECULE_MCP_PUSH",
        description="auto also pushes arriving messages into the session of a host that shows them; off does not.",
    )
    disable_heartbeat: Annotated[bool, BeforeValidator(_flag)] = Field(
        False, alias="MOLECULE_MCP_DISABLE_HEARTBEAT", description="1 when the host registers and beats itself."
    )
    disable_inbox: Annotated[bool, BeforeValidator(_flag)] = Field(
        False, alias="MOLECULE_MCP_DISABLE_INBOX", description="1 when the host reads the inbox itself."
    )
    attachment_roots: Annotated[tuple[Path, ...] | None, BeforeValidator(_roots)] = Field(
        None,
        alias="MOLECULE_ATTACHMENT_ROOTS",
        description="Directories that files sent to the user may lie in, separated as in PATH; symlinks are resolved "
        "first. Default: the working directory (unless it is the home directory or one above it), "
        "<state directory>/<workspace id>/files and the system's temporary directory. Tokens, locks and the inbox are "
        "never sent.",
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
    files_quota_mb: float = Field(
        1_000.0,
        alias="MOLECULE_MCP_FILES_QUOTA_MB",
        gt=0,
        le=1_000_000_000,
        description="Megabytes that the files sent to one workspace may take on this disk.",
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

    _workspaces: tuple[WorkspaceSettings, ...] = PrivateAttr(())
    _problems: tuple[Problem, ...] = PrivateAttr(())

    @property
    def workspaces(self) -> tuple[WorkspaceSettings, ...]:
        """The workspaces to serve, at least one, in the order they were told."""
        return self._workspaces

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What is wrong and was got over: entries of the list that are left out, a number that was replaced."""
        return self._problems

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Settings:
        """Read a mapping such as `os.environ`; blank values count as not set.

        Raises:
            SettingsError: with one `Problem` for every variable that is missing or wrong.
        """
        given = {name: value for name, value in env.items() if value.strip()}
        listed = given.get("MOLECULE_WORKSPACES")
        if listed is not None:
            given = {name: value for name, value in given.items() if name not in _REPLACED_BY_LIST}
        settings, problems = None, []
        try:
            settings = cls.model_validate(given)
        except ValidationError as invalid:
            problems += [_problem(str(error["loc"][0]), dict(error)) for error in invalid.errors()]
        bad = {problem.id for problem in problems}
        base_url = (
            settings.platform_url if settings is not None else _value_or_none(_base_url, given.get("PLATFORM_URL"))
        )
        if listed is not None:
            workspaces, left_out, fatal = _read_list(listed, base_url)
            problems += fatal
            if not workspaces:
                problems += left_out
        else:
            workspaces, left_out = (), []
            problems += [
                Problem(f"settings.{name}", f"{name} is not set", fix)
                for name, fix in _MISSING_FIXES.items()
                if name not in given and f"settings.{name}" not in bad
            ]
        if settings is None or problems:
            raise SettingsError(tuple(problems))
        if listed is None:
            assert settings.workspace_id is not None
            assert settings.platform_url is not None
            workspaces = (
                WorkspaceSettings(
                    id=settings.workspace_id,
                    platform_url=settings.platform_url,
                    token=settings.token,
                    token_file=settings.token_file,
                ),
            )
        settings._workspaces = workspaces
        settings._problems = (*left_out, *_poll_timeout_problem(given))
        return settings

    @property
    def effective_log_level(self) -> str:
        return "INFO" if self.verbose and self.log_level == "WARNING" else self.log_level


_MISSING_FIXES = {
    "PLATFORM_URL": "Set PLATFORM_URL to the platform's address, e.g. https://canvas.example.com.",
    "WORKSPACE_ID": "Set WORKSPACE_ID to the workspace's UUID, as the canvas shows it.",
}

_REPLACED_BY_LIST = frozenset({"WORKSPACE_ID", "MOLECULE_WORKSPACE_TOKEN", "MOLECULE_WORKSPACE_TOKEN_FILE"})
_LIST_FORM = 'a list such as [{"id": "…", "token_file": "/path/of/token", "platform_url": "https://…"}]'

_CORRECT_IT = "Correct this in the env block of this server in the host's configuration, then restart the host."


def _problem(name: str, error: dict[str, Any], *, id: str | None = None) -> Problem:
    """One pydantic error as a sentence; the offending value is never repeated (it could be a misplaced token)."""
    id = id or f"settings.{name}"
    if error["type"] == "missing":
        return Problem(id, f"{name} is not set", _CORRECT_IT)
    if error["type"] == "extra_forbidden":
        known = ", ".join(WorkspaceSettings.model_fields)
        return Problem(id, f"{name} is not a key of an entry; these are: {known}", _CORRECT_IT)
    cause = error.get("ctx", {}).get("error")
    reason = str(cause) if cause is not None else str(error["msg"]).lower().replace("input should be", "must be")
    return Problem(id, f"{name} {reason}", _CORRECT_IT)


def _poll_timeout_problem(given: Mapping[str, str]) -> list[Problem]:
    name = "MOLECULE_MCP_POLL_TIMEOUT_SECS"
    if name not in given or _seconds(given[name]) is not None:
        return []
    summary = f"{name} is not a number of seconds; {DEFAULT_POLL_TIMEOUT_SECS} is used"
    return [Problem(f"settings.{name}", summary, _CORRECT_IT)]


def _read_list(text: str, base_url: str | None) -> tuple[tuple[WorkspaceSettings, ...], list[Problem], list[Problem]]:
    """MOLECULE_WORKSPACES: (the entries that can be served, what is wrong with the others, what is wrong altogether).

    A bad entry disables itself. What makes the list as a whole doubtful (no JSON, nothing in it, one workspace twice)
    disables all of it, because nobody can say which half was meant.
    """
    name = "MOLECULE_WORKSPACES"

    def fatal(reason: str) -> tuple[tuple[WorkspaceSettings, ...], list[Problem], list[Problem]]:
        return (), [], [Problem(f"settings.{name}", f"{name} {reason}", f"It must be {_LIST_FORM}.")]

    try:
        entries = json.loads(text)
    except json.JSONDecodeError as error:
        return fatal(f"is not JSON: {error.msg.lower()} at line {error.lineno}, column {error.colno}")
    except RecursionError:
        return fatal("is not JSON that can be read: it is nested too deeply")
    if not isinstance(entries, list):
        return fatal("is JSON, but not a list")
    if not entries:
        return fatal("is an empty list")
    ids = [str(entry.get("id")).strip().lower() if isinstance(entry, dict) else None for entry in entries]
    twice = [known for known, count in Counter(ids).items() if known is not None and count > 1 and known != "none"]
    if twice:
        places = " and ".join(str(place) for place, known in enumerate(ids, 1) if known == twice[0])
        summary = f"{name} names the same workspace in entries {places}"
        doubtful = [Problem(f"settings.{name}", summary, "Keep one of them.")]
        for place, entry in enumerate(entries, 1):
            doubtful += _read_entry(place, entry, base_url)[1]
        return (), [], doubtful
    served: list[WorkspaceSettings] = []
    left_out: list[Problem] = []
    for place, entry in enumerate(entries, 1):
        workspace, problems = _read_entry(place, entry, base_url)
        served += [workspace] if workspace is not None else []
        left_out += problems
    return tuple(served), left_out, []


def _read_entry(place: int, entry: object, base_url: str | None) -> tuple[WorkspaceSettings | None, list[Problem]]:
    """One entry of MOLECULE_WORKSPACES (the first is 1), or everything that is wrong with it."""
    where, id = f"MOLECULE_WORKSPACES entry {place}", "settings.MOLECULE_WORKSPACES"
    if not isinstance(entry, dict):
        return None, [Problem(id, f"{where} is not an object", f"The whole must be {_LIST_FORM}.")]
    told = {str(key): value for key, value in entry.items() if value not in (None, "")}
    problems = []
    if "platform_url" not in told and base_url is None:
        fix = "Give it a platform_url, or set PLATFORM_URL for all entries."
        problems.append(Problem(id, f"{where} names no platform", fix))
    told.setdefault("platform_url", base_url or "https://canvas.example.com")
    try:
        workspace = WorkspaceSettings.model_validate(told)
    except ValidationError as invalid:
        wrong: list[dict[str, Any]] = [dict(error) for error in invalid.errors()]
        return None, problems + [_problem(f"{where}: {_key(error['loc'][0])}", error, id=id) for error in wrong]
    if problems:
        return None, problems
    workspace._variable = "MOLECULE_WORKSPACES"
    return workspace, []


def _key(given: object) -> str:
    """A key as it may be shown: what is not ours could be a token in the wrong place."""
    return str(given) if str(given) in WorkspaceSettings.model_fields else "a key"


def _value_or_none(read: Callable[[Any], str], value: str | None) -> str | None:
    try:
        return read(value) if value is not None else None
    except ValueError:
        return None


def environment() -> dict[str, str]:
    """A copy of this process's environment: for `Settings.from_env`, and for child processes."""
    return dict(os.environ)

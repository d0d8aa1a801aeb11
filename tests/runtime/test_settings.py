"""The environment as settings, or every problem at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from molecule_runtime.errors import Problem, SettingsError
from molecule_runtime.settings import Push, Settings, ToolSet, token_flaw

from .support import TOKEN, WORKSPACE

URL = "https://canvas.example.com"
MINIMUM = {"PLATFORM_URL": URL, "WORKSPACE_ID": WORKSPACE}
CORRECT_IT = "Correct this in the env block of this server in the host's configuration, then restart the host."


def problems(**env: str) -> list[Problem]:
    with pytest.raises(SettingsError) as raised:
        Settings.from_env({**MINIMUM, **env})
    return list(raised.value.problems)


def test_two_variables_are_enough() -> None:
    """agent-side 1: the defaults."""
    told = Settings.from_env(MINIMUM)
    assert told.model_dump() == {
        "platform_url": URL,
        "workspace_id": WORKSPACE,
        "token": None,
        "token_file": None,
        "workspaces_json": None,
        "configs_dir": None,
        "agent_name": "",
        "agent_description": "",
        "agent_skills": (),
        "poll_timeout_secs": 2,
        "tools": ToolSet.CORE,
        "push": Push.AUTO,
        "disable_heartbeat": False,
        "disable_inbox": False,
        "attachment_roots": None,
        "heartbeat_secs": 20.0,
        "lease_secs": 600.0,
        "files_quota_mb": 1_000.0,
        "org_id": "",
        "log_level": "WARNING",
        "verbose": False,
    }
    assert (told.workspaces[0].default_agent_name, told.effective_log_level) == ("molecule-mcp-11111111", "WARNING")


def test_a_missing_variable_is_said_with_what_to_set() -> None:
    """agent-side 2: all settings problems are reported at once."""
    with pytest.raises(SettingsError) as raised:
        Settings.from_env({})
    assert raised.value.problems == (
        Problem(
            "settings.PLATFORM_URL",
            "PLATFORM_URL is not set",
            "Set PLATFORM_URL to the platform's address, e.g. https://canvas.example.com.",
        ),
        Problem(
            "settings.WORKSPACE_ID",
            "WORKSPACE_ID is not set",
            "Set WORKSPACE_ID to the workspace's UUID, as the canvas shows it.",
        ),
    )


def test_every_problem_is_reported_at_once() -> None:
    """agent-side 2: nobody corrects one variable a restart."""
    found = problems(
        PLATFORM_URL="nowhere",
        WORKSPACE_ID="me",
        MOLECULE_WORKSPACE_TOKEN="two words",
        MOLECULE_MCP_HEARTBEAT_SECS="often",
        MOLECULE_MCP_TOOLS="all",
    )
    assert [problem.id.removeprefix("settings.") for problem in found] == [
        "PLATFORM_URL",
        "WORKSPACE_ID",
        "MOLECULE_WORKSPACE_TOKEN",
        "MOLECULE_MCP_TOOLS",
        "MOLECULE_MCP_HEARTBEAT_SECS",
    ]


@pytest.mark.parametrize("blank", ["", " ", "\t\n"])
def test_a_blank_value_counts_as_not_set(blank: str) -> None:
    """agent-side 1: hosts write empty strings for what a person left out."""
    told = Settings.from_env(
        {**MINIMUM, "MOLECULE_WORKSPACE_TOKEN": blank, "MOLECULE_MCP_HEARTBEAT_SECS": blank, "CONFIGS_DIR": blank}
    )
    assert told == Settings.from_env(MINIMUM)
    assert [problem.summary for problem in problems(PLATFORM_URL=blank)] == ["PLATFORM_URL is not set"]


A_URL = "must be a URL such as https://canvas.example.com"
A_FLAG = "must be 1 or 0"


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("PLATFORM_URL", "canvas.example.com", A_URL),
        ("PLATFORM_URL", "ftp://canvas.example.com", A_URL),
        ("PLATFORM_URL", "https://", A_URL),
        ("PLATFORM_URL", "https://host:0", A_URL),
        ("PLATFORM_URL", "http://user:hunter22", "is not a URL; an address and port look like https://host:8443"),
        ("PLATFORM_URL", "http://host:99999", "is not a URL; an address and port look like https://host:8443"),
        ("PLATFORM_URL", "http://[::1", "is not a URL; an address and port look like https://host:8443"),
        (
            "PLATFORM_URL",
            "https://hunter22:hunter22@host",
            "must not hold a user name or password; the token has a variable of its own",
        ),
        ("PLATFORM_URL", "https://host/?hunter22", "must not hold a query or a fragment"),
        ("PLATFORM_URL", "https://ho st", "must not hold white space"),
        (
            "PLATFORM_URL",
            "https://bücher.example",
            "must hold ASCII characters only; write an international host name in its xn-- form",
        ),
        ("WORKSPACE_ID", "laptop", "must be a UUID such as 8c0f7b9e-2f0a-4b6e-9f0f-3f2f6c1d7a55"),
        (
            "WORKSPACE_ID",
            "{11111111-1111-4111-8111-111111111111}",
            "must be a UUID in its usual form: five groups of hex digits with hyphens",
        ),
        ("WORKSPACE_ID", "../../etc/passwd", "must be a UUID such as 8c0f7b9e-2f0a-4b6e-9f0f-3f2f6c1d7a55"),
        ("MOLECULE_WORKSPACE_TOKEN", "hunter22 hunter22", "must be one token without white space inside"),
        (
            "MOLECULE_WORKSPACE_TOKEN",
            "<paste from create response>",
            "must be one token without white space inside",
        ),
        (
            "MOLECULE_WORKSPACE_TOKEN",
            "<hunter22>",
            "is a placeholder; paste the token that the canvas showed at creation",
        ),
        (
            "MOLECULE_WORKSPACE_TOKEN",
            "hünter22",
            "holds a character that no token has and that no HTTP header can carry",
        ),
        (
            "MOLECULE_WORKSPACE_TOKEN",
            "hunter22\x00",
            "holds a character that no token has and that no HTTP header can carry",
        ),
        ("MOLECULE_AGENT_NAME", "half \udcff", "must be UTF-8 text"),
        ("MOLECULE_AGENT_DESCRIPTION", "half \udcff", "must be UTF-8 text"),
        ("MOLECULE_AGENT_SKILLS", "half \udcff", "must be UTF-8 text"),
        ("MOLECULE_ORG_ID", "örg", "must hold printable ASCII characters only"),
        ("MOLECULE_ORG_ID", "a\r\nX-Evil: 1", "must hold printable ASCII characters only"),
        ("MOLECULE_MCP_TOOLS", "all", "must be 'core' or 'full'"),
        ("MOLECULE_MCP_DISABLE_HEARTBEAT", "maybe", A_FLAG),
        ("MOLECULE_MCP_DISABLE_INBOX", "2", A_FLAG),
        ("MOLECULE_MCP_VERBOSE", "very", A_FLAG),
        ("MOLECULE_ATTACHMENT_ROOTS", "outbox", "must be absolute paths with ':' between them"),
        ("MOLECULE_ATTACHMENT_ROOTS", "/out:box", "must be absolute paths with ':' between them"),
        ("MOLECULE_ATTACHMENT_ROOTS", " : ", "must be absolute paths with ':' between them"),
        ("MOLECULE_ATTACHMENT_ROOTS", "/half \udcff", "must be UTF-8 text"),
        ("MOLECULE_MCP_HEARTBEAT_SECS", "0.9", "must be greater than or equal to 1"),
        ("MOLECULE_MCP_HEARTBEAT_SECS", "61", "must be less than or equal to 60"),
        ("MOLECULE_MCP_HEARTBEAT_SECS", "nan", "must be less than or equal to 60"),
        ("MOLECULE_MCP_HEARTBEAT_SECS", "inf", "must be less than or equal to 60"),
        ("MOLECULE_MCP_LEASE_SECS", "0", "must be greater than or equal to 1"),
        ("MOLECULE_MCP_LEASE_SECS", "soon", "must be a valid number, unable to parse string as a number"),
        ("MOLECULE_MCP_LOG_LEVEL", "LOUD", "must be DEBUG, INFO, WARNING, ERROR or CRITICAL"),
    ],
)
def test_a_bad_value_is_named_explained_and_never_repeated(name: str, value: str, reason: str) -> None:
    """agent-side 1: anything else is an error that says so; a misplaced token must not reach a screen."""
    assert problems(**{name: value}) == [Problem(f"settings.{name}", f"{name} {reason}", CORRECT_IT)]
    assert "hunter22" not in repr(problems(**{name: value}))


@pytest.mark.parametrize(
    ("name", "value", "field", "read"),
    [
        ("PLATFORM_URL", " https://host// ", "platform_url", "https://host"),
        ("PLATFORM_URL", "HTTPS://Canvas.Example.COM/Base/", "platform_url", "https://canvas.example.com/Base"),
        ("PLATFORM_URL", "https://host:443", "platform_url", "https://host"),
        ("PLATFORM_URL", "http://host:80/x", "platform_url", "http://host/x"),
        ("PLATFORM_URL", "http://[::1]:8080", "platform_url", "http://[::1]:8080"),
        ("PLATFORM_URL", "http://host:443", "platform_url", "http://host:443"),
        ("WORKSPACE_ID", f" {WORKSPACE.upper()} ", "workspace_id", WORKSPACE),
        ("MOLECULE_AGENT_SKILLS", " deploy, ,on call ,", "agent_skills", ("deploy", "on call")),
        ("MOLECULE_AGENT_NAME", "世界 🌍", "agent_name", "世界 🌍"),
        ("MOLECULE_MCP_TOOLS", " FULL ", "tools", ToolSet.FULL),
        ("MOLECULE_MCP_DISABLE_INBOX", " Yes ", "disable_inbox", True),
        ("MOLECULE_MCP_DISABLE_HEARTBEAT", "off", "disable_heartbeat", False),
        ("MOLECULE_MCP_HEARTBEAT_SECS", "1", "heartbeat_secs", 1.0),
        ("MOLECULE_MCP_LEASE_SECS", "86400", "lease_secs", 86_400.0),
        ("MOLECULE_MCP_LOG_LEVEL", "debug", "log_level", "DEBUG"),
        ("MOLECULE_WORKSPACE_TOKEN_FILE", "~/token", "token_file", Path("~/token")),
        ("CONFIGS_DIR", "/state", "configs_dir", Path("/state")),
        ("MOLECULE_ATTACHMENT_ROOTS", " ~/out : :/srv/a b/", "attachment_roots", (Path("~/out"), Path("/srv/a b"))),
    ],
)
def test_a_value_is_read_kindly(name: str, value: str, field: str, read: Any) -> None:
    """agent-side 1: slashes cut, cases and blanks forgiven."""
    assert getattr(Settings.from_env({**MINIMUM, name: value}), field) == read


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("0", 0), ("5", 5), ("5.9", 5), ("50", 50), ("51", 50), ("1e9", 50)]
    + [(bad, 2) for bad in ("-1", "nan", "inf", "soon", "0x5", "9" * 5000)],
)
def test_the_poll_timeout_is_clamped_and_never_an_error(value: str, seconds: int) -> None:
    """agent-side 1: above 50 -> 50; bad -> 2; a wrong number must not keep an agent offline."""
    told = Settings.from_env({**MINIMUM, "MOLECULE_MCP_POLL_TIMEOUT_SECS": value})
    expected = 50 if value == "9" * 5000 and told.poll_timeout_secs == 50 else seconds
    assert told.poll_timeout_secs == expected


@pytest.mark.parametrize(
    ("level", "verbose", "effective"),
    [("WARNING", "0", "WARNING"), ("WARNING", "1", "INFO"), ("DEBUG", "1", "DEBUG"), ("ERROR", "1", "ERROR")],
)
def test_verbose_shows_what_happens_and_never_hides(level: str, verbose: str, effective: str) -> None:
    """agent-side 1: MOLECULE_MCP_VERBOSE."""
    told = Settings.from_env({**MINIMUM, "MOLECULE_MCP_LOG_LEVEL": level, "MOLECULE_MCP_VERBOSE": verbose})
    assert told.effective_log_level == effective


def test_the_token_is_kept_out_of_sight() -> None:
    """agent-side 1: never printed."""
    told = Settings.from_env({**MINIMUM, "MOLECULE_WORKSPACE_TOKEN": f" {TOKEN}\n"})
    assert told.token is not None
    assert told.token.get_secret_value() == TOKEN
    assert TOKEN not in f"{told} {told!r} {told.model_dump()} {told.model_dump_json()}"


def test_other_variables_are_left_alone() -> None:
    """agent-side 1: an environment holds more than ours."""
    assert Settings.from_env({**MINIMUM, "PATH": "/bin", "platform_url": "http://no"}) == Settings.from_env(MINIMUM)


@pytest.mark.parametrize("token", [TOKEN, "a", "mol_x.y~z+/="])
def test_a_token_may_be_anything_that_a_header_can_carry(token: str) -> None:
    """Contract 1.2: tokens are opaque."""
    assert token_flaw(token) is None


def test_a_token_in_the_place_of_a_path_is_refused_and_not_repeated() -> None:
    """Ours: what is said of a setting reaches the agent, so the misplaced token must not."""
    token = "AbCdEfGhIjKlMnOpQrStUvWxYz0123456789_-AbCde"
    found = problems(MOLECULE_WORKSPACE_TOKEN_FILE=token)
    assert [problem.id for problem in found] == ["settings.MOLECULE_WORKSPACE_TOKEN_FILE"]
    assert token not in repr(found)


def test_a_state_directory_below_the_working_directory_is_refused() -> None:
    """Clients 4: the working directory is the host's, another one each time."""
    assert [problem.id for problem in problems(CONFIGS_DIR="state")] == ["settings.CONFIGS_DIR"]


def test_a_poll_timeout_that_was_replaced_is_said() -> None:
    """agent-side 1: bad -> 2 with a warning."""
    name = "MOLECULE_MCP_POLL_TIMEOUT_SECS"
    told = Settings.from_env({**MINIMUM, name: "soon"})
    assert told.problems == (Problem(f"settings.{name}", f"{name} is not a number of seconds; 2 is used", CORRECT_IT),)
    assert Settings.from_env({**MINIMUM, name: "51"}).problems == ()


OTHER = "22222222-2222-4222-8222-222222222222"
THIRD = "33333333-3333-4333-8333-333333333333"


def listed(*entries: object, **env: str) -> Settings:
    return Settings.from_env({"PLATFORM_URL": URL, "MOLECULE_WORKSPACES": json.dumps(entries), **env})


def list_problems(text: str, **env: str) -> list[Problem]:
    with pytest.raises(SettingsError) as raised:
        Settings.from_env({"PLATFORM_URL": URL, "MOLECULE_WORKSPACES": text, **env})
    return list(raised.value.problems)


def test_several_workspaces_are_told_as_a_list_that_replaces_the_single_one() -> None:
    """agent-side 1: MOLECULE_WORKSPACES replaces the three variables, however wrong they are."""
    told = listed(
        {"id": WORKSPACE.upper(), "token": TOKEN},
        {"id": OTHER, "token_file": "/t", "platform_url": "http://other.example:8080/"},
        {"id": THIRD, "token": None},
        WORKSPACE_ID="not one",
        MOLECULE_WORKSPACE_TOKEN="two words",
        MOLECULE_WORKSPACE_TOKEN_FILE="x" * 40,
    )
    assert [(one.id, one.platform_url, one.token_file) for one in told.workspaces] == [
        (WORKSPACE, URL, None),
        (OTHER, "http://other.example:8080", Path("/t")),
        (THIRD, URL, None),
    ]
    first, _, third = told.workspaces
    assert first.token is not None
    assert first.token.get_secret_value() == TOKEN
    assert (first.token_variable, third.token, told.problems) == ("MOLECULE_WORKSPACES", None, ())
    assert TOKEN not in repr(told)


def test_a_platform_of_its_own_for_every_entry_needs_no_common_one() -> None:
    """agent-side 1: PLATFORM_URL is required unless nothing is left that would need it."""
    entry = {"id": WORKSPACE, "platform_url": "http://own.example"}
    (told,) = Settings.from_env({"MOLECULE_WORKSPACES": json.dumps([entry])}).workspaces
    assert told.platform_url == "http://own.example"
    assert [problem.summary for problem in list_problems(json.dumps([{"id": OTHER}]), PLATFORM_URL=" ")] == [
        "MOLECULE_WORKSPACES entry 1 names no platform"
    ]


KEYS = "id, platform_url, token, token_file"


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        ("laptop", "entry 2 is not an object"),
        ({"token": TOKEN}, "entry 2: id is not set"),
        ({"id": "laptop"}, "entry 2: id must be a UUID such as 8c0f7b9e-2f0a-4b6e-9f0f-3f2f6c1d7a55"),
        ({"id": 7}, "entry 2: id must be a UUID such as 8c0f7b9e-2f0a-4b6e-9f0f-3f2f6c1d7a55"),
        ({"id": OTHER, "token": " \t"}, "entry 2: token is empty"),
        ({"id": OTHER, "token": "two hunter22"}, "entry 2: token must be one token without white space inside"),
        ({"id": OTHER, "token_file": TOKEN}, "entry 2: token_file must be the path of a file, not the token itself"),
        ({"id": OTHER, "platform_url": "hunter22"}, f"entry 2: platform_url {A_URL}"),
        ({"id": OTHER, TOKEN: "hunter22"}, f"entry 2: a key is not a key of an entry; these are: {KEYS}"),
    ],
)
def test_a_bad_entry_is_reported_by_its_place_and_disables_itself(entry: object, complaint: str) -> None:
    """agent-side 1; what was written there is never repeated: it may be a token in the wrong place."""
    told = listed({"id": WORKSPACE}, entry, {"id": THIRD})
    assert [one.id for one in told.workspaces] == [WORKSPACE, THIRD]
    assert [problem.summary for problem in told.problems] == [f"MOLECULE_WORKSPACES {complaint}"]
    assert not any(secret in repr(told.problems) for secret in ("hunter22", TOKEN))
    alone = list_problems(json.dumps([entry]))
    assert [problem.summary for problem in alone] == [f"MOLECULE_WORKSPACES {complaint}".replace("entry 2", "entry 1")]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[{", "is not JSON: expecting property name enclosed in double quotes at line 1, column 3"),
        (TOKEN, "is not JSON: expecting value at line 1, column 1"),
        ("[" * 100_000, "is not JSON that can be read: it is nested too deeply"),
        ('{"id": "x"}', "is JSON, but not a list"),
        ("[]", "is an empty list"),
        (json.dumps([{"id": WORKSPACE}, {"id": OTHER}, {"id": OTHER}]), "names the same workspace in entries 2 and 3"),
        (json.dumps([{"id": OTHER, "token": ""}, {"id": OTHER}]), "names the same workspace in entries 1 and 2"),
    ],
)
def test_a_list_that_cannot_be_meant_is_refused_whole(text: str, complaint: str) -> None:
    """agent-side 1: duplicate ids, not JSON, empty array: an error with the position."""
    (problem,) = list_problems(text)
    assert problem.summary == f"MOLECULE_WORKSPACES {complaint}"
    assert problem.fix.startswith(
        "Keep one of them" if "same workspace" in complaint else "It must be a list such as ["
    )


def test_a_workspace_told_twice_does_not_hide_what_else_is_wrong() -> None:
    """agent-side 2: all problems at once."""
    found = list_problems(json.dumps([{"id": OTHER}, {"id": "x"}, {"id": OTHER}]))
    assert [problem.summary.removeprefix("MOLECULE_WORKSPACES ")[:20] for problem in found] == [
        "names the same works",
        "entry 2: id must be ",
    ]


def test_a_bad_list_is_reported_together_with_everything_else() -> None:
    """agent-side 2: all settings problems at once."""
    found = list_problems("[]", MOLECULE_MCP_TOOLS="all", PLATFORM_URL="nowhere")
    assert [problem.id.removeprefix("settings.") for problem in found] == [
        "PLATFORM_URL",
        "MOLECULE_MCP_TOOLS",
        "MOLECULE_WORKSPACES",
    ]

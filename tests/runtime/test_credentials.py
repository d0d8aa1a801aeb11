"""Where the token comes from."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr

from molecule_runtime.credentials import MAX_TOKEN_BYTES, Credential, Credentials, read_token_file
from molecule_runtime.errors import CredentialError, StateDirUnwritable
from molecule_runtime.state import WorkspaceState

from .support import TOKEN, workspace_settings


def secret(credentials: Credentials) -> str | None:
    found = credentials.current()
    return found.token.get_secret_value() if found else None


def test_inline_comes_before_the_named_file_before_the_state_directory(state: WorkspaceState, tmp_path: Path) -> None:
    """agent-side 1: token order, the same everywhere; the source is said, the token is not."""
    file = tmp_path / "named"
    file.write_text("named\n")
    state.write_private(state.token_file, "kept\n")
    both = {"MOLECULE_WORKSPACE_TOKEN_FILE": str(file)}
    found = [
        Credentials(workspace_settings(token="inline", **both), state).current(),
        Credentials(workspace_settings(token=None, **both), state).current(),
        Credentials(workspace_settings(token=None), state).current(),
    ]
    assert found == [
        Credential(SecretStr("inline"), "MOLECULE_WORKSPACE_TOKEN"),
        Credential(SecretStr("named"), f"the file {file}"),
        Credential(SecretStr("kept"), f"the file {state.token_file}"),
    ]
    assert "inline" not in repr(found[0])
    assert Credentials(workspace_settings(token=None), None).current() is None


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(None, "no such file or directory", id="missing"),
        pytest.param(b"", "it is empty", id="empty"),
        pytest.param(b" \n\t", "it is empty", id="blank"),
        pytest.param(b"\xff\xfe", "it is not UTF-8 text", id="not UTF-8"),
        pytest.param(
            b"hunter22 hunter22", "it holds more than one word; a token has no white space inside", id="two words"
        ),
        pytest.param(
            b"hunter22\nhunter22", "it holds more than one word; a token has no white space inside", id="two lines"
        ),
        pytest.param(b"h" * (MAX_TOKEN_BYTES + 1), "it is too large to be a token", id="large"),
        pytest.param(
            b"<paste-here>", "it is a placeholder; paste the token that the canvas showed at creation", id="placeholder"
        ),
        pytest.param(
            b"hunter22\x00",
            "it holds a character that no token has and that no HTTP header can carry",
            id="no header can carry it",
        ),
    ],
)
def test_a_bad_token_file_is_an_error_of_its_own_and_never_falls_through(
    state: WorkspaceState, tmp_path: Path, content: bytes | None, reason: str
) -> None:
    """agent-side 1: a typo in a path must not send an old token."""
    file = tmp_path / "named"
    if content is not None:
        file.write_bytes(content)
    state.write_private(state.token_file, "kept\n")
    credentials = Credentials(workspace_settings(token=None, MOLECULE_WORKSPACE_TOKEN_FILE=str(file)), state)
    with pytest.raises(CredentialError) as raised:
        credentials.current()
    assert (raised.value.source, raised.value.reason) == (f"the file {file}", reason)
    assert "hunter22" not in f"{raised.value} {raised.value!r}"


def test_a_directory_or_an_unknown_user_is_no_file(tmp_path: Path) -> None:
    """agent-side 1: unreadable."""
    with pytest.raises(CredentialError):
        read_token_file(tmp_path)
    with pytest.raises(CredentialError):
        Credentials(
            workspace_settings(token=None, MOLECULE_WORKSPACE_TOKEN_FILE="~nobody-of-this-name/t"), None
        ).current()


@pytest.mark.parametrize("size", [1, 43, MAX_TOKEN_BYTES])
def test_one_word_with_blanks_around_it_is_a_token(tmp_path: Path, size: int) -> None:
    """agent-side 1: editors end a file with a line break."""
    file = tmp_path / "token"
    file.write_text("t" * size if size == MAX_TOKEN_BYTES else f" {'t' * size}\r\n")
    assert read_token_file(file).get_secret_value() == "t" * size


def test_a_reread_sees_a_rotated_file_and_says_whether_it_changed(tmp_path: Path) -> None:
    """agent-side 1: re-read after a 401, so rotation needs no restart."""
    file = tmp_path / "token"
    file.write_text("old")
    credentials = Credentials(workspace_settings(token=None, MOLECULE_WORKSPACE_TOKEN_FILE=str(file)), None)
    assert secret(credentials) == "old"
    file.write_text("new")
    assert secret(credentials) == "old"
    assert credentials.reread() is True
    assert credentials.reread() is False
    assert secret(credentials) == "new"
    file.unlink()
    with pytest.raises(CredentialError):
        credentials.reread()
    with pytest.raises(CredentialError):
        credentials.current()
    file.write_text("newer")
    assert secret(credentials) == "newer"


def test_an_issued_token_is_used_saved_and_found_again(state: WorkspaceState) -> None:
    """agent-side 1: a token that register issues is saved there (0600)."""
    credentials = Credentials(workspace_settings(token=None), state)
    assert credentials.current() is None
    credentials.save_issued(SecretStr(TOKEN))
    assert credentials.current() == Credential(SecretStr(TOKEN), "issued at registration")
    assert oct(state.token_file.stat().st_mode & 0o777) == "0o600"
    assert credentials.reread() is False
    assert secret(Credentials(workspace_settings(token=None), state)) == TOKEN


def test_an_issued_token_that_cannot_be_saved_is_not_lost_at_the_next_401(state: WorkspaceState) -> None:
    """Ours: it is issued once, so this process is the only place that has it."""
    credentials = Credentials(workspace_settings(token=None), WorkspaceState(state.path / "missing"))
    with pytest.raises(StateDirUnwritable):
        credentials.save_issued(SecretStr(TOKEN))
    assert credentials.reread() is False
    assert secret(credentials) == TOKEN
    stateless = Credentials(workspace_settings(token=None), None)
    stateless.save_issued(SecretStr(TOKEN))
    assert stateless.reread() is False
    assert secret(stateless) == TOKEN

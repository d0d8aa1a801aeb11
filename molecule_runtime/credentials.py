"""Where a workspace's token comes from: inline, a named file, or the state directory; re-read after every 401.

The order is the same everywhere (agent-side 1). A source that was named and fails is an error of its own and never
falls through to the next one: a typo in a path must not send an old token. The OS keychain joins between file and
state directory. Tokens are `SecretStr` from here on and are opened only where the header is built.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr

from molecule_runtime.errors import CredentialError
from molecule_runtime.settings import WorkspaceSettings, token_flaw
from molecule_runtime.state import WorkspaceState

MAX_TOKEN_BYTES = 8192


@dataclass(frozen=True)
class Credential:
    """A token and the place it came from, in words that may be shown."""

    token: SecretStr
    source: str


class Credentials:
    """The token of one workspace, read when first needed and again after `reread`."""

    def __init__(self, settings: WorkspaceSettings, state: WorkspaceState | None) -> None:
        self._settings = settings
        self._state = state
        self._current: Credential | None = None
        self._issued: Credential | None = None
        self._is_read = False

    def current(self) -> Credential | None:
        """The credential in use; None when no source has one (a workspace may be registered without).

        Raises:
            CredentialError: a named source cannot be read.
        """
        if not self._is_read:
            self._current = self._read()
            self._is_read = True
        return self._current

    def reread(self) -> bool:
        """Look at the sources again, as after a 401. True when the token has changed.

        Raises:
            CredentialError: a named source cannot be read.
        """
        before = self._current
        self._is_read = False
        after = self.current()
        return (before and before.token) != (after and after.token)

    def save_issued(self, token: SecretStr) -> None:
        """Keep a token that register issued, so that the next start has it (0600).

        Raises:
            StateDirUnwritable: it cannot be written; the token is used for this run all the same.
        """
        self._current = self._issued = Credential(token, "issued at registration")
        self._is_read = True
        if self._state is not None:
            self._state.write_private(self._state.token_file, token.get_secret_value() + "\n")

    def _read(self) -> Credential | None:
        if self._settings.token is not None:
            return Credential(self._settings.token, self._settings.token_variable)
        if self._settings.token_file is not None:
            file = _expanded(self._settings.token_file)
            return Credential(read_token_file(file), f"the file {file}")
        if self._state is not None and self._state.token_file.exists():
            return Credential(read_token_file(self._state.token_file), f"the file {self._state.token_file}")
        return self._issued  # it could not be saved: this process is the only place that has it


def _expanded(file: Path) -> Path:
    try:
        return file.expanduser()
    except RuntimeError:
        raise CredentialError(source=f"the file {file}", reason="there is no such user") from None


def read_token_file(file: Path) -> SecretStr:
    """The one token in a file.

    Raises:
        CredentialError: missing, unreadable, empty, not UTF-8, too large, a placeholder, or with white space inside.
    """
    source = f"the file {file}"
    try:
        with file.open("rb") as stream:
            raw = stream.read(MAX_TOKEN_BYTES + 1)
    except OSError as error:
        raise CredentialError(source=source, reason=(error.strerror or str(error)).lower()) from None
    if len(raw) > MAX_TOKEN_BYTES:
        raise CredentialError(source=source, reason="it is too large to be a token")
    try:
        token = raw.decode("utf-8").strip()
    except UnicodeDecodeError:
        raise CredentialError(source=source, reason="it is not UTF-8 text") from None
    if not token:
        raise CredentialError(source=source, reason="it is empty")
    if any(char.isspace() for char in token):
        raise CredentialError(source=source, reason="it holds more than one word; a token has no white space inside")
    flaw = token_flaw(token)
    if flaw is not None:
        raise CredentialError(source=source, reason=f"it {flaw}")
    return SecretStr(token)

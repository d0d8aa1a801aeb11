"""The error tree and its table."""

from __future__ import annotations

import re

import pytest

from molecule_runtime import errors
from molecule_runtime.errors import (
    OUTCOMES,
    AttachmentRefused,
    BadReply,
    CallerError,
    CredentialError,
    FileTooLarge,
    InvalidArgument,
    JournalUnusable,
    LocalStateError,
    MemoryUnknown,
    MessageUnknown,
    MoleculeError,
    PeerRefused,
    PlatformError,
    Problem,
    Rejected,
    Retry,
    SettingsError,
    StateDirUnwritable,
    TaskUnknown,
    TooLarge,
    ToolRefused,
    Unauthorized,
    Unavailable,
    Unreachable,
    WhyUnreachable,
    advice,
    outcome,
)

BASE = "https://canvas.example.com"


def leaves(kind: type[MoleculeError] = MoleculeError) -> list[type[MoleculeError]]:
    below = [leaf for child in ours(kind) for leaf in leaves(child)]
    return below or [kind]


def ours(kind: type[MoleculeError]) -> list[type[MoleculeError]]:
    """The kinds directly below, without those that tests make up."""
    return [child for child in kind.__subclasses__() if child.__module__ == errors.__name__]


def an(kind: type[MoleculeError]) -> MoleculeError:
    """An error of this type with its facts."""
    if issubclass(kind, SettingsError):
        return kind((Problem("a", "A is not set", "Set A."), Problem("b", "B is wrong", "Set A.")))
    if issubclass(kind, CredentialError):
        return kind(source="the file /t", reason="it is empty")
    if issubclass(kind, PlatformError):
        return kind(endpoint="GET /x", base_url=BASE, status=418, detail="{odd} 100%")
    if issubclass(kind, LocalStateError):
        return kind(path="/state", reason="disk full")
    if issubclass(kind, InvalidArgument):
        return kind(argument="limit", reason="it is too large")
    if issubclass(kind, FileTooLarge):
        return kind(limit=26_214_400)
    if issubclass(kind, AttachmentRefused):
        return kind(path="/home/me/a.pdf", reason="it is empty", cure="Write it first.")
    if issubclass(kind, MessageUnknown):
        return kind(activity_id="a1")
    if issubclass(kind, TaskUnknown):
        return kind(task_id="t1")
    if issubclass(kind, MemoryUnknown):
        return kind(memory_id="m1")
    if issubclass(kind, ToolRefused):
        return kind(tool="commit_memory_v2", base_url="http://canvas", reason="no")
    assert issubclass(kind, PeerRefused)
    return kind(peer_id="p1", reason="no")


@pytest.mark.parametrize("kind", leaves(), ids=lambda kind: str(kind.__name__))
def test_every_leaf_has_a_row_whose_sentences_can_be_said(kind: type[MoleculeError]) -> None:
    """errors: one table; two sentences, filled in, no braces left but the platform's own."""
    assert kind in OUTCOMES
    said = advice(an(kind))
    for sentence in (said.what, said.next):
        assert sentence.replace("{odd}", "").endswith((".", "100%)."))
        assert "{" not in sentence.replace("{odd}", "")
        assert "error." not in sentence
    assert str(an(kind)) == said.what
    assert str(said) == f"{said.what} {said.next}"


def test_the_table_has_no_row_too_many() -> None:
    """errors: a branch is caught, a leaf is raised."""
    assert set(OUTCOMES) == set(leaves())


def test_the_drawing_at_the_top_names_the_whole_tree() -> None:
    """errors: the tree is drawn; a new error is drawn too."""
    drawn = re.findall(r"(?:├──|└──) (\w+)", errors.__doc__ or "")

    def below(kind: type[MoleculeError]) -> set[str]:
        return {name for child in ours(kind) for name in {child.__name__} | below(child)}

    assert sorted(drawn) == sorted(below(MoleculeError))


@pytest.mark.parametrize(
    ("kind", "retry", "code"),
    [
        (SettingsError, Retry.NO, 2),
        (CredentialError, Retry.BACKOFF, 3),
        (Unauthorized, Retry.BACKOFF, 3),
        (Unreachable, Retry.BACKOFF, 4),
        (Unavailable, Retry.AFTER, 4),
        (BadReply, Retry.BACKOFF, 4),
        (TooLarge, Retry.NO, 1),
        (Rejected, Retry.NO, 1),
        (AttachmentRefused, Retry.NO, 2),
        (StateDirUnwritable, Retry.NO, 5),
        (JournalUnusable, Retry.NO, 5),
    ],
)
def test_exit_codes_are_those_of_the_promise(kind: type[MoleculeError], retry: Retry, code: int) -> None:
    """agent-side 2: 2 settings, 3 credentials, 4 unreachable, 5 local state."""
    assert (outcome(an(kind)).retry, outcome(an(kind)).exit_code) == (retry, code)


@pytest.mark.parametrize("kind", [kind for kind in leaves() if issubclass(kind, PlatformError)])
def test_a_failure_of_the_platform_names_its_address(kind: type[MoleculeError]) -> None:
    """agent-side 5: a failure to reach the platform names its base URL."""
    assert BASE in advice(an(kind)).what


def test_all_problems_of_the_settings_are_said_and_each_fix_once() -> None:
    """agent-side 2: all settings problems at once."""
    error = an(SettingsError)
    assert isinstance(error, SettingsError)
    assert (error.listing, error.fixes) == ("A is not set; B is wrong", "Set A.")


def test_a_kind_below_a_leaf_takes_its_row_and_a_bare_branch_has_none() -> None:
    """errors: the nearest ancestor that has one."""

    class Closer(Unreachable):
        pass

    assert outcome(Closer(endpoint="x", base_url=BASE)) is OUTCOMES[Unreachable]
    with pytest.raises(KeyError):
        outcome(CallerError())


@pytest.mark.parametrize(
    ("why", "may_have_arrived", "named"),
    [
        (WhyUnreachable.NAME, False, "host name in PLATFORM_URL"),
        (WhyUnreachable.TLS, False, "SSL_CERT_FILE"),
        (WhyUnreachable.FOREIGN, False, "scheme and port"),
        *((why, False, "Check that it runs") for why in ("refused", "timeout", "cut", "other")),
        *((why, True, "may have arrived") for why in WhyUnreachable),
    ],
)
def test_what_to_do_follows_from_why_there_was_no_answer(
    why: WhyUnreachable | str, may_have_arrived: bool, named: str
) -> None:
    """agent-side 5: one sentence of what to do next; "call again" only where that cannot say a thing twice."""
    error = an(Unreachable)
    assert isinstance(error, Unreachable)
    error.why, error.may_have_arrived = WhyUnreachable(why), may_have_arrived
    assert named in advice(error).next
    assert ("again." not in advice(error).next) or may_have_arrived or "call again" in advice(error).next


@pytest.mark.parametrize(("asked_s", "next"), [(None, "in a moment"), (0.0, "in a moment"), (6.2, "in 7 s")])
def test_a_time_that_the_platform_named_is_passed_on(asked_s: float | None, next: str) -> None:
    """agent-side 3: 429 and 503 obey Retry-After; an agent can, too."""
    error = an(Unavailable)
    assert isinstance(error, Unavailable)
    error.retry_after_s = asked_s
    assert advice(error).next == f"Try again {next}."


def test_every_refused_token_can_be_regenerated() -> None:
    """agent-side 3: the cure is named, whether a token was shown or not."""
    error = an(Unauthorized)
    assert isinstance(error, Unauthorized)
    for error.has_token in (True, False):
        assert errors.TOKENS_TAB in advice(error).next

"""Which files may be sent: where they lie, what they are, and that the file checked is the file that is read."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest

from molecule_runtime import attachments
from molecule_runtime.attachments import AttachmentPolicy, OutgoingFile, check_sizes, held
from molecule_runtime.errors import AttachmentRefused, InvalidArgument, advice
from molecule_runtime.state import WorkspaceState
from molecule_runtime.text import FILE_NAME_CHARS
from molecule_runtime.wire.uploads import MAX_FILES, UploadLimits

from .support import TOKEN, WORKSPACE, settings, state_in

LIMITS = UploadLimits(per_file_bytes=1_000, per_request_bytes=4_000, max_attachments_per_message=10)
NOBODY = 65534


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "outbox").mkdir()
    return tmp_path / "outbox"


@pytest.fixture
def policy(root: Path, state: WorkspaceState) -> AttachmentPolicy:
    """An agent that may send from `root`, and that has a state directory with secrets in it."""
    told = settings(MOLECULE_ATTACHMENT_ROOTS=str(root), CONFIGS_DIR=str(state.path.parent))
    return AttachmentPolicy.for_agent(told, state)


def written(file: Path, content: str | bytes = "hello") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


async def sent(policy: AttachmentPolicy, *paths: Path | str) -> list[tuple[str, str, bytes]]:
    """What would go out: (name, type, content) of each."""
    async with held([str(path) for path in paths], policy) as files:
        return [(file.name, file.mime_type, file.read()) for file in files]


async def refusal(policy: AttachmentPolicy, *paths: Path | str) -> str:
    """The reason why nothing is sent; no descriptor is left open and nothing of the path is lost or unsafe to show."""
    before = len(os.listdir("/dev/fd"))
    with anyio.fail_after(5):
        with pytest.raises(AttachmentRefused) as raised:
            await sent(policy, *paths)
    assert len(os.listdir("/dev/fd")) <= before  # less, when the garbage of others went meanwhile
    said = str(advice(raised.value))
    assert said.isprintable()
    assert said.endswith("Nothing was sent.")
    return raised.value.reason


async def test_a_file_below_a_root_is_sent_under_its_cleaned_name(root: Path, policy: AttachmentPolicy) -> None:
    """agent-side 1, contract 5.2: bytes as they are, a name that any disk takes, the type that its ending says."""
    paths = [
        written(root / "report.pdf", b"%PDF"),
        written(root / "a" / "b" / "报告 2.tar.gz", b"\x1f\x8b"),
        written(root / "two\nlines.txt", "x"),
        written(root / ("n" * 240 + ".csv"), "1,2"),
        written(root / "Makefile", "all:"),
    ]
    names = [name for name, _, _ in await sent(policy, *paths)]
    assert names == ["report.pdf", "___2.tar.gz", "two_lines.txt", "n" * (FILE_NAME_CHARS - 4) + ".csv", "Makefile"]
    assert [kind for _, kind, _ in await sent(policy, *paths)] == [
        "application/pdf",
        "application/gzip",
        "text/plain",
        "text/csv",
        "application/octet-stream",
    ]
    assert [content for *_, content in await sent(policy, *paths)] == [b"%PDF", b"\x1f\x8b", b"x", b"1,2", b"all:"]


@pytest.mark.skipif(os.name != "posix", reason="names that are no UTF-8 exist on POSIX only")
async def test_a_name_that_is_no_utf8_is_sent_under_a_clean_one(root: Path, policy: AttachmentPolicy) -> None:
    """Text: half a surrogate pair is how Python writes such a byte."""
    file = os.fsencode(root) + b"/caf\xe9.txt"
    Path(os.fsdecode(file)).write_text("x")
    assert await sent(policy, os.fsdecode(file)) == [("caf_.txt", "text/plain", b"x")]


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("report.pdf", "it is not an absolute path, and the working directory here is not yours"),
        ("~/report.pdf", "it is not an absolute path, and the working directory here is not yours"),
        ("", "it is not an absolute path, and the working directory here is not yours"),
        ("file:///tmp/x", "it is not an absolute path, and the working directory here is not yours"),
        ("{root}/none.pdf", "there is no such file"),
        ("{root}/file.txt/", "it is"),
        ("{root}/file.txt/inner", "that is no path to a file (not a directory)"),
        ("{root}/loop", "that is no path to a file (too many levels of symbolic links)"),
        ("{root}/" + "n" * 300, "that is no path to a file (file name too long)"),
        ("{root}/a\0b", "that is no path to a file (a character that no path has)"),
        ("{root}/half \ud800 pair", "that is no path to a file (a character that no path has)"),
        ("{root}/none\nat all\x1b[2J", "there is no such file"),
        ("{root}", "it is a directory"),
        ("{root}/pipe", "it is a pipe, a socket or a device"),
        ("{root}/socket", "it is a pipe, a socket or a device"),
        ("/dev/null", "it is a pipe, a socket or a device"),
        ("{root}/empty", "it is empty"),
        ("{root}/../elsewhere.txt", "it lies in no directory that files may be sent from"),
        ("{root}/out.txt", "it leads to {base}/elsewhere.txt, which lies in no directory that files may be sent from"),
        ("{root}/outside/elsewhere.txt", "it leads to {base}/elsewhere.txt, which lies in no directory that files may"),
        ("{base}/elsewhere.txt", "it lies in no directory that files may be sent from"),
        ("{base}/outbox2/x.txt", "it lies in no directory that files may be sent from"),
        ("/etc/passwd", "it lies in no directory that files may be sent from"),
    ],
)
async def test_what_is_no_file_to_send_is_refused_with_its_reason(
    root: Path, policy: AttachmentPolicy, path: str, reason: str
) -> None:
    """agent-side 5: nothing blocks, nothing is sent, and the sentence says what is wrong."""
    written(root / "file.txt")
    written(root / "empty", "")
    written(root.parent / "elsewhere.txt")
    written(root.parent / "outbox2" / "x.txt")
    (root / "loop").symlink_to(root / "loop")
    (root / "out.txt").symlink_to(root.parent / "elsewhere.txt")
    (root / "outside").symlink_to(root.parent)
    os.mkfifo(root / "pipe")
    place = {"root": str(root), "base": str(root.parent)}
    given = path.format(**place)
    with socket.socket(socket.AF_UNIX) as listener, working_in(root):
        listener.bind("socket")  # a name of its own: the address of a socket is short
        if path == "{root}/file.txt/":
            assert await sent(policy, given) == [("file.txt", "text/plain", b"hello")]
        else:
            assert (await refusal(policy, written(root / "good.txt"), given)).startswith(reason.format(**place))


@contextmanager
def working_in(directory: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(directory)
    try:
        yield
    finally:
        os.chdir(before)


async def test_a_symlink_within_the_roots_is_followed(root: Path, policy: AttachmentPolicy) -> None:
    """agent-side 1: symlinks are resolved first; a link keeps its own name."""
    written(root / "2026-05.pdf", "pdf")
    (root / "latest.pdf").symlink_to("2026-05.pdf")
    (root / "here").symlink_to(root)
    assert await sent(policy, root / "here" / "latest.pdf") == [("latest.pdf", "application/pdf", b"pdf")]


async def test_a_root_that_is_a_symlink_and_one_that_is_not_there(tmp_path: Path, root: Path) -> None:
    """Ours: roots are resolved too, each time; the refusal names those that exist."""
    link = tmp_path / "link"
    link.symlink_to(root)
    file = written(root / "a.txt")
    written(root / "b.txt")
    assert len(await sent(AttachmentPolicy((tmp_path / "none", link)), file, link / "b.txt")) == 2
    with pytest.raises(AttachmentRefused) as raised:
        await sent(AttachmentPolicy((tmp_path / "none", link)), "/etc/passwd")
    assert raised.value.cure == f"Copy it into one of these: {root}."
    with pytest.raises(AttachmentRefused) as raised:
        await sent(AttachmentPolicy((tmp_path / "none",)), file)
    assert "MOLECULE_ATTACHMENT_ROOTS" in raised.value.cure


async def test_a_file_that_may_not_be_read_is_refused(policy: AttachmentPolicy) -> None:
    """agent-side 5: the reason is the permission."""
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        file = written(Path(directory) / "private.txt")
        file.chmod(0)
        with without_privileges():
            assert await refusal(AttachmentPolicy((Path(directory),)), file) == "this user may not read it"


@contextmanager
def without_privileges() -> Iterator[None]:
    """As an ordinary user, whom permissions hold back."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


# where files may lie when nothing is set


async def test_without_a_setting_the_working_directory_the_own_files_and_the_temporary_directory_are_open(
    tmp_path: Path, state: WorkspaceState, monkeypatch: pytest.MonkeyPatch
) -> None:
    """agent-side 1, MOLECULE_ATTACHMENT_ROOTS: the three of the default, looked up when they are used."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    told = settings(CONFIGS_DIR=str(state.path.parent))
    there = [tmp_path / "home" / "project" / "a.txt", tmp_path / "temporary" / "b.txt", state.files / "c.txt"]
    for file in there:
        written(file)
    elsewhere = [written(tmp_path / "home" / "d.txt"), written(state_in(state.path.parent, TOKEN_OWNER).files / "e")]
    with working_in(tmp_path / "home" / "project"):
        assert len(await sent(AttachmentPolicy.for_agent(told, state), *there)) == 3
        for file in elsewhere:
            assert "lies in no directory" in await refusal(AttachmentPolicy.for_agent(told, state), file)
        assert len(await sent(AttachmentPolicy.for_agent(told, None), *there[:2])) == 2


TOKEN_OWNER = "44444444-4444-4444-8444-444444444444"


@pytest.mark.parametrize("where", ["/", "home", "above home"])
async def test_a_working_directory_that_holds_everything_is_no_root(
    tmp_path: Path, state: WorkspaceState, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """agent-side 1: hosts are started in / and in HOME; /home would be no better."""
    home = tmp_path / "above" / "home"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    file = written(home / "a.txt")
    with working_in({"/": Path("/"), "home": home, "above home": home.parent}[where]):
        policy = AttachmentPolicy.for_agent(settings(), state)
        assert policy.roots == (state.files, tmp_path / "temporary")
        assert "lies in no directory" in await refusal(policy, file)


async def test_a_working_directory_that_is_gone_is_no_root(tmp_path: Path, state: WorkspaceState) -> None:
    """Ours: a host may outlive the project it was started in."""
    gone = tmp_path / "gone"
    gone.mkdir()
    with working_in(gone):
        gone.rmdir()
        roots = AttachmentPolicy.for_agent(settings(), state).roots
    assert roots == (state.files, Path(tempfile.gettempdir()))


# secrets


def in_the_state_directory(state: WorkspaceState) -> list[Path]:
    """What is in a state directory that has been used, secrets and all."""
    root = state.path.parent
    inside = ["token", "platform_inbound_secret", "inbox.sqlite3", "inbox.sqlite3-wal", "beat.lock", "agent_card.json"]
    secrets = [state.path / name for name in (*inside, "sessions/ab.lock", ".new-token")]
    secrets += [root / "log" / "molecule-mcp.log", root / "token", root / "files" / "x", root / "a" / "files" / "x"]
    return [written(secret, TOKEN) for secret in secrets]


async def test_nothing_of_the_state_directory_but_files_and_texts_is_sent_whatever_the_roots_are(
    state: WorkspaceState, tmp_path: Path
) -> None:
    """agent-side 1: tokens, locks and journals are refused always, through a symlink or by a hard link too."""
    told = settings(MOLECULE_ATTACHMENT_ROOTS=f"/:{state.path}:{tmp_path}", CONFIGS_DIR=str(state.path.parent))
    agent = AttachmentPolicy.for_agent(told, state)
    operator = AttachmentPolicy.for_operator(told, state.path.parent)
    linked = tmp_path / "link"
    linked.symlink_to(state.path)
    for policy in (agent, operator):
        for number, secret in enumerate(in_the_state_directory(state)):
            soft, hard = tmp_path / f"soft{number}", tmp_path / f"hard{number}"
            soft.unlink(missing_ok=True)
            soft.symlink_to(secret)
            hard.unlink(missing_ok=True)
            names = [secret, soft]
            if "/a/files/" not in str(secret) and not str(secret).endswith("/files/x"):  # no file of ours lies there
                hard.hardlink_to(secret)
                names.append(hard)
            for name in names:
                assert await refusal(policy, name) == "molecule-mcp keeps its tokens, locks and inbox there", name
        assert await refusal(policy, linked / "token") == "molecule-mcp keeps its tokens, locks and inbox there"
        for file in (state.files / "a.pdf", state.texts / "b.txt", state.files / "deep" / "c.txt"):
            assert len(await sent(policy, written(file))) == 1


async def test_a_token_file_of_the_settings_is_never_sent_under_any_name(root: Path, tmp_path: Path) -> None:
    """agent-side 1: MOLECULE_WORKSPACE_TOKEN_FILE, and each of several workspaces; mounted tokens are links."""
    mounted = written(tmp_path / "..data" / "token", TOKEN)
    (root / "token").symlink_to(mounted)
    second = written(root / "second.token", TOKEN)
    (root / "notes.txt").hardlink_to(second)
    (root / "mounted.txt").hardlink_to(mounted)
    entries = f'[{{"id":"{WORKSPACE}","token_file":"{root}/token"}},{{"id":"{TOKEN_OWNER}","token_file":"{second}"}}]'
    told = settings(MOLECULE_WORKSPACES=entries, MOLECULE_ATTACHMENT_ROOTS=str(tmp_path))
    for name in ("token", "second.token", "notes.txt", "mounted.txt"):
        for policy in (AttachmentPolicy.for_agent(told, None), AttachmentPolicy.for_operator(told, tmp_path / "state")):
            assert "keeps its tokens" in await refusal(policy, root / name)


async def test_the_configured_state_directory_is_closed_also_while_another_is_used(
    tmp_path: Path, state: WorkspaceState
) -> None:
    """Ours: a volume that is mounted read-only still holds the token."""
    configured = state_in(tmp_path / "configured")
    token = written(configured.token_file, TOKEN)
    told = settings(MOLECULE_ATTACHMENT_ROOTS=str(tmp_path), CONFIGS_DIR=str(tmp_path / "configured"))
    assert "keeps its tokens" in await refusal(AttachmentPolicy.for_agent(told, state), token)
    assert "keeps its tokens" in await refusal(AttachmentPolicy.for_agent(told, state), written(state.token_file))


async def test_a_person_at_a_shell_may_send_from_anywhere(tmp_path: Path) -> None:
    """agent-side 7: the file was chosen by whoever typed it."""
    policy = AttachmentPolicy.for_operator(settings(), tmp_path / "state")
    assert len(await sent(policy, written(tmp_path / "a.txt"))) == 1


# the file that was checked is the file that is read


@contextmanager
def at_the_opening(monkeypatch: pytest.MonkeyPatch, deed: Callable[[], None]) -> Iterator[None]:
    """Do something after all checks and before the first file is opened: what an attacker would wait for."""
    real, done = os.open, []

    def opening(path: object, *args: object, **kwargs: object) -> int:
        if not done:
            done.append(True)
            deed()
        return real(path, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(attachments.os, "open", opening)
    monkeypatch.setattr(attachments.os, "supports_dir_fd", os.supports_dir_fd | {opening})
    yield
    monkeypatch.undo()
    assert done


async def test_a_path_that_comes_to_mean_another_file_between_check_and_opening_is_refused(
    root: Path, policy: AttachmentPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """agent-side 1: also when the new one is a secret, a pipe, or lies behind a directory that was swapped."""
    secret = written(root.parent / "secret" / "a.txt", TOKEN)

    def fresh() -> Path:
        shutil.rmtree(root / "was", ignore_errors=True)
        if (root / "d").is_symlink():
            (root / "d").unlink()
        shutil.rmtree(root / "d", ignore_errors=True)
        return written(root / "d" / "a.txt", "harmless")

    def a_symlink() -> None:
        (root / "d" / "a.txt").unlink()
        (root / "d" / "a.txt").symlink_to(secret)

    def another_file() -> None:
        written(root / "d" / "new", TOKEN).replace(root / "d" / "a.txt")

    def a_pipe() -> None:
        (root / "d" / "a.txt").unlink()
        os.mkfifo(root / "d" / "a.txt")

    def the_directory() -> None:
        (root / "d").rename(root / "was")
        (root / "d").symlink_to(secret.parent)

    def a_hard_link_behind_the_directory() -> None:
        (root / "d").rename(root / "was")
        (root.parent / "evil").mkdir(exist_ok=True)
        os.link(root / "was" / "a.txt", root.parent / "evil" / "a.txt")  # the very file that was checked
        (root / "d").symlink_to(root.parent / "evil")

    def the_root() -> None:
        os.link(root / "d" / "a.txt", root.parent / "evil" / "a.txt.link")
        (root.parent / "evil" / "d").mkdir()
        (root.parent / "evil" / "a.txt.link").rename(root.parent / "evil" / "d" / "a.txt")
        root.rename(root.parent / "moved")
        root.symlink_to(root.parent / "evil")

    for deed in (a_symlink, another_file, a_pipe, the_directory, a_hard_link_behind_the_directory, the_root):
        file = fresh()
        with at_the_opening(monkeypatch, deed):
            reason = await refusal(policy, file)
        assert reason.startswith(("it cannot be opened", "another file took its place")), deed.__name__


async def test_what_is_renamed_after_the_opening_is_sent_as_it_was(root: Path, policy: AttachmentPolicy) -> None:
    """Ours: from the opening on only the descriptor is read."""
    file = written(root / "a.txt", "the first")
    async with held([str(file)], policy) as files:
        written(root / "new", "another").replace(file)
        assert files[0].read() == b"the first"


@pytest.mark.parametrize("change", ["grows", "shrinks", "is emptied", "is rewritten"])
async def test_a_file_that_changes_while_it_is_read_ends_the_sending(
    root: Path, policy: AttachmentPolicy, change: str
) -> None:
    """agent-side 5: half of the old and half of the new is nobody's file."""
    file = written(root / "a.log", b"x" * 1_000)
    async with held([str(file)], policy) as files:
        assert len(files[0].read(400)) == 400
        length = {"grows": 1_100, "shrinks": 500, "is emptied": 0, "is rewritten": 1_000}[change]
        file.write_bytes(b"y" * length)
        os.utime(file, ns=(0, os.stat(file).st_mtime_ns + 1_000_000))  # a write within one tick of the file system
        with pytest.raises(AttachmentRefused) as raised:
            list(iter(lambda: files[0].read(400), b""))
    assert raised.value.reason == "it was written to while it was being sent"


async def test_a_file_can_be_read_again_from_its_beginning(root: Path, policy: AttachmentPolicy) -> None:
    """Client: a form is made anew after a 401; httpx asks for the length by seeking."""
    async with held([str(written(root / "a.txt", "0123456789"))], policy) as (file,):
        assert (file.read(4), file.tell(), file.seek(0, os.SEEK_END), file.read()) == (b"0123", 4, 10, b"")
        assert (file.seek(2), file.read(3), file.seek(0), file.read(), file.read()) == (
            2,
            b"234",
            0,
            b"0123456789",
            b"",
        )


async def test_a_file_that_is_closed_while_it_is_read_is_closed_after_that(
    root: Path, policy: AttachmentPolicy
) -> None:
    """Ours: the number of a descriptor that is closed too early may be another file's by the time it is read."""
    async with held([str(written(root / "a.txt"))], policy) as (file,):
        pass
    with pytest.raises(ValueError, match="closed file"):
        file.read()
    async with held([str(written(root / "b.txt"))], policy) as (file,):
        with file._reading:
            file.close()
            assert not file._raw.closed
        assert file.read() == b"hello"
        assert file._raw.closed


# how many and how much


async def test_sixty_four_files_go_with_a_message_and_not_one_more(root: Path, policy: AttachmentPolicy) -> None:
    """Contract 5.1: the cap of the platform, said before anything is opened."""
    paths = [written(root / f"{number}.txt") for number in range(MAX_FILES + 1)]
    assert len(await sent(policy, *paths[:MAX_FILES])) == MAX_FILES
    with pytest.raises(InvalidArgument) as raised:
        await sent(policy, *paths)
    assert raised.value.reason == "there are 65 files, and at most 64 go with one message; nothing was sent"


async def test_a_file_named_twice_is_a_mistake_and_two_names_are_two_files(
    root: Path, policy: AttachmentPolicy
) -> None:
    """design: nothing done twice; who wants it under two names says so."""
    file = written(root / "a.txt")
    (root / "b.txt").hardlink_to(file)
    (root / "c").mkdir()
    (root / "c" / "a.txt").symlink_to(file)
    assert len(await sent(policy, file, root / "b.txt")) == 2
    assert await refusal(policy, file, file) == "it is named twice"
    assert await refusal(policy, file, root / "c" / "a.txt") == "it is named twice"


async def opened(policy: AttachmentPolicy, *paths: Path) -> list[OutgoingFile]:
    async with held([str(path) for path in paths], policy) as files:
        return files


async def test_sizes_are_checked_before_anything_is_read(root: Path, policy: AttachmentPolicy) -> None:
    """Contract 5.1: one file, and all of them with what the form adds; the sentence names file and limit."""
    fits = written(root / "fits.bin", b"x" * 1_000)
    above = written(root / "above.bin", b"x" * 1_001)
    check_sizes(await opened(policy, fits), LIMITS)
    with pytest.raises(AttachmentRefused) as refused:
        check_sizes(await opened(policy, fits, above), LIMITS)
    assert (refused.value.path, refused.value.reason) == (
        str(above),
        "it has 1,001 bytes, and the platform takes at most 1,000 in one file",
    )
    several = [written(root / f"{number}.bin", b"x" * 900) for number in range(3)]
    with pytest.raises(InvalidArgument) as raised:
        check_sizes(await opened(policy, *several), LIMITS)
    assert (raised.value.argument, "4,236 bytes" in raised.value.reason) == ("attachments", True)
    check_sizes(await opened(policy, *several[:2]), LIMITS)

"""Files of the chat, black box: dropped by the user, on the agent's disk, whatever happens on the way (R8)."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import shlex
import sqlite3
import subprocess
import sys
import time
import unicodedata
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.support.crew import Crew, Plan
from tests.support.host import CONSOLE_SCRIPT, Host
from tests.support.link import Echo, Gate, Link
from tests.support.platform import PlatformProcess, eventually
from tests.support.uploads import (
    all_acked,
    content_status,
    drop,
    file_id,
    files_dir,
    mention,
    message_of,
    noise,
    raw_form,
    right_on_the_disk,
    statuses,
    stored,
    upload,
)

Settings = dict[str, str]
FILE_CAP = 25 * 1024 * 1024
"""Bytes of the largest file that a platform takes (contract 5.1)."""
NAMES = [
    "report.pdf",
    "报告 2026 最终版.pdf",
    "写真🌊.png",
    "🙂🙂",
    "👩\u200d👩\u200d👧.jpg",
    "e\u0301tude.mid",
    "مرحبا.txt",
    "a\u202etxt.exe",
    "\u2066x\u2069.md",
    "../../../../../../etc/passwd",
    "../.ssh/authorized_keys",
    "../../inbox.sqlite3",
    "/etc/shadow",
    "/",
    "a/",
    ".",
    "..",
    "...",
    "....//....//x",
    "a/../../b",
    "..\\..\\boot.ini",
    "C:\\Windows\\system32\\x.dll",
    "nul\0byte.txt",
    "\0",
    "line\nbreak.txt",
    "carriage\rreturn.txt",
    "both\r\nof them: x.txt",
    "tab\tand\x1b[31mred\x07",
    "\x7f\x80",
    "one\u2028line",
    'quo"te.txt',
    '"',
    "apo'strophe",
    "semi;colon.txt",
    "back\\",
    "a" * 300,
    "b" * 300 + ".txt",
    "界" * 300 + ".docx",
    "c" * 90 + "." + "d" * 300,
    "CON",
    "aux.txt",
    "nul.",
    "COM1.log",
    "LPT9 .txt",
    "con.tar.gz",
    ".hidden",
    "..hidden",
    ".x.part",
    "x.part",
    "-rf",
    "~root",
    "$(id);`id`|&",
    "%2e%2e%2fpasswd",
    "a%00b",
    "*?<>:|",
    "same.txt",
    "same.txt",
    "same.txt",
    "SAME.TXT",
    "Same.txt",
    "dots...",
    "spaces  ",
    "  spaces",
    "x" * 99 + "é",
]


@pytest.fixture
def settings(platform_process: PlatformProcess) -> Settings:
    return platform_process.create_workspace(f"files {uuid.uuid4().hex[:8]}")


@contextmanager
def session(settings: Settings, state: Path, **more: Any) -> Iterator[Host]:
    with Host(settings, state=state, **more) as host:
        host.initialize()
        yield host


TAKEN_OVER_S = 10.0
KILLS = 14
SEED = 20_261_124


def open_journal(state: Path, settings: Settings) -> sqlite3.Connection:
    return sqlite3.connect(state / settings["WORKSPACE_ID"] / "inbox.sqlite3", isolation_level=None, timeout=5)


def in_a_form(name: str) -> bytes:
    """A file name as a canvas puts it into the header: everything as it is, but a quote and the ends of a line."""
    return name.replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A").encode()


def test_64_files_with_the_worst_of_names_in_one_message(
    platform_process: PlatformProcess, settings: Settings, tmp_path: Path
) -> None:
    """R8: all on the disk as they were sent, inside their directory, one of them as large as a file may be."""
    workspace_id, state = settings["WORKSPACE_ID"], tmp_path / "state"
    sizes = [FILE_CAP, *(1 + number**3 % 150_000 for number in range(63))]
    contents = [noise(size, seed=number) for number, size in enumerate(sizes)]
    body, content_type = raw_form(zip(map(in_a_form, NAMES), contents, strict=True))
    with session(settings, state) as host:
        answer = platform_process.http.post(
            f"/workspaces/{workspace_id}/chat/uploads", content=body, headers={"Content-Type": content_type}, timeout=60
        )
        assert answer.status_code == 200, answer.text
        uploaded = answer.json()["files"]
        # A client may write into its message what it likes: here the names as the user's disk had them.
        mention(
            platform_process,
            workspace_id,
            "all of these",
            [file | {"name": name} for file, name in zip(uploaded, NAMES, strict=True)],
        )
        message = host.call("wait_for_message", 40, timeout_secs=35)["message"]
        right_on_the_disk(message, contents, files_dir(state, settings))
        assert json.loads(Path(message["attachments_path"]).read_text()) == message["attachments"]
        for attachment in message["attachments"]:
            assert 0 < len(attachment["name"]) <= 100
            assert not [char for char in attachment["name"] if unicodedata.category(char) in {"Cc", "Cf", "Zl", "Zp"}]
        all_acked(platform_process, settings, uploaded)
        assert stored(state, settings).keys() == {Path(each["path"]).name for each in message["attachments"]}
        assert list(tmp_path.iterdir()) == [state]


@pytest.mark.timeout(150)
def test_a_transfer_of_40_files_goes_on_after_each_of_many_kills(
    platform_process: PlatformProcess, settings: Settings, tmp_path: Path
) -> None:
    """R8: each file is staged once and acked, nothing that was there is fetched again, nothing half-written stays.

    The first to die is a host's server. After it come agents that cost no second of imports each: they are killed from
    outside after so many bytes, and every other one from inside should it come to that first, between a file's name and
    its record or between an ack and its record. The last is a host's server.
    """
    workspace_id, state, records = settings["WORKSPACE_ID"], tmp_path / "state", tmp_path / "records"
    records.mkdir()
    chance = random.Random(SEED)
    contents = [noise(1 + int(200_000 * chance.random() ** 3), seed=number) for number in range(40)]
    plan = Plan(
        str(records),
        size=1,
        seed=SEED,
        longest_s=3600,
        takes_messages=False,
        max_statement=8,
        statements="UPDATE files",
    )
    with Link(platform_process.port, file_bytes_per_s=500_000) as link:
        near = settings | {"PLATFORM_URL": link.url}
        uploaded = drop(platform_process, workspace_id, [(f"file {n}.bin", each) for n, each in enumerate(contents)])
        with Host(near, state=state) as host:
            eventually(link.file_bytes, within_s=20, until=lambda passed: passed > 100_000)
            host.kill()
        there_since: dict[str, float] = {}

        def dies_or_passes(enough: int, deaths: int) -> bool:
            for path in files_dir(state, settings).glob("[!.]*"):
                there_since.setdefault(path.name, time.time())
            return crew.deaths() > deaths or link.file_bytes() >= enough

        with Crew(near, state=state, plan=plan) as crew:
            while (deaths := crew.deaths()) < KILLS:
                enough = link.file_bytes() + chance.randint(1, 250_000)
                eventually(lambda bounds=(enough, deaths): dies_or_passes(*bounds), within_s=20)
                if crew.deaths() == deaths:
                    crew.kill_now()
                    eventually(crew.deaths, within_s=5, until=lambda now, deaths=deaths: now > deaths)
        with closing(open_journal(state, settings)) as journal:
            (staged,) = journal.execute("SELECT COUNT(*) FROM files WHERE state = 'staged'").fetchone()
        assert 0 < staged < len(contents)
        link.file_bytes_per_s = None
        with session(near, state) as host:
            message = eventually(
                lambda: message_of(host, "look"), within_s=30, until=lambda found: set(statuses(found)) == {"staged"}
            )
            right_on_the_disk(message, contents, files_dir(state, settings))
            all_acked(platform_process, settings, uploaded)
            assert len(stored(state, settings)) == len(contents)
        for each, attachment in zip(uploaded, message["attachments"], strict=True):
            first_seen = there_since.get(Path(attachment["path"]).name, time.time())
            assert all(download.began < first_seen for download in link.downloads(file_id(each)))
        assert sum(not download.is_whole for download in link.downloads()) >= 10  # that were under way at a kill


@pytest.mark.skipif(sys.platform != "linux", reason="a limit of another process can be raised on Linux only")
def test_a_file_without_room_has_a_reason_and_comes_when_there_is_room(
    platform_process: PlatformProcess, settings: Settings, tmp_path: Path
) -> None:
    """R8: the message is there at once, with what could be stored; fetch_attachment brings the rest later."""
    workspace_id, state = settings["WORKSPACE_ID"], tmp_path / "state"
    largest = 3_200_000

    def no_larger_file() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, resource.RLIM_INFINITY))

    room = {"MOLECULE_MCP_FILES_QUOTA_MB": "10", "MOLECULE_MCP_TOOLS": "full"}
    with session(settings, state, preexec_fn=no_larger_file, **room) as host:
        drop(platform_process, workspace_id, [("old 1.bin", noise(3_000_000)), ("old 2.bin", noise(3_000_000))], "old")
        old = host.call("wait_for_message", 40, timeout_secs=35)["message"]
        assert statuses(old) == ["staged", "staged"]
        contents = [noise(3_500_000, seed=1), noise(4_200_000, seed=2), noise(20_000, seed=3)]
        names = ["one file.bin", "all files.bin", "small.bin"]
        uploaded = drop(platform_process, workspace_id, list(zip(names, contents, strict=True)), "new")
        message = host.call("wait_for_message", timeout_secs=10)["message"]
        one, all_together, _ = message["attachments"]
        assert statuses(message) == ["failed", "failed", "staged"]
        assert os.strerror(errno.EFBIG) in one["reason"]
        assert "MOLECULE_MCP_FILES_QUOTA_MB" in all_together["reason"]
        assert [content_status(platform_process, settings, each) for each in uploaded[:2]] == [200, 200]
        all_acked(platform_process, settings, uploaded[2:])

        resource.prlimit(host.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        host.call("inbox_pop", activity_id=old["activity_id"])
        fetched = host.call("fetch_attachment", activity_id=message["activity_id"])
        right_on_the_disk(fetched, contents, files_dir(state, settings))
        all_acked(platform_process, settings, uploaded)
        assert not list(files_dir(state, settings).glob(".*"))


def own_small_disk(size: int, at: Path) -> tuple[str, ...]:
    """A command that serves with a disk of its own of this many bytes at `at`; it is gone with the process.

    Skips where nobody may mount.
    """
    unshare = ("unshare", "--mount") if os.geteuid() == 0 else ("unshare", "--mount", "--map-root-user")
    mount = f"mount -t tmpfs -o size={size} none {shlex.quote(str(at))}"
    if subprocess.run([*unshare, "sh", "-c", mount], capture_output=True, check=False).returncode != 0:
        pytest.skip("no file system can be mounted here; the test before this one has limits instead")
    return (*unshare, "sh", "-c", f"{mount} && exec {shlex.quote(CONSOLE_SCRIPT)}")


@pytest.mark.skipif(sys.platform != "linux", reason="mount namespaces are Linux's")
def test_a_full_disk_is_survived_and_told(
    platform_process: PlatformProcess, settings: Settings, tmp_path: Path
) -> None:
    """R8: first no room for a file, then room for nothing, the journal included; all of it comes when there is room."""
    workspace_id, state = settings["WORKSPACE_ID"], tmp_path / "state"
    state.mkdir()
    command = own_small_disk(16_000_000, state)
    with session(settings, state, command=command, MOLECULE_MCP_TOOLS="full") as host:
        disk = Path(f"/proc/{host.process.pid}/root") / state.relative_to("/")
        filler = disk / "something else"
        filler.write_bytes(bytes(12_000_000))
        contents = [noise(5_000_000, seed=1), noise(20_000, seed=2)]
        uploaded = drop(platform_process, workspace_id, [("large", contents[0]), ("small", contents[1])], "one")
        message = host.call("wait_for_message", timeout_secs=10)["message"]
        assert statuses(message) == ["failed", "staged"]
        assert "disk is full" in message["attachments"][0]["reason"]
        all_acked(platform_process, settings, uploaded[1:])
        filler.unlink()
        fetched = host.call("fetch_attachment", activity_id=message["activity_id"], name="large")
        assert statuses(fetched) == ["staged", "staged"]
        all_acked(platform_process, settings, uploaded)

        with filler.open("wb", buffering=0) as stream, suppress(OSError):
            while True:
                stream.write(bytes(4096))
        drop(platform_process, workspace_id, [("after all", contents[1])], "two")
        eventually(
            lambda: [problem["id"] for problem in host.call("runtime_status")["problems"]],
            within_s=20,
            until=lambda found: "inbox.feed" in found,
        )
        filler.unlink()
        assert statuses(host.call("wait_for_message", 40, timeout_secs=35)["message"]) == ["staged"]


def test_eight_large_files_hold_up_neither_a_message_nor_the_beat(
    platform_process: PlatformProcess, settings: Settings, tmp_path: Path
) -> None:
    """R8: while 8 files of 25 MiB come, four at a time, a message is there within a second and the beats keep pace."""
    workspace_id, state = settings["WORKSPACE_ID"], tmp_path / "state"
    content = noise(FILE_CAP)
    with Gate(platform_process.port, file_bytes_per_s=8_000_000) as link:
        link.shut()
        with session(settings | {"PLATFORM_URL": link.url}, state, MOLECULE_MCP_HEARTBEAT_SECS="1") as host:
            uploaded = [
                file for n in range(8) for file in upload(platform_process, workspace_id, [(f"{n}.bin", content)])
            ]
            mention(platform_process, workspace_id, "look", uploaded)
            eventually(lambda: message_of(host, "look"), within_s=10)
            link.open()
            began, number = time.time(), 0
            while sum(each.is_whole for each in link.downloads()) < 8:
                number += 1
                beats = len(link.beats())
                waiting = host.begin("wait_for_message", timeout_secs=20)
                posted = time.monotonic()
                platform_process.say(workspace_id, f"message {number}")
                message = host.finish(waiting)["message"]
                if message["text"] == "look":
                    break
                assert time.monotonic() - posted < 1
                assert message["text"] == f"message {number}"
                eventually(lambda beats=beats: len(link.beats()) > beats, within_s=5)
            ended = time.time()
            message = eventually(
                lambda: message_of(host, "look"), within_s=20, until=lambda found: set(statuses(found)) == {"staged"}
            )
            right_on_the_disk(message, [content] * 8, files_dir(state, settings))
        beats_at = [began, *(beat for beat in link.beats() if began < beat < ended), ended]
        assert number >= 4
        assert max(later - earlier for earlier, later in pairwise(beats_at)) < 2


def test_two_servers_fetch_a_file_once_and_one_goes_on_when_the_other_is_killed(
    platform_process: PlatformProcess, settings: Settings, tmp_path: Path
) -> None:
    """Agent-side 4: one of them reads the feed, both show the file; the other takes over within 10 s of a kill -9."""
    workspace_id, state = settings["WORKSPACE_ID"], tmp_path / "state"
    contents = [noise(2_000_000, seed=number) for number in range(3)]
    with Link(platform_process.port) as link:
        near = settings | {"PLATFORM_URL": link.url}
        with session(near, state) as first:
            eventually(lambda: owns_the_inbox(first), within_s=10)
            with session(near, state) as second:
                before = drop(platform_process, workspace_id, [("a", contents[0]), ("b", contents[1])], "before")
                for host in (first, second):
                    shown = eventually(
                        lambda host=host: message_of(host, "before"),
                        within_s=10,
                        until=lambda message: statuses(message) == ["staged", "staged"],
                    )
                    right_on_the_disk(shown, contents[:2], files_dir(state, settings))
                assert [len(link.downloads(file_id(each))) for each in before] == [1, 1]
                link.file_bytes_per_s = 1_000_000
                (during,) = drop(platform_process, workspace_id, [("c", contents[2])], "during")
                eventually(lambda: sum(each.passed for each in link.downloads(file_id(during))) > 200_000, within_s=10)
                first.kill()
                killed = time.monotonic()
                heard = [second.call("wait_for_message", 40, timeout_secs=35)["message"] for _ in range(2)]
                assert time.monotonic() - killed < TAKEN_OVER_S + 5  # 2 s of them for the bytes
                assert [message["text"] for message in heard] == ["before", "during"]
                right_on_the_disk(heard[1], contents[2:], files_dir(state, settings))
                all_acked(platform_process, settings, [*before, during])
                assert [each.is_whole for each in link.downloads(file_id(during))] == [False, True]
                assert [len(link.downloads(file_id(each))) for each in before] == [1, 1]
                assert len(stored(state, settings)) == 3


def online(host: Host) -> None:
    eventually(
        lambda: host.call("runtime_status")["workspaces"][0]["presence"]["state"],
        within_s=10,
        until=lambda state: state == "online",
    )


def owns_the_inbox(host: Host) -> bool:
    owner = host.call("runtime_status")["workspaces"][0]["owner"]
    return bool(owner["inbox"])


def next_push(host: Host, within_s: float = 8) -> dict[str, Any]:
    """The next message that is shown to the host unasked."""
    deadline = time.monotonic() + within_s
    while True:
        line = host.receive(max(0.0, deadline - time.monotonic()))
        if line.get("method") == "notifications/claude/channel":
            params: dict[str, Any] = line["params"]
            return params


def test_a_message_is_pushed_when_its_files_are_here_or_after_30_s(
    platform_process: PlatformProcess, settings: Settings, tmp_path: Path
) -> None:
    """Agent-side 4 and 6: a message waits for its files, at most 30 s, and holds up nobody. The wait costs no CPU."""
    workspace_id, state = settings["WORKSPACE_ID"], tmp_path / "state"
    slow = noise(300_000)
    with (
        Gate(platform_process.port, file_bytes_per_s=1_000) as link,
        session(settings | {"PLATFORM_URL": link.url}, state) as host,
    ):
        posted = time.monotonic()
        drop(platform_process, workspace_id, [("slow", slow), ("at once", b"1")], "takes its time")
        eventually(link.file_bytes, within_s=10)
        link.shut()
        late = drop(platform_process, workspace_id, [("late 1", b"2"), ("late 2", b"3")], "comes late")
        platform_process.say(workspace_id, "alone")
        assert next_push(host)["content"] == "alone"
        eventually(lambda: len(link.downloads()), within_s=8, until=lambda count: count == 4)
        host.receive_nothing(for_s=0.6)  # three times as long as a push takes

        link.shut([file_id(late[0])])
        eventually(
            lambda: statuses(message_of(host, "comes late")),
            within_s=8,
            until=lambda found: found == ["pending", "staged"],
        )
        host.receive_nothing(for_s=0.6)
        link.open()
        pushed = next_push(host)
        assert (pushed["content"], pushed["meta"]["attachments"]) == ("comes late", "2")
        right_on_the_disk(message_of(host, "comes late"), [b"2", b"3"], files_dir(state, settings))

        pushed = next_push(host, within_s=40)
        assert 25 < time.monotonic() - posted < 30 + 3
        assert (pushed["content"], pushed["meta"]["attachments"]) == ("takes its time", "2")
        assert statuses(message_of(host, "takes its time")) == ["pending", "staged"]
        link.file_bytes_per_s = None
        message = eventually(
            lambda: message_of(host, "takes its time"),
            within_s=20,
            until=lambda found: statuses(found) == ["staged", "staged"],
        )
        right_on_the_disk(message, [slow, b"1"], files_dir(state, settings))


def test_a_file_that_the_agent_sent_itself_does_not_come_back_as_the_users(
    platform_process: PlatformProcess, settings: Settings, tmp_path: Path
) -> None:
    """R9, contract 5.7: some platforms put it into the sender's inbox, even before the upload is answered."""
    workspace_id, state = settings["WORKSPACE_ID"], tmp_path / "state"
    outbox = tmp_path / "outbox"
    outbox.mkdir()
    (outbox / "own.bin").write_bytes(noise(30_000))
    with (
        Echo(platform_process.port) as link,
        session(settings | {"PLATFORM_URL": link.url}, state, MOLECULE_ATTACHMENT_ROOTS=str(outbox)) as host,
    ):
        online(host)
        sent = host.call("send_message_to_user", message="here", attachments=[str(outbox / "own.bin")])
        (own,) = sent["attachments"]
        rows = [row["method"] for row in platform_process.activity(workspace_id)]
        assert "chat_upload_receive" in rows
        (users,) = drop(platform_process, workspace_id, [("own.bin", noise(30_000))], "one of mine")
        message = host.call("wait_for_message", timeout_secs=15)["message"]
        right_on_the_disk(message, [noise(30_000)], files_dir(state, settings))
        all_acked(platform_process, settings, [users])
        host.call("inbox_pop", activity_id=message["activity_id"])
        assert host.call("inbox_peek")["total"] == 0
        assert {each.file_id for each in link.downloads()} == {file_id(users)}
        acks = [each.path for each in link.exchanges if each.path.endswith("/ack")]
        assert acks == [f"/workspaces/{workspace_id}/pending-uploads/{file_id(users)}/ack"]
        assert content_status(platform_process, settings, own) == 200
        assert len(stored(state, settings)) == 1

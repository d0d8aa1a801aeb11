"""Files of the chat, black box: dropped by the user, on the agent's disk, whatever happens on the way (R8)."""

from __future__ import annotations

import unicodedata
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.host import Host
from tests.support.platform import PlatformProcess
from tests.support.uploads import all_acked, files_dir, mention, noise, raw_form, right_on_the_disk, stored

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
        for attachment in message["attachments"]:
            assert 0 < len(attachment["name"]) <= 100
            assert not [char for char in attachment["name"] if unicodedata.category(char) in {"Cc", "Cf", "Zl", "Zp"}]
        all_acked(platform_process, settings, uploaded)
        assert stored(state, settings).keys() == {Path(each["path"]).name for each in message["attachments"]}
        assert list(tmp_path.iterdir()) == [state]

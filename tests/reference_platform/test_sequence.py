"""Rows become visible in the order of their numbers: a reader that follows since_id misses none, whoever writes."""

from __future__ import annotations

import subprocess
import sys
from contextlib import AsyncExitStack
from typing import Any

import anyio

from molecule_runtime.reference_platform.config import PlatformConfig

from .support import Database, Member, Platform, canvas_message, running

WRITERS = 4
ROWS_EACH = 15

WRITER_PROGRAM = """
import asyncio, sys
from molecule_runtime.clock import SystemClock
from molecule_runtime.reference_platform.parts import build_parts
from molecule_runtime.reference_platform.config import PlatformConfig

async def main(database, workspace_id, rows):
    parts = build_parts(PlatformConfig(database=database), SystemClock())
    print("ready", flush=True)
    sys.stdin.readline()
    for number in range(int(rows)):
        body = {"method": "message/send", "params": {"message": {"parts": [{"kind": "text", "text": str(number)}]}}}
        await parts.inbound.receive(workspace_id, None, body)
    await parts.store.close()

asyncio.run(main(*sys.argv[1:]))
"""


async def follow(platform: Platform, member: Member, cursor: str, expected: int) -> list[dict[str, Any]]:
    """Poll as an inbox does, in small pages, until `expected` rows have come."""
    found: list[dict[str, Any]] = []
    with anyio.fail_after(40):
        while len(found) < expected:
            page = await platform.rows(member, since_id=cursor, limit=7)
            found += page
            cursor = page[-1]["id"] if page else cursor
    return found


def assert_nothing_is_missing(rows: list[dict[str, Any]], first_seq: int) -> None:
    assert [row["seq"] for row in rows] == list(range(first_seq, first_seq + len(rows)))
    assert len({row["id"] for row in rows}) == len(rows)
    times = [row["created_at"] for row in rows]
    assert times == sorted(set(times))


async def test_a_reader_misses_nothing_while_two_platforms_write_to_one_file(config: PlatformConfig) -> None:
    """Several tasks on each of two apps insert at once, a third app follows the cursor (contract 0.7)."""
    async with AsyncExitStack() as stack:
        first, second, reader = [await stack.enter_async_context(running(config)) for _ in range(3)]
        member = await first.join()
        await first.say(member, "the cursor")
        cursor = (await first.rows(member))[0]["id"]

        async def write(platform: Platform) -> None:
            for number in range(ROWS_EACH):
                await platform.say(member, str(number))

        rows: list[dict[str, Any]] = []
        async with anyio.create_task_group() as tasks:
            for _ in range(WRITERS):
                tasks.start_soon(write, first)
                tasks.start_soon(write, second)
            rows += await follow(reader, member, cursor, 2 * WRITERS * ROWS_EACH)
    assert_nothing_is_missing(rows, first_seq=2)


async def test_a_reader_misses_nothing_while_two_processes_write(config: PlatformConfig, database: Database) -> None:
    """The same with a second process, where no lock of ours can help (contract 0.7)."""
    async with running(config) as platform:
        member = await platform.join()
        await platform.say(member, "the cursor")
        cursor = (await platform.rows(member))[0]["id"]
        command = [sys.executable, "-c", WRITER_PROGRAM, database.url, member.id, "60"]
        async with await anyio.open_process(command, stdin=subprocess.PIPE, stderr=None) as writer:
            assert writer.stdin is not None
            assert writer.stdout is not None
            with anyio.fail_after(30):
                await writer.stdout.receive()
            await writer.stdin.send(b"go\n")

            async def write() -> None:
                for number in range(60):
                    reply = await platform.http.post(f"/workspaces/{member.id}/a2a", json=canvas_message(str(number)))
                    assert reply.status_code == 200

            rows: list[dict[str, Any]] = []
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(write)
                rows += await follow(platform, member, cursor, 120)
            with anyio.fail_after(20):
                assert await writer.wait() == 0
    assert_nothing_is_missing(rows, first_seq=2)

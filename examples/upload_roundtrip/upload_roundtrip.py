"""Files both ways: the user drops a receipt into the chat, the agent finds it on its disk and sends it back added up.

The program brings its own platform and its own user, checks what it sees, and ends with 0 when all of it was right:

    python examples/upload_roundtrip/upload_roundtrip.py
"""

from __future__ import annotations

import asyncio
import csv
import json
import sys
import tempfile
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from molecule_runtime import Agent, Settings, logs

RECEIPT = "what,price\n茶 🍵,3.50\nbread,2.25\n"
ADDED_UP = "what,price\n茶 🍵,3.50\nbread,2.25\ntotal,5.75\n"


async def bookkeeper(env: Mapping[str, str], outbox: Path) -> None:
    """Adds up one message's receipts; what it sends back it writes to a directory that it may send from."""
    async with Agent(Settings.from_env({**env, "MOLECULE_ATTACHMENT_ROOTS": str(outbox)})) as agent:
        message = await agent.wait(timeout_s=30)
        assert message is not None, "nobody wrote"
        answers = []
        for attachment in message["attachments"]:
            print(f"agent   {attachment['name']}: {attachment['size']} bytes, {attachment['status']}")
            assert attachment["status"] == "staged", attachment["reason"]  # else pending, or failed with a reason
            received = Path(attachment["path"])
            answers.append(outbox / f"added up {attachment['name']}")
            add_up(received, answers[-1])
        await agent.reply(message, "Added up.", attachments=[str(answer) for answer in answers])


def add_up(receipt: Path, answer: Path) -> None:
    """The same lines and one more."""
    with receipt.open(newline="", encoding="utf-8") as lines:
        rows = list(csv.reader(lines))
    total = sum(float(price) for _, price in rows[1:])
    with answer.open("w", newline="", encoding="utf-8") as lines:
        csv.writer(lines, lineterminator="\n").writerows([*rows, ["total", f"{total:.2f}"]])


# From here on: a platform and a user.


async def drop(canvas: httpx.AsyncClient, workspace_id: str, text: str, name: str, content: bytes) -> None:
    """What a canvas does with a file that is dropped into the chat: upload it, then name it in the message."""
    answer = await canvas.post(
        f"/workspaces/{workspace_id}/chat/uploads", files=[("files", (name, content, "text/csv"))]
    )
    answer.raise_for_status()
    parts: list[dict[str, Any]] = [{"kind": "text", "text": text}]
    parts += [{"kind": "file", "file": file} for file in answer.json()["files"]]
    message = {"role": "user", "messageId": str(uuid.uuid4()), "parts": parts}
    body = {"method": "message/send", "params": {"message": message}}
    (await canvas.post(f"/workspaces/{workspace_id}/a2a", json=body)).raise_for_status()
    print(f"user    drops {name}: {text}")


async def fetch(canvas: httpx.AsyncClient, attachment: Mapping[str, Any]) -> bytes:
    """The bytes behind an attachment of the chat, as the canvas fetches them for a click on it."""
    workspace_id, file_id = attachment["uri"].removeprefix("platform-pending:").split("/")
    answer = await canvas.get(f"/workspaces/{workspace_id}/pending-uploads/{file_id}/content")
    return answer.raise_for_status().content


@asynccontextmanager
async def platform(directory: str) -> AsyncIterator[tuple[httpx.AsyncClient, dict[str, str]]]:
    """A platform of our own with one workspace: the canvas's connection to it, and the workspace's settings."""
    command = [sys.executable, "-m", "molecule_mcp", "platform", "--port", "0", "--json", "--workspace", "bookkeeper"]
    process = await asyncio.create_subprocess_exec(
        *command, "--db", f"{directory}/platform.sqlite3", stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        settings = json.loads(await process.stdout.readline())["workspace"]
        async with httpx.AsyncClient(base_url=settings["PLATFORM_URL"], trust_env=False) as canvas:
            yield canvas, settings
    finally:
        process.terminate()
        await process.wait()


async def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        outbox = Path(directory, "outbox")
        outbox.mkdir()
        async with platform(directory) as (canvas, settings):
            workspace_id = settings["WORKSPACE_ID"]
            await drop(canvas, workspace_id, "What does that make?", "Quittung 十月.csv", RECEIPT.encode())
            await bookkeeper(settings | {"CONFIGS_DIR": f"{directory}/state"}, outbox)
            shown = (await canvas.get(f"/workspaces/{workspace_id}/chat-history")).json()["messages"]
            answer = shown[-1]
            assert (answer["role"], answer["content"]) == ("agent", "Added up."), shown
            (attachment,) = answer["attachments"]
            content = (await fetch(canvas, attachment)).decode()
            print(f"user    fetches {attachment['name']}:\n{content}", end="")
            assert content == ADDED_UP, content
    print("All of it was right.")


if __name__ == "__main__":
    logs.configure(stderr_level="WARNING", file=None)
    asyncio.run(main())

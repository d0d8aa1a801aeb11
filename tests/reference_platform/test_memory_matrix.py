"""Who reads and writes what: three organisations of two teams of three, every scope, every namespace, every reader.

What is expected is built here from the words of the contract (2.9, 7.1, 7.2) over a table of parents, without any code
of the platform.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any

import pytest

from molecule_runtime.reference_platform.config import PlatformConfig

from .memories import a_plugin, beside, recalled, refused, remember, use
from .support import Database, Member, Platform, only, running

MARK = re.compile(r"^\[MEMORY [^\]]*\]: ")


@dataclass(frozen=True)
class Orgs:
    """21 workspaces by name: "1" is the root of an organisation, "1a" heads a team, "1ab" is in it."""

    platform: Platform
    members: dict[str, Member]

    @property
    def names(self) -> list[str]:
        return list(self.members)


def parent(name: str) -> str | None:
    return name[:-1] or None


def root(name: str) -> str:
    return name[0]


def team(name: str) -> str:
    """Whose name the namespace of a workspace's team bears: the parent's, or its own when it is a root."""
    return parent(name) or name


@pytest.fixture
async def plugin_url(database: Database) -> AsyncIterator[str]:
    """A plugin on a database of the same kind as the platform's."""
    with beside(database) as other:
        async with a_plugin(other) as url:
            yield url


async def founded(platform: Platform) -> Orgs:
    names = [org + rest for org in "123" for rest in ("", "a", "b", "aa", "ab", "ba", "bb")]
    members: dict[str, Member] = {}
    for name in names:
        above = parent(name)
        members[name] = await platform.create(name, **({"parent_id": members[above].id} if above else {}))
    return Orgs(platform, members)


async def test_v1_gives_every_reader_exactly_what_the_rules_allow(platform: Platform) -> None:
    """LOCAL one's own, TEAM parent's and siblings' (a root: children's), GLOBAL all, else one's own (contract 7.1)."""
    orgs = await founded(platform)
    written = [(name, scope) for name in orgs.names for scope in ("LOCAL", "TEAM", "GLOBAL")]
    written = [(name, scope) for name, scope in written if scope != "GLOBAL" or parent(name) is None]
    for name, scope in written:
        await remember(platform, orgs.members[name], f"memory {scope} of {name}", scope)
    for name, member in orgs.members.items():
        body = {"content": "memory", "scope": "GLOBAL"}
        if parent(name) is not None:
            reply = await platform.http.post(f"/workspaces/{member.id}/memories", json=body, headers=member.headers)
            assert (reply.status_code, reply.json()) == (
                403,
                {"error": "only root workspaces can write GLOBAL memories"},
            )

    def in_team(reader: str, writer: str) -> bool:
        if reader == writer or writer == parent(reader) or (parent(reader) is None and parent(writer) == reader):
            return True
        return parent(reader) is not None and parent(reader) == parent(writer)

    def allowed(reader: str, asked: str, writer: str, scope: str) -> bool:
        own = reader == writer
        rules = {"": own, "LOCAL": own, "TEAM": in_team(reader, writer), "GLOBAL": True}
        return rules[asked] and asked in ("", scope)

    for reader in orgs.names:
        for asked in ("", "LOCAL", "TEAM", "GLOBAL"):
            expected = {f"memory {s} of {w}" for w, s in written if allowed(reader, asked, w, s)}
            # A query goes another way through the table: asked from every kind of place, in one organisation.
            for query in ("", "memory") if root(reader) == "1" else ("",):
                found = await recalled(platform, orgs.members[reader], scope=asked, q=query)
                assert sorted(MARK.sub("", text) for text in found) == sorted(expected), (reader, asked, query)
        scopes = ("LOCAL", "TEAM", "GLOBAL")
        expected = {f"memory {s} of {w}" for w, s in written if any(allowed(reader, asked, w, s) for asked in scopes)}
        for query in ("", "memory"):
            found = await recalled(platform, orgs.members[reader], readable="true", q=query)
            assert sorted(MARK.sub("", text) for text in found) == sorted(expected), (reader, "all", query)


async def test_v2_gives_every_reader_exactly_what_the_rules_allow(config: PlatformConfig, plugin_url: str) -> None:
    """A namespace that one may not write is refused, one that one may not read is empty, never 403 (contract 7.2)."""
    async with running(replace(config, memory_plugin_url=plugin_url)) as platform:
        orgs = await founded(platform)
        ids = {name: member.id for name, member in orgs.members.items()}

        def reach(name: str) -> set[str]:
            return {f"workspace:{ids[name]}", f"team:{ids[team(name)]}", f"org:{ids[root(name)]}"}

        def writes(name: str) -> set[str]:
            return reach(name) - (set() if parent(name) is None else {f"org:{ids[root(name)]}"})

        shared = {space for name in orgs.names for space in reach(name) if not space.startswith("workspace:")}
        kept: dict[str, set[str]] = {}
        for name, member in orgs.members.items():
            # One's own and those of a neighbour and of the one who has one's place elsewhere; in one organisation all
            # shared ones too.
            tried = {f"workspace:{ids[other]}" for other in (name, team(name), elsewhere(name))}
            tried |= reach(name) | reach(elsewhere(name)) | (shared if root(name) == "1" else set())
            for space in sorted(tried):
                content = f"memory of {name} in {space}"
                if space in writes(name):
                    await use(platform, member, "commit_memory_v2", content=content, namespace=space)
                    kept.setdefault(space, set()).add(content)
                else:
                    error = await refused(platform, member, "commit_memory_v2", content=content, namespace=space)
                    told = f"workspace {member.id} cannot write to namespace {space}"
                    assert error == {"code": -32000, "message": told, "data": {"status": 403}}
        assert len(kept) == 21 + 3 + 6 + 3

        async def read(member: Member, **params: Any) -> list[str]:
            path = f"/workspaces/{member.id}/v2/memories"
            reply = await platform.http.get(path, params=params, headers=member.headers)
            assert reply.status_code == 200, reply.text
            assert {memory["source_workspace_id"] for memory in reply.json()["memories"]} <= set(ids.values())
            return sorted(memory["content"] for memory in reply.json()["memories"])

        for name, member in orgs.members.items():
            readable = sorted(text for space in reach(name) for text in kept[space])
            assert await read(member) == readable
            listed = (await platform.http.get(f"/workspaces/{member.id}/v2/namespaces", headers=member.headers)).json()
            assert {each["name"] for each in listed["readable"]} == reach(name)
            assert {each["name"] for each in listed["writable"]} == writes(name)
            foreign = sorted(set(kept) - reach(name))
            searched = json.loads(await use(platform, member, "search_memory", query="memory", limit=100))["memories"]
            assert sorted(MARK.sub("", each["content"]) for each in searched) == readable
            assert {
                each["content"].startswith(f"[MEMORY id={each['id']} scope=ORG ns={each['namespace']}]: ")
                for each in searched
                if each["namespace"].startswith("org:")
            } == {True}
            text = await use(platform, member, "search_memory", namespaces=foreign, limit=100)
            assert json.loads(text) == {"memories": []}
            asked = [*foreign, "nonsense", *reach(name)]
            text = await use(platform, member, "search_memory", namespaces=asked, limit=100)
            assert sorted(MARK.sub("", each["content"]) for each in json.loads(text)["memories"]) == readable
            if root(name) != "1":
                continue
            # One by one: each of one's own, and of others one of each kind, the nearest that is closed to one.
            for space in reach(name):
                assert await read(member, namespace=space) == sorted(kept[space])
            below = next((other for other in orgs.names if parent(other) == name), "")
            for space in (
                *(f"workspace:{ids[other]}" for other in (parent(name), below, elsewhere(name)) if other),
                f"team:{ids[elsewhere(team(name))]}",
                f"org:{ids[elsewhere(root(name))]}",
                *(f"org:{ids[name]}" for _ in "x" if parent(name)),
                "nonsense",
            ):
                assert await read(member, namespace=space) == [], (name, space)


@only("sqlite")  # the statements are those of the two above
async def test_v1_after_the_cut_over_reads_and_writes_namespaces(config: PlatformConfig, plugin_url: str) -> None:
    """The table of contract 7.3, by every reader of one organisation; GLOBAL is the organisation's (ours)."""
    async with running(replace(config, memory_plugin_url=plugin_url)) as platform:
        orgs = await founded(platform)
        written = [(name, scope) for name in ("1", "1a", "1b", "1aa", "1ab", "2", "2a") for scope in ("LOCAL", "TEAM")]
        written += [("1", "GLOBAL"), ("2", "GLOBAL")]
        for name, scope in written:
            await remember(platform, orgs.members[name], f"memory {scope} of {name}", scope)

        def of(reader: str, scope: str) -> set[str]:
            same = {"LOCAL": lambda w: w == reader, "TEAM": lambda w: team(w) == team(reader)}.get(
                scope, lambda w: root(w) == root(reader)
            )
            return {f"memory {scope} of {w}" for w, s in written if s == scope and same(w)}

        for reader in ("1", "1a", "1aa", "1ab", "2a", "3"):
            expected = {
                "LOCAL": of(reader, "LOCAL"),
                "TEAM": of(reader, "LOCAL") | of(reader, "TEAM"),
                "GLOBAL": of(reader, "GLOBAL"),
                "": of(reader, "LOCAL") | of(reader, "TEAM") | of(reader, "GLOBAL"),
            }
            for asked, texts in expected.items():
                for query in ("", "memory"):
                    found = await recalled(platform, orgs.members[reader], scope=asked, q=query)
                    assert sorted(MARK.sub("", text) for text in found) == sorted(texts), (reader, asked)
            found = await recalled(platform, orgs.members[reader], readable="true", q="memory")
            assert sorted(MARK.sub("", text) for text in found) == sorted(expected[""]), reader


def elsewhere(name: str) -> str:
    """Who has the same place in the next organisation."""
    return str(int(name[0]) % 3 + 1) + name[1:]

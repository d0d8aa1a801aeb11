"""What a search finds, in every script, in which order, and that both databases say the same."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from molecule_runtime.clock import ManualClock
from tests.reference_platform.support import Database, PostgresDatabase, SqliteFile

from .conftest import configured
from .support import HERE, TEAM, Plugin, running

CORPUS = [
    "Deploy the blue service on Friday, never on Monday",
    "The blue house: we deploy there by hand",
    "deployment notes: blue, green",
    "blue",
    "部署在星期五进行，不要在星期一",
    "数据库的密码在保险箱里",
    "デプロイは金曜日に行います。データベースは青い",
    "ﾃﾞﾌﾟﾛｲの手順",
    "배포는 금요일에 한다. 데이터베이스",
    "Release 🚀 at noon 👩‍💻, tests ✅ green",
    "v2 API of 数据库 on port 5432 (東京)",
    "Straße und Über-Größe",
    "Ünïcödé Æsir CAFÉ",
    "Привет, Мир!",
    "ฐานข้อมูลอยู่ที่กรุงเทพ",
    "a_b snake_case and some-thing C++ 100%",
    "x",
    'He said "NEAR(blue, 3)" AND col:blue* OR NOT x',
    "internationalisation is long",
    "transaction20261124000017 was lost",
    "macron ¯949 and 中\u0304747",
]
FOUND: dict[str, list[int]] = {
    # words, in any order and either case, and the beginnings of longer ones
    "FRIDAY deploy": [0],
    "dep blue": [0, 1, 2],
    "de": [],
    "blue monday friday": [0],
    # Chinese, Japanese, Korean, Thai: any substring
    "数据库": [5, 10],
    "据库": [5, 10],
    "据": [5, 10],
    "库据": [],
    "星期 部署": [4],
    "データベース": [6],
    "ﾃﾞｰﾀ": [6],
    "デプロイ": [6, 7],
    "タベ": [6],
    "金": [6],
    "데이터베이스": [8],
    "요일에": [8],
    "금": [8],
    "กรุงเทพ": [14],
    "ข้อมูล": [14],
    # mixed
    "api 数据": [10],
    "5432 東京": [10],
    # symbols
    "🚀": [9],
    "👩‍💻": [9],
    "green ✅": [9],
    "🚁": [],
    # folded
    "STRASSE größe": [11],
    "cafe\u0301 ÜNÏCÖDÉ": [12],
    "МИР привет": [13],
    # no language of its own
    "NEAR AND NOT": [17],
    '"blue" AND': [17],
    "case thing": [15],
    "internationalisation": [18],
    "internationalisations": [],
    "transaction20261124000017": [19],
    "transaction20261124000018": [],
    "949": [20],
    "747 中": [20],
    # one byte, and what is no word: as it is
    "+": [15],
    "++": [15],
    "%": [15],
    "_": [15],
    "(": [10, 17],
    "): ": [],
    '"': [17],
}
"""Query, and which texts of the corpus it finds."""


@pytest.fixture
async def both(
    sqlite_file: SqliteFile, postgres_database: PostgresDatabase, clock: ManualClock
) -> AsyncIterator[tuple[Plugin, Plugin]]:
    """A plugin on each database, with the same memories under the same ids, one namespace after the other."""
    async with (
        running(configured(sqlite_file), clock) as one,
        running(configured(postgres_database), clock) as other,
    ):
        for number, text in enumerate(CORPUS):
            fields: dict[str, Any] = {"id": str(uuid.UUID(int=number)), "pin": number % 5 == 3}
            fields["kind"] = ("fact", "summary", "checkpoint")[number % 3]
            for plugin in (one, other):
                await plugin.write(text, (HERE, TEAM)[number % 2], **fields)
        yield one, other


async def test_both_databases_find_the_same_in_the_same_order(both: tuple[Plugin, Plugin]) -> None:
    """Every query of the table, all its texts, with equal scores, whatever the namespaces, kinds and limits (ours)."""
    for query in [*FOUND, *CORPUS, None, "e", "E", "b", "блюз", "x y z"]:
        for fields in ({}, {"limit": 2}, {"kinds": ["summary", "fact"]}):
            one, other = [await plugin.search(query, HERE, TEAM, **fields) for plugin in both]
            assert one == other, query
    for query, numbers in FOUND.items():
        found = await both[0].found(query, HERE, TEAM)
        assert sorted(found) == sorted(CORPUS[number] for number in numbers), query


async def test_every_text_finds_itself_first(both: tuple[Plugin, Plugin]) -> None:
    """Who asks with the very words of a memory gets it before all others that have them (ours)."""
    for text in CORPUS:
        if text not in ("x", "blue"):  # one byte is looked for as it is; others say "blue" more often
            assert (await both[0].found(text, HERE, TEAM))[0] == text


async def test_the_better_a_memory_answers_the_earlier_it_comes(plugin: Plugin) -> None:
    """More often, as a whole word, in a shorter text, side by side; pins change nothing; scores fall (7.4)."""
    filler = "and nothing else of any interest " * 9
    best_first = [
        ["rocket rocket rocket", "a rocket here", "a rocket here " + filler],
        ["a rocket started up", "a rocketeer starts"],
        ["blue rocket is a thing of some size", "rocket is a thing of some blue size"],
    ]
    for query, texts in zip(["rocket", "rocket", "blue rocket"], best_first, strict=True):
        namespace = f"custom:{uuid.uuid4()}"
        for text in texts:  # the best is the oldest, so that age cannot be why it comes first
            await plugin.write(text, namespace, pin=text == texts[-1])
        found = await plugin.search(query, namespace)
        assert [memory["content"] for memory in found] == texts
        scores = [memory["score"] for memory in found]
        assert scores == sorted(scores, reverse=True)
        assert all(0 < score <= 1 for score in scores)
    for number in range(3):
        await plugin.write(f"even {number}")
    assert await plugin.found("even") == ["even 2", "even 1", "even 0"]  # of equals the newest first


HOSTILE = [
    "' OR 1=1 --",
    '"; DROP TABLE memory_records; --',
    "memory_terms MATCH 'x'",
    "terms:blue",
    "-blue ^blue blue* {terms}: (blue",
    'NEAR("blue" "house", 2)',
    "AND OR NOT",
    '"',
    "'",
    "\\",
    "%_\\%",
    "/%",
    "\x00",
    "blue\x00house",
    "\x00\x00 ",
    "+\x00+",
    "\x01\x1b[31m",
    "\u202eblue",
    "\ufeff",
    "\u0301",
    "\ud7ff\ue000\U0010ffff",
    "{}[]()<>|&!@#$^~`",
    "blue " * 2048,  # 10 kB, as all that follow
    "".join(chr(0x4E00 + number) for number in range(3400)),
    "".join(f"w{number} " for number in range(1800)),
    "x" * 10_240,
    "(" * 10_240,
    "🚀" * 2560,
    "e\u0301\u0302" * 2048,
]


async def test_no_query_is_an_error(both: tuple[Plugin, Plugin]) -> None:
    """Operators, quotes, NUL, control characters and 10 kB of anything are words or nothing: found or empty (ours)."""
    for query in HOSTILE:
        one, other = [await plugin.search(query, HERE, TEAM, TEAM, limit=100) for plugin in both]
        assert one == other, query
    many = [f"custom:n{number}" for number in range(98)]
    for query in HOSTILE[-7:]:
        assert await both[0].found(query, HERE, TEAM, *many) == await both[1].found(query, HERE, TEAM, *many)
    raw = b'{"namespaces": ["%s"], "query": "\\ud800 blue"}' % TEAM.encode()
    for plugin in both:
        reply = await plugin.http.post("/v1/search", content=raw)
        assert reply.status_code == 200, reply.text


async def test_brackets_in_brackets_are_looked_for_in_good_time(plugin: Plugin) -> None:
    """What is no word is looked for as it is, without going back at every character of a long text (ours)."""
    for _ in range(3):
        await plugin.write("(" * 131_072)
    with anyio.fail_after(5):
        assert await plugin.found("(" * 16_000 + ")") == []
        assert len(await plugin.found("(" * 16_000)) == 3


async def test_a_lone_surrogate_in_a_query_only_separates(plugin: Plugin) -> None:
    """It is replaced as in a memory, so a text with one is found by itself (ours)."""
    raw = b'{"content": "one \\ud83d two", "kind": "fact", "source": "agent"}'
    assert (await plugin.http.post(f"/v1/namespaces/{HERE}/memories", content=raw)).status_code == 201
    for query in (b"one \\ud83d two", b"\\udbff", b"two one"):
        body = b'{"namespaces": ["%s"], "query": "%s"}' % (HERE.encode(), query)
        reply = await plugin.http.post("/v1/search", content=body)
        assert [memory["content"] for memory in reply.json()["memories"]] == ["one \ufffd two"]


HAN = st.text(
    st.characters(min_codepoint=0x3041, max_codepoint=0x3096)
    | st.characters(min_codepoint=0x4E00, max_codepoint=0x9FA5)
    | st.characters(min_codepoint=0xAC00, max_codepoint=0xD7A3),
    min_size=1,
    max_size=24,
)
CUT = HAN.flatmap(lambda text: st.tuples(st.just(text), st.integers(0, len(text) - 1), st.integers(1, len(text))))
"""A text and where a part of it begins and how long it is at most."""


@given(cuts=st.lists(CUT, min_size=1, max_size=12))
@settings(max_examples=10, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_any_substring_of_an_unspaced_text_finds_it(plugin: Plugin, cuts: list[tuple[str, int, int]]) -> None:
    """Chinese, kana and Korean, any cut of a run; nothing is found that does not hold it (ours)."""
    namespace = f"custom:{uuid.uuid4()}"
    for text, _, _ in cuts:
        await plugin.write(f"a1 {text}。", namespace)
    for text, start, length in cuts:
        part = text[start : start + length]
        found = await plugin.found(part, namespace)
        assert f"a1 {text}。" in found
        assert all(part in each for each in found)


WORDS = st.lists(st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=15), min_size=1, max_size=8)
BETWEEN = st.sampled_from([" ", "\n", "-", ", ", "。", "_", "\u3000"])


@given(texts=st.lists(st.tuples(WORDS, BETWEEN, st.integers(0, 7)), min_size=1, max_size=12))
@settings(max_examples=10, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_any_word_of_a_text_finds_it(plugin: Plugin, texts: list[tuple[list[str], str, int]]) -> None:
    """Letters and digits of whatever script, in either case if they have two, also beside another word (ours)."""
    namespace = f"custom:{uuid.uuid4()}"
    for words, between, number in texts:
        text = between.join(words)
        await plugin.write(text, namespace)
        word = words[number % len(words)]
        for query in (word, f"{words[0]} {word.swapcase() if word.isascii() else word}"):
            if len(query.encode()) > 1:
                assert text in await plugin.found(query, namespace, limit=100), query


async def test_the_one_that_is_meant_is_found_behind_a_thousand_that_are_alike(
    plugin: Plugin, database: Database
) -> None:
    """Long words that differ at their end, as ids do, and a pair of characters that all have (ours)."""
    meant = f"{'9' * 40}0 丙甲乙丙丁"
    await plugin.write(meant)
    await plugin.write(f"{'9' * 40}1 甲乙 乙丙")
    copy_the_newest(database, 999)
    assert await plugin.found("9" * 40 + "0") == [meant]
    assert await plugin.found("甲乙丙") == [meant]


def copy_the_newest(database: Database, times: int) -> None:
    """Memories with the content and the terms of the newest one, straight into the tables: writing them takes long."""
    counting = f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {times})"
    columns = "namespace_no, content, kind, source, pin, created_at"
    database.sql(
        f"{counting} INSERT INTO memory_records (no, id, {columns}) SELECT no + i, 'copy ' || i, {columns} "
        "FROM n, memory_records WHERE no = (SELECT max(no) FROM memory_records)"
    )
    database.sql(
        f"{counting} INSERT INTO memory_terms (rowid, terms) SELECT rowid + i, terms "
        "FROM n, memory_terms WHERE rowid = (SELECT max(rowid) FROM memory_terms)"
    )

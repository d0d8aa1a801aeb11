"""Full text on both databases with the same results: rows are found by an index of terms and judged by their text.

A table of rows (`no`, the higher the newer; `content`) has a table of terms beside it (`rowid`, which is the row's
`no`; `terms`): FTS5 on SQLite, an array with a GIN index on PostgreSQL. A shelf is what is searched at one time, such
as a namespace; its name is part of every term, so that a search on one shelf never meets the rows of another.

A search reads a bounded number of rows, however many there are: the newest `POOL` that may match. So it takes about as
long among 100,000 rows as among 1,000, also for words that every row has.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    Dialect,
    ForeignKey,
    Index,
    MetaData,
    Select,
    Table,
    Text,
    TypeDecorator,
    bindparam,
    delete,
    insert,
    literal_column,
    or_,
    select,
    type_coerce,
)
from sqlalchemy.dialects import postgresql

from molecule_runtime.reference_platform.text_search import Query, index_terms

POOL = 200
"""Rows that are ranked in one go: of very many matches the newest."""
PAGES = 50
"""Pools that are read at most when the index has found texts that do not match, such as other words that begin alike:
10,000 rows take 0.1 s, and a match that is older than so many of them is not found."""
MOST_CHARACTERS = 2_000_000
"""Characters that one search ranks: of very long texts fewer are."""
NEWER_THAN_ALL = 2**63 - 1
TERMS_AT_ONCE = 16
"""Terms of a query that the index is asked for; the others are judged on the text."""


class Terms(TypeDecorator[list[str]]):
    """A list of terms: an array on PostgreSQL, a text that FTS5 takes apart on SQLite."""

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> Any:
        return dialect.type_descriptor(ARRAY(Text) if dialect.name == "postgresql" else Text())

    def process_bind_param(self, value: list[str] | None, dialect: Dialect) -> Any:
        return value if value is None or dialect.name == "postgresql" else " ".join(value)


@dataclass(frozen=True)
class Hit:
    """A row that matches, and how well: above 0, at most 1."""

    no: int
    score: float


class FullText:
    """The terms of one table of rows, in a table of its own that `create_terms_table` makes.

    `conditions` are those that the rows found by every search fulfil; what they compare with is bound by name.
    """

    def __init__(
        self, metadata: MetaData, name: str, rows: Table, conditions: Sequence[ColumnElement[bool]] = ()
    ) -> None:
        self._terms = Table(
            name,
            metadata,
            Column("rowid", BigInteger, ForeignKey(rows.c.no, ondelete="CASCADE"), primary_key=True),
            Column("terms", Terms, nullable=False),
            Index(f"ix_{name}_terms", "terms", postgresql_using="gin"),
        )
        no = self._terms.c.rowid
        # Made once: putting a statement together costs more than SQLite takes to run it.
        self._newest = (
            select(no, rows.c.content)
            .join_from(self._terms, rows, rows.c.no == no)
            .where(no < bindparam("older_than"), *conditions)
            .order_by(no.desc())
            .limit(POOL)
        )
        self._some = select(no).limit(POOL)
        matching = literal_column(name).op("MATCH", is_comparison=True)(bindparam("matching"))
        self._newest_matching, self._some_matching = self._newest.where(matching), self._some.where(matching)
        self._delete = delete(self._terms).where(no == bindparam("no"))
        self._insert = insert(self._terms)

    def put(self, connection: Connection, no: int, shelf: int | str, content: str) -> None:
        """Make a row findable by its content, and no longer by the one before. Deleting the row does the rest."""
        connection.execute(self._delete, {"no": no})
        connection.execute(self._insert, {"rowid": no, "terms": _on_shelf(shelf, index_terms(content))})

    def search(
        self,
        connection: Connection,
        query: Query,
        shelves: Sequence[int | str],
        *,
        limit: int,
        bound: Mapping[str, Any],
    ) -> list[Hit]:
        """The best rows on these shelves, best first; of equals the newest first. `bound` is for the conditions."""
        statement, bound = self._promising(connection, query, shelves, bound)
        found: list[tuple[float, int]] = []
        characters, older_than = 0, NEWER_THAN_ALL
        for _ in range(PAGES):
            pool = connection.execute(statement, {**bound, "older_than": older_than}).all()
            for no, content in pool:
                older_than = no
                score = query.score(content)
                if score is not None:
                    found.append((score, no))
                characters += len(content)
                if characters >= MOST_CHARACTERS:
                    break
            if len(pool) < POOL or len(found) >= limit or characters >= MOST_CHARACTERS:
                break
        return [Hit(no, score) for score, no in sorted(found, reverse=True)[:limit]]

    def _promising(
        self, connection: Connection, query: Query, shelves: Sequence[int | str], bound: Mapping[str, Any]
    ) -> tuple[Select[Any], Mapping[str, Any]]:
        """What selects the rows that may match, the newest first, and what is bound in it.

        One term that few rows have is enough: the index then need not go through the many that have the others.
        """
        terms = query.terms[:TERMS_AT_ONCE]
        for term in terms if len(terms) > 1 and connection.dialect.name == "postgresql" else ():
            few, these = self._holding(connection, self._some, self._some_matching, [term], shelves)
            if len(connection.execute(few, these).all()) < POOL:
                terms = (term,)
                break
        statement, these = self._holding(connection, self._newest, self._newest_matching, terms, shelves)
        return statement, {**bound, **these}

    def _holding(
        self,
        connection: Connection,
        statement: Select[Any],
        matching: Select[Any],
        terms: Sequence[str],
        shelves: Sequence[int | str],
    ) -> tuple[Select[Any], dict[str, str]]:
        """The statement for rows of the index with all these terms on one of the shelves, and what is bound in it.

        `matching` is the same for SQLite, where what to look for is bound.
        """
        alternatives = [_on_shelf(shelf, terms) for shelf in shelves]
        if connection.dialect.name == "postgresql":
            array = type_coerce(self._terms.c.terms, postgresql.ARRAY(Text))
            return statement.where(or_(*(array.contains(each) for each in alternatives))), {}
        expression = " OR ".join("({})".format(" AND ".join(f'"{term}"' for term in each)) for each in alternatives)
        return matching, {"matching": expression}


def create_terms_table(connection: Connection, name: str, rows: str) -> None:
    """For a migration: the table of terms `name` beside the table `rows`, whose key is `no`.

    A row that is deleted, also by a cascade, takes its terms along.
    """
    if connection.dialect.name == "postgresql":
        statements = [
            f"CREATE TABLE {name} (rowid BIGINT NOT NULL, terms TEXT[] NOT NULL, CONSTRAINT pk_{name} PRIMARY KEY "
            f"(rowid), CONSTRAINT fk_{name}_rowid FOREIGN KEY (rowid) REFERENCES {rows} (no) ON DELETE CASCADE)",
            f"CREATE INDEX ix_{name}_terms ON {name} USING gin (terms)",
        ]
    else:
        # No positions and no sizes: whether a text matches, and how well, is judged on the text. The tokenizer "ascii"
        # takes all characters beyond ASCII for letters, so that it leaves every term as it is.
        statements = [
            f"CREATE VIRTUAL TABLE {name} USING fts5(terms, tokenize = 'ascii', detail = none, columnsize = 0)",
            f"CREATE TRIGGER {name}_follow AFTER DELETE ON {rows} BEGIN DELETE FROM {name} WHERE rowid = old.no; END",
        ]
    for statement in statements:
        connection.exec_driver_sql(statement)


def _on_shelf(shelf: int | str, terms: Iterable[str]) -> list[str]:
    """The terms as the index has them. A shelf's name is digits, also hexadecimal ones, so that "n" ends it."""
    return [f"{shelf}n{term}" for term in terms]

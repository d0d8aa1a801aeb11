"""The cleaned name of a file: platform and agent, and other implementations of the contract, agree case by case (5.2).

Written as (name, cleaned) without any computation, so that the table can be held against an implementation in another
language.
"""

from __future__ import annotations

import pytest

from molecule_runtime.text import safe_file_name

TABLE = [
    # As it is.
    ("report.pdf", "report.pdf"),
    ("a-b_c.D9.tar.gz", "a-b_c.D9.tar.gz"),
    (".bashrc", ".bashrc"),
    ("...", "..."),
    ("-rf", "-rf"),
    ("CON", "CON"),
    ("nul.txt", "nul.txt"),
    ("COM1.log", "COM1.log"),
    ("a.", "a."),
    # Spaces and what is no letter, digit, dot, underscore or hyphen: one `_` for each code point.
    ("my file.txt", "my_file.txt"),
    ("  a  ", "__a__"),
    ("a\tb.txt", "a_b.txt"),
    ("a\nb.txt", "a_b.txt"),
    ("a\r\nX-Evil: 1", "a__X-Evil__1"),
    ("a\x00b.txt", "a_b.txt"),
    ("a\x7fb", "a_b"),
    ("a\"b'c.txt", "a_b_c.txt"),
    ("a;b=c.txt", "a_b_c.txt"),
    ("<script>.html", "_script_.html"),
    ("100%.txt", "100_.txt"),
    ("a:b|c?d*e", "a_b_c_d_e"),
    ("~root", "_root"),
    ("$(id).sh", "__id_.sh"),
    ("a@b,c+d.txt", "a_b_c_d.txt"),
    ("報告.pdf", "__.pdf"),
    ("レポート最終版.docx", "_______.docx"),
    ("é.txt", "_.txt"),
    ("e\u0301.txt", "e_.txt"),
    ("🌍.png", "_.png"),
    ("👩‍👩‍👧.png", "_____.png"),
    ("\u202egnp.exe", "_gnp.exe"),
    ("ａ１.txt", "__.txt"),
    ("٣.txt", "_.txt"),
    ("\ufeffa.txt", "_a.txt"),
    ("\ud800.txt", "_.txt"),
    # Only the base name; a backslash separates nothing.
    ("../../etc/passwd", "passwd"),
    ("/etc/passwd", "passwd"),
    ("a/b/c.txt", "c.txt"),
    ("a//b.txt", "b.txt"),
    ("./a.txt", "a.txt"),
    ("..\\..\\boot.ini", ".._.._boot.ini"),
    ("C:\\Users\\me\\a.txt", "C__Users_me_a.txt"),
    ("\\\\server\\share", "__server_share"),
    ("a/b\\c.txt", "b_c.txt"),
    ("a／b.txt", "a_b.txt"),
    ("dir/..", "file"),
    ("dir/.", "file"),
    # Nothing left. For "/" and "a/" others say "_" and "a": a name that ends in a slash names no file, we say.
    ("", "file"),
    (".", "file"),
    ("..", "file"),
    ("/", "file"),
    ("a/", "file"),
    ("//", "file"),
    ("../", "file"),
    # At most 100; an extension of at most 16 with its dot is spared.
    ("x" * 100, "x" * 100),
    ("x" * 101, "x" * 100),
    ("x" * 300, "x" * 100),
    ("x" * 96 + ".txt", "x" * 96 + ".txt"),
    ("x" * 97 + ".txt", "x" * 96 + ".txt"),
    ("x" * 300 + ".tar.gz", "x" * 97 + ".gz"),
    ("x" * 300 + "." + "y" * 15, "x" * 84 + "." + "y" * 15),
    ("x" * 300 + "." + "y" * 16, "x" * 100),
    ("x" * 300 + ".", "x" * 99 + "."),
    ("." + "x" * 300, "." + "x" * 99),
    ("世" * 300 + ".pdf", "_" * 96 + ".pdf"),
    ("世" * 100, "_" * 100),
    ("d/" * 200 + "a.txt", "a.txt"),
    ("x" * 300 + ".t t", "x" * 96 + ".t_t"),
]


def test_the_table_is_large_enough_and_says_nothing_twice() -> None:
    """At least 40 cases (the contract's own measure), all of them different."""
    assert len(TABLE) >= 40
    assert len({name for name, _ in TABLE}) == len(TABLE)


@pytest.mark.parametrize(("name", "cleaned"), TABLE, ids=range(len(TABLE)))
def test_a_name_is_cleaned_as_the_table_says(name: str, cleaned: str) -> None:
    """The five steps of the contract (5.2)."""
    assert safe_file_name(name) == cleaned


@pytest.mark.parametrize("name", [cleaned for _, cleaned in TABLE], ids=range(len(TABLE)))
def test_cleaning_a_clean_name_changes_nothing(name: str) -> None:
    """Both sides clean: what the platform cleaned is the same file for the agent (5.2)."""
    assert safe_file_name(name) == name

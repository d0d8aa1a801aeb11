"""Who on the machine may read the chats: what the platform makes on disk is its user's alone."""

from __future__ import annotations

from pathlib import Path

from molecule_mcp.cli.platform import DEFAULT_DATABASE
from tests.support.platform import PlatformProcess


def modes(*paths: Path) -> list[str]:
    return [oct(path.stat().st_mode & 0o777) for path in paths]


def database_files(database: Path) -> list[Path]:
    """The three files of a SQLite database in use."""
    return [database, *(database.with_name(database.name + suffix) for suffix in ("-wal", "-shm"))]


def test_the_default_database_and_its_directories_are_private(tmp_path: Path) -> None:
    """ours: the database holds every chat, the home directory may be open to others."""
    tmp_path.chmod(0o755)
    with PlatformProcess(DEFAULT_DATABASE, HOME=str(tmp_path)) as platform:
        platform.create_workspace("laptop")
        database = tmp_path / DEFAULT_DATABASE.relative_to("~")
        assert modes(*database_files(database)) == ["0o600"] * 3
    assert modes(database.parent, database.parent.parent, tmp_path) == ["0o700", "0o700", "0o755"]


def test_directories_that_are_there_keep_their_modes(tmp_path: Path) -> None:
    """What the user made stays as the user made it (ours)."""
    top = tmp_path / ".molecule-workspace"
    top.mkdir()
    top.chmod(0o755)
    with PlatformProcess(DEFAULT_DATABASE, HOME=str(tmp_path)):
        assert modes(top, top / "platform") == ["0o755", "0o700"]


def test_a_database_elsewhere_is_private_too_also_behind_a_link(tmp_path: Path) -> None:
    """Path, link and URL of --db are three ways to name a new file (ours)."""
    link = tmp_path / "link.sqlite3"
    link.symlink_to(tmp_path / "target.sqlite3")
    for given, made in (
        (tmp_path / "plain.sqlite3", tmp_path / "plain.sqlite3"),
        (link, tmp_path / "target.sqlite3"),
        (f"sqlite:///{tmp_path}/url.sqlite3", tmp_path / "url.sqlite3"),
    ):
        with PlatformProcess(given) as platform:  # type: ignore[arg-type]
            platform.create_workspace("laptop")
            assert modes(*database_files(made)) == ["0o600"] * 3


def test_a_database_that_is_there_keeps_its_mode(tmp_path: Path) -> None:
    """A file that was shared on purpose stays shared (ours)."""
    database = tmp_path / "platform.sqlite3"
    database.touch()
    database.chmod(0o640)
    with PlatformProcess(database) as platform:
        platform.create_workspace("laptop")
        assert modes(*database_files(database)) == ["0o640"] * 3

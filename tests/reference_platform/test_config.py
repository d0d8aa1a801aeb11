"""The platform's configuration."""

from __future__ import annotations

import pytest

from molecule_runtime.errors import SettingsError
from molecule_runtime.reference_platform.config import PlatformConfig


def read(env: dict[str, str], host: str = "127.0.0.1") -> PlatformConfig:
    return PlatformConfig.from_env(env, host=host, port=8080, database="p.sqlite3")


def test_defaults_of_an_empty_environment() -> None:
    """The contract's figures (contract 0.11, 1.8)."""
    assert read({}) == PlatformConfig(
        host="127.0.0.1",
        port=8080,
        database="p.sqlite3",
        admin_token="",
        environment="",
        enable_test_tokens=False,
        cors_origins=("http://localhost:3000", "http://localhost:3001"),
        external_url="",
        stale_after_s=90.0,
        sweep_interval_s=15.0,
        rate_limit=0,
        activity_retention_days=7.0,
        activity_cleanup_interval_hours=6.0,
        upload_max_file_bytes=25 * 1024 * 1024,
        upload_max_request_bytes=50 * 1024 * 1024,
        pending_uploads_ttl_s=86_400.0,
        pending_uploads_ack_retention_s=3600.0,
        pending_uploads_sweep_s=300.0,
        delegation_ledger_write=True,
        delegation_result_inbox_push=True,
        delegation_sweeper_interval_s=300.0,
        delegation_stuck_threshold_s=600.0,
        memory_plugin_url="",
        memory_plugin_timeout_s=2.0,
        memory_sidecar=None,
        mcp_allow_send_message=False,
    )


def test_every_variable_is_read() -> None:
    """Each name of the contract has its effect (contract 0.11, 1.8, 3.1)."""
    config = read(
        {
            "ADMIN_TOKEN": " secret ",
            "MOLECULE_ENV": "Production",
            "MOLECULE_ENABLE_TEST_TOKENS": "1",
            "CORS_ORIGINS": "https://a.example/, https://b.example",
            "EXTERNAL_PLATFORM_URL": "https://p.example/",
            "REMOTE_LIVENESS_STALE_AFTER": "20",
            "REMOTE_LIVENESS_SWEEP_S": "0.5",
            "RATE_LIMIT": " 600 ",
            "ACTIVITY_RETENTION_DAYS": "30",
            "ACTIVITY_CLEANUP_INTERVAL_HOURS": "1",
            "UPLOAD_MAX_FILE_BYTES": "104857600",
            "UPLOAD_MAX_REQUEST_BYTES": "10737418240",
            "PENDING_UPLOADS_TTL_S": "60",
            "PENDING_UPLOADS_ACK_RETENTION_S": "5",
            "PENDING_UPLOADS_SWEEP_S": "0.5",
            "DELEGATION_LEDGER_WRITE": "0",
            "DELEGATION_RESULT_INBOX_PUSH": " Off ",
            "DELEGATION_SWEEPER_INTERVAL_S": "1",
            "DELEGATION_STUCK_THRESHOLD_S": "2",
            "MEMORY_PLUGIN_URL": "http://memory.example:9100/",
            "MEMORY_PLUGIN_TIMEOUT": "5s",
            "MOLECULE_MCP_ALLOW_SEND_MESSAGE": "true",
        }
    )
    assert (config.admin_token, config.environment) == ("secret", "production")
    assert config.cors_origins == ("https://a.example", "https://b.example")
    assert (config.external_url, config.stale_after_s, config.sweep_interval_s) == ("https://p.example", 20.0, 0.5)
    assert (config.enable_test_tokens, config.rate_limit) == (True, 600)
    assert (config.activity_retention_days, config.activity_cleanup_interval_hours) == (30.0, 1.0)
    assert (config.upload_max_file_bytes, config.upload_max_request_bytes) == (100 * 1024**2, 10 * 1024**3)
    assert (config.pending_uploads_ttl_s, config.pending_uploads_ack_retention_s) == (60.0, 5.0)
    assert config.pending_uploads_sweep_s == 0.5
    assert (config.delegation_ledger_write, config.delegation_result_inbox_push) == (False, False)
    assert (config.delegation_sweeper_interval_s, config.delegation_stuck_threshold_s) == (1.0, 2.0)
    assert (config.memory_plugin_url, config.memory_plugin_timeout_s) == ("http://memory.example:9100", 5.0)
    assert config.mcp_allow_send_message is True
    assert "secret" not in repr(config)


@pytest.mark.parametrize("url", ["memory:9100", "ftp://memory", "http://:91", "http://m:x", "http://m:99999"])
def test_a_memory_plugin_at_no_address_is_refused(url: str) -> None:
    """It names the variable and does not repeat the value, which may hold a password (ours)."""
    with pytest.raises(SettingsError) as refusal:
        read({"MEMORY_PLUGIN_URL": url})
    (problem,) = refusal.value.problems
    assert problem.id == "memory_plugin_url"
    assert url not in problem.summary + problem.fix


@pytest.mark.parametrize("value", ["", "soon", "0", "-3", "nan", "inf"])
def test_bad_number_means_the_default(value: str) -> None:
    """An operator's typing error does not stop the platform (contract 2.4)."""
    seconds = ("REMOTE_LIVENESS_STALE_AFTER", "REMOTE_LIVENESS_SWEEP_S", "RATE_LIMIT", "PENDING_UPLOADS_TTL_S")
    seconds += ("PENDING_UPLOADS_ACK_RETENTION_S", "PENDING_UPLOADS_SWEEP_S")
    caps = ("UPLOAD_MAX_FILE_BYTES", "UPLOAD_MAX_REQUEST_BYTES")
    assert read(dict.fromkeys((*seconds, *caps), value)) == read({})


@pytest.mark.parametrize(
    ("env", "host", "development"),
    [
        ({}, "127.0.0.1", True),
        ({}, "localhost", True),
        ({}, "::1", True),
        ({"MOLECULE_ENV": "dev"}, "127.0.0.1", True),
        ({"MOLECULE_ENV": "DEVELOPMENT"}, "127.0.0.1", True),
        ({"MOLECULE_ENV": "production"}, "127.0.0.1", False),
        ({"MOLECULE_ENV": "staging"}, "127.0.0.1", False),
        ({"ADMIN_TOKEN": "x"}, "127.0.0.1", False),
        ({"ADMIN_TOKEN": "x", "MOLECULE_ENV": "dev"}, "0.0.0.0", False),
    ],
)
def test_development_mode(env: dict[str, str], host: str, development: bool) -> None:
    """On loopback without ADMIN_TOKEN unless MOLECULE_ENV says otherwise, never elsewhere (contract 0.1)."""
    assert read(env, host).development is development


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "molecule.example", ""])
def test_listening_to_a_network_needs_an_admin_token(host: str) -> None:
    """Such a platform does not start, and says what to do (contract 0.1)."""
    with pytest.raises(SettingsError) as refusal:
        read({"MOLECULE_ENV": "dev"}, host)
    (problem,) = refusal.value.problems
    assert problem.id == "admin_token_missing"
    assert read({"ADMIN_TOKEN": "x"}, host).host == host


def test_database_is_a_path_or_a_url() -> None:
    """A path means a SQLite file; a URL is taken as it is (ours)."""
    assert PlatformConfig(database="/x/p.db").database_url == "sqlite:////x/p.db"
    assert PlatformConfig(database="postgresql+asyncpg://u@h/d").database_url == "postgresql+asyncpg://u@h/d"


@pytest.mark.parametrize(
    ("env", "handed_out"),
    [
        ({}, True),
        ({"MOLECULE_ENV": "staging"}, True),
        ({"MOLECULE_ENV": "Production"}, False),
        ({"MOLECULE_ENV": "production", "MOLECULE_ENABLE_TEST_TOKENS": "1"}, True),
        ({"MOLECULE_ENV": "production", "MOLECULE_ENABLE_TEST_TOKENS": "true"}, False),
    ],
)
def test_tokens_for_tests(env: dict[str, str], handed_out: bool) -> None:
    """Everywhere but in production, and there by 1 (contract 1.8)."""
    assert read(env).test_tokens is handed_out

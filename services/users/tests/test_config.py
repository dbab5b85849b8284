"""The settings: what is missing or wrong is named, in one line, and secrets are not printed."""

from __future__ import annotations

import pytest

from libs.common.config import load_config, masked
from services.users.config import UsersConfig, read_config

GOOD = {
    "DATABASE_URL": "postgresql://users:database-secret@localhost/db",
    "INTERNAL_TOKEN": "internal-secret",
    "ADMIN_EMAIL": "admin@example.com",
    "ADMIN_PASSWORD": "admin-secret",
}


def load(monkeypatch: pytest.MonkeyPatch, **changes: str | None) -> UsersConfig:
    for name, value in {**GOOD, **changes}.items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    return load_config(read_config)


def test_the_defaults_are_those_of_the_contract(monkeypatch):
    config = load(monkeypatch)

    assert config.access_token_life.total_seconds() == 3600
    assert config.refresh_token_life.total_seconds() == 1_209_600
    assert config.active_kid == "development"
    assert (config.bcrypt_rounds, config.bcrypt_parallel) == (12, 2)
    assert (config.token_issuer, config.token_audience) == ("task-runner", "task-runner")


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("value", [None, ""])
def test_a_missing_setting_ends_the_process_with_one_line_that_names_it(monkeypatch, capsys, name, value):
    with pytest.raises(SystemExit) as ended:
        load(monkeypatch, **{name: value})

    printed = capsys.readouterr().err
    assert ended.value.code == 3
    assert name in printed
    assert printed.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ENVIRONMENT", "staging"),
        ("LOG_LEVEL", "loud"),
        ("DATABASE_URL", "users:hush@localhost/db"),
        ("ADMIN_EMAIL", "nobody"),
        ("ADMIN_PASSWORD", "short"),
        ("ADMIN_PASSWORD", "é" * 37),
        ("BCRYPT_ROUNDS", "3"),
        ("BCRYPT_ROUNDS", "99"),
        ("BCRYPT_PARALLEL", "0"),
        ("ACCESS_TOKEN_SECONDS", "0"),
        ("ACCESS_TOKEN_SECONDS", "an hour"),
        ("REFRESH_TOKEN_SECONDS", "-1"),
        ("TOKEN_ISSUER", ""),
        ("AUTH_ACTIVE_KID", ""),
    ],
)
def test_a_wrong_setting_is_named_and_its_secret_not_shown(monkeypatch, capsys, name: str, value: str):
    with pytest.raises(SystemExit):
        load(monkeypatch, **{name: value})

    printed = capsys.readouterr().err
    assert name in printed
    assert printed.count("\n") == 1
    assert "secret" not in printed


@pytest.mark.parametrize(("threads", "for_passwords"), [("64", 48), ("16", 12), ("1", 1)])
def test_a_quarter_of_the_threads_never_waits_for_a_password(monkeypatch, threads: str, for_passwords: int):
    assert load(monkeypatch, WEB_THREADS=threads).threads_for_passwords == for_passwords


def test_secrets_are_masked_when_printed(monkeypatch):
    printed = str(masked(load(monkeypatch)))

    assert "secret" not in printed
    assert "admin@example.com" in printed

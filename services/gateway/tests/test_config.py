from __future__ import annotations

import pytest
from environs import Env

from libs.common.config import load_config, masked
from services.gateway.config import read_config

COMPLETE = {
    "USERS_URL": "http://users:8001",
    "SCHEDULER_URL": "http://scheduler:8002",
    "SCHEDULER_LOOPS_URL": "http://scheduler-loops:8004/",
    "SCHEDULER_LOGS_URL": "http://scheduler-logs:8005",
    "REDIS_URL": "redis://:hunter2@redis:6379/0",
    "INTERNAL_TOKEN": "hunter3",
}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch):
    for name, value in COMPLETE.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def test_a_complete_environment_is_read_and_printed_without_secrets(environment):
    config = read_config(Env())

    assert config.scheduler_loops_url == "http://scheduler-loops:8004"
    assert str(config.login_rate) == "20 per 1 minute"
    assert "hunter" not in str(masked(config))


@pytest.mark.parametrize("name", COMPLETE)
def test_a_missing_variable_is_named_in_one_line(environment, capsys, name: str):
    environment.delenv(name)

    with pytest.raises(SystemExit):
        load_config(read_config)

    (line,) = capsys.readouterr().err.splitlines()
    assert name in line


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("USERS_URL", "users:8001"),
        ("SCHEDULER_URL", "http://scheduler:8002/api"),
        ("REDIS_URL", "http://redis"),
        ("INTERNAL_TOKEN", ""),
        ("LOGIN_RATE", "often"),
        ("TRUSTED_PROXIES", "-1"),
        ("LOG_LEVEL", "loud"),
    ],
)
def test_a_wrong_variable_is_named_in_one_line(environment, capsys, name: str, value: str):
    environment.setenv(name, value)

    with pytest.raises(SystemExit):
        load_config(read_config)

    (line,) = capsys.readouterr().err.splitlines()
    assert name in line

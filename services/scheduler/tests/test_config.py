"""Settings: what is missing or wrong ends the process with one line that names it."""

from __future__ import annotations

from datetime import timedelta

import pytest

from libs.common.config import EXIT_BAD_CONFIG, load_config, masked
from services.scheduler.config import read_http_config, read_loops_config

_ALL = {
    "DATABASE_URL": "postgresql://scheduler:secret-1@postgres/x",
    "REDIS_URL": "redis://:secret-2@redis",
    "BROKER_URL": "amqp://user:secret-3@rabbitmq",
    "USERS_URL": "http://users:8001",
    "INTERNAL_TOKEN": "secret-4",
}
_OPTIONAL = (
    "ENVIRONMENT",
    "EXECUTOR_LOST_SECONDS",
    "HEALTH_PORT",
    "IMAGE_ALLOW_LIST",
    "LOG_LEVEL",
    "MAX_TASK_CPUS",
    "MAX_TASK_MEMORY_MB",
    "QUOTA_CREATED_PER_MINUTE",
    "QUOTA_QUEUED",
    "QUOTA_RUNNING",
    "TOKEN_AUDIENCE",
    "TOKEN_ISSUER",
)


@pytest.fixture
def environment(monkeypatch):
    for name in (
        "MAX_TASK_CPUS",
        "MAX_TASK_MEMORY_MB",
        "IMAGE_ALLOW_LIST",
        "HEALTH_PORT",
        "LOG_LEVEL",
        "ENVIRONMENT",
        "EXECUTOR_LOST_SECONDS",
    ):
        monkeypatch.delenv(name, raising=False)
    for name, value in _ALL.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


@pytest.mark.parametrize(
    ("read", "name"),
    [(read_http_config, name) for name in _ALL if name != "BROKER_URL"]
    + [(read_loops_config, name) for name in _ALL],
)
def test_a_missing_setting_is_named(environment, capsys, read, name):
    environment.delenv(name)

    with pytest.raises(SystemExit) as exit_:
        load_config(read)

    assert exit_.value.code == EXIT_BAD_CONFIG
    (line,) = capsys.readouterr().err.splitlines()
    assert name in line


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("USERS_URL", "users"),
        ("DATABASE_URL", "scheduler@postgres/x"),
        ("REDIS_URL", "redis:6379"),
        ("MAX_TASK_CPUS", "0"),
        ("MAX_TASK_CPUS", "many"),
        ("MAX_TASK_MEMORY_MB", "1"),
        ("QUOTA_RUNNING", "0"),
        ("QUOTA_QUEUED", "lots"),
        ("QUOTA_CREATED_PER_MINUTE", "-1"),
        ("LOG_LEVEL", "loud"),
        ("ENVIRONMENT", "staging"),
    ],
)
def test_a_wrong_setting_is_named(environment, capsys, name, value):
    environment.setenv(name, value)

    with pytest.raises(SystemExit):
        load_config(read_http_config)

    assert name in capsys.readouterr().err


def test_a_broker_of_another_kind_is_named(environment, capsys):
    environment.setenv("BROKER_URL", "http://user:hush@rabbitmq")

    with pytest.raises(SystemExit):
        load_config(read_loops_config)

    printed = capsys.readouterr().err
    assert "BROKER_URL" in printed
    assert "hush" not in printed


@pytest.mark.parametrize("value", ["0", "9", "-300", "soon"])
def test_an_engine_is_never_given_up_at_once(environment, capsys, value):
    environment.setenv("EXECUTOR_LOST_SECONDS", value)

    with pytest.raises(SystemExit):
        load_config(read_loops_config)

    assert "EXECUTOR_LOST_SECONDS" in capsys.readouterr().err


def test_the_defaults_limit_a_task_as_the_api_does_and_allow_every_image(environment):
    config = load_config(read_http_config)

    assert (config.max_task_cpus, config.max_task_memory_mb, config.image_allow_list) == (64.0, 1_048_576, ())
    loops = load_config(read_loops_config)
    assert (loops.health_port, loops.executor_lost) == (8004, timedelta(seconds=300))


def test_the_allow_list_is_parted_by_commas(environment):
    environment.setenv("IMAGE_ALLOW_LIST", "busybox, registry.example/team/*,")

    assert load_config(read_http_config).image_allow_list == ("busybox", "registry.example/team/*")


def test_a_printed_config_shows_no_secret(environment):
    printed = str(masked(load_config(read_http_config))) + str(masked(load_config(read_loops_config)))

    assert "secret" not in printed.lower().replace("secret(***)", "")

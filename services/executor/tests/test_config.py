from __future__ import annotations

from pathlib import Path

import pytest
from environs import Env, EnvError

from libs.common.config import masked
from services.executor.config import read_config

NEEDED = {
    "BROKER_URL": "amqp://user:hidden@rabbitmq:5672/%2F",
    "SCHEDULER_URL": "http://scheduler:8002",
    "INTERNAL_TOKEN": "hidden",
}


@pytest.fixture
def read(monkeypatch):
    def read_with(**changes):
        for name in ("INSTANCE", "EXECUTOR_ID", "EXECUTOR_SLOTS", "ENVIRONMENT", "DOCKER_HOST"):
            monkeypatch.delenv(name, raising=False)
        for name, value in (NEEDED | changes).items():
            if value is None:
                monkeypatch.delenv(name, raising=False)
            else:
                monkeypatch.setenv(name, value)
        return read_config(Env())

    return read_with


def test_the_defaults_follow_the_instance(read):
    config = read(INSTANCE="mine")

    assert config.task_network == "mine-tasks"
    assert config.runtime == "docker"


def test_nothing_is_spooled_without_a_directory(read):
    assert read(EXECUTOR_SPOOL_DIR="").spool_directory is None
    config = read(EXECUTOR_SPOOL_DIR="/spool")
    assert (config.spool_directory, config.spool_mb) == (Path("/spool"), 256)


def test_networks_are_a_list(read):
    config = read(TASK_NETWORK_ALLOW="10.0.0.5/32, 10.1.0.0/16", TASK_NETWORK_DENY="")

    assert config.task_network_allow == ("10.0.0.5/32", "10.1.0.0/16")
    assert config.task_network_deny == ()


def test_pools_are_a_list_and_without_one_there_is_the_default(read):
    assert read(EXECUTOR_POOLS="gpu, big-1,gpu").pools == ("gpu", "big-1")
    assert read(EXECUTOR_POOLS="").pools == ("default",)


def test_secrets_stay_out_of_the_printed_config(read):
    assert "hidden" not in str(masked(read()))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("BROKER_URL", None),
        ("SCHEDULER_URL", "scheduler"),
        ("INTERNAL_TOKEN", ""),
        ("EXECUTOR_SLOTS", "0"),
        ("EXECUTOR_SLOTS", "many"),
        ("EXECUTOR_POOLS", "GPU"),
        ("EXECUTOR_POOLS", "a b"),
        ("INSTANCE", "a b"),
        ("TASK_NETWORK_DENY", "10.0.0.1/8"),
        ("PULL_TIMEOUT_SECONDS", "-1"),
        ("PULL_TIMEOUT_SECONDS", "0"),
        ("EXECUTOR_SPOOL_MB", "0"),
        ("EXECUTOR_RUNTIME", "podman"),
    ],
)
def test_a_bad_setting_is_named(read, name, value):
    with pytest.raises(EnvError, match=name):
        read(**{name: value})


def test_a_runtime_that_runs_nothing_is_refused_in_production(read):
    with pytest.raises(EnvError, match="EXECUTOR_RUNTIME"):
        read(EXECUTOR_RUNTIME="noop", ENVIRONMENT="production")

"""A lost settings file is written again from what the containers were given."""

from __future__ import annotations

from typing import Any

from deploy.recovery import find_settings, list_missing

EXAMPLE = """POSTGRES_PASSWORD=
RABBITMQ_PASSWORD=
GATEWAY_BIND=0.0.0.0
GATEWAY_PORT=8000
EXECUTORS=1
# LOG_LEVEL=info
"""


def container(service: str, *env: str, port: str = "") -> dict[str, Any]:
    bindings = {"8000/tcp": [{"HostIp": "127.0.0.1", "HostPort": port}]} if port else {}
    return {
        "Config": {"Labels": {"com.docker.compose.service": service}, "Env": list(env)},
        "HostConfig": {"PortBindings": bindings},
    }


def test_each_setting_comes_back_by_its_own_name() -> None:
    containers = [
        container("postgres", "POSTGRES_PASSWORD=a=b", "PATH=/bin", "PGDATA=/data"),
        container("rabbitmq", "RABBITMQ_DEFAULT_PASS=c"),
        container("gateway", "LOG_LEVEL=debug", "BIND_PORT=8000", "ENVIRONMENT", port="9000"),
        container("executor"),
        container("executor"),
    ]

    found = find_settings(containers, EXAMPLE)

    assert found == {
        "POSTGRES_PASSWORD": "a=b",
        "RABBITMQ_PASSWORD": "c",
        "GATEWAY_BIND": "127.0.0.1",
        "GATEWAY_PORT": "9000",
        "LOG_LEVEL": "debug",
        "EXECUTORS": "2",
    }
    assert list_missing(found, EXAMPLE) == []


def test_a_password_that_is_nowhere_is_missing() -> None:
    found = find_settings([container("postgres", "POSTGRES_PASSWORD=a")], EXAMPLE)

    assert list_missing(found, EXAMPLE) == ["RABBITMQ_PASSWORD"]


def test_a_password_that_opens_no_data_is_made_anew() -> None:
    assert list_missing({}, "REDIS_EXECUTOR_PASSWORD=\nREDIS_PASSWORD=\n") == ["REDIS_PASSWORD"]

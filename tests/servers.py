"""Real servers for component tests: PostgreSQL, Redis and RabbitMQ in containers, on free loopback ports.

Each is started when the first test asks for it and removed when the test run ends. Containers carry the id of
the process that started them, so a later run removes what a killed one left, and runs side by side leave each
other alone. A server that can't be started fails the test; it never skips it.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import pika
import psycopg
import pytest
import redis
from docker.errors import APIError, DockerException, ImageNotFound, NotFound
from docker.models.containers import Container
from psycopg import sql
from psycopg.conninfo import make_conninfo

from libs.common.config import Secret
from libs.common.migrate import migrate

OWNER_LABEL = "taskrunner.tests.owner"
START_SECONDS = 60
_PASSWORD = secrets.token_hex(16)

# A test's database may be lost with the machine, so it needn't wait for the disk.
_POSTGRES_COMMAND = ["postgres"] + [
    word
    for setting in (
        "fsync=off",
        "synchronous_commit=off",
        "full_page_writes=off",
        "max_connections=500",
        "log_min_messages=fatal",
    )
    for word in ("-c", setting)
]
# A new cluster takes about half of it.
SMALL_DISK_MIB = 160
_POSTGRES_DATA = {"/var/lib/postgresql/data": "rw,uid=999,gid=999,mode=700"}
# An idle Erlang machine spins by default, and a huge limit of open files makes it allocate as many slots.
_RABBITMQ_ENVIRONMENT = {"RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none"}
_OPEN_FILES = docker.types.Ulimit(name="nofile", soft=4096, hard=4096)


@dataclass(frozen=True, slots=True)
class Database:
    """One test's own database. `dsn` is the service's role, `owner_dsn` the superuser."""

    name: str
    dsn: str
    owner_dsn: str


MakeDatabase = Callable[..., Database]
MakeVhosts = Callable[[Sequence[str]], list[str]]


@pytest.fixture(scope="session")
def engine() -> Iterator[docker.DockerClient]:
    """The machine's container engine, without what an earlier, killed test run left behind."""
    try:
        client = docker.from_env(timeout=30)
        client.ping()
    except DockerException as error:
        pytest.fail(
            f"Component tests need a container engine, and none answers ({error}). "
            "Start one, or let `make test` do it (deploy/engine.sh).",
            pytrace=False,
        )
    _remove_leftovers(client)
    yield client
    client.close()


@pytest.fixture(scope="session")
def postgres_dsn(engine: docker.DockerClient) -> Iterator[str]:
    """The owner's DSN of a PostgreSQL server's own, empty database. It is shared: use `make_database`."""
    environment = {"POSTGRES_USER": "owner", "POSTGRES_PASSWORD": _PASSWORD, "POSTGRES_DB": "owner"}
    with _server(
        engine, "postgres:17", 5432, command=_POSTGRES_COMMAND, environment=environment, tmpfs=_POSTGRES_DATA
    ) as (container, port):
        dsn = make_conninfo(
            host="127.0.0.1", port=port, user="owner", password=_PASSWORD, dbname="owner", connect_timeout=5
        )
        _wait_until_it_answers(container, lambda: psycopg.connect(dsn).close(), psycopg.Error)
        yield dsn


@pytest.fixture
def small_postgres(engine: docker.DockerClient) -> Iterator[tuple[str, Container]]:
    """The owner's DSN of a server whose disk is small, and its container; it comes back by itself from a crash."""
    environment = {
        "POSTGRES_USER": "owner",
        "POSTGRES_PASSWORD": _PASSWORD,
        "POSTGRES_DB": "owner",
        "POSTGRES_INITDB_ARGS": "--data-checksums",
    }
    # The container stays, and so does what it keeps in memory.
    again = "while :; do docker-entrypoint.sh postgres -c max_wal_size=64MB -c min_wal_size=32MB; sleep 1; done"
    data = {"/var/lib/postgresql/data": f"rw,uid=999,gid=999,mode=700,size={SMALL_DISK_MIB}m"}
    with _server(
        engine, "postgres:17", 5432, entrypoint=["sh", "-c", again], environment=environment, tmpfs=data
    ) as (container, port):
        dsn = make_conninfo(
            host="127.0.0.1", port=port, user="owner", password=_PASSWORD, dbname="owner", connect_timeout=5
        )
        _wait_until_it_answers(container, lambda: psycopg.connect(dsn).close(), psycopg.Error)
        yield dsn, container


@pytest.fixture(scope="session")
def redis_url(engine: docker.DockerClient) -> Iterator[str]:
    """The URL of a Redis server that all tests share: use keys of your own, or `fresh_redis_url`."""
    command = ["redis-server", "--save", "", "--appendonly", "no"]
    with _server(engine, "redis:8", 6379, command=command) as (container, port):
        url = f"redis://127.0.0.1:{port}/0"
        _wait_until_it_answers(container, lambda: _with_redis(url, redis.Redis.ping), redis.RedisError)
        yield url


@pytest.fixture
def fresh_redis_url(redis_url: str) -> str:
    """The same server, emptied."""
    _with_redis(redis_url, redis.Redis.flushall)
    return redis_url


@pytest.fixture(scope="session")
def _broker(engine: docker.DockerClient) -> Iterator[tuple[Container, int]]:
    environment = {
        **_RABBITMQ_ENVIRONMENT,
        "RABBITMQ_DEFAULT_USER": "owner",
        "RABBITMQ_DEFAULT_PASS": _PASSWORD,
    }
    with _server(
        engine, "rabbitmq:4", 5672, environment=environment, hostname="rabbitmq", ulimits=[_OPEN_FILES]
    ) as (container, port):
        parameters = pika.URLParameters(_broker_url(port, "%2F"))
        _wait_until_it_answers(
            container,
            lambda: pika.BlockingConnection(parameters).close(),
            (pika.exceptions.AMQPError, OSError),
        )
        yield container, port


@pytest.fixture(scope="session")
def broker_url(_broker: tuple[Container, int]) -> str:
    """The URL of a RabbitMQ server that all tests share: purge the queues that you use."""
    return _broker_url(_broker[1], "%2F")


@pytest.fixture(scope="session")
def make_vhosts(_broker: tuple[Container, int]) -> MakeVhosts:
    """`make_vhosts(["a", "b"])`: their URLs, each a broker of its own for whoever connects there."""

    def make(names: Sequence[str]) -> list[str]:
        # In one call: each start of the broker's own tool takes seconds.
        steps = ", ".join(
            f'rabbit_vhost:add(<<"{name}">>, <<"owner">>), '
            "rabbit_auth_backend_internal:set_permissions("
            f'<<"owner">>, <<"{name}">>, <<".*">>, <<".*">>, <<".*">>, <<"owner">>)'
            for name in names
        )
        result = _broker[0].exec_run(["rabbitmqctl", "eval", f"{steps}."])
        assert result.exit_code == 0, result.output.decode(errors="replace")
        return [_broker_url(_broker[1], name) for name in names]

    return make


@pytest.fixture(scope="session")
def _templates(postgres_dsn: str) -> dict[str, str]:
    """Service → its migrated template database; migrating once and copying is faster than migrating each time."""
    return {}


@pytest.fixture
def make_database(postgres_dsn: str, _templates: dict[str, str]) -> Iterator[MakeDatabase]:
    """`make_database("users")`: a database of this test's own, migrated for that service; "" leaves it empty."""
    with _databases(postgres_dsn, _templates) as make:
        yield make


@pytest.fixture(scope="session")
def make_shared_database(postgres_dsn: str, _templates: dict[str, str]) -> Iterator[MakeDatabase]:
    """The same for the whole test run: for packages with many tests, which clean up between them."""
    with _databases(postgres_dsn, _templates) as make:
        yield make


@contextmanager
def _databases(postgres_dsn: str, templates: dict[str, str]) -> Iterator[MakeDatabase]:
    made: list[str] = []

    def make(service: str = "") -> Database:
        if service and service not in templates:
            templates[service] = _make_template(postgres_dsn, service)
        name = f"test_{secrets.token_hex(6)}"
        # Without fsync a copy of the files is made, and dropped, faster than one through the log.
        query = "CREATE DATABASE {} TEMPLATE {} STRATEGY FILE_COPY"
        _execute(postgres_dsn, query, name, templates.get(service, "template1"))
        made.append(name)
        owner_dsn = make_conninfo(postgres_dsn, dbname=name)
        dsn = make_conninfo(owner_dsn, user=service) if service else owner_dsn
        return Database(name=name, dsn=dsn, owner_dsn=owner_dsn)

    yield make

    for name in made:
        _execute(postgres_dsn, "DROP DATABASE {} WITH (FORCE)", name)


def _broker_url(port: int, vhost: str) -> str:
    return f"amqp://owner:{_PASSWORD}@127.0.0.1:{port}/{vhost}"


def _make_template(dsn: str, service: str) -> str:
    name = f"template_{service}"
    _execute(dsn, "CREATE DATABASE {}", name)
    migrate(make_conninfo(dsn, dbname=name), service=service, password=Secret(_PASSWORD))
    return name


def _execute(dsn: str, query: str, *names: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(sql.SQL(query).format(*map(sql.Identifier, names)))


def _with_redis(url: str, call: Callable[[Any], object]) -> None:
    with redis.Redis.from_url(url) as client:
        call(client)


@contextmanager
def _server(engine: docker.DockerClient, image: str, port: int, **options: Any) -> Iterator[tuple[Container, int]]:
    """A running container of `image` and the loopback port that leads to its `port`; removed at the end."""
    # The engine picks a free port for None, which the types of the SDK don't know.
    ports: dict[str, Any] = {f"{port}/tcp": ("127.0.0.1", None)}
    try:
        container = engine.containers.create(
            image, detach=True, labels={OWNER_LABEL: _own_mark()}, ports=ports, **options
        )
    except ImageNotFound:
        pytest.fail(
            f"The image {image} is missing: run deploy/images.sh, or `docker pull {image}`.", pytrace=False
        )
    try:
        container.start()
        container.reload()
        (binding,) = container.ports[f"{port}/tcp"] or []
        yield container, int(binding["HostPort"])
    finally:
        _remove(container)


def _wait_until_it_answers(
    container: Container, attempt: Callable[[], object], errors: type[Exception] | tuple[type[Exception], ...]
) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            attempt()
        except errors as error:
            container.reload()
            if container.status == "exited" or time.monotonic() > deadline:
                tail = container.logs(tail=20).decode(errors="replace")
                pytest.fail(f"{container.image} did not come up: {error}\n{tail}", pytrace=False)
            time.sleep(0.1)
        else:
            return


def _remove_leftovers(engine: docker.DockerClient) -> None:
    for container in engine.containers.list(all=True, filters={"label": OWNER_LABEL}, ignore_removed=True):
        if _owner_is_gone(container.labels):
            _remove(container)


def _remove(container: Container) -> None:
    try:
        container.remove(force=True, v=True)
    except NotFound:
        pass
    except APIError as error:
        # Another run is removing the same leftover.
        if error.status_code != 409:
            raise


def _own_mark() -> str:
    return f"{socket.gethostname()}/{os.getpid()}/{_start_of(os.getpid())}"


def _owner_is_gone(labels: Mapping[str, str]) -> bool:
    host, pid, start = labels[OWNER_LABEL].rsplit("/", 2)
    if host != socket.gethostname():
        return False
    return _start_of(int(pid)) != start


def _start_of(pid: int) -> str:
    """When the process started, in clock ticks since the machine's start, so that a reused pid isn't mistaken."""
    try:
        # The name, in parentheses, may hold spaces; the start is the 22nd field, the 20th after it.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except FileNotFoundError:
        return "gone"

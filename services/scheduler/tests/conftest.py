"""The scheduler's app over a real database, with tokens signed by a key made here."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from uuid import UUID

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from flask import Flask
from flask.testing import FlaskClient

from libs.common.clock import utc_now
from libs.common.config import Secret
from libs.common.postgres import Pool, open_pool
from services.scheduler import line, run_store
from services.scheduler.app import build_app
from services.scheduler.config import HttpConfig, LogsConfig
from services.scheduler.dispatch import DispatchConfig, Dispatcher
from services.scheduler.log_app import build_log_app
from services.scheduler.log_follow import FollowLimits, Follows
from services.scheduler.sync import SyncConfig
from services.scheduler.tests.executors import SERVICE_TOKEN, FakeExecutor
from services.scheduler.users_client import Deletion

KID = "test"
_PRIVATE_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)


class TestKeys:
    __test__ = False

    def find_key(self, kid: str) -> Any:
        return _PRIVATE_KEY.public_key() if kid == KID else None


class FakeUsers:
    """The users service as far as the scheduler asks it."""

    def __init__(self) -> None:
        self.known: set[UUID] = set()
        self.deletions: list[Deletion] = []

    def exists(self, user_id: UUID) -> bool:
        return user_id in self.known

    def list_deletions(self, since: Any) -> list[Deletion]:
        return [deletion for deletion in self.deletions if deletion.deleted_at >= since]


class CountingWaker:
    """Counts wake-ups, and keeps who was to stop something, instead of sending hints."""

    def __init__(self) -> None:
        self.count = 0
        self.outputs: list[str] = []
        self.stops: list[str] = []

    def wake(self) -> None:
        self.count += 1

    def hint_output(self, task_ids) -> None:
        self.outputs += map(str, task_ids)

    def hint_stop(self, executor_ids) -> None:
        self.stops += executor_ids

    def ping(self) -> None:
        """Always there."""


class FakePublisher:
    """A broker that takes everything, or nothing."""

    def __init__(self) -> None:
        self.is_there = True
        self.confirms = True
        # Messages that nobody has taken from it yet.
        self.waiting = 1
        self.sent: list[str] = []

    def answers(self, *, timeout_seconds):
        return self.is_there

    def count(self, queue_name, *, timeout_seconds):
        return self.waiting if self.is_there else None

    def publish(self, outgoing, *, timeout_seconds):
        self.sent += [entry.id for entry in outgoing]
        return {entry.id for entry in outgoing} if self.confirms else set()


class ApiClient:
    """Calls the API as one user."""

    def __init__(self, client: FlaskClient, user_id: UUID, roles: list[str]) -> None:
        self.user_id = user_id
        self._client = client
        self._headers = {"Authorization": f"Bearer {make_token(user_id, roles)}"}

    def __call__(self, method: str, path: str, **kwargs: Any) -> Any:
        return self._client.open(path, method=method, headers=self._headers | kwargs.pop("headers", {}), **kwargs)

    def create(self, **fields: Any) -> dict[str, Any]:
        """A task, by default one that is due now."""
        answer = self("POST", "/api/tasks/", json={"image": "busybox", **fields})
        assert answer.status_code == 201, answer.json
        return answer.json

    def get(self, task_id: str) -> dict[str, Any]:
        answer = self("GET", f"/api/tasks/{task_id}")
        assert answer.status_code == 200, answer.json
        return answer.json


def make_token(user_id: UUID, roles: list[str], **claims: Any) -> str:
    now = utc_now()
    return jwt.encode(
        {
            "iss": "task-runner",
            "aud": "task-runner",
            "sub": str(user_id),
            "roles": roles,
            "iat": now,
            "exp": now + timedelta(hours=1),
            "jti": uuid.uuid4().hex,
            "sid": str(uuid.uuid4()),
            "ver": 1,
            **claims,
        },
        _PRIVATE_KEY,
        algorithm="RS256",
        headers={"kid": KID},
    )


def make_config(**changes: Any) -> HttpConfig:
    return HttpConfig(
        **{
            "environment": "development",
            "log_level": "info",
            "database_url": Secret("unused"),
            "redis_url": Secret("unused"),
            "users_url": "http://users",
            "internal_token": Secret(SERVICE_TOKEN),
            "token_issuer": "task-runner",
            "token_audience": "task-runner",
            "max_task_cpus": 64.0,
            "max_task_memory_mb": 1_048_576,
            "image_allow_list": (),
            "storage_path": None,
            "storage_min_free_mb": 0,
            "quota_running": None,
            "quota_queued": None,
            "quota_created_per_minute": None,
            **changes,
        }
    )


@pytest.fixture
def database(make_database) -> Any:
    return make_database("scheduler")


@pytest.fixture
def pool(database) -> Iterator[Pool]:
    with open_pool(database.dsn, name="test", max_size=8) as opened:
        yield opened


@pytest.fixture
def users() -> FakeUsers:
    return FakeUsers()


@pytest.fixture
def waker() -> CountingWaker:
    return CountingWaker()


@pytest.fixture
def follows(pool) -> Iterator[Follows]:
    """Without hints; it looks often."""
    limits = FollowLimits(poll_seconds_without_hints=0.02, keep_alive_seconds=0.2, page_bytes=1000)
    follows = Follows(pool=pool, limits=limits, has_hints=lambda: False)
    yield follows
    follows.stop()


@pytest.fixture
def log_app(pool, follows) -> Flask:
    config = LogsConfig(
        environment="development",
        log_level="info",
        database_url=Secret("unused"),
        redis_url=Secret("unused"),
        users_url="http://users",
        token_issuer="task-runner",
        token_audience="task-runner",
    )
    return build_log_app(config, pool=pool, keys=TestKeys(), follows=follows, checks=[])


def _serve_logs_too(app: Flask, log_app: Flask) -> None:
    """As the gateway does: output is another process's part of the tasks' paths."""
    tasks = app.wsgi_app

    def serve(environ, start_response):
        is_log = environ["PATH_INFO"].endswith("/logs")
        return (log_app.wsgi_app if is_log else tasks)(environ, start_response)

    app.wsgi_app = serve  # type: ignore[method-assign]


@pytest.fixture
def make_client(pool, users, waker, log_app, monkeypatch):
    # What is answered about the line is never older than the question.
    monkeypatch.setattr(line, "FRESH_SECONDS", 0.0)

    def make(sync_config: SyncConfig | None = None, **config: Any) -> FlaskClient:
        app = build_app(
            make_config(**config),
            pool=pool,
            keys=TestKeys(),
            users=users,
            waker=waker,
            sync_config=sync_config,
        )
        _serve_logs_too(app, log_app)
        return app.test_client()

    return make


@pytest.fixture
def client(make_client) -> FlaskClient:
    return make_client()


@pytest.fixture
def make_caller():
    """A user of another app than `client`, over the same database."""

    def make(client: FlaskClient, user_id: UUID | None = None) -> ApiClient:
        return ApiClient(client, user_id or uuid.uuid4(), ["user"])

    return make


@pytest.fixture
def user(client, users) -> ApiClient:
    return _sign_up(client, users)


@pytest.fixture
def other(client, users) -> ApiClient:
    return _sign_up(client, users)


def _sign_up(client: FlaskClient, users: FakeUsers) -> ApiClient:
    signed_up = ApiClient(client, uuid.uuid4(), ["user"])
    users.known.add(signed_up.user_id)
    return signed_up


@pytest.fixture
def admin(client) -> ApiClient:
    return ApiClient(client, uuid.uuid4(), ["user", "admin"])


@pytest.fixture
def settled_client(make_client, pool) -> FlaskClient:
    """As if database and scheduler had been up for long: leases that run out are taken over at once."""
    with pool.connection() as connection:
        run_store.beat(connection, "http")
        connection.execute("UPDATE scheduler.parts SET since = now() - interval '1 hour'")
    return make_client(SyncConfig(settle=timedelta(0)))


@pytest.fixture
def publisher():
    return FakePublisher()


@pytest.fixture
def dispatcher(pool, publisher):
    return Dispatcher(pool=pool, publisher=publisher, config=DispatchConfig())


@pytest.fixture
def executor(client):
    executor = FakeExecutor(client)
    executor.sync()
    return executor


@pytest.fixture
def queue(user, executor, dispatcher, publisher):
    """Create a task and dispatch it: the task and the id of its run."""

    def queue(**fields):
        task = user.create(**fields)
        assert dispatcher.run_once().dispatched == 1
        return task, publisher.sent[-1]

    return queue

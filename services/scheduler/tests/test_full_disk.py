"""A database without room: users are told to come back, and nothing that was answered is lost."""

from __future__ import annotations

import uuid
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from libs.common.config import Secret
from libs.common.migrate import migrate
from libs.common.postgres import open_pool
from services.scheduler.dispatch import DispatchConfig, Dispatcher
from services.scheduler.tests.conftest import ApiClient
from services.scheduler.tests.executors import FakeExecutor
from tests.polling import wait_until

pytestmark = pytest.mark.component

PASSWORD = "password"
REFUSALS = 20
LARGE = {f"NAME_{number}": uuid.uuid4().hex * 1000 for number in range(8)}


@pytest.fixture
def pool(small_postgres):
    dsn, _ = small_postgres
    migrate(dsn, service="scheduler", password=Secret(PASSWORD))
    with open_pool(make_conninfo(dsn, user="scheduler", password=PASSWORD), name="test", max_size=4) as opened:
        yield opened


def create(user: ApiClient):
    return user("POST", "/api/tasks/", json={"image": "busybox", "environment": LARGE})


def test_a_database_whose_disk_is_full_refuses_with_503_and_loses_nothing(
    small_postgres, pool, client, user, publisher
):
    dsn, container = small_postgres
    executor = FakeExecutor(client)
    executor.sync()
    running = user.create()
    Dispatcher(pool=pool, publisher=publisher, config=DispatchConfig()).run_once()
    (run_id,) = publisher.sent
    executor.claim(run_id)
    executor.start(run_id)
    container.exec_run(["sh", "-c", "cat /dev/zero >$PGDATA/ballast"], user="999")

    accepted: list[Any] = []
    refused: list[Any] = []
    while len(refused) < REFUSALS:
        answer = create(user)
        (accepted if answer.status_code == 201 else refused).append(answer)
    report = executor.post(reports=[])

    assert {answer.status_code for answer in refused} == {503}
    assert all(int(answer.headers["Retry-After"]) > 0 for answer in refused)
    assert {answer.json["code"] for answer in refused} == {"database_unavailable"}
    assert report.status_code in (200, 503)

    container.exec_run(["sh", "-c", "rm $PGDATA/ballast"], user="999")
    wait_until(lambda: create(user).status_code == 201, 60.0)

    # What ran meanwhile is reported as if nothing had been.
    executor.finish(run_id, result=b"done")
    assert user.get(running["id"])["status"] == "completed"
    for answer in accepted:
        task = user.get(answer.json["id"])
        assert task["status"] == "pending"
        assert task["environment"] == LARGE
    # Every page is read, with its checksum.
    with psycopg.connect(dsn) as connection:
        for table in ("tasks", "runs", "leases", "executors", "run_logs"):
            query = sql.SQL("SELECT sum(hashtext({0}::text)) FROM scheduler.{0}")
            connection.execute(query.format(sql.Identifier(table)))

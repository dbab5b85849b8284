"""What is sent twice with one Idempotency-Key is done once."""

from __future__ import annotations

import json
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common.clock import format_time, utc_now
from libs.common.errors import Conflict
from libs.common.postgres import open_pool
from services.scheduler import line
from services.scheduler.idempotency import Answer, Once, RequestKey, make_fingerprint
from services.scheduler.sweep import SweepConfig, Sweeper

component = pytest.mark.component
LATER = format_time(utc_now() + timedelta(days=1))
TASK = {"image": "busybox", "scheduledAt": LATER}
CREATIONS = [("/api/tasks/", TASK), ("/api/tasks/batch", {"tasks": [TASK, TASK]})]

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(body=st.dictionaries(st.text(), values, max_size=4))
def test_the_order_of_keys_does_not_make_another_request(body):
    turned = dict(reversed(body.items()))

    assert make_fingerprint("POST", "/api/tasks/", body) == make_fingerprint("POST", "/api/tasks", turned)


@given(one=values, other=values)
def test_another_body_path_or_method_makes_another_request(one, other):
    fingerprint = make_fingerprint("POST", "/a", {"x": one})

    assert fingerprint != make_fingerprint("POST", "/b", {"x": one})
    assert fingerprint != make_fingerprint("PUT", "/a", {"x": one})
    is_same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (fingerprint == make_fingerprint("POST", "/a", {"x": other})) == is_same


def post(user, path: str, body: Any, key: str = "k1") -> Any:
    return user("POST", path, json=body, headers={"Idempotency-Key": key})


def count_tasks(user) -> int:
    return len(user("GET", "/api/tasks/", query_string={"limit": 200}).json["items"])


@component
@pytest.mark.parametrize(("path", "body"), CREATIONS)
def test_the_same_request_gets_the_first_answer_again(user, path, body):
    first = post(user, path, body)
    created = count_tasks(user)

    second = post(user, path.rstrip("/"), dict(reversed(body.items())))

    assert (first.status_code, second.status_code) == (201, 201)
    assert second.data == first.data
    assert second.headers.get("Location") == first.headers.get("Location")
    assert "Idempotency-Replayed" not in first.headers
    assert second.headers["Idempotency-Replayed"] == "true"
    assert count_tasks(user) == created


@component
def test_a_rerun_is_made_once(user):
    path = f"/api/tasks/{user.create(scheduledAt=LATER)['id']}/rerun"
    headers = {"Idempotency-Key": "again"}

    first, second = (user("POST", path, headers=headers) for _ in range(2))

    assert second.json == first.json
    assert second.headers["Idempotency-Replayed"] == "true"
    assert count_tasks(user) == 2


@component
def test_a_bulk_rerun_is_made_once(user):
    body = {"ids": [user.create(scheduledAt=LATER)["id"] for _ in range(2)]}

    first, second = post(user, "/api/tasks/rerun", body), post(user, "/api/tasks/rerun", body)

    assert (first.status_code, second.status_code) == (200, 200)
    assert first.json == second.json == {"matched": 2, "changed": 2}
    assert second.headers["Idempotency-Replayed"] == "true"
    assert count_tasks(user) == 4


@component
def test_a_key_that_was_used_for_something_else_is_422(user):
    post(user, "/api/tasks/", TASK)

    for path, body in [
        ("/api/tasks/", TASK | {"priority": 6}),
        ("/api/tasks/batch", {"tasks": [TASK]}),
    ]:
        answer = post(user, path, body)

        assert answer.status_code == 422
        assert answer.json["code"] == "idempotency_key_reused"
        assert list(answer.json["errors"]) == ["Idempotency-Key"]
    assert count_tasks(user) == 1


@component
def test_another_users_key_is_another_key(user, other):
    mine, theirs = post(user, "/api/tasks/", TASK), post(other, "/api/tasks/", TASK)

    assert mine.json["id"] != theirs.json["id"]
    assert "Idempotency-Replayed" not in theirs.headers


@component
def test_a_request_that_failed_may_be_sent_again_with_its_key(admin, user, users):
    body = TASK | {"userId": str(user.user_id)}
    users.known.remove(user.user_id)
    refused = post(admin, "/api/tasks/", body)
    users.known.add(user.user_id)

    accepted = post(admin, "/api/tasks/", body)

    assert (refused.status_code, accepted.status_code) == (422, 201)
    assert "Idempotency-Replayed" not in accepted.headers


@component
def test_the_first_answer_comes_again_whatever_became_of_the_task_and_of_the_limits(user, pool):
    body = {"image": "busybox", "scheduledAt": format_time(utc_now() - timedelta(seconds=59))}
    first = post(user, "/api/tasks/", body)
    user("DELETE", f"/api/tasks/{first.json['id']}")
    with pool.connection() as connection:
        # As if it had been sent a minute ago: by now its time lies too far in the past.
        fingerprint = make_fingerprint("POST", "/api/tasks", body | {"scheduledAt": "2026-01-01T00:00:00Z"})
        connection.execute("UPDATE scheduler.idempotency_keys SET fingerprint = %s", [fingerprint])

    second = post(user, "/api/tasks/", body | {"scheduledAt": "2026-01-01T00:00:00Z"})

    assert (second.status_code, second.data) == (201, first.data)
    assert count_tasks(user) == 0


@component
@pytest.mark.parametrize("key", ["", " ", "a b", "a" * 129, "ü", "a\tb", "\x7f"])
def test_a_key_that_is_none_is_422(user, key):
    answer = post(user, "/api/tasks/", TASK, key)

    assert answer.status_code == 422, answer.json
    assert list(answer.json["errors"]) == ["Idempotency-Key"]
    assert count_tasks(user) == 0


@component
@pytest.mark.parametrize("key", ["a", "~" * 128, "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}"])
def test_every_visible_character_may_be_in_a_key(user, key):
    assert post(user, "/api/tasks/", TASK, key).json == post(user, "/api/tasks/", TASK, key).json


@component
def test_of_many_requests_at_once_with_one_key_one_is_done(user, monkeypatch):
    # The one that works must not need another connection: those that wait for it have them all.
    monkeypatch.setattr(line, "FRESH_SECONDS", 0.0)
    together = threading.Barrier(12)

    def send(_number: int) -> Any:
        together.wait()
        return post(user, "/api/tasks/", TASK)

    with ThreadPoolExecutor(12) as threads:
        answers = list(threads.map(send, range(12)))

    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.data for answer in answers}) == 1
    assert sum("Idempotency-Replayed" not in answer.headers for answer in answers) == 1
    assert count_tasks(user) == 1


@component
def test_a_request_waits_for_the_one_with_its_key_and_does_the_work_when_that_one_fails(pool):
    started, fail = threading.Event(), threading.Event()
    key = RequestKey(user_id=uuid.uuid4(), key="k", fingerprint=b"f")

    def fails(_connection: Any) -> str:
        started.set()
        fail.wait(10)
        raise ValueError("on purpose")

    once: Once[str] = Once(key, lambda result: Answer(201, result.encode()))
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(once.run, pool, fails)
        started.wait(10)
        second = threads.submit(once.run, pool, lambda _connection: "done")
        wait_for_a_blocked_query(pool)
        fail.set()

        with pytest.raises(ValueError, match="on purpose"):
            first.result(10)
        assert second.result(10) == Answer(201, b"done")
    assert once.find(pool) == Answer(201, b"done", is_replayed=True)


@component
def test_a_request_that_waits_too_long_for_another_with_its_key_is_409(pool, database):
    key = RequestKey(user_id=uuid.uuid4(), key="k", fingerprint=b"f")
    once: Once[bytes] = Once(key, lambda result: Answer(201, result))

    def send_again(_connection: Any) -> bytes:
        with open_pool(database.dsn, name="impatient", max_size=1) as impatient:
            with impatient.connection() as connection:
                connection.execute("SET lock_timeout = '10ms'")
            with pytest.raises(Conflict) as refused:
                once.run(impatient, lambda _connection: b"second")
        assert refused.value.code == "idempotency_key_in_use"
        assert refused.value.retry_after_seconds
        return b"first"

    assert once.run(pool, send_again).body == b"first"


@component
def test_a_key_is_forgotten_after_a_day(user, pool, dispatcher, users, waker):
    first = post(user, "/api/tasks/", TASK)
    kept = post(user, "/api/tasks/", TASK, "other")
    with pool.connection() as connection:
        connection.execute(
            "UPDATE scheduler.idempotency_keys SET created_at = created_at - interval '24 hours' WHERE key = 'k1'"
        )

    # It counts as forgotten at once, and the sweep removes it later.
    again = post(user, "/api/tasks/", TASK | {"priority": 1})

    assert again.status_code == 201
    assert again.json["id"] != first.json["id"]
    with pool.connection() as connection:
        connection.execute(
            "UPDATE scheduler.idempotency_keys SET created_at = now() - interval '25 hours' WHERE key = 'k1'"
        )
    sweeper = Sweeper(
        pool=pool, dispatcher=dispatcher, users=users, config=SweepConfig(), wake_dispatch=waker.wake
    )
    assert sweeper.forget_idempotency_keys() == 1
    assert post(user, "/api/tasks/", TASK, "other").json == kept.json


def wait_for_a_blocked_query(pool: Any) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with pool.connection() as connection:
            blocked = connection.execute(
                "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
            ).fetchall()
        if blocked:
            return
    pytest.fail("nobody waits")

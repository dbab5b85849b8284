"""Quotas: what is set, what it comes to, and that it is exact whoever asks at once."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common.clock import format_time, utc_now
from services.scheduler.quota_store import Creation
from services.scheduler.quotas import decide_wait_seconds
from services.scheduler.sweep import SweepConfig, Sweeper
from services.scheduler.tests.conftest import ApiClient
from services.scheduler.users_client import Deletion


def set_quota(admin, user, **quota):
    answer = admin("PUT", f"/api/users/{user.user_id}/quota", json=quota)
    assert answer.status_code == 200, answer.json
    return answer.json


def create(user):
    return user("POST", "/api/tasks/", json={"image": "busybox"})


@pytest.mark.component
def test_a_quota_is_the_default_until_an_admin_sets_another(make_client, users):
    client = make_client(quota_queued=7)
    user, admin = ApiClient(client, uuid.uuid4(), ["user"]), ApiClient(client, uuid.uuid4(), ["user", "admin"])
    users.known.add(user.user_id)
    path = f"/api/users/{user.user_id}/quota"

    before = user("GET", path).json
    after = admin("PUT", path, json={"running": 3, "queued": None, "createdPerMinute": 0}).json

    none = {"running": None, "queued": None, "createdPerMinute": None}
    assert before == none | {"effective": none | {"queued": 7}}
    assert after["effective"] == {"running": 3, "queued": 7, "createdPerMinute": 0}
    assert user("GET", path).json == admin("GET", path).json == after
    assert admin("PUT", path, json={}).json == before


@pytest.mark.component
def test_only_admins_set_quotas_and_nobody_sees_another_users(user, other, admin):
    path = f"/api/users/{user.user_id}/quota"

    assert user("PUT", path, json={"running": 1}).status_code == 403
    assert other("GET", path).status_code == 404
    assert admin("GET", f"/api/users/{uuid.uuid4()}/quota").status_code == 404
    assert admin("PUT", f"/api/users/{uuid.uuid4()}/quota", json={"running": 1}).status_code == 404
    assert admin("GET", "/api/users/nobody/quota").status_code == 404


@pytest.mark.component
@pytest.mark.parametrize(
    "body", [{"running": -1}, {"queued": "5"}, {"createdPerMinute": 1.5}, {"running": 10**10}, {"most": 1}]
)
def test_a_wrong_quota_is_refused_and_changes_nothing(user, admin, body):
    before = set_quota(admin, user, running=2)

    answer = admin("PUT", f"/api/users/{user.user_id}/quota", json=body)

    assert answer.status_code == 422
    assert next(iter(body)) in answer.json["errors"]
    assert user("GET", f"/api/users/{user.user_id}/quota").json == before


@pytest.mark.component
@pytest.mark.parametrize("quota", [{"queued": 5}, {"createdPerMinute": 5}])
def test_of_requests_that_come_at_once_exactly_as_many_are_accepted_as_the_quota_says(user, admin, quota):
    set_quota(admin, user, **quota)

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: create(user), range(24)))

    refused = [answer for answer in answers if answer.status_code != 201]
    assert len(answers) - len(refused) == 5
    assert {answer.status_code for answer in refused} == {429}
    assert {answer.json["code"] for answer in refused} == {"quota_exceeded"}
    assert all("5" in answer.json["detail"] and int(answer.headers["Retry-After"]) > 0 for answer in refused)
    assert len(user("GET", "/api/tasks/").json["items"]) == 5


@pytest.mark.component
@pytest.mark.parametrize("quota", [{"queued": 2}, {"createdPerMinute": 2}, {"queued": 0}, {"createdPerMinute": 0}])
def test_who_asks_for_more_than_a_quota_can_ever_hold_is_not_told_to_come_back(user, admin, quota):
    set_quota(admin, user, **quota)

    answer = user("POST", "/api/tasks/batch", json={"tasks": [{"image": "busybox"}] * 3})

    assert answer.status_code == 429
    assert "3 are to be created" in answer.json["detail"]
    assert "never fits" in answer.json["detail"]
    assert "Try again" not in answer.json["detail"]


@pytest.mark.component
def test_a_full_queue_has_room_again_when_something_has_started_or_was_cancelled(
    user, admin, executor, dispatcher, publisher
):
    set_quota(admin, user, queued=2)
    first, later = user.create(), user.create(scheduledAt=format_time(utc_now() + timedelta(hours=1)))
    assert create(user).status_code == 429

    dispatcher.run_once()
    executor.claim(publisher.sent[-1])
    assert create(user).status_code == 429, "claimed, but not started"
    executor.start(publisher.sent[-1])
    assert create(user).status_code == 201
    assert create(user).status_code == 429
    user("POST", f"/api/tasks/{later['id']}/cancel")
    assert create(user).status_code == 201

    assert user.get(first["id"])["status"] == "running"


@pytest.mark.component
def test_what_was_created_a_minute_ago_does_not_count_any_more(user, admin, pool):
    set_quota(admin, user, createdPerMinute=1)
    user.create()
    assert create(user).status_code == 429

    with pool.connection() as connection:
        connection.execute("UPDATE scheduler.creations SET second = second - interval '61 seconds'")

    assert create(user).status_code == 201


@pytest.mark.component
def test_the_owners_quota_counts_and_not_the_admins_who_creates_for_them(user, admin):
    set_quota(admin, user, queued=0)

    answer = admin("POST", "/api/tasks/", json={"image": "busybox", "userId": str(user.user_id)})

    assert answer.status_code == 429
    admin.create()


@pytest.mark.component
def test_over_the_running_quota_a_task_waits_and_says_so(user, other, admin, executor, dispatcher, publisher):
    set_quota(admin, user, running=1)
    tasks = [user.create(), user.create()]
    dispatcher.run_once()
    dispatcher.run_once()
    assert len(publisher.sent) == 1

    waiting = user.get(tasks[1]["id"])
    other.create()
    dispatcher.run_once()
    assert len(publisher.sent) == 2, "it holds up nobody else"
    executor.claim(publisher.sent[0])
    executor.finish(publisher.sent[0])
    dispatcher.run_once()

    assert (waiting["waiting"]["code"], waiting["position"]) == ("quota", None)
    assert "1 is under way" in waiting["waiting"]["text"]
    assert len(publisher.sent) == 3


@pytest.mark.component
def test_what_was_counted_and_the_quotas_of_deleted_users_are_forgotten(
    user, admin, users, pool, dispatcher, waker
):
    set_quota(admin, user, createdPerMinute=100)
    user.create()
    sweeper = Sweeper(
        pool=pool, dispatcher=dispatcher, users=users, config=SweepConfig(), wake_dispatch=waker.wake
    )
    with pool.connection() as connection:
        connection.execute("UPDATE scheduler.creations SET second = second - interval '3 minutes'")
    users.deletions.append(Deletion(user.user_id, utc_now()))

    sweeper.run_once()

    with pool.connection() as connection:
        for table in ("creations", "quotas"):
            assert connection.execute(f"SELECT * FROM scheduler.{table}").fetchall() == []  # noqa: S608


@given(
    st.lists(st.tuples(st.integers(1, 20), st.floats(0.1, 61)), max_size=20),
    st.integers(1, 50),
    st.integers(0, 50),
)
def test_after_the_wait_the_tasks_fit_and_not_a_second_earlier(created, wanted, limit):
    creations = [
        Creation(tasks=tasks, counts_for_seconds=seconds)
        for tasks, seconds in sorted(created, key=lambda creation: creation[1])
    ]

    wait = decide_wait_seconds(creations, wanted=wanted, limit=limit)

    def fit_after(seconds):
        return sum(each.tasks for each in creations if each.counts_for_seconds > seconds) + wanted <= limit

    if wait is None:
        assert wanted > limit
    else:
        assert fit_after(wait)
        assert wait == 0 or not fit_after(0)
        assert wait <= 1 or not fit_after(wait - 1)

"""Batches, reruns, and what is done to many tasks at once, over a real database."""

from __future__ import annotations

import random
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest

from libs.common.clock import format_time, parse_time, utc_now
from services.scheduler import bulk, bulk_routes
from services.scheduler.states import TERMINAL_TASK
from services.scheduler.tests.conftest import ApiClient

pytestmark = pytest.mark.component

LATER = format_time(utc_now() + timedelta(days=1))
FULL = {
    "image": "registry.example:5000/team/tool:1.2",
    "command": "sh",
    "args": ["-c", 'echo "$A"', "", "ünï ☃\n\t\\", "{}"],
    "entrypoint": ["/bin/env", "--"],
    "environment": {"A": ' spaces "quotes" = and\nnew\\lines\t☃ ', "_b2": ""},
    "name": "nightly ☃",
    "labels": {"team": "a:b", "ünï": ""},
    "priority": 9,
    "timeoutSeconds": 604800,
    "stopGraceSeconds": 0,
    "resources": {"cpus": 0.1, "memoryMb": 16, "pids": 1},
    "network": "none",
    "onExecutorLost": "hold",
    "retry": {"maxAttempts": 3, "backoffSeconds": 2, "maxBackoffSeconds": 60, "onExitCodes": [1, 7]},
    "pool": "gpu",
    "concurrency": {"key": "nightly", "limit": 2},
    "queueTtlSeconds": 60,
}
# What a task is, apart from when and for whom it was made.
DEFINITION = tuple(FULL)


def create(user, *tasks: Any) -> Any:
    return user("POST", "/api/tasks/batch", json={"tasks": list(tasks)})


def without_place(task: dict[str, Any]) -> dict[str, Any]:
    """Only who asks for one task gets its place in the line, which has to be counted."""
    return {**task, "position": None}


def list_tasks(user, **query: Any) -> list[dict[str, Any]]:
    return user("GET", "/api/tasks/", query_string={"limit": 200, **query}).json["items"]


def test_a_batch_is_created_and_answered_in_its_order(user, waker):
    answer = create(user, *({"image": "busybox", "name": str(number)} for number in range(50)))

    assert answer.status_code == 201
    items = answer.json["items"]
    assert [task["name"] for task in items] == [str(number) for number in range(50)]
    assert items == [without_place(user.get(task["id"])) for task in items]
    assert [task["id"] for task in list_tasks(user)] == [task["id"] for task in reversed(items)]
    assert waker.count == 1


def test_a_batch_is_dispatched_in_its_order(user, executor, dispatcher, publisher, pool):
    items = create(user, *({"image": "busybox"} for _ in range(4))).json["items"]

    assert dispatcher.run_once().dispatched == 4

    with pool.connection() as connection:
        runs = connection.execute("SELECT id::text, task_id::text FROM scheduler.runs").fetchall()
    task_of = {run["id"]: run["task_id"] for run in runs}
    assert [task_of[run_id] for run_id in publisher.sent] == [task["id"] for task in items]


def test_every_field_of_a_task_in_a_batch_comes_back_as_it_was_sent(user):
    sent = FULL | {"scheduledAt": LATER}

    (task,) = create(user, sent).json["items"]

    assert sent.items() <= user.get(task["id"]).items()
    assert parse_time(task["scheduledAt"]) == parse_time(LATER)


def test_a_batch_with_one_bad_task_creates_none_and_names_it_by_its_place(user):
    answer = create(
        user,
        {"image": "busybox"},
        {"image": "busybox", "priority": 10},
        {"image": "busybox", "scheduledAt": "2020-01-01T00:00:00Z"},
        {},
        {"image": "a b", "color": "red"},
    )

    assert answer.status_code == 422
    assert list(answer.json["errors"]) == ["tasks"]
    assert sorted({message.rpartition(": ")[0] for message in answer.json["errors"]["tasks"]}) == [
        "1.priority",
        "3.image",
        "4.color",
        "4.image",
    ]
    assert list_tasks(user) == []


def test_what_only_the_moment_and_the_operator_forbid_is_named_by_its_place_too(make_client):
    user = ApiClient(make_client(max_task_cpus=0.5), uuid.uuid4(), ["user"])

    answer = create(
        user,
        {"image": "busybox"},
        {"image": "busybox", "scheduledAt": "2020-01-01T00:00:00Z"},
        {"image": "busybox", "resources": {"cpus": 1}},
    )

    assert answer.status_code == 422
    places = [message.partition(":")[0] for message in answer.json["errors"]["tasks"]]
    assert places == ["1.scheduledAt", "2.resources"]
    assert list_tasks(user) == []


def test_a_user_creates_no_batch_for_others_and_an_admin_does(user, other, admin):
    task = {"image": "busybox", "userId": str(user.user_id)}

    assert create(other, {"image": "busybox"}, task).status_code == 403
    assert create(admin, task, {"image": "busybox"}).status_code == 201
    assert (len(list_tasks(user)), len(list_tasks(other))) == (1, 0)


@pytest.mark.parametrize(
    "body",
    [{}, {"tasks": []}, {"tasks": [{"image": "busybox"}] * 1001}, {"tasks": {}}, {"tasks": None},
     {"tasks": [1, None]}, {"tasks": [{"image": "busybox"}], "more": 1}, []],
    ids=["empty", "no tasks", "1001", "object", "null", "no objects", "unknown key", "list"],
)  # fmt: skip
def test_a_bad_batch_is_422(user, body):
    answer = user("POST", "/api/tasks/batch", json=body)

    assert answer.status_code == 422, answer.json
    assert list_tasks(user) == []


def test_a_batch_may_be_larger_than_other_bodies_but_not_without_end(user):
    large = {"image": "busybox", "environment": {f"V{number}": "x" * 32_000 for number in range(33)}}

    assert create(user, *[large] * 7).status_code == 201
    assert create(user, *[large] * 8).status_code == 413
    assert user("POST", "/api/tasks/", json=large).status_code == 413


def test_batches_take_turns_and_whoever_waits_too_long_is_told_to_come_back(make_client, monkeypatch):
    monkeypatch.setattr(bulk_routes, "BATCHES_AT_ONCE", 0)
    monkeypatch.setattr(bulk_routes, "BATCH_WAIT_SECONDS", 0.01)
    user = ApiClient(make_client(), uuid.uuid4(), ["user"])

    answer = create(user, {"image": "busybox"})

    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "2")
    assert user.create()["status"] == "pending"


def test_a_batch_gives_its_turn_back_however_it_ends(make_client, monkeypatch):
    monkeypatch.setattr(bulk_routes, "BATCHES_AT_ONCE", 1)
    monkeypatch.setattr(bulk_routes, "BATCH_WAIT_SECONDS", 0.01)
    client = make_client()
    user = ApiClient(client, uuid.uuid4(), ["user"])

    for _ in range(2):
        assert client.post("/api/tasks/batch", json={"tasks": [{"image": "busybox"}]}).status_code == 401
        assert user("POST", "/api/tasks/batch", data=b"{", content_type="application/json").status_code == 400
        assert create(user, {}).status_code == 422
        assert create(user, {"image": "busybox"}).status_code == 201


def test_a_rerun_is_a_new_task_with_the_same_definition_that_is_due_now(user, waker):
    first = user.create(**FULL, scheduledAt=LATER)

    answer = user("POST", f"/api/tasks/{first['id']}/rerun")

    assert answer.status_code == 201
    again = answer.json
    assert answer.headers["Location"] == f"/api/tasks/{again['id']}"
    assert {name: again[name] for name in DEFINITION} == {name: first[name] for name in DEFINITION}
    assert again["id"] != first["id"]
    assert (again["status"], again["attempts"]) == ("pending", 0)
    assert parse_time(again["scheduledAt"]) == parse_time(again["createdAt"])
    assert without_place(user.get(again["id"])) == again
    assert without_place(user.get(first["id"])) == first
    assert waker.count == 1


def test_no_task_of_a_deleted_user_is_rerun(user, other, admin, users):
    orphan, kept = (each.create(scheduledAt=LATER)["id"] for each in (user, other))
    users.known.remove(user.user_id)

    refused = admin("POST", f"/api/tasks/{orphan}/rerun")
    assert (refused.status_code, refused.json["errors"]) == (422, {"userId": ["There is no such user."]})
    counts = admin("POST", "/api/tasks/rerun", json={"ids": [orphan, kept]}).json
    assert counts == {"matched": 2, "changed": 1}


@pytest.mark.parametrize("action", ["cancel", "rerun"])
@pytest.mark.parametrize(
    ("body", "status"), [("{bad", 400), ('{"x": 1}', 422), ("[]", 422), ("{}", 201), ("", 201)]
)
def test_what_takes_no_body_refuses_one(user, action, body, status):
    path = f"/api/tasks/{user.create(scheduledAt=LATER)['id']}/{action}"

    answer = user("POST", path, data=body, content_type="application/json")

    assert answer.status_code == (202 if (action, status) == ("cancel", 201) else status)


def test_a_task_that_has_ended_is_rerun(user, executor, queue):
    task, run_id = queue()
    executor.claim(run_id)
    executor.finish(run_id)

    again = user("POST", f"/api/tasks/{task['id']}/rerun").json

    assert (again["status"], again["result"], again["exitCode"]) == ("pending", None, None)


def test_another_users_task_is_not_rerun_and_an_admin_reruns_it_for_its_owner(user, other, admin):
    task = user.create(scheduledAt=LATER)

    assert other("POST", f"/api/tasks/{task['id']}/rerun").status_code == 404
    assert user("POST", f"/api/tasks/{uuid.uuid4()}/rerun").status_code == 404
    assert admin("POST", f"/api/tasks/{task['id']}/rerun").json["userId"] == str(user.user_id)
    assert len(list_tasks(user)) == 2


def test_a_task_that_the_operator_does_not_allow_any_more_is_not_rerun(user, make_client):
    ids = [user.create(image=image, scheduledAt=LATER)["id"] for image in ("busybox", "evil.example/x")]
    strict = ApiClient(make_client(image_allow_list=("busybox",)), user.user_id, ["user"])

    one = strict("POST", f"/api/tasks/{ids[1]}/rerun")
    both = strict("POST", "/api/tasks/rerun", json={"ids": ids})

    assert (one.status_code, list(one.json["errors"])) == (422, ["image"])
    assert both.json == {"matched": 2, "changed": 1}


def test_tasks_are_cancelled_by_their_ids_and_others_are_passed_over(user, other):
    mine = [user.create(scheduledAt=LATER)["id"] for _ in range(3)]
    theirs = other.create(scheduledAt=LATER)["id"]
    user("POST", f"/api/tasks/{mine[0]}/cancel")

    ids = [*mine[:2], mine[1], theirs, str(uuid.uuid4())]
    answer = user("POST", "/api/tasks/cancel", json={"ids": ids})

    assert (answer.status_code, answer.json) == (200, {"matched": 2, "changed": 1})
    assert [user.get(task_id)["status"] for task_id in mine] == ["cancelled", "cancelled", "pending"]
    assert other.get(theirs)["status"] == "pending"


def test_tasks_are_cancelled_by_a_filter(user, other):
    red, blue = (
        [user.create(scheduledAt=LATER, labels={"team": team}, name=f"{team}-job")["id"] for _ in range(3)]
        for team in ("red", "blue")
    )
    theirs = other.create(scheduledAt=LATER, labels={"team": "red"})["id"]

    by_label = user("POST", "/api/tasks/cancel", json={"filter": {"label": ["team:red"], "status": "pending"}})
    by_name = user("POST", "/api/tasks/cancel", json={"filter": {"name": "blue", "status": ["pending", "queued"]}})
    again = user("POST", "/api/tasks/cancel", json={"filter": {"label": ["team:red"]}})

    assert by_label.json == by_name.json == {"matched": 3, "changed": 3}
    assert again.json == {"matched": 3, "changed": 0}
    assert {user.get(task_id)["status"] for task_id in red + blue} == {"cancelled"}
    assert other.get(theirs)["status"] == "pending"


def test_a_bulk_cancel_asks_executors_to_stop_what_they_hold(user, executor, queue):
    task, run_id = queue()
    executor.claim(run_id)
    executor.start(run_id)
    body = {"filter": {"status": "running"}}

    first, second = (user("POST", "/api/tasks/cancel", json=body).json for _ in range(2))

    assert (first, second) == ({"matched": 1, "changed": 1}, {"matched": 1, "changed": 0})
    assert [entry["runId"] for entry in executor.sync()["stop"]] == [run_id]
    executor.report(run_id, "finished", outcome="cancelled")
    assert user.get(task["id"])["status"] == "cancelled"


def test_tasks_are_rerun_by_a_filter(user):
    for number in range(3):
        user.create(scheduledAt=LATER, labels={"number": str(number)}, name="a")
    user.create(scheduledAt=LATER, name="b")

    answer = user("POST", "/api/tasks/rerun", json={"filter": {"name": "a"}})

    assert (answer.status_code, answer.json) == (200, {"matched": 3, "changed": 3})
    again = [task for task in list_tasks(user, name="a") if task["scheduledAt"] == task["createdAt"]]
    assert sorted(task["labels"]["number"] for task in again) == ["0", "1", "2"]


def test_a_filter_reaches_an_admins_own_tasks_or_those_of_the_user_it_names(user, admin):
    mine, theirs = admin.create(scheduledAt=LATER)["id"], user.create(scheduledAt=LATER)["id"]
    filter_ = {"status": "pending"}

    assert admin("POST", "/api/tasks/cancel", json={"filter": filter_}).json == {"matched": 1, "changed": 1}
    assert (admin.get(mine)["status"], user.get(theirs)["status"]) == ("cancelled", "pending")
    named = {"filter": filter_ | {"userId": str(user.user_id)}}
    assert admin("POST", "/api/tasks/cancel", json=named).json == {"matched": 1, "changed": 1}
    assert admin("POST", "/api/tasks/cancel", json={"ids": [mine, theirs]}).json == {"matched": 2, "changed": 0}


def test_a_user_names_no_other_user_in_a_filter(user, other):
    answer = user("POST", "/api/tasks/cancel", json={"filter": {"userId": str(other.user_id)}})

    assert (answer.status_code, answer.json["code"]) == (403, "role_lacking")


BAD_CHOICES: list[dict[str, Any]] = [
    {},
    {"ids": None, "filter": None},
    {"ids": ["7b0adfe3-8294-4655-b760-9100915a1b1c"], "filter": {"status": "pending"}},
    {"ids": []},
    {"ids": ["x"]},
    {"ids": "7b0adfe3-8294-4655-b760-9100915a1b1c"},
    {"ids": ["7b0adfe3-8294-4655-b760-9100915a1b1c"] * 1001},
    {"filter": {}},
    {"filter": []},
    {"filter": {"status": "done"}},
    {"filter": {"status": []}},
    {"filter": {"status": None}},
    {"filter": {"label": "team:red"}},
    {"filter": {"label": []}},
    {"filter": {"label": ["team"]}},
    {"filter": {"label": [1]}},
    {"filter": {"name": ""}},
    {"filter": {"since": "yesterday"}},
    {"filter": {"limit": 5}},
    {"filter": {"color": "red"}},
    {"color": "red"},
]


@pytest.mark.parametrize("path", ["/api/tasks/cancel", "/api/tasks/rerun"])
def test_a_bad_choice_is_422_and_changes_nothing(user, path):
    task = user.create(scheduledAt=LATER, labels={"team": "red"})

    for body in BAD_CHOICES:
        answer = user("POST", path, json=body)
        assert answer.status_code == 422, body

    assert list_tasks(user) == [task]


def test_a_filter_that_matches_too_many_changes_nothing(user, monkeypatch):
    monkeypatch.setattr(bulk, "MOST_MATCHED", 2)
    tasks = [user.create(scheduledAt=LATER) for _ in range(3)]

    for path in ("/api/tasks/cancel", "/api/tasks/rerun"):
        answer = user("POST", path, json={"filter": {"status": "pending"}})
        assert (answer.status_code, answer.json["code"]) == (422, "too_many_matched")
    assert list_tasks(user) == tasks[::-1]
    assert (
        user("POST", "/api/tasks/cancel", json={"filter": {"until": tasks[2]["createdAt"]}}).json["changed"] == 2
    )


def test_many_are_cancelled_and_rerun_in_several_steps(user, monkeypatch):
    monkeypatch.setattr(bulk, "CANCEL_CHUNK", 3)
    monkeypatch.setattr(bulk, "RERUN_CHUNK", 3)
    ids = [task["id"] for task in create(user, *[{"image": "busybox", "scheduledAt": LATER}] * 10).json["items"]]

    assert user("POST", "/api/tasks/rerun", json={"ids": ids}).json == {"matched": 10, "changed": 10}
    assert user("POST", "/api/tasks/cancel", json={"filter": {"status": "pending"}}).json["changed"] == 20


def test_bulk_cancels_beside_moves_and_deletions_leave_rows_that_agree(
    user, executor, dispatcher, publisher, pool
):
    chance = random.Random(3)
    ids = [task["id"] for task in create(user, *[{"image": "busybox"}] * 60).json["items"]]
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            dispatcher.run_once()
            for run_id in publisher.sent[-8:]:
                if run_id not in executor.held and executor.claim(run_id)[0]["granted"]:
                    executor.start(run_id)
                    executor.finish(run_id)

    def cancel(seed: int) -> list[int]:
        picks = random.Random(seed)
        answers = [user("POST", "/api/tasks/cancel", json={"ids": picks.sample(ids, 25)}) for _ in range(8)]
        return [answer.status_code for answer in answers]

    with ThreadPoolExecutor(5) as threads:
        working = threads.submit(work)
        cancelling = [threads.submit(cancel, seed) for seed in range(3)]
        deleted = [user("DELETE", f"/api/tasks/{task_id}").status_code for task_id in chance.sample(ids, 10)]
        statuses = [status for one in cancelling for status in one.result(60)]
        stop.set()
        working.result(60)

    assert set(statuses) == {200}
    assert set(deleted) == {204}
    rest = user("POST", "/api/tasks/cancel", json={"ids": ids}).json
    assert rest["matched"] == 50
    tasks = list_tasks(user)
    assert {task["status"] for task in tasks} <= TERMINAL_TASK | {"running", "queued"}
    by_status = user("GET", "/api/tasks/stats").json["byStatus"]
    assert {status: count for status, count in by_status.items() if count} == {
        status: sum(task["status"] == status for task in tasks) for status in {task["status"] for task in tasks}
    }

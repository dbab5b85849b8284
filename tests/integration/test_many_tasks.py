from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.client import IMAGE, Api, User, expect, expect_problem, in_seconds, new_task, sign_up

pytestmark = pytest.mark.integration

LATER = "2030-01-31T08:15:00Z"
JSON = {"Content-Type": "application/json"}


@pytest.fixture
def owner(url: str) -> Iterator[User]:
    """A user of the test's own, whose tasks go with them."""
    owner = sign_up(url)
    yield owner
    owner.api.post("/api/tasks/cancel", {"filter": {"status": ["pending", "queued", "running"]}})
    expect(owner.api.delete(f"/api/users/{owner.id}"), 204)


def create_batch(api: Api, *tasks: Any) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = expect(api.post("/api/tasks/batch", {"tasks": list(tasks)}), 201)["items"]
    return items


def list_ids(api: Api, **query: Any) -> list[str]:
    """Of all pages, two tasks a page."""
    ids: list[str] = []
    page = {"nextCursor": None}
    while True:
        cursor = {"cursor": page["nextCursor"]} if page["nextCursor"] else {}
        page = expect(api.get("/api/tasks/", params={"limit": 2, **query, **cursor}), 200)
        ids += [task["id"] for task in page["items"]]
        if page["nextCursor"] is None:
            return ids


def count(api: Api, **query: Any) -> dict[str, int]:
    by_status: dict[str, int] = expect(api.get("/api/tasks/stats", params=query), 200)["byStatus"]
    return {status: number for status, number in by_status.items() if number}


def test_a_batch_of_a_thousand_is_created_at_once(owner: User):
    items = create_batch(
        owner.api, *(new_task("true", name=str(number), scheduledAt=LATER) for number in range(1000))
    )

    assert [task["name"] for task in items] == [str(number) for number in range(1000)]
    assert count(owner.api) == {"pending": 1000}
    assert owner.api.get_task(items[-1]["id"]) == items[-1]


def test_the_tasks_of_a_batch_run(owner: User):
    items = create_batch(owner.api, *(new_task("echo", str(number)) for number in range(3)))

    ended = [owner.api.wait_for(task["id"]) for task in items]

    assert [task["result"] for task in ended] == ["0\n", "1\n", "2\n"]
    assert count(owner.api) == {"completed": 3}


def test_a_batch_with_a_bad_task_creates_nothing_and_says_which(owner: User):
    body = {"tasks": [new_task("true"), new_task("true", priority=10), {"image": "a b"}, new_task("true", x=1)]}

    problem = expect_problem(owner.api.post("/api/tasks/batch", body), 422, "invalid_fields")

    places = [message.partition(":")[0] for message in problem["errors"]["tasks"]]
    assert sorted(places) == ["1.priority", "2.image", "3.x"]
    assert list_ids(owner.api) == []


@pytest.mark.parametrize("tasks", [[], [new_task("true")] * 1001, {}, None, ["x"]], ids=str)
def test_a_batch_that_is_none_is_422(owner: User, tasks: Any):
    expect_problem(owner.api.post("/api/tasks/batch", {"tasks": tasks}), 422)

    assert list_ids(owner.api) == []


def test_a_batch_may_have_eight_megabytes_and_one_task_one(owner: User):
    environment = {f"V{number}": "x" * 32_000 for number in range(30)}
    large = new_task("true", scheduledAt=LATER, environment=environment)

    assert len(create_batch(owner.api, *[large] * 8)) == 8
    expect_problem(owner.api.post("/api/tasks/batch", {"tasks": [large] * 9}), 413, "body_too_large")
    two = json.dumps(large | {"args": ["x" * 100_000] * 2}).encode()
    expect_problem(owner.api.call("POST", "/api/tasks/", data=two, headers=JSON), 413, "body_too_large")
    assert count(owner.api) == {"pending": 8}


def test_a_rerun_is_a_new_task_with_the_same_definition(owner: User, stranger: User):
    first = owner.api.run("sh", "-c", "echo $A; exit 3", environment={"A": "x = y"}, labels={"team": "red"})

    response = owner.api.post(f"/api/tasks/{first['id']}/rerun")

    again = expect(response, 201)
    assert response.headers["Location"] == f"/api/tasks/{again['id']}"
    assert again["id"] != first["id"]
    ended = owner.api.wait_for(again["id"])
    for name in ("image", "command", "args", "environment", "labels", "result", "exitCode", "reason"):
        assert ended[name] == first[name]
    expect_problem(stranger.api.post(f"/api/tasks/{first['id']}/rerun"), 404)
    expect_problem(owner.api.post("/api/tasks/nothing/rerun"), 404)


def test_lists_are_filtered_by_label_name_and_status_together(owner: User):
    red, blue, plain = create_batch(
        owner.api,
        new_task("true", scheduledAt=LATER, name="nightly/1", labels={"team": "red", "url": "http://x:1/?a=b&c"}),
        new_task("true", scheduledAt=LATER, name="nightly/2", labels={"team": "blue", "url": ""}),
        new_task("true", scheduledAt=LATER),
    )
    expect(owner.api.post(f"/api/tasks/{blue['id']}/cancel"), 202)

    def ids(**query: Any) -> list[str]:
        return list_ids(owner.api, **query)

    assert ids() == [plain["id"], blue["id"], red["id"]]
    assert ids(label="team:red") == [red["id"]]
    assert ids(label="url:http://x:1/?a=b&c") == [red["id"]]
    assert ids(label="url:") == [blue["id"]]
    assert ids(label=["team:red", "url:http://x:1/?a=b&c"]) == [red["id"]]
    assert ids(label=["team:red", "team:blue"]) == []
    assert ids(name="nightly") == [blue["id"], red["id"]]
    assert ids(name="nightly", status="pending") == [red["id"]]
    assert ids(name="nightly", status=["pending", "cancelled"], label="team:blue") == [blue["id"]]
    assert ids(name="nightly", status="pending,cancelled", since=blue["createdAt"]) == [blue["id"]]
    assert ids(label="team:red", until=red["createdAt"]) == []
    assert ids(scheduleId="00000000-0000-4000-8000-000000000000") == []
    for bad in ({"label": "team"}, {"label": ":x"}, {"name": ""}, {"scheduleId": "x"}, {"since": "x"}):
        problem = expect_problem(owner.api.get("/api/tasks/", params=bad), 422)
        assert list(problem["errors"]) == list(bad)


def test_nobody_elses_tasks_are_found_or_counted(owner: User, stranger: User, admin: User):
    owner.api.create_task("true", scheduledAt=LATER, name="secret", labels={"team": "secret"})

    assert list_ids(stranger.api, label="team:secret") == list_ids(stranger.api, name="secret") == []
    assert len(list_ids(admin.api, label="team:secret", userId=owner.id)) == 1
    assert count(owner.api) == count(admin.api, userId=owner.id) == {"pending": 1}
    assert count(admin.api)["pending"] >= 1
    for path in ("/api/tasks/", "/api/tasks/stats"):
        expect_problem(stranger.api.get(path, params={"userId": owner.id}), 403, "role_lacking")


def test_tasks_are_cancelled_by_ids_and_running_ones_stop(owner: User, stranger: User):
    running, waiting = owner.api.create_task("sleep", "600"), owner.api.create_task("true", scheduledAt=LATER)
    owner.api.wait_for(running["id"], "running")
    ids = [running["id"], waiting["id"], waiting["id"]]

    assert expect(stranger.api.post("/api/tasks/cancel", {"ids": ids}), 200) == {"matched": 0, "changed": 0}
    assert expect(owner.api.post("/api/tasks/cancel", {"ids": ids}), 200) == {"matched": 2, "changed": 2}

    assert owner.api.wait_for(running["id"])["status"] == "cancelled"
    assert owner.api.get_task(waiting["id"])["status"] == "cancelled"
    assert expect(owner.api.post("/api/tasks/cancel", {"ids": ids}), 200) == {"matched": 2, "changed": 0}


def test_tasks_are_cancelled_and_rerun_by_a_filter(owner: User):
    create_batch(
        owner.api,
        *(new_task("true", scheduledAt=LATER, labels={"team": "red"}) for _ in range(3)),
        new_task("true", scheduledAt=LATER, labels={"team": "blue"}),
    )
    choice = {"filter": {"label": ["team:red"], "status": "pending"}}

    assert expect(owner.api.post("/api/tasks/cancel", choice), 200) == {"matched": 3, "changed": 3}
    assert expect(owner.api.post("/api/tasks/cancel", choice), 200) == {"matched": 0, "changed": 0}
    assert count(owner.api) == {"pending": 1, "cancelled": 3}

    again = {"filter": {"status": "cancelled"}}
    assert expect(owner.api.post("/api/tasks/rerun", again), 200) == {"matched": 3, "changed": 3}
    for task_id in list_ids(owner.api, label="team:red", since=in_seconds(-60)):
        owner.api.wait_for(task_id)
    assert count(owner.api) == {"pending": 1, "cancelled": 3, "completed": 3}


@pytest.mark.parametrize("path", ["/api/tasks/cancel", "/api/tasks/rerun"])
def test_a_choice_that_is_none_changes_nothing(owner: User, path: str):
    task = owner.api.create_task("true", scheduledAt=LATER)

    for body in ({}, {"ids": []}, {"filter": {}}, {"ids": [task["id"]], "filter": {"status": "pending"}},
                 {"ids": [task["id"]] * 1001}, {"ids": ["x"]}, {"filter": {"status": "x"}}, {"filter": {"x": 1}},
                 {"filter": {"label": ["x"]}}, [], "x"):  # fmt: skip
        expect_problem(owner.api.post(path, body), 422)
    expect_problem(owner.api.post(path, {"filter": {"userId": "00000000-0000-4000-8000-000000000000"}}), 403)
    expect_problem(owner.api.call("POST", path, data=b"{", headers=JSON), 400)
    expect_problem(owner.api.call("POST", path, token=None, json={"ids": [task["id"]]}), 401)
    assert list_ids(owner.api) == [task["id"]]
    assert owner.api.get_task(task["id"])["status"] == "pending"
    assert task["image"] == IMAGE

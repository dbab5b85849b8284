from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.client import (
    IMAGE,
    Api,
    User,
    expect,
    expect_problem,
    in_seconds,
    new_task,
    shell,
    sign_up,
    to_time,
)
from tests.integration.stack import Stack
from tests.polling import wait_until

pytestmark = pytest.mark.integration

LATER = "2030-01-31T08:15:00Z"


@pytest.fixture
def later_task(user: User) -> Iterator[dict[str, Any]]:
    """A task that won't start while the test runs."""
    task = user.api.create_task("true", scheduledAt=LATER)
    yield task
    user.api.delete(f"/api/tasks/{task['id']}")


def test_a_task_needs_only_an_image(user: User):
    response = user.api.post("/api/tasks/", {"image": IMAGE})

    task = expect(response, 201)
    assert response.headers["Location"] == f"/api/tasks/{task['id']}"
    assert (task["image"], task["userId"]) == (IMAGE, user.id)
    assert task["status"] in ("pending", "queued", "running")
    assert (task["command"], task["args"], task["environment"], task["labels"]) == (None, [], {}, {})
    assert (task["timeoutSeconds"], task["network"]) == (3600, "egress")
    assert task["resources"] == {"cpus": 1, "memoryMb": 256, "pids": 128}
    assert (task["result"], task["exitCode"], task["reason"]) == (None, None, None)
    ended = user.api.wait_for(task["id"])
    assert (ended["status"], ended["exitCode"], ended["attempts"]) == ("completed", 0, 1)


def test_every_field_comes_back_as_it_was_sent(user: User):
    sent = {
        "image": IMAGE,
        "command": "echo",
        "args": ["a", "b c", ""],
        "entrypoint": ["/bin/env", "-i"],
        "environment": {"A": "1", "B_2": "x = y\n"},
        "scheduledAt": LATER,
        "name": "nightly ünïcode 🐳",
        "labels": {"team": "red", "empty": ""},
        "timeoutSeconds": 77,
        "resources": {"cpus": 0.5, "memoryMb": 64, "pids": 32},
        "network": "none",
    }

    task = expect(user.api.post("/api/tasks", sent), 201)

    for answer in (task, user.api.get_task(task["id"])):
        shown = {name: answer[name] for name in sent}
        assert to_time(shown.pop("scheduledAt")) == to_time(LATER)
        assert shown == {name: value for name, value in sent.items() if name != "scheduledAt"}
        assert (answer["status"], answer["attempts"]) == ("pending", 0)
        assert set(answer["waiting"]) == {"code", "text"}
    expect(user.api.delete(f"/api/tasks/{task['id']}"), 204)


def test_times_are_rfc_3339_in_utc(user: User, later_task: dict[str, Any]):
    for name in ("createdAt", "updatedAt", "scheduledAt"):
        assert later_task[name].endswith("Z")
        assert to_time(later_task[name]).utcoffset() is not None


def test_a_time_with_an_offset_is_the_same_moment(user: User):
    task = user.api.create_task("true", scheduledAt="2030-01-31T10:15:00+02:00")

    assert to_time(task["scheduledAt"]) == to_time(LATER)
    expect(user.api.delete(f"/api/tasks/{task['id']}"), 204)


def test_a_waiting_task_that_is_deleted_is_gone(user: User):
    task = user.api.create_task("true", scheduledAt=LATER)

    response = user.api.delete(f"/api/tasks/{task['id']}")

    assert (response.status_code, response.content) == (204, b"")
    expect_problem(user.api.get(f"/api/tasks/{task['id']}"), 404)
    expect_problem(user.api.delete(f"/api/tasks/{task['id']}"), 404)


def test_a_running_task_that_is_deleted_is_stopped_and_gone(stack: Stack, user: User):
    task = user.api.create_task("sleep", "600")
    user.api.wait_for(task["id"], "running")

    expect(user.api.delete(f"/api/tasks/{task['id']}"), 204)

    expect_problem(user.api.get(f"/api/tasks/{task['id']}"), 404)
    wait_until(lambda: not stack.has_task_container(task["id"]), what="its container was removed", seconds=15)


def test_a_running_task_that_is_cancelled_is_stopped_within_two_seconds(user: User):
    task = user.api.create_task("sleep", "600", stopGraceSeconds=0)
    user.api.wait_for(task["id"], "running")

    expect(user.api.post(f"/api/tasks/{task['id']}/cancel"), 202)

    ended = user.api.wait_for(task["id"], "cancelled", seconds=5)
    assert ended["finishedAt"] is not None
    expect(user.api.post(f"/api/tasks/{task['id']}/cancel"), 200)


def test_another_users_task_is_not_found(user: User, stranger: User, admin: User, later_task: dict[str, Any]):
    path = f"/api/tasks/{later_task['id']}"

    for method, suffix in (("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/runs"), ("GET", "/logs")):
        expect_problem(stranger.api.call(method, path + suffix), 404)
    assert expect(admin.api.get(path), 200)["id"] == later_task["id"]
    assert user.api.get_task(later_task["id"])["status"] == "pending"


def test_tasks_need_a_token(anyone: Api, later_task: dict[str, Any]):
    for method, path in (
        ("POST", "/api/tasks/"),
        ("GET", "/api/tasks/"),
        ("GET", f"/api/tasks/{later_task['id']}"),
    ):
        expect_problem(anyone.call(method, path), 401)
    expect_problem(anyone.delete(f"/api/tasks/{later_task['id']}"), 401)


def test_an_admin_creates_tasks_for_others_and_nobody_else_does(admin: User, user: User, stranger: User):
    body = new_task("true", scheduledAt=LATER, userId=user.id)

    task = expect(admin.api.post("/api/tasks/", body), 201)

    assert task["userId"] == user.id
    assert user.api.get_task(task["id"])["id"] == task["id"]
    expect_problem(stranger.api.post("/api/tasks/", body), 403)
    unknown = body | {"userId": "00000000-0000-4000-8000-000000000000"}
    assert "userId" in expect_problem(admin.api.post("/api/tasks/", unknown), 422)["errors"]
    expect(user.api.delete(f"/api/tasks/{task['id']}"), 204)


def test_the_list_has_ones_own_tasks_newest_first_in_pages(url: str, stranger: User):
    user = sign_up(url)
    created = [user.api.create_task("true", scheduledAt=LATER)["id"] for _ in range(5)]

    first = expect(user.api.get("/api/tasks/", params={"limit": 3}), 200)
    second = expect(user.api.get("/api/tasks", params={"limit": 3, "cursor": first["nextCursor"]}), 200)

    assert [task["id"] for task in first["items"] + second["items"]] == created[::-1]
    assert second["nextCursor"] is None
    others = expect(stranger.api.get("/api/tasks/", params={"limit": 200}), 200)["items"]
    assert not {task["id"] for task in others} & set(created)
    assert expect(stranger.api.get("/api/tasks/", params={"limit": 1}), 200)["items"] is not None
    expect(user.api.delete(f"/api/users/{user.id}"), 204)


def test_the_list_is_filtered_by_status_time_and_user(url: str, admin: User, stranger: User):
    user = sign_up(url)
    done = user.api.run("true")
    waiting = user.api.create_task("true", scheduledAt=LATER)

    def ids(api: Api, **query: Any) -> list[str]:
        return [task["id"] for task in expect(api.get("/api/tasks/", params=query), 200)["items"]]

    assert ids(user.api, status="completed") == [done["id"]]
    assert ids(user.api, status="pending") == [waiting["id"]]
    assert ids(user.api, since=waiting["createdAt"]) == [waiting["id"]]
    assert ids(user.api, until=waiting["createdAt"]) == [done["id"]]
    assert ids(user.api, since=in_seconds(3600)) == []
    assert ids(admin.api, userId=user.id) == [waiting["id"], done["id"]]
    expect_problem(stranger.api.get("/api/tasks/", params={"userId": user.id}), 403)
    for bad in ({"status": "splendid"}, {"since": "yesterday"}, {"limit": 0}, {"limit": 201}, {"cursor": "x"}):
        expect_problem(user.api.get("/api/tasks/", params=bad), 422)
    expect(user.api.delete(f"/api/users/{user.id}"), 204)


def test_runs_tell_who_ran_what(user: User):
    task = user.api.run("true")

    (run,) = user.api.list_runs(task["id"])

    assert (run["number"], run["status"], run["exitCode"]) == (1, "completed", 0)
    assert run["executorId"]
    assert "sha256:" in run["imageDigest"]
    assert run["queuedAt"] <= run["startedAt"] <= run["finishedAt"]


def test_collection_paths_work_with_and_without_the_final_slash(user: User):
    for path in ("/api/tasks", "/api/tasks/"):
        response = user.api.get(path, allow_redirects=False)
        assert response.status_code == 200


def test_an_unsupported_method_is_405_and_says_what_is_allowed(user: User):
    response = user.api.call("PATCH", "/api/tasks/", json={})

    expect_problem(response, 405)
    assert {"GET", "POST"} <= {method.strip() for method in response.headers["Allow"].split(",")}


def test_the_request_id_comes_back_when_it_is_one(user: User):
    assert (
        user.api.get("/api/tasks", headers={"X-Request-Id": "my.own-id_1"}).headers["X-Request-Id"]
        == "my.own-id_1"
    )
    made = user.api.get("/api/tasks", headers={"X-Request-Id": "not one!"}).headers["X-Request-Id"]
    assert made != "not one!"
    assert 1 <= len(made) <= 64


def test_a_task_waits_for_its_time_and_says_so(user: User, later_task: dict[str, Any]):
    waiting = user.api.get_task(later_task["id"])["waiting"]

    assert waiting["code"] == "scheduled"
    assert "2030-01-31" in waiting["text"]


def test_stdout_is_the_result_and_both_streams_are_in_the_logs(user: User):
    task = user.api.wait_for(expect(user.api.post("/api/tasks/", shell("echo out; echo err >&2")), 201)["id"])

    assert task["result"] == "out\n"
    assert user.api.read_logs(task["id"], stream="stdout") == b"out\n"
    assert user.api.read_logs(task["id"], stream="stderr") == b"err\n"
    assert sorted(user.api.read_logs(task["id"]).splitlines()) == [b"err", b"out"]

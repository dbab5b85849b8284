"""The public task API over a real database."""

from __future__ import annotations

import uuid
from datetime import timedelta

import pytest

from libs.common.clock import format_time, parse_time, utc_now
from services.scheduler.tests.conftest import ApiClient

pytestmark = pytest.mark.component


def test_a_task_is_created_with_the_defaults(user):
    answer = user("POST", "/api/tasks/", json={"image": "busybox:latest"})

    assert answer.status_code == 201
    task = answer.json
    assert answer.headers["Location"] == f"/api/tasks/{task['id']}"
    assert task | {"id": "", "createdAt": "", "updatedAt": "", "scheduledAt": ""} == {
        "id": "",
        "userId": str(user.user_id),
        "scheduleId": None,
        "status": "pending",
        "reason": None,
        "waiting": {
            "code": "no_executor",
            "text": "No executor is connected. An operator can start one: make scale N=1.",
        },
        "position": None,
        "name": None,
        "labels": {},
        "image": "busybox:latest",
        "command": None,
        "args": [],
        "entrypoint": None,
        "environment": {},
        "scheduledAt": "",
        "timeoutSeconds": 3600,
        "stopGraceSeconds": 10,
        "priority": 5,
        "resources": {"cpus": 1.0, "memoryMb": 256, "pids": 128},
        "network": "egress",
        "onExecutorLost": "retry",
        "retry": {"maxAttempts": 1, "backoffSeconds": 5, "maxBackoffSeconds": 300, "onExitCodes": None},
        "queueTtlSeconds": None,
        "concurrency": None,
        "pool": "default",
        "result": None,
        "errorMsg": None,
        "exitCode": None,
        "attempts": 0,
        "createdAt": "",
        "queuedAt": None,
        "startedAt": None,
        "finishedAt": None,
        "updatedAt": "",
    }


def test_everything_about_a_task_comes_back_as_it_was_sent(user):
    sent = {
        "image": "registry.example:5000/team/tool:1.2@sha256:" + "a" * 64,
        "command": "sh -c",
        "args": ["-c", "echo $(date); ls && rm *", "", "ünï ☃"],
        "entrypoint": ["/bin/env", "--"],
        "environment": {"A": ' spaces "quotes" = and\nnew\r\nlines\t☃ ', "_b2": "", "JSON": '{"a": 1}'},
        "name": "nightly ☃",
        "labels": {"team": "a:b", "ünï": ""},
        "priority": 9,
        "timeoutSeconds": 604800,
        "stopGraceSeconds": 0,
        "resources": {"cpus": 0.05, "memoryMb": 16, "pids": 1},
        "network": "none",
        "onExecutorLost": "hold",
        "retry": {"maxAttempts": 20, "backoffSeconds": 0, "maxBackoffSeconds": 86400, "onExitCodes": [1, 255]},
        "scheduledAt": format_time(utc_now() + timedelta(days=365 * 5 - 1)),
    }

    task = user.create(**sent)

    assert sent.items() <= user.get(task["id"]).items()


@pytest.mark.parametrize("path", ["/api/tasks", "/api/tasks/"])
def test_the_collection_works_with_and_without_the_final_slash(user, path):
    assert user("GET", path).status_code == 200
    assert user("POST", path, json={"image": "busybox"}).status_code == 201


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"image": None}, "image"),
        ({"image": ""}, "image"),
        ({"image": "Upper/Case"}, "image"),
        ({"image": "a b"}, "image"),
        ({"image": "a" * 256}, "image"),
        ({"image": "busybox\n"}, "image"),
        ({"image": "ünï"}, "image"),
        ({"image": ["busybox"]}, "image"),
        ({"command": ["sh"]}, "command"),
        ({"command": ""}, "command"),
        ({"command": "a\x00b"}, "command"),
        ({"command": "\ud800"}, "command"),
        ({"args": "sh"}, "args"),
        ({"args": [1]}, "args"),
        ({"args": [None]}, "args"),
        ({"args": ["\x00"]}, "args"),
        ({"args": ["a" * 131072]}, "args"),
        ({"args": ["a"] * 1001}, "args"),
        ({"entrypoint": []}, "entrypoint"),
        ({"entrypoint": {"a": "b"}}, "entrypoint"),
        ({"environment": []}, "environment"),
        ({"environment": {"1A": "x"}}, "environment"),
        ({"environment": {"A-B": "x"}}, "environment"),
        ({"environment": {"": "x"}}, "environment"),
        ({"environment": {"A\n": "x"}}, "environment"),
        ({"environment": {"Ä": "x"}}, "environment"),
        ({"environment": {"A": 1}}, "environment"),
        ({"environment": {"A": None}}, "environment"),
        ({"environment": {"A": "\x00"}}, "environment"),
        ({"environment": {"A": "☃" * 11000}}, "environment"),
        ({"environment": {f"A{n}": "" for n in range(101)}}, "environment"),
        ({"scheduledAt": "tomorrow"}, "scheduledAt"),
        ({"scheduledAt": 5}, "scheduledAt"),
        ({"scheduledAt": "2026-01-01T00:00:00"}, "scheduledAt"),
        ({"scheduledAt": "9999-12-31T23:59:59Z"}, "scheduledAt"),
        ({"scheduledAt": "9999-12-31T23:59:59-23:59"}, "scheduledAt"),
        ({"scheduledAt": "0001-01-01T00:00:00+23:59"}, "scheduledAt"),
        ({"scheduledAt": "2020-01-01T00:00:00Z"}, "scheduledAt"),
        ({"name": "n" * 101}, "name"),
        ({"name": ""}, "name"),
        ({"name": 5}, "name"),
        ({"labels": {str(n): "" for n in range(21)}}, "labels"),
        ({"labels": {"a:b": "c"}}, "labels"),
        ({"labels": {"a": "b" * 101}}, "labels"),
        ({"labels": {"a": {}}}, "labels"),
        ({"priority": 10}, "priority"),
        ({"priority": -1}, "priority"),
        ({"priority": True}, "priority"),
        ({"priority": "5"}, "priority"),
        ({"timeoutSeconds": 0}, "timeoutSeconds"),
        ({"timeoutSeconds": 604801}, "timeoutSeconds"),
        ({"timeoutSeconds": 1.5}, "timeoutSeconds"),
        ({"timeoutSeconds": 10**30}, "timeoutSeconds"),
        ({"stopGraceSeconds": -1}, "stopGraceSeconds"),
        ({"resources": {"cpus": 0.04}}, "resources"),
        ({"resources": {"cpus": 65}}, "resources"),
        ({"resources": {"cpus": 10**400}}, "resources"),
        ({"resources": {"memoryMb": 15}}, "resources"),
        ({"resources": {"pids": 0}}, "resources"),
        ({"resources": {"gpus": 1}}, "resources"),
        ({"resources": None}, "resources"),
        ({"network": "host"}, "network"),
        ({"onExecutorLost": "pray"}, "onExecutorLost"),
        ({"onExecutorLost": None}, "onExecutorLost"),
        ({"network": None}, "network"),
        ({"userId": "me"}, "userId"),
        ({"userId": 5}, "userId"),
        ({"retry": {"maxAttempts": 21}}, "retry"),
        ({"privileged": True}, "privileged"),
        ({"timeout_seconds": 5}, "timeout_seconds"),
        ({"\ud800": 5}, "\ud800"),
    ],
)
def test_an_invalid_field_is_422_and_named(user, fields, field):
    answer = user("POST", "/api/tasks/", json={"image": "busybox", **fields})

    assert answer.status_code == 422, answer.json
    assert answer.content_type == "application/problem+json"
    assert answer.json["code"] == "invalid_fields"
    assert field in answer.json["errors"]
    assert user("GET", "/api/tasks/").json["items"] == []


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        (b"", "application/json", 400),
        (b"{", "application/json", 400),
        (b"\xff", "application/json", 400),
        (b'{"image": NaN}', "application/json", 400),
        (b"[" * 10_000 + b"]" * 10_000, "application/json", 400),
        (b'{"image": ' + b"[" * 10_000 + b"]" * 10_000 + b"}", "application/json", 400),
        (b'{"priority": ' + b"9" * 5000 + b"}", "application/json", 400),
        (b"[]", "application/json", 422),
        (b"null", "application/json", 422),
        (b'"busybox"', "application/json", 422),
        (b'{"image": "busybox"}', "text/plain", 415),
        (b'{"image": "' + b"a" * 2_000_000 + b'"}', "application/json", 413),
    ],
)
def test_a_body_that_is_no_task_changes_nothing(user, body, content_type, status):
    answer = user("POST", "/api/tasks/", data=body, content_type=content_type)

    assert answer.status_code == status, answer.json
    assert answer.content_type == "application/problem+json"
    assert user("GET", "/api/tasks/").json["items"] == []


def test_a_time_up_to_a_minute_ago_counts_as_now(user):
    scheduled_at = utc_now() - timedelta(seconds=50)

    task = user.create(scheduledAt=format_time(scheduled_at))

    assert parse_time(task["scheduledAt"]) == scheduled_at


def test_a_task_that_is_due_wakes_the_dispatch_loop_and_a_later_one_does_not(user, waker):
    user.create()
    user.create(scheduledAt=format_time(utc_now() + timedelta(minutes=5)))

    assert waker.count == 1


def test_a_task_for_later_says_when_it_starts(user):
    scheduled_at = format_time(utc_now() + timedelta(minutes=5))

    task = user.create(scheduledAt=scheduled_at)

    assert task["waiting"] == {"code": "scheduled", "text": f"It starts at {scheduled_at}."}


@pytest.mark.parametrize("method", ["GET", "DELETE"])
@pytest.mark.parametrize(
    "task_id",
    [
        "7b0adfe3-8294-4655-b760-9100915a1b1c",
        "x",
        "5",
        "{c0a80121-7ac0-11d1-898c-00c04fd8d5cd}",
        "%00",
        "c0a801217ac011d1898c00c04fd8d5cd",
    ],
)
def test_a_task_that_is_not_there_is_404(user, method, task_id):
    answer = user(method, f"/api/tasks/{task_id}")

    assert answer.status_code == 404
    assert answer.json["code"] == "not_found"


@pytest.mark.parametrize(
    ("method", "suffix"), [("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/runs"), ("GET", "/logs")]
)
def test_another_users_task_is_404(user, other, method, suffix):
    task = user.create()

    answer = other(method, f"/api/tasks/{task['id']}{suffix}")

    assert answer.status_code == 404
    assert user.get(task["id"])["status"] == "pending"


def test_an_admin_sees_and_deletes_everybodys_tasks(user, admin):
    task = user.create()

    assert admin.get(task["id"])["userId"] == str(user.user_id)
    assert admin("DELETE", f"/api/tasks/{task['id']}").status_code == 204
    assert user("GET", f"/api/tasks/{task['id']}").status_code == 404


def test_an_admin_creates_a_task_for_another_user(admin, user):
    task = admin.create(userId=str(user.user_id))

    assert user.get(task["id"])["userId"] == str(user.user_id)


def test_a_task_for_a_user_that_is_not_there_is_422(admin):
    answer = admin("POST", "/api/tasks/", json={"image": "busybox", "userId": str(uuid.uuid4())})

    assert answer.status_code == 422
    assert answer.json["errors"] == {"userId": ["There is no such user."]}


def test_a_user_creates_no_tasks_for_others(user, other):
    answer = user("POST", "/api/tasks/", json={"image": "busybox", "userId": str(other.user_id)})

    assert answer.status_code == 403
    assert answer.json["code"] == "role_lacking"


def test_the_operators_limits_are_checked_and_the_defaults_fit_them(make_client):
    client = make_client(max_task_cpus=0.5, max_task_memory_mb=128, image_allow_list=("busybox", "*/team/*"))
    user = ApiClient(client, uuid.uuid4(), ["user"])

    answer = user(
        "POST", "/api/tasks/", json={"image": "evil.example/busybox", "resources": {"cpus": 1, "memoryMb": 129}}
    )

    assert answer.status_code == 422
    assert set(answer.json["errors"]) == {"image", "resources"}
    assert [message.split(":")[0] for message in answer.json["errors"]["resources"]] == ["cpus", "memoryMb"]
    assert user.create()["resources"] == {"cpus": 0.5, "memoryMb": 128, "pids": 128}


def test_without_a_token_every_path_is_401(client):
    for method, path in [("POST", "/api/tasks/"), ("GET", "/api/tasks/"), ("GET", f"/api/tasks/{uuid.uuid4()}")]:
        answer = client.open(path, method=method, headers={"X-User-Id": str(uuid.uuid4())})

        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"] == "Bearer"


def test_a_list_is_newest_first_and_pages_meet_without_gap_or_overlap(user, other):
    created = [user.create(name=f"task {number}")["id"] for number in range(7)]
    other.create()

    seen: list[str] = []
    cursor = ""
    while cursor is not None:
        page = user("GET", "/api/tasks/", query_string={"limit": 3} | ({"cursor": cursor} if cursor else {})).json
        seen.extend(task["id"] for task in page["items"])
        cursor = page["nextCursor"]

    assert seen == created[::-1]


def test_a_list_is_filtered_by_status_and_time(user):
    first, second, third = (user.create() for _ in range(3))
    user("POST", f"/api/tasks/{second['id']}/cancel")

    def ids(**query):
        answer = user("GET", "/api/tasks/", query_string=query)
        assert answer.status_code == 200, answer.json
        return [task["id"] for task in answer.json["items"]]

    assert ids(status="cancelled") == [second["id"]]
    assert ids(status="cancelled,pending") == [third["id"], second["id"], first["id"]]
    assert ids(status=["pending", "running"]) == [third["id"], first["id"]]
    assert ids(since=second["createdAt"]) == [third["id"], second["id"]]
    assert ids(until=second["createdAt"]) == [first["id"]]
    assert ids(since="0001-01-01T00:00:00Z", until="9999-12-31T23:59:59Z", limit=1) == [third["id"]]


@pytest.mark.parametrize(
    "query",
    [
        {"status": "done"},
        {"status": ""},
        {"since": "yesterday"},
        {"until": "2026-01-01"},
        {"limit": "0"},
        {"limit": "201"},
        {"limit": "x"},
        {"limit": "9" * 5000},
        {"cursor": "x"},
        {"cursor": ""},
        {"cursor": "\x00"},
        {"cursor": "A" * 32 + "A"},
        {"cursor": "f39_" * 8},
        {"userId": "x"},
        {"color": "red"},
    ],
)
def test_a_bad_query_is_422(user, query):
    answer = user("GET", "/api/tasks/", query_string=query)

    assert answer.status_code == 422, answer.json
    assert list(answer.json["errors"]) == list(query)


def test_an_admin_lists_everybodys_tasks_or_one_users(user, other, admin):
    mine, theirs = user.create(), other.create()

    everybodys = admin("GET", "/api/tasks/").json["items"]
    one_users = admin("GET", "/api/tasks/", query_string={"userId": str(user.user_id)}).json["items"]

    assert [task["id"] for task in everybodys] == [theirs["id"], mine["id"]]
    assert [task["id"] for task in one_users] == [mine["id"]]
    assert user("GET", "/api/tasks/", query_string={"userId": str(other.user_id)}).status_code == 403


def test_a_pending_task_is_cancelled_at_once_and_only_once(user):
    task = user.create()

    first = user("POST", f"/api/tasks/{task['id']}/cancel")
    second = user("POST", f"/api/tasks/{task['id']}/cancel")

    assert (first.status_code, second.status_code) == (202, 200)
    assert first.json["status"] == "cancelled"
    assert first.json["finishedAt"] is not None
    assert second.json == first.json


def test_a_deleted_task_is_gone(user):
    task = user.create()

    assert user("DELETE", f"/api/tasks/{task['id']}").status_code == 204
    assert user("GET", f"/api/tasks/{task['id']}").status_code == 404
    assert user("DELETE", f"/api/tasks/{task['id']}").status_code == 404
    assert user("GET", "/api/tasks/").json["items"] == []


def test_a_task_without_a_run_has_no_runs_and_an_empty_log(user):
    task = user.create()

    runs = user("GET", f"/api/tasks/{task['id']}/runs")
    log = user("GET", f"/api/tasks/{task['id']}/logs")

    assert runs.json == {"items": []}
    assert (log.status_code, log.data) == (200, b"")
    assert user("GET", f"/api/tasks/{task['id']}/logs", query_string={"attempt": 1}).status_code == 404


def test_a_method_that_is_not_there_is_405(user):
    answer = user("PATCH", "/api/tasks/")

    assert answer.status_code == 405
    assert "POST" in answer.headers["Allow"]


def test_the_openapi_document_shows_the_given_paths(client):
    paths = client.get("/openapi.json").json["paths"]

    assert set(paths["/api/tasks/"]) >= {"get", "post"}
    assert set(paths["/api/tasks/{task_id}"]) >= {"get", "delete"}
    assert not any(path.startswith("/internal") for path in paths)

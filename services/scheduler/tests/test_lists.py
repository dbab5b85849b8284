"""Lists and counts over a real database."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common.clock import format_time, utc_now
from services.scheduler import list_store, lists
from services.scheduler.list_store import Term, decide_way
from services.scheduler.states import TaskStatus
from services.scheduler.sweep import SweepConfig, Sweeper

LATER = format_time(utc_now() + timedelta(days=1))
TEAM, BATCH, NAME = Term("l:team:red"), Term("l:batch:7"), Term("n:nightly", is_prefix=True)


def test_the_rarest_term_leads_to_the_tasks():
    assert decide_way({TEAM: 1500, BATCH: 20, NAME: 1999}, None, few=2000) == BATCH


def test_rare_statuses_lead_to_the_tasks_when_they_are_rarer_than_every_term():
    assert decide_way({TEAM: 1500}, 3, few=2000) is None
    assert decide_way({TEAM: 3}, 1500, few=2000) == TEAM


def test_when_everything_is_frequent_a_term_that_is_read_in_order_goes_first():
    assert decide_way({NAME: 2000, TEAM: 2000}, 2000, few=2000) == TEAM
    assert decide_way({NAME: 2000}, 2000, few=2000) == NAME


def test_without_terms_the_statuses_lead_to_the_tasks():
    assert decide_way({}, 5, few=2000) is None
    assert decide_way({}, None, few=2000) is None


@given(
    weights=st.dictionaries(st.sampled_from([TEAM, BATCH, NAME]), st.integers(0, 10)), statuses=st.integers(0, 10)
)
def test_no_way_is_taken_that_is_frequent_while_another_is_rare(weights, statuses):
    way = decide_way(weights, statuses, few=10)

    taken = statuses if way is None else weights[way]
    assert taken < 10 or min([*weights.values(), statuses if weights else 10]) >= 10 or not weights


def list_ids(user, **query: Any) -> list[str]:
    """All pages of a list, three tasks at a time."""
    seen: list[str] = []
    cursor = None
    while True:
        answer = user(
            "GET", "/api/tasks/", query_string={"limit": 3, **query} | ({"cursor": cursor} if cursor else {})
        )
        assert answer.status_code == 200, answer.json
        seen += [task["id"] for task in answer.json["items"]]
        cursor = answer.json["nextCursor"]
        if cursor is None:
            return seen


@pytest.fixture
def some(user, other) -> list[dict[str, Any]]:
    """Twelve tasks with names and labels, newest first; every third is cancelled. Another user has the same."""
    tasks: list[dict[str, Any]] = []
    for number in range(12):
        fields: dict[str, Any] = {
            "name": f"{'nightly' if number % 2 else 'import'}/{number}",
            "labels": {
                "team": ("red", "blue")[number % 2],
                "half": str(number // 6),
                "url": f"http://x:{number}/",
            },
            "scheduledAt": LATER,
        }
        task = user.create(**fields)
        other.create(**fields)
        if number % 3 == 0:
            user("POST", f"/api/tasks/{task['id']}/cancel")
        tasks.insert(0, user.get(task["id"]))
    return tasks


FILTERS: list[tuple[dict[str, Any], Callable[[Any], bool]]] = [
    ({"label": "team:red"}, lambda task: task["labels"]["team"] == "red"),
    ({"label": ["team:red", "half:1"]}, lambda t: (t["labels"]["team"], t["labels"]["half"]) == ("red", "1")),
    ({"label": "url:http://x:4/"}, lambda task: task["name"].endswith("/4")),
    ({"label": ["team:red", "team:blue"]}, lambda task: False),
    ({"label": "team:"}, lambda task: False),
    ({"label": "team:re"}, lambda task: False),
    ({"name": "night"}, lambda task: task["name"].startswith("night")),
    ({"name": "nightly/11"}, lambda task: task["name"] == "nightly/11"),
    ({"name": "Night"}, lambda task: False),
    ({"name": "%"}, lambda task: False),
    ({"name": "import", "status": "cancelled"}, lambda t: t["status"] == "cancelled" and t["name"][0] == "i"),
    ({"label": "team:blue", "status": "pending"}, lambda t: t["status"] == "pending" and t["name"][0] == "n"),
    ({"label": "half:0", "name": "import"}, lambda t: t["labels"]["half"] == "0" and t["name"][0] == "i"),
    (
        {"label": ["half:0", "team:red"], "name": "import", "status": ["pending", "cancelled"]},
        lambda t: t["labels"]["half"] == "0" and t["name"][0] == "i",
    ),
    ({"status": "running", "label": "team:red"}, lambda task: False),
]


@pytest.mark.component
@pytest.mark.parametrize(("few", "many_names"), [(2000, 50), (3, 50), (0, 50), (0, 1)])
def test_a_filter_finds_what_it_says_whichever_way_leads_there(user, some, monkeypatch, few, many_names):
    monkeypatch.setattr(list_store, "FEW", few)
    monkeypatch.setattr(list_store, "MANY_NAMES", many_names)

    for query, belongs in FILTERS:
        assert list_ids(user, **query) == [task["id"] for task in some if belongs(task)], query


@pytest.mark.component
def test_times_bound_what_labels_and_names_find(user, some):
    bounds = {"since": some[8]["createdAt"], "until": some[2]["createdAt"]}

    queries: list[dict[str, Any]] = [
        {"label": "team:red"},
        {"name": "import"},
        {"label": "team:red", "status": "pending"},
    ]
    for query in queries:
        wanted = [task["id"] for task in some[3:9] if task["name"].startswith("import")]
        if "status" in query:
            wanted = [task["id"] for task in some[3:9] if task["id"] in wanted and task["status"] == "pending"]
        assert list_ids(user, **query, **bounds) == wanted
    assert list_ids(user, **bounds) == [task["id"] for task in some[3:9]]


@pytest.mark.component
def test_an_admin_finds_everybodys_tasks_or_one_users(user, admin, some):
    mine = list_ids(user, label="team:red")

    everybodys = list_ids(admin, label="team:red")

    assert len(everybodys) == 2 * len(mine)
    assert list_ids(admin, label="team:red", userId=str(user.user_id)) == mine
    assert list_ids(admin, name="import", userId=str(user.user_id)) == mine
    assert set(list_ids(admin, name="import", status="cancelled")) < set(mine)


@pytest.mark.component
def test_the_tasks_of_a_schedule_are_found(user, pool):
    first, second = user.create(name="a"), user.create(name="b")
    schedule_id = uuid.uuid4()
    columns = "user_id, image, timeout_seconds, stop_grace_seconds, cpus, memory_mb, pids, network, name, labels"
    with pool.connection() as connection:
        # Nothing makes tasks from schedules yet.
        made = connection.execute(
            f"INSERT INTO scheduler.tasks (id, scheduled_at, due_at, request_id, schedule_id, {columns})"  # noqa: S608
            f" SELECT gen_random_uuid(), now(), now(), '', %s, {columns} FROM scheduler.tasks WHERE id = %s"
            " RETURNING id",
            [schedule_id, second["id"]],
        ).fetchone()

    found = user("GET", "/api/tasks/", query_string={"scheduleId": str(schedule_id)}).json["items"]

    assert [(task["id"], task["scheduleId"]) for task in found] == [(str(made["id"]), str(schedule_id))]
    assert list_ids(user, scheduleId=str(schedule_id), name="b") == [str(made["id"])]
    assert list_ids(user, scheduleId=str(schedule_id), name="a") == []
    assert first["scheduleId"] is None


@pytest.mark.component
def test_a_deleted_task_is_found_by_nothing_any_more(user, some, pool):
    for task in some:
        assert user("DELETE", f"/api/tasks/{task['id']}").status_code == 204

    assert list_ids(user, label="team:red") == list_ids(user, name="n") == list_ids(user) == []
    with pool.connection() as connection:
        left = connection.execute(
            "SELECT count(*) AS count FROM scheduler.task_terms WHERE user_id = %s", [user.user_id]
        ).fetchone()
    assert left == {"count": 0}


@pytest.mark.component
def test_a_task_that_is_deleted_while_it_runs_is_neither_listed_nor_counted(user, executor, queue, dispatcher):
    task, run_id = queue(labels={"team": "red"}, name="n")
    executor.claim(run_id)

    assert user("DELETE", f"/api/tasks/{task['id']}").status_code == 204

    assert list_ids(user) == list_ids(user, label="team:red") == list_ids(user, name="n") == []
    assert set(count(user).values()) == {0}


@pytest.mark.component
@pytest.mark.parametrize(
    "query",
    [
        {"label": "team"},
        {"label": ":red"},
        {"label": ""},
        {"label": "a:\x00"},
        {"label": [f"l{number}:" for number in range(21)]},
        {"name": ""},
        {"name": "n" * 101},
        {"name": "\x00"},
        {"scheduleId": "x"},
        {"scheduleId": ""},
    ],
)
def test_a_bad_filter_is_422_and_named(user, query):
    answer = user("GET", "/api/tasks/", query_string=query)

    assert answer.status_code == 422, answer.json
    assert list(answer.json["errors"]) == list(query)


def count(user, **query: Any) -> dict[str, int]:
    answer = user("GET", "/api/tasks/stats", query_string=query)
    assert answer.status_code == 200, answer.json
    return answer.json["byStatus"]


@pytest.mark.component
def test_every_status_is_counted_as_tasks_move(user, other, executor, dispatcher, publisher, queue):
    nothing = dict.fromkeys(TaskStatus, 0)
    assert count(user) == nothing

    later = user.create(scheduledAt=LATER)
    other.create(scheduledAt=LATER)
    _, run_id = queue()
    assert count(user) == nothing | {"pending": 1, "queued": 1}

    executor.claim(run_id)
    executor.start(run_id)
    assert count(user) == nothing | {"pending": 1, "running": 1}

    executor.finish(run_id)
    user("POST", f"/api/tasks/{later['id']}/cancel")
    assert count(user) == nothing | {"completed": 1, "cancelled": 1}

    user("DELETE", f"/api/tasks/{later['id']}")
    assert count(user) == nothing | {"completed": 1}


@pytest.mark.component
def test_counts_are_the_same_after_they_were_added_up(user, admin, pool, dispatcher, users, waker):
    for _ in range(3):
        user.create(scheduledAt=LATER)
    sweeper = Sweeper(
        pool=pool,
        dispatcher=dispatcher,
        users=users,
        config=SweepConfig(counts_batch_size=2),
        wake_dispatch=waker.wake,
    )
    before = count(user)

    for _ in range(3):
        sweeper.add_up_counts()

    assert count(user) == before
    assert before["pending"] == 3
    assert count(admin)["pending"] >= 3
    assert count(admin, userId=str(user.user_id)) == before
    with pool.connection() as connection:
        assert connection.execute("SELECT FROM scheduler.task_count_changes").fetchall() == []


@pytest.mark.component
def test_only_an_admin_counts_others_tasks(user, other):
    assert user("GET", "/api/tasks/stats", query_string={"userId": str(other.user_id)}).status_code == 403
    assert user("GET", "/api/tasks/stats", query_string={"status": "pending"}).status_code == 422


@pytest.mark.component
def test_the_terms_of_a_filter_are_written_as_the_database_writes_them(pool):
    schedule_id = uuid.uuid4()
    wanted = list_store.TaskFilter(
        user_id=None,
        statuses=None,
        labels=[("ünï", "a:b"), ("empty", "")],
        name="☃",
        schedule_id=schedule_id,
        since=utc_now(),
        until=utc_now(),
    )

    with pool.connection() as connection:
        written = connection.execute(
            'SELECT scheduler.list_terms(\'☃\', \'{"ünï": "a:b", "empty": ""}\', %s) AS term', [schedule_id]
        ).fetchall()

    assert {term.text for term in list_store.list_terms(wanted)} == {row["term"] for row in written}


@pytest.mark.component
def test_a_page_of_large_tasks_is_shorter_and_the_next_ones_follow(user, monkeypatch):
    monkeypatch.setattr(lists, "MOST_PAGE_BYTES", 25_000)
    ids = [user.create(scheduledAt=LATER, args=["x" * 10_000])["id"] for _ in range(5)]
    huge = user.create(scheduledAt=LATER, args=["x" * 50_000])["id"]

    first = user("GET", "/api/tasks/").json
    second = user("GET", "/api/tasks/", query_string={"cursor": first["nextCursor"]}).json

    assert [task["id"] for task in first["items"]] == [huge]
    assert [task["id"] for task in second["items"]] == ids[:-3:-1]
    assert list_ids(user) == [huge, *ids[::-1]]


@pytest.mark.component
def test_an_empty_list_is_a_last_page(user):
    assert user("GET", "/api/tasks/").json == {"items": [], "nextCursor": None}

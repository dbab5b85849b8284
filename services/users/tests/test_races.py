"""Two requests at once: what must hold whichever comes first."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import pytest
from werkzeug.test import TestResponse

from libs.common.config import Secret
from services.users.bootstrap import AdminBootstrap
from services.users.tests.builders import PASSWORD, Api, Person, a_signup

Result = TypeVar("Result")

pytestmark = pytest.mark.component


def at_once(*calls: Callable[[], Result]) -> list[Result]:
    barrier = threading.Barrier(len(calls))

    def start(call: Callable[[], Result]) -> Result:
        barrier.wait()
        return call()

    with ThreadPoolExecutor(len(calls)) as threads:
        return [future.result() for future in [threads.submit(start, call) for call in calls]]


def statuses(answers: list[TestResponse]) -> list[int]:
    return sorted(answer.status_code for answer in answers)


@pytest.fixture
def second(api: Api, admin: Person) -> Person:
    """Another admin, so that there are two."""
    person = api.sign_up()
    admin.put(f"/api/users/role/{person.id}", {"roles": ["user", "admin"]})
    return person.log_in()


@pytest.mark.parametrize("_again", range(5))
def test_the_last_two_admins_cannot_demote_each_other(api: Api, admin, second, _again):
    answers = at_once(
        lambda: admin.put(f"/api/users/role/{second.id}", {"roles": ["user"]}),
        lambda: second.put(f"/api/users/role/{admin.id}", {"roles": ["user"]}),
    )

    # The one that comes second is no admin any more: its token has ended.
    assert statuses(answers) == [200, 401]


@pytest.mark.parametrize("_again", range(5))
def test_the_last_two_admins_cannot_both_step_down(admin, second, _again):
    answers = at_once(
        lambda: admin.put(f"/api/users/role/{admin.id}", {"roles": ["user"]}),
        lambda: second.delete(second.path),
    )

    assert [status for status in statuses(answers) if status != 409] in ([200], [204])


@pytest.mark.parametrize("_again", range(5))
def test_disabling_and_demoting_the_last_two_admins_leaves_one(admin, second, _again):
    answers = at_once(
        lambda: admin.put(admin.path, {"enabled": False}),
        lambda: second.put(f"/api/users/role/{second.id}", {"roles": ["user"]}),
    )

    assert statuses(answers) == [200, 409]


def test_one_of_two_signups_with_the_same_email_wins(api: Api):
    body = a_signup()

    answers = at_once(*[lambda: api.post("/api/users/signup", body)] * 4)

    assert statuses(answers) == [201, 409, 409, 409]


@pytest.mark.parametrize("_again", range(5))
def test_of_two_refreshes_with_the_same_token_one_wins_and_the_session_ends(api: Api, ada, _again):
    answers = at_once(*[lambda: api.post("/api/users/refresh", {"refreshToken": ada.refresh_token})] * 3)

    assert statuses(answers) == [200, 401, 401]
    assert not api.is_active(ada)


@pytest.mark.parametrize("_again", range(5))
def test_a_token_made_while_the_password_changes_does_not_outlive_it(api: Api, ada, _again):
    change = {"password": "another horse", "passwordConfirm": "another horse"}

    _, created = at_once(
        lambda: ada.put(ada.path, change), lambda: ada.post("/api/users/me/tokens", {"name": "thief"})
    )

    if created.status_code == 201:
        exchanged = api.internal("POST", "/tokens/exchange", {"token": created.get_json()["token"]})
        assert exchanged.status_code == 401


@pytest.mark.parametrize("_again", range(5))
def test_a_login_while_the_password_changes_does_not_outlive_it(api: Api, ada, _again):
    change = {"password": "another horse", "passwordConfirm": "another horse"}

    _, login = at_once(
        lambda: ada.put(ada.path, change),
        lambda: api.post("/api/users/login", {"email": ada.email, "password": PASSWORD}),
    )

    if login.status_code == 200:
        body = {"refreshToken": login.get_json()["refreshToken"]}
        assert api.post("/api/users/refresh", body).status_code == 401


def test_two_admins_changing_each_other_never_wait_forever(admin, second):
    for _ in range(5):
        answers = at_once(
            lambda: admin.put(second.path, {"name": "one"}), lambda: second.put(admin.path, {"name": "two"})
        )

        assert statuses(answers) == [200, 200]


def test_workers_that_start_at_once_make_one_admin(pool, passwords):
    def boot() -> bool:
        return AdminBootstrap(
            pool=pool, passwords=passwords, email="admin@example.com", password=Secret(PASSWORD)
        ).run_once()

    made = at_once(*[boot] * 4)

    assert sorted(made) == [False, False, False, True]
    with pool.connection() as connection:
        assert connection.execute("SELECT count(*) FROM users.accounts").fetchone() == {"count": 1}

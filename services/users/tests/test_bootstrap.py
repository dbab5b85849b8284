"""The operator's admin."""

from __future__ import annotations

import pytest

from libs.common.config import Secret
from libs.common.postgres import open_pool
from services.users.bootstrap import AdminBootstrap, AdminMissing
from services.users.tests.builders import PASSWORD, Api, Person
from services.users.tests.conftest import ADMIN_EMAIL

pytestmark = pytest.mark.component


def test_a_new_system_has_the_operators_admin(api: Api):
    admin = api.log_in(ADMIN_EMAIL)

    assert admin.get("/api/users/me").get_json()["roles"] == ["user", "admin"]


def test_a_restart_makes_no_second_admin_even_if_the_first_has_another_email_now(api: Api, admin, bootstrap):
    admin.put(admin.path, {"email": "root@example.com"})

    assert bootstrap.run_once() is False
    assert api.post("/api/users/login", {"email": ADMIN_EMAIL, "password": PASSWORD}).status_code == 401


def test_a_restart_does_not_bring_the_old_password_back(api: Api, admin, bootstrap):
    admin.put(admin.path, {"password": "another horse", "passwordConfirm": "another horse"})

    bootstrap.run_once()

    assert api.post("/api/users/login", {"email": ADMIN_EMAIL, "password": PASSWORD}).status_code == 401


def test_whoever_took_the_operators_email_loses_the_account_to_the_operator(app, pool, bootstrap):
    api = Api(app)
    with pool.connection() as connection:
        connection.execute("DELETE FROM users.accounts")
    squatter: Person = api.sign_up(email=ADMIN_EMAIL.upper(), password="squatter's own")
    personal = squatter.post("/api/users/me/tokens", {"name": "x"}).get_json()["token"]

    assert bootstrap.run_once() is True

    assert not api.is_active(squatter)
    assert api.internal("POST", "/tokens/exchange", {"token": personal}).status_code == 401
    assert api.post("/api/users/login", {"email": ADMIN_EMAIL, "password": "squatter's own"}).status_code == 401
    assert api.log_in(ADMIN_EMAIL).get("/api/users/").status_code == 200


def test_it_waits_for_the_migration(make_database, passwords):
    database = make_database()
    pool = open_pool(database.dsn, name="users-test", max_size=2)
    bootstrap = AdminBootstrap(pool=pool, passwords=passwords, email=ADMIN_EMAIL, password=Secret(PASSWORD))

    with pytest.raises(AdminMissing):
        bootstrap.require_done()
    with pytest.raises(Exception, match="does not exist"):
        bootstrap.run_once()
    pool.close()

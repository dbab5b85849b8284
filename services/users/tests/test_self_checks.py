"""Code and schema say the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from services.users.roles import Role
from services.users.store import QUERIES

PACKAGE = Path(__file__).parents[1]


def test_every_named_query_is_used_and_every_used_one_exists():
    used = set(re.findall(r'QUERIES\["(\w+)"\]', (PACKAGE / "store.py").read_text()))

    assert used == set(QUERIES)


def test_the_roles_are_those_that_the_schema_allows():
    schema = (PACKAGE / "migrations/0001_accounts.sql").read_text()
    (allowed,) = re.findall(r"roles <@ ARRAY\[(.*?)\]", schema)

    assert [role.strip("' ") for role in allowed.split(",")] == [role.value for role in Role]


@pytest.mark.component
def test_the_service_owns_its_schema_and_nothing_else(pool):
    with pool.connection() as connection:
        row = connection.execute(
            "SELECT rolsuper, rolcreatedb, rolcreaterole,"
            " has_schema_privilege('public', 'CREATE') AS may_create"
            " FROM pg_roles WHERE rolname = current_user"
        ).fetchone()

    assert not any(row.values())


@pytest.mark.component
def test_the_api_document_names_every_route(app):
    documented = {
        (method.upper(), path)
        for path, operations in app.test_client().get("/openapi.json").get_json()["paths"].items()
        for method in operations
        if method != "parameters"
    }
    served = {
        (method, re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule))
        for rule in app.url_map.iter_rules()
        if rule.rule.startswith("/api/")
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }

    assert documented == served

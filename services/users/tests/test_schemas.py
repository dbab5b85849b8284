"""The schemas alone, against whatever hypothesis comes up with."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from marshmallow import ValidationError

from services.users import schemas
from services.users.tests.builders import a_signup

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
REQUESTS = [
    schemas.Signup,
    schemas.CreateUser,
    schemas.ChangeUser,
    schemas.ChangeRoles,
    schemas.Login,
    schemas.Refresh,
    schemas.CreatePersonalToken,
    schemas.CheckSession,
    schemas.ExchangeToken,
]
KEYS = ["name", "email", "password", "passwordConfirm", "roles", "enabled", "token", "expiresAt", "version"]


@pytest.mark.parametrize("schema", REQUESTS)
@given(body=json_values | st.dictionaries(st.sampled_from(KEYS), json_values))
def test_any_json_is_loaded_or_refused_by_a_validation_error(schema, body):
    with suppress(ValidationError):
        schema().load(body)


@given(st.text(min_size=1, max_size=80))
def test_a_password_is_taken_exactly_when_it_fits_bcrypt(password: str):
    fits = 8 <= len(password.encode()) <= 72 and "\x00" not in password

    errors = schemas.Signup().validate(a_signup(password=password))

    assert ("password" not in errors) == fits


def test_answers_never_hold_a_hash():
    for schema in (schemas.User, schemas.LoggedInUser, schemas.UserFacts):
        assert not {key for key in schema().fields if "password" in key or "hash" in key}

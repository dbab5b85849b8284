"""When two email addresses are the same."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.users.emails import email_key


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Ada@Example.COM", "ada@example.com"),
        ("jörg@exämple.com", "JÖRG@XN--EXMPLE-CUA.com"),
        ("jo\u0308rg@example.com", "jörg@example.com"),
        ("root@localhost", "ROOT@localhost"),
    ],
)
def test_case_and_spelling_make_no_difference(one: str, other: str):
    assert email_key(one) == email_key(other)


@pytest.mark.parametrize(
    ("one", "other"), [("ada@example.com", "ada@example.org"), ("a.da@example.com", "ada@example.com")]
)
def test_other_addresses_stay_other(one: str, other: str):
    assert email_key(one) != email_key(other)


@given(st.text(max_size=300))
def test_any_text_is_either_an_address_or_refused(text: str):
    try:
        key = email_key(text)
    except ValueError:
        return
    assert "@" in key


@given(st.emails())
def test_the_key_of_a_key_is_itself(address: str):
    try:
        key = email_key(address)
    except ValueError:
        return
    assert email_key(key) == key

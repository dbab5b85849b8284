from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from services.gateway.throttle import name_account


def test_an_account_has_one_name_however_its_address_is_written():
    one = name_account(json.dumps({"email": "Ada@Example.org "}).encode())
    other = name_account(json.dumps({"email": "ada@example.ORG", "password": "guess"}).encode())

    assert one == other != "none"
    assert "ada" not in one


def test_a_body_that_names_nobody_counts_as_one_account():
    bodies = [b"", b"[]", b"{}", b"null", b'{"email": 7}', b"\xff\xfe", b"[" * 100_000, b'{"email": null}']

    assert {name_account(body) for body in bodies} == {"none"}


@given(body=st.one_of(st.binary(), st.text().map(lambda text: json.dumps({"email": text}).encode())))
def test_any_body_has_a_name(body: bytes):
    assert name_account(body).isalnum()

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common.request_id import accept_request_id


@given(st.from_regex(r"[A-Za-z0-9._-]{1,64}", fullmatch=True))
def test_a_clients_own_id_is_kept(sent: str):
    assert accept_request_id(sent) == sent


@pytest.mark.parametrize("sent", [None, "", "x" * 65, "a b", "a\n", "é", "{}", "a\x00"])
def test_otherwise_a_new_one_is_made(sent: str | None):
    made = accept_request_id(sent)

    assert made != sent
    assert accept_request_id(made) == made
    assert accept_request_id(sent) != made

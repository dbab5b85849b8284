from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.gateway.headers import (
    REQUEST_ALLOWED,
    RESPONSE_ALLOWED,
    build_request_headers,
    build_response_headers,
)

_OWN = {"user-agent", "x-request-id", "x-forwarded-for", "x-forwarded-proto", "authorization"}
_HOP_BY_HOP = ("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te",
               "trailer", "transfer-encoding", "upgrade", "expect", "host")  # fmt: skip
_TOKEN_CHARACTERS = st.text(st.sampled_from("abcdefghijklmnopqrstuvwxyzABCXYZ0123456789-_!#$"), min_size=1)
_NAMES = st.one_of(
    _TOKEN_CHARACTERS,
    st.sampled_from(
        [*REQUEST_ALLOWED, *RESPONSE_ALLOWED, *_HOP_BY_HOP, "X-User-Id", "x-user-roles", "X_User_Id",
         "X-Forwarded-For", "Authorization", "Cookie", "X-Request-Id", "Accept", "IF-MATCH"]
    ),
)  # fmt: skip
_HEADERS = st.lists(st.tuples(_NAMES, st.text(max_size=20)), max_size=20)


def build(received: list[tuple[str, str]], *, token: str | None = None) -> dict[str, str]:
    return build_request_headers(
        received, token=token, request_id="request-1", client_address="192.0.2.7", scheme="https"
    )


@given(received=_HEADERS)
def test_nothing_outside_the_allow_list_passes(received):
    built = build(received)

    assert {name.lower() for name in built} <= REQUEST_ALLOWED | _OWN
    assert "Authorization" not in built


@given(received=_HEADERS)
def test_what_the_gateway_vouches_for_cannot_be_set_from_outside(received):
    built = {name.lower(): value for name, value in build(received, token="verified").items()}

    assert built["authorization"] == "Bearer verified"
    assert built["x-request-id"] == "request-1"
    assert built["x-forwarded-for"] == "192.0.2.7"
    assert built["x-forwarded-proto"] == "https"


@given(received=_HEADERS)
def test_only_allowed_headers_come_back(received):
    built = build_response_headers(received)

    assert {name.lower() for name, _ in built} <= RESPONSE_ALLOWED
    assert not {name.lower() for name, _ in built} & {*_HOP_BY_HOP, "set-cookie", "server", "date"}


def test_allowed_headers_pass_unchanged():
    received = [("Accept", "text/event-stream"), ("Idempotency-Key", "k-1"), ("Last-Event-ID", "42")]

    built = build(received)

    assert set(received) <= set(built.items())

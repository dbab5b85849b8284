from __future__ import annotations

from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common.errors import ApiError, BadRequest, NotFound
from services.gateway.targets import read_target

_ODD_PIECES = st.sampled_from(
    ["/", "//", ".", "..", "%2e", "%2E%2e", "%2f", "%5c", "\\", "%00", "%252f", "internal", "%69nternal", "api",
     "users", "tasks", "?", "#", "%", ";", "@", "é", "a"]
)  # fmt: skip
_RAW_TARGETS = st.one_of(
    st.lists(_ODD_PIECES, max_size=12).map(lambda pieces: "/" + "".join(pieces)),
    st.text(st.characters(max_codepoint=255), max_size=60),
)


@pytest.mark.parametrize(
    "raw",
    [
        "/api/tasks/",
        "/api/tasks?status=failed&label=a:b&label=c%3Ad&name=%C3%BC+%20x",
        "/api/users/4d7c#part",
        "/.well-known/jwks.json",
        "/api/tasks?next=/internal/../x//y",
    ],
)
def test_an_ordinary_target_passes_as_it_is(raw: str):
    assert read_target(raw) == raw.partition("#")[0]


@pytest.mark.parametrize(
    "raw",
    [
        "/api/users/../../internal/sessions/check",
        "/api/users/%2e%2e/%2E./internal/sessions/check",
        "/api/users/..",
        "/api/./users",
        "/api//users",
        "//internal/sessions/check",
        "/api/users/a%2fb",
        "/api/users/..%5c..%5cinternal",
        "/api/users/a\\b",
        "/api/users/%00",
        "/api/users/%0d%0aX-Evil:%201",
        "/api/users/%252e%252e/internal",
        "/internal",
        "/internal/sessions/check",
        "/INTERNAL/sessions/check",
        "/%69nternal/sessions/check",
        "http://users:8001/internal/sessions/check",
        "users:8001",
        "*",
        "",
    ],
)
def test_a_path_that_could_mean_another_one_further_on_is_not_found(raw: str):
    with pytest.raises(NotFound):
        read_target(raw)


@pytest.mark.parametrize(
    "raw",
    ["/api/tasks?name=100%", "/api/tasks?name=%zz", "/api/%u0041", "/api/tasks?name=ü", "/api/tasks?name=\t"],
)
def test_what_is_not_a_url_is_malformed(raw: str):
    with pytest.raises(BadRequest):
        read_target(raw)


@given(raw=_RAW_TARGETS)
def test_whatever_passes_reads_the_same_to_every_server(raw: str):
    try:
        target = read_target(raw)
    except ApiError:
        return

    path = target.partition("?")[0]
    decoded = unquote(path, encoding="latin-1")
    assert target.isascii()
    assert decoded.startswith("/")
    assert "//" not in decoded
    assert not {".", ".."} & set(decoded.split("/"))
    assert not set(decoded) & {"\\", "\0", "%"}
    assert not decoded.lower().startswith("/internal/")
    # A second decoding changes nothing, nor does it move a slash.
    assert unquote(decoded, encoding="latin-1") == decoded
    assert decoded.count("/") == path.count("/")

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.exceptions import HTTPException
from werkzeug.routing import Map, Rule

from services.gateway.published import ROUTES, SCHEDULER, SCHEDULER_LOGS, USERS, Access, Route, Throttle


def find_route(method: str, path: str) -> Route | None:
    """The route that the app finds for a request: the same map, with the same settings."""
    rules = [Rule(route.rule, methods=route.methods, endpoint=route) for route in ROUTES]
    adapter = Map(rules, strict_slashes=False, merge_slashes=False).bind("gateway")
    try:
        route, _ = adapter.match(path, method=method)
    except HTTPException:
        return None
    assert isinstance(route, Route)
    return route


@pytest.mark.parametrize(
    ("method", "path", "access"),
    [
        ("POST", "/api/users/login", Access.ANYONE),
        ("POST", "/api/users/login/", Access.ANYONE),
        ("POST", "/api/users/signup", Access.ANYONE),
        ("POST", "/api/users/refresh", Access.ANYONE),
        ("GET", "/.well-known/jwks.json", Access.ANYONE),
        ("GET", "/api/users/7f", Access.OPTIONAL_TOKEN),
        ("HEAD", "/api/users/7f", Access.OPTIONAL_TOKEN),
        ("GET", "/api/users", Access.TOKEN),
        ("GET", "/api/users/", Access.TOKEN),
        ("POST", "/api/users/", Access.TOKEN),
        ("POST", "/api/users/logout", Access.TOKEN),
        ("PUT", "/api/users/login", Access.TOKEN),
        ("PUT", "/api/users/7f", Access.TOKEN),
        ("DELETE", "/api/users/7f", Access.TOKEN),
        ("PUT", "/api/users/role/7f", Access.TOKEN),
        ("GET", "/api/users/me/tokens", Access.TOKEN),
        ("POST", "/api/tasks", Access.TOKEN),
        ("POST", "/api/tasks/", Access.TOKEN),
        ("GET", "/api/tasks/7f", Access.TOKEN),
        ("GET", "/api/users/7f/quota", Access.TOKEN),
        ("PUT", "/api/users/7f/quota", Access.TOKEN),
        ("GET", "/api/executors/", Access.TOKEN),
        ("POST", "/api/executors/e1/drain", Access.TOKEN),
    ],
)
def test_each_path_asks_for_the_token_that_the_api_promises(method: str, path: str, access: Access):
    route = find_route(method, path)

    assert route is not None
    assert route.access is access
    is_schedulers = path.startswith(("/api/tasks", "/api/executors")) or path.endswith("/quota")
    assert route.upstream == (SCHEDULER if is_schedulers else USERS)


@pytest.mark.parametrize("path", ["/api/tasks/7f/logs", "/api/tasks/7f/logs/"])
def test_output_comes_from_a_process_of_its_own(path: str):
    route = find_route("GET", path)

    assert route is not None
    assert (route.upstream, route.access) == (SCHEDULER_LOGS, Access.TOKEN)


@pytest.mark.parametrize(
    "path", ["/", "/api", "/api/", "/api/user", "/api/usersx", "/api/taskss/1", "/internal/sessions/check",
             "/API/users", "/openapi.json", "/.well-known/", "/.well-known/other", "/api/tasks;x"]
)  # fmt: skip
def test_what_is_not_in_the_table_is_not_published(path: str):
    assert find_route("GET", path) is None


def test_login_and_signup_are_throttled_however_they_are_written():
    for path in ("/api/users/login", "/api/users/login/"):
        route = find_route("POST", path)
        assert route is not None
        assert route.throttle is Throttle.LOGIN
    route = find_route("POST", "/api/users/signup")
    assert route is not None
    assert route.throttle is Throttle.SIGNUP


@given(
    method=st.sampled_from(
        ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "BREW"]
    ),
    path=st.lists(st.sampled_from(["api", "users", "tasks", "internal", "login", "me", "x", ""]), max_size=6).map(
        lambda segments: "/" + "/".join(segments)
    ),
)
def test_nothing_but_the_table_needs_no_token(method: str, path: str):
    route = find_route(method, path)

    if route is not None and route.access is not Access.TOKEN:
        segments = path.removesuffix("/").split("/")
        assert segments[:3] == ["", "api", "users"]
        assert len(segments) == 4
        assert method in (("GET", "HEAD") if route.access is Access.OPTIONAL_TOKEN else ("POST",))

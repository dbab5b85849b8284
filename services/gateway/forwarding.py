"""Passes a request on to its service and the answer back, as a stream."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from functools import partial
from http import HTTPStatus
from typing import Any

import structlog
from flask import Flask, Response, g, request
from urllib3 import BaseHTTPResponse
from urllib3.exceptions import HTTPError

from services.gateway.bodies import CHUNK_BYTES, Turns, read_body
from services.gateway.client_address import read_client_address, read_scheme
from services.gateway.event_streams import CONTENT_TYPE, EventStream
from services.gateway.headers import build_request_headers, build_response_headers
from services.gateway.published import Route
from services.gateway.sessions import Sessions
from services.gateway.targets import read_target
from services.gateway.throttle import Throttling
from services.gateway.upstream import Call, Upstream

log = structlog.get_logger()

# How long a client may pause while it sends its request or takes the answer.
CLIENT_SECONDS = 10.0


def publish(
    app: Flask,
    route: Route,
    *,
    upstream: Upstream,
    sessions: Sessions,
    throttling: Throttling,
    trusted_proxies: int,
    stopping: threading.Event,
) -> None:
    """Add one row of the route table to the app. `stopping` ends its streams of events."""
    turns = Turns()

    def forward(**_path_parameters: str) -> Response:
        token = sessions.authenticate(route.access, request)
        address, scheme = _read_client(trusted_proxies)
        headers = build_request_headers(
            request.headers, token=token, request_id=g.request_id, client_address=address, scheme=scheme
        )
        stream, declared = request.environ["wsgi.input"], request.content_length or 0
        with read_body(stream, declared=declared, limit=route.max_body_bytes, turns=turns) as body:
            throttling.check(route.throttle, address=address, body=body)
            call = Call(request.method, read_target(request.environ["RAW_URI"]), headers, body)
            answer = upstream.send(call)
        if not answer.headers.get("Content-Type", "").startswith(CONTENT_TYPE) or request.method == "HEAD":
            return _to_response(answer, _make_body(upstream, answer))
        watched = EventStream(AnswerBody(upstream, answer), holds=sessions.watch(request), stopping=stopping)
        return _to_response(answer, watched)

    app.add_url_rule(
        route.rule,
        endpoint=f"{route.rule} {','.join(route.methods)}",
        view_func=forward,
        methods=route.methods,
        provide_automatic_options=False,
    )


def _read_client(trusted_proxies: int) -> tuple[str, str]:
    forwarded_for = request.headers.get("X-Forwarded-For")
    forwarded_proto = request.headers.get("X-Forwarded-Proto")
    return (
        read_client_address(request.remote_addr, forwarded_for, trusted_proxies=trusted_proxies),
        read_scheme(request.scheme, forwarded_proto, trusted_proxies=trusted_proxies),
    )


def _make_body(upstream: Upstream, answer: BaseHTTPResponse) -> bytes | AnswerBody:
    length = answer.headers.get("Content-Length", "")
    if request.method == "HEAD" or answer.status in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED):
        answer.drain_conn()
        return b""
    if length.isdecimal() and int(length) <= CHUNK_BYTES:
        return _read_small(upstream, answer)
    return AnswerBody(upstream, answer)


def _to_response(answer: BaseHTTPResponse, body: bytes | Iterator[bytes]) -> Response:
    response = Response(body, status=answer.status)
    # Response starts with a content type of its own.
    response.headers.clear()
    response.headers.extend(build_response_headers(answer.headers.items()))
    return response


def _read_small(upstream: Upstream, answer: BaseHTTPResponse) -> bytes:
    try:
        return answer.read()
    except (HTTPError, OSError) as error:
        answer.close()
        raise upstream.translate(error) from error
    finally:
        answer.release_conn()


class AnswerBody(Iterator[bytes]):
    """A service's answer piece by piece, each as soon as it is there.

    Closing it before its end, as the server does when the client has left, closes the connection to the service
    too, which thereby learns of it. An answer that breaks off is cut off for the client as well, never ended
    as if it were whole.
    """

    def __init__(self, upstream: Upstream, answer: BaseHTTPResponse) -> None:
        self._upstream = upstream
        self._answer = answer
        self._ended = False

    def __next__(self) -> bytes:
        try:
            piece = self._answer.read1(CHUNK_BYTES)
        except (HTTPError, OSError) as error:
            raise self._upstream.translate(error) from error
        if not piece:
            self._ended = True
            raise StopIteration
        return piece

    def close(self) -> None:
        if not self._ended:
            self._answer.close()
        self._answer.release_conn()


def refuse_odd_targets(app: Flask) -> None:
    """Before any route is looked at, answer 404 to what could mean another path further on."""
    app.before_request(_check_target)


def _check_target() -> None:
    read_target(request.environ["RAW_URI"])


def bound_pauses(app: Flask) -> None:
    """Break with a client that stops half-way through its request or the answer; between requests it may pause."""

    @app.before_request
    def begin() -> None:
        _set_timeout(request.environ, CLIENT_SECONDS)

    @app.after_request
    def end_with(response: Response) -> Response:
        response.call_on_close(partial(_set_timeout, request.environ, None))
        return response


def _set_timeout(environ: Mapping[str, Any], seconds: float | None) -> None:
    connection = environ.get("gunicorn.socket")
    if connection is not None:
        connection.settimeout(seconds)

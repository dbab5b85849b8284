"""Rebuilds headers from allow-lists, both ways: what isn't named here doesn't pass."""

from __future__ import annotations

from collections.abc import Iterable

from libs.common.request_id import HEADER as REQUEST_ID

# Content-Length is set by the HTTP client, from the body it really sends.
REQUEST_ALLOWED = frozenset(
    {
        "accept",
        "content-type",
        "idempotency-key",
        "last-event-id",
        "if-match",
        "if-none-match",
        "if-modified-since",
        "if-unmodified-since",
        "if-range",
    }
)

RESPONSE_ALLOWED = frozenset(
    {
        "accept-ranges",
        "allow",
        "cache-control",
        "content-disposition",
        "content-encoding",
        "content-language",
        "content-length",
        "content-range",
        "content-type",
        "etag",
        "expires",
        "idempotency-replayed",
        "last-modified",
        "location",
        "retry-after",
        "vary",
        "www-authenticate",
        "x-accel-buffering",
    }
)

SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    # Answers depend on who asks, so no cache on the way may keep them unless a service says so.
    "Cache-Control": "no-store",
}

Headers = Iterable[tuple[str, str]]


def build_request_headers(
    received: Headers, *, token: str | None, request_id: str, client_address: str, scheme: str
) -> dict[str, str]:
    """What a service gets: the allowed ones as received, and what the gateway itself vouches for."""
    headers = {name: value for name, value in received if name.lower() in REQUEST_ALLOWED}
    headers["User-Agent"] = "task-runner-gateway"
    headers[REQUEST_ID] = request_id
    headers["X-Forwarded-For"] = client_address
    headers["X-Forwarded-Proto"] = scheme
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    return headers


def build_response_headers(received: Headers) -> list[tuple[str, str]]:
    """What the client gets of a service's headers; hop-by-hop ones, cookies and server names stay behind."""
    return [(name, value) for name, value in received if name.lower() in RESPONSE_ALLOWED]

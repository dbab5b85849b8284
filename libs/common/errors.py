"""What can go wrong, as the API names it. Subjects raise these; `http_errors` turns them into answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

FieldErrors = Mapping[str, Any]


class ApiError(Exception):
    """Base of every error that a client is told about.

    `detail` is a sentence for a person that says what to do; `code` is stable, snake_case, for programs;
    `errors` maps a field to its list of messages (422 only); `retry_after_seconds` becomes `Retry-After`.
    """

    status: ClassVar[int]
    title: ClassVar[str]
    default_code: ClassVar[str]

    def __init__(
        self,
        detail: str,
        *,
        code: str | None = None,
        errors: FieldErrors | None = None,
        retry_after_seconds: int | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.code = code or self.default_code
        self.errors = errors
        self.retry_after_seconds = retry_after_seconds


class BadRequest(ApiError):
    status, title, default_code = 400, "Bad Request", "malformed_request"


class Unauthorized(ApiError):
    status, title, default_code = 401, "Unauthorized", "unauthorized"


class Forbidden(ApiError):
    status, title, default_code = 403, "Forbidden", "forbidden"


class NotFound(ApiError):
    status, title, default_code = 404, "Not Found", "not_found"


class RequestTimeout(ApiError):
    status, title, default_code = 408, "Request Timeout", "request_timeout"


class Conflict(ApiError):
    status, title, default_code = 409, "Conflict", "conflict"


class UnsupportedMediaType(ApiError):
    status, title, default_code = 415, "Unsupported Media Type", "unsupported_media_type"


class Invalid(ApiError):
    status, title, default_code = 422, "Unprocessable Content", "invalid_fields"


class TooManyRequests(ApiError):
    status, title, default_code = 429, "Too Many Requests", "rate_limited"


class BadGateway(ApiError):
    status, title, default_code = 502, "Bad Gateway", "upstream_failed"


class Unavailable(ApiError):
    status, title, default_code = 503, "Service Unavailable", "unavailable"


class GatewayTimeout(ApiError):
    status, title, default_code = 504, "Gateway Timeout", "upstream_timeout"

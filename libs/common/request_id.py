"""The id that one request carries through every service, its log lines and its answer."""

from __future__ import annotations

import re
import uuid

HEADER = "X-Request-Id"
_ACCEPTED = re.compile(r"[A-Za-z0-9._-]{1,64}")


def accept_request_id(sent: str | None) -> str:
    """The client's own id when it is 1–64 of `A-Za-z0-9._-`, else a new one (API: Conventions)."""
    if sent is not None and _ACCEPTED.fullmatch(sent):
        return sent
    return uuid.uuid4().hex

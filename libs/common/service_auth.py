"""Who may call `/internal/…`: our own services, by a token they share."""

from __future__ import annotations

import hmac

from flask import request

from libs.common.config import Secret
from libs.common.errors import Unauthorized


def require_service_token(expected: Secret) -> None:
    """Raise Unauthorized unless the request in hand carries the service token."""
    sent = request.headers.get("Authorization", "")
    if not hmac.compare_digest(sent.encode(), f"Bearer {expected.reveal()}".encode()):
        raise Unauthorized("Internal endpoints need the service token.")


def service_headers(token: Secret) -> dict[str, str]:
    """The headers of a call to an internal endpoint."""
    return {"Authorization": f"Bearer {token.reveal()}"}

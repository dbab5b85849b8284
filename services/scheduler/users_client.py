"""What the scheduler asks the users service: whether a user exists, and who was deleted."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import requests

from libs.common.clock import format_time, parse_time
from libs.common.config import Secret
from libs.common.errors import Unavailable
from libs.common.service_auth import service_headers

_TIMEOUT_SECONDS = 3


@dataclass(frozen=True, slots=True)
class Deletion:
    user_id: UUID
    deleted_at: datetime


class UsersClient:
    """The users service's internal API. Every method raises Unavailable when it doesn't answer."""

    def __init__(self, *, url: str, token: Secret) -> None:
        self._url = url.rstrip("/")
        self._headers = service_headers(token)

    def exists(self, user_id: UUID) -> bool:
        response = self._get(f"/internal/users/{user_id}")
        return response is not None

    def list_deletions(self, since: datetime) -> list[Deletion]:
        """Users deleted then or later."""
        body = self._get("/internal/deletions", {"since": format_time(since)}) or {"items": []}
        return [Deletion(UUID(entry["userId"]), parse_time(entry["deletedAt"])) for entry in body["items"]]

    def _get(self, path: str, query: dict[str, str] | None = None) -> Any:
        """The body of the answer; None on a 404."""
        try:
            response = requests.get(
                self._url + path, params=query, headers=self._headers, timeout=_TIMEOUT_SECONDS
            )
            if response.status_code == 404:
                return None
            response.raise_for_status()
            return response.json()
        except requests.RequestException as error:
            raise Unavailable("The users service doesn't answer. Try again.", retry_after_seconds=2) from error

"""The HTTP side of the conversation with the scheduler: one request, its answer, or why there was none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import requests

from libs.common.config import Secret
from libs.common.service_auth import service_headers

PATH = "/internal/executors/sync"
CONFLICT = 409
CONNECT_SECONDS = 3.0
ANSWER_SECONDS = 20.0

JsonObject = Mapping[str, Any]


class SchedulerAway(Exception):
    """The scheduler didn't answer, or not with an answer."""


class Replaced(Exception):
    """A later start under the same EXECUTOR_ID has taken this one's place, and its runs."""


class SchedulerClient:
    """Posts a sync over one kept-alive connection; for one thread."""

    def __init__(self, *, scheduler_url: str, token: Secret) -> None:
        self._url = scheduler_url.rstrip("/") + PATH
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.headers.update(service_headers(token))

    def post(self, body: JsonObject) -> JsonObject:
        try:
            response = self._session.post(self._url, json=body, timeout=(CONNECT_SECONDS, ANSWER_SECONDS))
            if response.status_code == CONFLICT:
                raise Replaced(response.text[:300])
            if response.status_code != 200:
                raise SchedulerAway(f"status {response.status_code}: {response.text[:300]}")
            answer = response.json()
        except (requests.RequestException, ValueError) as error:
            raise SchedulerAway(f"{type(error).__name__}: {error}"[:300]) from error
        if not isinstance(answer, dict):
            raise SchedulerAway("the answer isn't an object")
        return answer

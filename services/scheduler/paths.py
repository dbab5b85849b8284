"""What the routes of both HTTP processes have in common."""

from __future__ import annotations

from typing import Any, Final
from uuid import UUID

import structlog

from libs.common.errors import NotFound
from services.scheduler.schemas import parse_id

# For the OpenAPI document.
TASK_ID: Final[list[dict[str, Any]]] = [
    {"name": "task_id", "in": "path", "required": True, "schema": {"type": "string", "format": "uuid"}}
]
SECURITY: Final[list[dict[str, list[str]]]] = [{"bearer": []}]


def read_task_id(text: str) -> UUID:
    """The id in a path, which from here on is in every log line. NotFound when it can't be one."""
    task_id = parse_id(text)
    if task_id is None:
        raise NotFound("There is no such task.")
    structlog.contextvars.bind_contextvars(task_id=str(task_id))
    return task_id

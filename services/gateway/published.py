"""What the gateway publishes: each path, the service behind it, and who may call it. Nothing else gets through."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from libs.common.flask_app import MAX_BODY_BYTES

USERS = "users"
SCHEDULER = "scheduler"
# The scheduler's process for what tasks print: many streams at a time.
SCHEDULER_LOGS = "scheduler-logs"

ALL_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")

# As much as the scheduler takes at the batch's path.
MAX_BATCH_BYTES = 8 * 1024 * 1024


class Access(Enum):
    """Who may call a route."""

    ANYONE = "a token, if one is sent, is neither looked at nor passed on"
    OPTIONAL_TOKEN = "without a token, or with a valid one"  # noqa: S105  Not a password.
    TOKEN = "only with a valid token"  # noqa: S105


class Throttle(Enum):
    """Which of the configured rates bounds a route."""

    NONE = "none"
    LOGIN = "login"
    SIGNUP = "signup"


@dataclass(frozen=True, slots=True)
class Route:
    """One row. `rule` is Flask's, with or without a final slash; `upstream` is asked for the same path.

    A body of more than `max_body_bytes` is refused.
    """

    rule: str
    upstream: str
    methods: tuple[str, ...] = ALL_METHODS
    access: Access = Access.TOKEN
    throttle: Throttle = Throttle.NONE
    max_body_bytes: int = MAX_BODY_BYTES


# The most exact rule wins, wherever it stands; which roles a path needs is its service's decision.
ROUTES = (
    Route("/.well-known/jwks.json", USERS, methods=("GET",), access=Access.ANYONE),
    Route("/api/users/login", USERS, methods=("POST",), access=Access.ANYONE, throttle=Throttle.LOGIN),
    Route("/api/users/signup", USERS, methods=("POST",), access=Access.ANYONE, throttle=Throttle.SIGNUP),
    Route("/api/users/refresh", USERS, methods=("POST",), access=Access.ANYONE),
    Route("/api/users/<user_id>", USERS, methods=("GET",), access=Access.OPTIONAL_TOKEN),
    # How much a user may do is the scheduler's, who counts it.
    Route("/api/users/<user_id>/quota", SCHEDULER),
    Route("/api/users", USERS),
    Route("/api/users/<path:rest>", USERS),
    Route("/api/tasks/<task_id>/logs", SCHEDULER_LOGS),
    Route("/api/tasks", SCHEDULER),
    Route("/api/tasks/batch", SCHEDULER, max_body_bytes=MAX_BATCH_BYTES),
    Route("/api/tasks/<path:rest>", SCHEDULER),
    Route("/api/executors", SCHEDULER),
    Route("/api/executors/<path:rest>", SCHEDULER),
)

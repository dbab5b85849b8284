"""The settings of the scheduler's three processes, read once from the environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from environs import Env, validate

from libs.common.config import Secret, read_environment, read_log_level, read_secret, read_secret_url
from libs.common.postgres import read_database_url
from services.scheduler.states import TaskStatus

_RETENTION_DAYS = {TaskStatus.COMPLETED: 7, TaskStatus.FAILED: 30, TaskStatus.CANCELLED: 7}


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpConfig:
    """Of `services.scheduler.app`: the task API and the executors' API."""

    environment: str
    log_level: str
    database_url: Secret
    redis_url: Secret
    users_url: str
    internal_token: Secret
    token_issuer: str
    token_audience: str
    max_task_cpus: float
    max_task_memory_mb: int
    image_allow_list: tuple[str, ...]
    storage_path: Path | None
    storage_min_free_mb: int
    quota_running: int | None
    quota_queued: int | None
    quota_created_per_minute: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LogsConfig:
    """Of `services.scheduler.log_app`: what tasks print."""

    environment: str
    log_level: str
    database_url: Secret
    redis_url: Secret
    users_url: str
    token_issuer: str
    token_audience: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopsConfig:
    """Of `python -m services.scheduler`: dispatch and sweep."""

    environment: str
    log_level: str
    database_url: Secret
    redis_url: Secret
    broker_url: Secret
    users_url: str
    internal_token: Secret
    executor_lost: timedelta
    retention: Mapping[TaskStatus, timedelta]
    quota_running: int | None
    health_port: int


def read_http_config(env: Env) -> HttpConfig:
    return HttpConfig(
        environment=read_environment(env),
        log_level=read_log_level(env),
        database_url=read_database_url(env, "DATABASE_URL"),
        redis_url=read_secret_url(env, "REDIS_URL", "redis", "rediss", "unix"),
        users_url=env.str("USERS_URL", validate=validate.URL(require_tld=False)),
        internal_token=read_secret(env, "INTERNAL_TOKEN"),
        token_issuer=env.str("TOKEN_ISSUER", "task-runner"),
        token_audience=env.str("TOKEN_AUDIENCE", "task-runner"),
        max_task_cpus=env.float("MAX_TASK_CPUS", 64.0, validate=validate.Range(min=0.05)),
        max_task_memory_mb=env.int("MAX_TASK_MEMORY_MB", 1_048_576, validate=validate.Range(min=16)),
        image_allow_list=tuple(filter(None, map(str.strip, env.list("IMAGE_ALLOW_LIST", [])))),
        storage_path=Path(path) if (path := env.str("STORAGE_PATH", "")) else None,
        storage_min_free_mb=env.int("STORAGE_MIN_FREE_MB", 1024, validate=validate.Range(min=0)),
        quota_running=_read_quota(env, "QUOTA_RUNNING"),
        quota_queued=_read_quota(env, "QUOTA_QUEUED"),
        quota_created_per_minute=_read_quota(env, "QUOTA_CREATED_PER_MINUTE"),
    )


def read_logs_config(env: Env) -> LogsConfig:
    return LogsConfig(
        environment=read_environment(env),
        log_level=read_log_level(env),
        database_url=read_database_url(env, "DATABASE_URL"),
        redis_url=read_secret_url(env, "REDIS_URL", "redis", "rediss", "unix"),
        users_url=env.str("USERS_URL", validate=validate.URL(require_tld=False)),
        token_issuer=env.str("TOKEN_ISSUER", "task-runner"),
        token_audience=env.str("TOKEN_AUDIENCE", "task-runner"),
    )


def read_loops_config(env: Env) -> LoopsConfig:
    return LoopsConfig(
        environment=read_environment(env),
        log_level=read_log_level(env),
        database_url=read_database_url(env, "DATABASE_URL"),
        redis_url=read_secret_url(env, "REDIS_URL", "redis", "rediss", "unix"),
        broker_url=read_secret_url(env, "BROKER_URL", "amqp", "amqps"),
        users_url=env.str("USERS_URL", validate=validate.URL(require_tld=False)),
        internal_token=read_secret(env, "INTERNAL_TOKEN"),
        executor_lost=timedelta(
            seconds=env.int("EXECUTOR_LOST_SECONDS", 300, validate=validate.Range(min=10, max=86_400))
        ),
        retention=_read_retention(env),
        quota_running=_read_quota(env, "QUOTA_RUNNING"),
        health_port=env.int("HEALTH_PORT", 8004, validate=validate.Range(1, 65_535)),
    )


def _read_retention(env: Env) -> dict[TaskStatus, timedelta]:
    """Statuses whose tasks are kept for ever (0 days) are left out."""
    days = {
        status: env.int(f"RETENTION_{status.name}_DAYS", default, validate=validate.Range(min=0, max=36_500))
        for status, default in _RETENTION_DAYS.items()
    }
    return {status: timedelta(days=count) for status, count in days.items() if count}


def _read_quota(env: Env, name: str) -> int | None:
    """None, no limit, when it is empty or not there."""
    if not env.str(name, "").strip():
        return None
    return env.int(name, validate=validate.Range(min=1, max=1_000_000_000))

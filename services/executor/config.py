"""The executor's settings."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from environs import Env, EnvError, validate

from libs.common.config import Secret, read_environment, read_log_level, read_secret, read_secret_url
from libs.common.topology import DEFAULT_POOL, POOL_NAME

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")


@dataclass(frozen=True, slots=True)
class ExecutorConfig:
    environment: str
    log_level: str
    broker_url: Secret
    scheduler_url: str
    internal_token: Secret
    docker_host: str
    executor_id: str
    slots: int
    pools: Sequence[str]
    instance: str
    task_network: str
    task_network_allow: Sequence[str]
    task_network_deny: Sequence[str]
    guard_image: str
    task_runtime: str
    task_user: str
    task_read_only_root: bool
    pull_limit: timedelta
    stop_grace: timedelta
    spool_directory: Path | None
    spool_mb: int
    log_max_kb: int
    health_port: int
    runtime: str
    redis_url: Secret | None
    cgroup_directory: Path | None


def read_config(env: Env) -> ExecutorConfig:
    """Raises EnvError with a message that names the variable."""
    environment = read_environment(env)
    runtime = env.str("EXECUTOR_RUNTIME", "docker", validate=validate.OneOf(("docker", "noop")))
    if runtime == "noop" and environment == "production":
        raise EnvError("EXECUTOR_RUNTIME=noop runs nothing and is for benchmarks; it is refused in production")
    instance = _read_name(env, "INSTANCE", "task-runner")
    return ExecutorConfig(
        environment=environment,
        log_level=read_log_level(env),
        broker_url=read_secret_url(env, "BROKER_URL", "amqp", "amqps"),
        scheduler_url=env.str(
            "SCHEDULER_URL", validate=validate.URL(schemes={"http", "https"}, require_tld=False)
        ),
        internal_token=read_secret(env, "INTERNAL_TOKEN"),
        docker_host=env.str("DOCKER_HOST", "unix:///var/run/docker.sock"),
        executor_id=_read_name(env, "EXECUTOR_ID", socket.gethostname()),
        slots=env.int("EXECUTOR_SLOTS", 2 * (os.cpu_count() or 1), validate=validate.Range(min=1, max=1000)),
        pools=_read_pools(env, "EXECUTOR_POOLS"),
        instance=instance,
        task_network=_read_name(env, "TASK_NETWORK", f"{instance}-tasks"),
        task_network_allow=_read_networks(env, "TASK_NETWORK_ALLOW"),
        task_network_deny=_read_networks(env, "TASK_NETWORK_DENY"),
        guard_image=env.str("GUARD_IMAGE", "taskrunner:dev", validate=validate.Length(min=1)),
        task_runtime=env.str("TASK_RUNTIME", "runc", validate=validate.Length(min=1)),
        task_user=env.str("TASK_USER", ""),
        task_read_only_root=env.bool("TASK_READ_ONLY_ROOT", False),
        pull_limit=_read_seconds(env, "PULL_TIMEOUT_SECONDS", 600, least=1),
        stop_grace=_read_seconds(env, "EXECUTOR_STOP_GRACE_SECONDS", 10),
        spool_directory=Path(spool) if (spool := env.str("EXECUTOR_SPOOL_DIR", "")) else None,
        log_max_kb=env.int("LOG_MAX_KB", 5120, validate=validate.Range(min=1, max=102_400)),
        spool_mb=env.int("EXECUTOR_SPOOL_MB", 256, validate=validate.Range(min=1, max=1_048_576)),
        health_port=env.int("HEALTH_PORT", 8003, validate=validate.Range(min=0, max=65535)),
        runtime=runtime,
        redis_url=_read_redis_url(env),
        cgroup_directory=Path(cgroups) if (cgroups := env.str("CGROUP_DIR", "")) else None,
    )


def _read_name(env: Env, name: str, default: str) -> str:
    text = env.str(name, "") or default
    if not _NAME.fullmatch(text):
        raise EnvError(f"{name} must be 1 to 63 letters, digits, '.', '_' or '-'")
    return text


def _read_redis_url(env: Env) -> Secret | None:
    """Without one a stop is heard of by the next sync, a second later at most."""
    if not env.str("REDIS_URL", ""):
        return None
    return read_secret_url(env, "REDIS_URL", "redis", "rediss", "unix")


def _read_pools(env: Env, name: str) -> Sequence[str]:
    """Comma-separated names, each once; without any the default pool."""
    pools = [pool.strip() for pool in env.str(name, "").split(",") if pool.strip()]
    for pool in pools:
        if not POOL_NAME.fullmatch(pool):
            raise EnvError(
                f"{name} must be names of 1 to 50 lower-case letters, digits, '-', '_' or '.', separated by commas"
            )
    return tuple(dict.fromkeys(pools)) or (DEFAULT_POOL,)


def _read_seconds(env: Env, name: str, default: float, *, least: float = 0) -> timedelta:
    return timedelta(seconds=env.float(name, default, validate=validate.Range(min=least, max=86400)))


def _read_networks(env: Env, name: str) -> Sequence[str]:
    """Comma-separated IPv4 networks, each in its canonical form."""
    try:
        texts: list[str] = [text.strip() for text in env.str(name, "").split(",")]
        return tuple(str(ipaddress.IPv4Network(text)) for text in texts if text)
    except ValueError as error:
        raise EnvError(f"{name} must be IPv4 networks separated by commas: {error}") from error

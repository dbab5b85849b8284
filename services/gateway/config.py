"""What the gateway is told by its environment."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from environs import Env, EnvError, validate
from limits import RateLimitItem, parse

from libs.common.config import Secret, read_environment, read_log_level, read_secret, read_secret_url


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """`trusted_proxies` is how many reverse proxies stand in front, each adding to X-Forwarded-For."""

    environment: str
    log_level: str
    users_url: str
    scheduler_url: str
    scheduler_logs_url: str
    scheduler_loops_url: str
    redis_url: Secret
    internal_token: Secret
    token_issuer: str
    token_audience: str
    login_rate: RateLimitItem
    login_address_rate: RateLimitItem
    signup_rate: RateLimitItem
    trusted_proxies: int


def read_config(env: Env) -> GatewayConfig:
    return GatewayConfig(
        environment=read_environment(env),
        log_level=read_log_level(env),
        users_url=_read_url(env, "USERS_URL"),
        scheduler_url=_read_url(env, "SCHEDULER_URL"),
        scheduler_logs_url=_read_url(env, "SCHEDULER_LOGS_URL"),
        scheduler_loops_url=_read_url(env, "SCHEDULER_LOOPS_URL"),
        redis_url=read_secret_url(env, "REDIS_URL", "redis", "rediss", "unix"),
        internal_token=read_secret(env, "INTERNAL_TOKEN"),
        token_issuer=env.str("TOKEN_ISSUER", "task-runner"),
        token_audience=env.str("TOKEN_AUDIENCE", "task-runner"),
        login_rate=_read_rate(env, "LOGIN_RATE", "20/minute"),
        login_address_rate=_read_rate(env, "LOGIN_ADDRESS_RATE", "300/minute"),
        signup_rate=_read_rate(env, "SIGNUP_RATE", "100/hour"),
        trusted_proxies=env.int("TRUSTED_PROXIES", 0, validate=validate.Range(min=0, max=10)),
    )


def _read_url(env: Env, name: str) -> str:
    url = env.str(name)
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/") or parts.query:
        raise EnvError(f"{name} must look like http://HOST:PORT, without a path")
    return url.rstrip("/")


def _read_rate(env: Env, name: str, default: str) -> RateLimitItem:
    text = env.str(name, default)
    try:
        return parse(text)
    except ValueError as error:
        raise EnvError(f"{name} must be a rate like {default}, not {text!r}") from error

"""The users service's settings."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from environs import Env, EnvError, validate

from libs.common.config import DEVELOPMENT_KEY_ID, Secret, read_environment, read_log_level, read_secret
from libs.common.postgres import read_database_url
from services.users.emails import email_key
from services.users.passwords import MAX_BYTES, MIN_BYTES


@dataclass(frozen=True, slots=True)
class UsersConfig:
    environment: str
    log_level: str
    database_url: Secret
    internal_token: Secret
    keys_dir: Path
    active_kid: str
    token_issuer: str
    token_audience: str
    access_token_life: timedelta
    refresh_token_life: timedelta
    admin_email: str
    admin_password: Secret
    bcrypt_rounds: int
    bcrypt_parallel: int
    web_threads: int

    @property
    def threads_for_passwords(self) -> int:
        """The rest stays free for what other services ask."""
        return max(1, self.web_threads * 3 // 4)

    @property
    def is_production(self) -> bool:
        return self.environment == "production"


def read_config(env: Env) -> UsersConfig:
    """EnvError names the variable that is missing or wrong."""
    positive = validate.Range(min=1)
    return UsersConfig(
        environment=read_environment(env),
        log_level=read_log_level(env),
        database_url=read_database_url(env, "DATABASE_URL"),
        internal_token=read_secret(env, "INTERNAL_TOKEN"),
        keys_dir=env.path("KEYS_DIR", Path("/app/zarf/keys")),
        active_kid=env.str("AUTH_ACTIVE_KID", DEVELOPMENT_KEY_ID, validate=validate.Length(min=1)),
        token_issuer=env.str("TOKEN_ISSUER", "task-runner", validate=validate.Length(min=1)),
        token_audience=env.str("TOKEN_AUDIENCE", "task-runner", validate=validate.Length(min=1)),
        access_token_life=timedelta(seconds=env.int("ACCESS_TOKEN_SECONDS", 3600, validate=positive)),
        refresh_token_life=timedelta(seconds=env.int("REFRESH_TOKEN_SECONDS", 1_209_600, validate=positive)),
        admin_email=_read_admin_email(env),
        admin_password=_read_admin_password(env),
        # Above 16 one login takes seconds; below 4 bcrypt refuses.
        bcrypt_rounds=env.int("BCRYPT_ROUNDS", 12, validate=validate.Range(min=4, max=16)),
        bcrypt_parallel=env.int("BCRYPT_PARALLEL", 2, validate=positive),
        # gunicorn's own number, which deploy/gunicorn.conf.py reads too.
        web_threads=env.int("WEB_THREADS", 16, validate=positive),
    )


def _read_admin_email(env: Env) -> str:
    address = env.str("ADMIN_EMAIL")
    try:
        email_key(address)
    except ValueError as error:
        raise EnvError('Environment variable "ADMIN_EMAIL" invalid: it is not an email address') from error
    return address


def _read_admin_password(env: Env) -> Secret:
    password = read_secret(env, "ADMIN_PASSWORD")
    if not MIN_BYTES <= len(password.reveal().encode()) <= MAX_BYTES:
        raise EnvError(f'Environment variable "ADMIN_PASSWORD" invalid: it takes {MIN_BYTES} to {MAX_BYTES} bytes')
    return password

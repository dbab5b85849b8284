"""The users service, wired in reading order. gunicorn runs `services.users.app:create_app()`."""

from __future__ import annotations

import structlog
from flask import Flask, Response

from libs.common.config import exit_with_config_error, load_config, masked
from libs.common.flask_app import create_service_app
from libs.common.health import Check
from libs.common.logs import configure_logs
from libs.common.openapi import create_api
from libs.common.postgres import Pool, open_pool, ping
from libs.common.tokens import TokenVerifier
from services.users.access_tokens import TokenIssuer
from services.users.bootstrap import AdminBootstrap
from services.users.config import UsersConfig, read_config
from services.users.internal_routes import create_internal_routes
from services.users.key_routes import create_key_routes
from services.users.keys import KeyRefused, KeySet
from services.users.passwords import PasswordHasher
from services.users.personal_token_routes import create_personal_token_routes
from services.users.routes import create_routes
from services.users.session_routes import TokenPairs, create_session_routes

log = structlog.get_logger()

_POOL_SIZE = 10


def create_app() -> Flask:
    """The service as the environment configures it, with its admin on the way."""
    config = load_config(read_config)
    configure_logs(service="users", level=config.log_level)
    log.info("service_starts", **masked(config))
    keys = open_keys(config)
    pool = open_pool(config.database_url.reveal(), name="users", max_size=_POOL_SIZE)
    passwords = PasswordHasher(
        rounds=config.bcrypt_rounds, parallel=config.bcrypt_parallel, line=config.threads_for_passwords
    )
    bootstrap = AdminBootstrap(
        pool=pool, passwords=passwords, email=config.admin_email, password=config.admin_password
    )
    bootstrap.start()
    return build_app(config, pool=pool, keys=keys, passwords=passwords, bootstrap=bootstrap)


def open_keys(config: UsersConfig) -> KeySet:
    """The key set, or the process ends with one line that says what is wrong with the active key."""
    keys = KeySet(config.keys_dir, active_kid=config.active_kid, is_production=config.is_production)
    try:
        keys.check_active_key()
    except KeyRefused as error:
        exit_with_config_error(f'Environment variable "AUTH_ACTIVE_KID" invalid: {error}')
    return keys


def build_app(
    config: UsersConfig, *, pool: Pool, keys: KeySet, passwords: PasswordHasher, bootstrap: AdminBootstrap
) -> Flask:
    """The Flask app over what was opened already; tests bring their own."""
    verifier = TokenVerifier(keys=keys, issuer=config.token_issuer, audience=config.token_audience)
    issuer = TokenIssuer(keys=keys, issuer=config.token_issuer, audience=config.token_audience)
    tokens = TokenPairs(issuer, access_life=config.access_token_life, refresh_life=config.refresh_token_life)
    app = create_service_app(
        "users",
        checks=[
            Check("postgres", lambda: ping(pool)),
            Check("keys", keys.check_active_key),
            Check("admin", bootstrap.require_done),
        ],
    )
    api = create_api(app, title="Task Runner: users")
    api.register_blueprint(create_routes(pool=pool, passwords=passwords, verifier=verifier))
    api.register_blueprint(create_session_routes(pool=pool, passwords=passwords, verifier=verifier, tokens=tokens))
    api.register_blueprint(create_personal_token_routes(pool=pool, verifier=verifier))
    app.register_blueprint(create_key_routes(keys=keys))
    app.after_request(_forbid_keeping)
    app.register_blueprint(create_internal_routes(pool=pool, issuer=issuer, internal_token=config.internal_token))
    return app


def _forbid_keeping(response: Response) -> Response:
    """Answers here are tokens and people's data: no cache may keep one that doesn't say so itself."""
    response.headers.setdefault("Cache-Control", "no-store")
    return response

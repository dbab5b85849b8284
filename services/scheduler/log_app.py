"""The process that serves output: many streams at a time, apart from the scheduler's other work (ADR 19)."""

from __future__ import annotations

from uuid import UUID

import structlog
from flask import Flask

from libs.common import postgres
from libs.common.config import load_config, masked
from libs.common.flask_app import create_service_app
from libs.common.health import Check
from libs.common.hints import HintListener
from libs.common.logs import configure_logs
from libs.common.openapi import create_api
from libs.common.postgres import Pool, open_pool
from libs.common.shutdown import call_on_stop
from libs.common.tokens import JwksKeys, KeySource, TokenVerifier
from services.scheduler import log_routes
from services.scheduler.config import LogsConfig, read_logs_config
from services.scheduler.log_follow import FollowLimits, Follows
from services.scheduler.log_reading import LogReading
from services.scheduler.wakeups import OUTPUT_CHANNEL

log = structlog.get_logger()

_POOL_SIZE = 8


def create_app() -> Flask:
    """For gunicorn: called in each worker, after the fork."""
    config = load_config(read_logs_config)
    configure_logs(service="scheduler-logs", level=config.log_level)
    log.info("service_starting", **masked(config))
    pool = open_pool(config.database_url.reveal(), name="scheduler-logs", max_size=_POOL_SIZE)

    def hint(text: str) -> None:
        if text:
            follows.hint(UUID(text))
        else:
            follows.hint_all()

    listener = HintListener(config.redis_url.reveal(), OUTPUT_CHANNEL, hint)
    follows = Follows(pool=pool, limits=FollowLimits(), has_hints=lambda: listener.is_connected)
    listener.start()
    # A server that is told to stop waits for its streams, and these would go on.
    call_on_stop(follows.stop)
    return build_log_app(
        config,
        pool=pool,
        keys=JwksKeys(f"{config.users_url}/.well-known/jwks.json"),
        follows=follows,
        checks=[Check("redis", listener.check, required=False)],
    )


def build_log_app(
    config: LogsConfig, *, pool: Pool, keys: KeySource, follows: Follows, checks: list[Check]
) -> Flask:
    """The app over what its tests may replace."""
    verifier = TokenVerifier(keys=keys, issuer=config.token_issuer, audience=config.token_audience)
    app = create_service_app("scheduler-logs", checks=[Check("postgres", lambda: postgres.ping(pool)), *checks])
    api = create_api(app, title="Task Runner: output")
    logs = LogReading(pool=pool, follows=follows)
    api.register_blueprint(log_routes.create_log_routes(logs=logs, verifier=verifier))
    return app

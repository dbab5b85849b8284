"""The scheduler's HTTP process: the public task API and the executors' internal API."""

from __future__ import annotations

import structlog
from flask import Flask

from libs.common import postgres
from libs.common.config import load_config, masked
from libs.common.flask_app import create_service_app
from libs.common.health import Check
from libs.common.logs import configure_logs
from libs.common.openapi import create_api
from libs.common.postgres import Pool, open_pool
from libs.common.tokens import JwksKeys, KeySource, TokenVerifier
from services.scheduler import routes
from services.scheduler.config import HttpConfig, read_http_config
from services.scheduler.tasks import OperatorLimits, Tasks
from services.scheduler.users_client import UsersClient
from services.scheduler.wakeups import Waker

log = structlog.get_logger()

_POOL_SIZE = 16


def create_app() -> Flask:
    """For gunicorn: called in each worker, after the fork."""
    config = load_config(read_http_config)
    configure_logs(service="scheduler", level=config.log_level)
    log.info("service_starting", **masked(config))
    pool = open_pool(config.database_url.reveal(), name="scheduler", max_size=_POOL_SIZE)
    return build_app(
        config,
        pool=pool,
        keys=JwksKeys(f"{config.users_url}/.well-known/jwks.json"),
        users=UsersClient(url=config.users_url, token=config.internal_token),
        waker=Waker(config.redis_url.reveal()),
    )


def build_app(config: HttpConfig, *, pool: Pool, keys: KeySource, users: UsersClient, waker: Waker) -> Flask:
    verifier = TokenVerifier(keys=keys, issuer=config.token_issuer, audience=config.token_audience)
    limits = OperatorLimits(
        cpus=config.max_task_cpus, memory_mb=config.max_task_memory_mb, images=config.image_allow_list
    )
    tasks = Tasks(pool=pool, users=users, limits=limits, wake_dispatch=waker.wake)
    app = create_service_app(
        "scheduler",
        checks=[
            Check("postgres", lambda: postgres.ping(pool)),
            Check("redis", waker.ping, required=False),
        ],
    )
    api = create_api(app, title="Task Runner: tasks")
    api.register_blueprint(routes.create_routes(tasks=tasks, verifier=verifier))
    return app

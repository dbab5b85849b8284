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
from services.scheduler import bulk_routes, internal_routes, operator_routes, presence, routes
from services.scheduler.bulk import BulkTasks
from services.scheduler.config import HttpConfig, read_http_config
from services.scheduler.executors import Executors
from services.scheduler.line import Line
from services.scheduler.lists import TaskLists
from services.scheduler.presence import Presence
from services.scheduler.quota_store import Quota
from services.scheduler.quotas import Quotas
from services.scheduler.storage import StorageGuard
from services.scheduler.sync import ExecutorSync, SyncConfig
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
    Presence(pool).start()
    return build_app(
        config,
        pool=pool,
        keys=JwksKeys(f"{config.users_url}/.well-known/jwks.json"),
        users=UsersClient(url=config.users_url, token=config.internal_token),
        waker=Waker(config.redis_url.reveal()),
    )


def build_app(
    config: HttpConfig,
    *,
    pool: Pool,
    keys: KeySource,
    users: UsersClient,
    waker: Waker,
    sync_config: SyncConfig | None = None,
) -> Flask:
    """The app over what its tests may replace."""
    verifier = TokenVerifier(keys=keys, issuer=config.token_issuer, audience=config.token_audience)
    storage = StorageGuard(path=config.storage_path, min_free_mb=config.storage_min_free_mb)
    limits = OperatorLimits(
        cpus=config.max_task_cpus, memory_mb=config.max_task_memory_mb, images=config.image_allow_list
    )
    defaults = Quota(
        running=config.quota_running,
        queued=config.quota_queued,
        created_per_minute=config.quota_created_per_minute,
    )
    quotas = Quotas(pool=pool, users=users, defaults=defaults)
    line = Line(pool=pool, default_running=config.quota_running)
    tasks = Tasks(
        pool=pool,
        users=users,
        limits=limits,
        quotas=quotas,
        line=line,
        wake_dispatch=waker.wake,
        hint_stop=waker.hint_stop,
        require_room=storage.require_room,
    )
    executors = Executors(pool=pool, wake_dispatch=waker.wake)
    executor_sync = ExecutorSync(
        pool=pool, config=sync_config or SyncConfig(), wake_dispatch=waker.wake, hint_output=waker.hint_output
    )
    app = create_service_app(
        "scheduler",
        checks=[
            Check("postgres", lambda: postgres.ping(pool)),
            Check("redis", waker.ping, required=False),
            Check("storage", storage.check, required=False),
            Check("executors", lambda: presence.read_executors(pool), required=False),
            Check("loops", lambda: presence.read_loops(pool), required=False),
        ],
    )
    api = create_api(app, title="Task Runner: tasks")
    lists = TaskLists(pool=pool, tasks=tasks)
    bulk = BulkTasks(pool=pool, tasks=tasks)
    api.register_blueprint(routes.create_routes(tasks=tasks, verifier=verifier))
    api.register_blueprint(bulk_routes.create_bulk_routes(lists=lists, bulk=bulk, verifier=verifier))
    api.register_blueprint(operator_routes.create_quota_routes(quotas=quotas, verifier=verifier))
    api.register_blueprint(operator_routes.create_executor_routes(executors=executors, verifier=verifier))
    app.register_blueprint(
        internal_routes.create_internal_routes(executor_sync=executor_sync, token=config.internal_token)
    )
    return app

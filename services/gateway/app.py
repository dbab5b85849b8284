"""The one way in from outside: verifies who calls, and passes requests on to the services."""

from __future__ import annotations

import threading

import structlog
from flask import Flask, Response

from libs.common.config import load_config, masked
from libs.common.flask_app import create_service_app
from libs.common.health import Check
from libs.common.logs import configure_logs
from libs.common.shutdown import call_on_stop
from libs.common.tokens import JwksKeys, TokenVerifier
from services.gateway.api_document import ApiDocument
from services.gateway.cache import CACHE_DOWN, Cache
from services.gateway.config import GatewayConfig, read_config
from services.gateway.forwarding import bound_pauses, publish, refuse_odd_targets
from services.gateway.headers import SECURITY_HEADERS
from services.gateway.health_report import HealthReport
from services.gateway.published import ROUTES, SCHEDULER, SCHEDULER_LOGS, USERS
from services.gateway.routes import create_routes
from services.gateway.sessions import Sessions
from services.gateway.throttle import Throttling
from services.gateway.upstream import Call, Upstream

log = structlog.get_logger()

# To each service: as many as a worker serves requests at a time (gunicorn's worker_connections).
CONNECTIONS = 1000


def create_app() -> Flask:
    config = load_config(read_config)
    configure_logs(service="gateway", level=config.log_level)
    log.info("service_started", **masked(config))
    stopping = threading.Event()
    # A server that is told to stop waits for its answers, and streams would go on.
    call_on_stop(stopping.set)
    return build_app(config, stopping)


def build_app(config: GatewayConfig, stopping: threading.Event) -> Flask:
    cache = Cache(config.redis_url)
    users = Upstream(USERS, config.users_url, connections=CONNECTIONS)
    scheduler = Upstream(SCHEDULER, config.scheduler_url, connections=CONNECTIONS)
    output = Upstream(SCHEDULER_LOGS, config.scheduler_logs_url, connections=CONNECTIONS)
    loops = Upstream("scheduler-loops", config.scheduler_loops_url, connections=2)
    verifier = TokenVerifier(
        keys=JwksKeys(f"{config.users_url}/.well-known/jwks.json"),
        issuer=config.token_issuer,
        audience=config.token_audience,
    )
    sessions = Sessions(verifier=verifier, cache=cache, users=users, internal_token=config.internal_token)
    throttling = Throttling(
        cache=cache,
        redis_url=config.redis_url.reveal(),
        login_rate=config.login_rate,
        login_address_rate=config.login_address_rate,
        signup_rate=config.signup_rate,
    )

    app = create_service_app("gateway", checks=_checks(users, scheduler, output, cache))
    bound_pauses(app)
    refuse_odd_targets(app)
    upstreams = {USERS: users, SCHEDULER: scheduler, SCHEDULER_LOGS: output}
    for route in ROUTES:
        publish(
            app,
            route,
            upstream=upstreams[route.upstream],
            sessions=sessions,
            throttling=throttling,
            trusted_proxies=config.trusted_proxies,
            stopping=stopping,
        )
    health = HealthReport([users, scheduler, output, loops], executors_from=SCHEDULER, has_cache=cache.check)
    app.register_blueprint(create_routes(health=health, document=ApiDocument([users, scheduler, output])))
    _add_security_headers(app)
    return app


def _checks(users: Upstream, scheduler: Upstream, output: Upstream, cache: Cache) -> list[Check]:
    def ask_redis() -> None:
        try:
            cache.ping()
        except CACHE_DOWN as error:
            # This port is public: the library's own text would name the server.
            raise ConnectionError("does not answer") from error

    return [
        # Without users nobody can be let in; without any of the others everything else still works.
        Check("users", lambda: _ask_if_alive(users)),
        Check("scheduler", lambda: _ask_if_alive(scheduler), required=False),
        Check("scheduler-logs", lambda: _ask_if_alive(output), required=False),
        Check("redis", ask_redis, required=False),
    ]


def _ask_if_alive(upstream: Upstream) -> None:
    status, _ = upstream.fetch_json(Call("GET", "/livez"), read_seconds=2.0, is_patient=False)
    if status != 200:
        raise ConnectionError("is not alive")


def _add_security_headers(app: Flask) -> None:
    @app.after_request
    def add(response: Response) -> Response:
        for name, value in SECURITY_HEADERS.items():
            response.headers.setdefault(name, value)
        return response

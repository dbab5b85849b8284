"""The scheduler's loops: `python -m services.scheduler`."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from datetime import timedelta

import structlog

from libs.common import postgres
from libs.common.config import load_config, masked
from libs.common.health import Check, serve_health
from libs.common.hints import HintListener
from libs.common.logs import configure_logs
from libs.common.postgres import open_pool
from libs.common.publisher import Publisher
from libs.common.shutdown import Shutdown
from libs.common.topology import DEAD_QUEUE
from services.scheduler.config import LoopsConfig, read_loops_config
from services.scheduler.dispatch import DispatchConfig, Dispatcher, DispatchLoop
from services.scheduler.loop_metrics import DEAD_LETTERS
from services.scheduler.loops import LoopThread
from services.scheduler.presence import PART_DISPATCH, PART_RETENTION, PART_SWEEP
from services.scheduler.retention import Retention, RetentionConfig
from services.scheduler.sweep import SweepConfig, Sweeper
from services.scheduler.users_client import UsersClient
from services.scheduler.wakeups import DISPATCH_CHANNEL

log = structlog.get_logger()

_POOL_SIZE = 4
# Nobody waits for an answer here, and counting and deleting take their time.
_STATEMENT_SECONDS = 30.0
_STOP_SECONDS = 10.0
# While the metrics are read; the broker answers within a few milliseconds.
_COUNT_SECONDS = 1.0


def run(config: LoopsConfig, shutdown: Shutdown) -> None:
    """Wire the loops and run them until the stop is asked for."""
    log.info("service_starting", **masked(config))
    with ExitStack() as stack:
        pool = stack.enter_context(
            open_pool(
                config.database_url.reveal(),
                name="scheduler-loops",
                max_size=_POOL_SIZE,
                statement_seconds=_STATEMENT_SECONDS,
            )
        )
        publisher = Publisher(config.broker_url.reveal(), name="scheduler-loops")
        DEAD_LETTERS.set_function(lambda: _count_dead_letters(publisher))
        dispatcher = Dispatcher(
            pool=pool, publisher=publisher, config=DispatchConfig(default_running=config.quota_running)
        )
        dispatch_loop = DispatchLoop(dispatcher=dispatcher)
        listener = HintListener(config.redis_url.reveal(), DISPATCH_CHANNEL, lambda _: dispatch_loop.wake())
        sweeper = Sweeper(
            pool=pool,
            dispatcher=dispatcher,
            users=UsersClient(url=config.users_url, token=config.internal_token),
            config=SweepConfig(executor_silence=config.executor_lost),
            wake_dispatch=dispatch_loop.wake,
        )
        dispatch = LoopThread(
            name=PART_DISPATCH, run_once=dispatch_loop.run_once, wait=dispatch_loop.wait, pool=pool
        )
        sweep = LoopThread(
            name=PART_SWEEP,
            run_once=sweeper.run_once,
            wait=lambda pause: _wait(shutdown, pause),
            pool=pool,
        )
        retention = Retention(pool=pool, config=RetentionConfig(ages=config.retention))
        cleaner = LoopThread(
            name=PART_RETENTION,
            run_once=retention.run_once,
            wait=lambda pause: _wait(shutdown, pause),
            pool=pool,
        )
        health = serve_health(
            port=config.health_port,
            checks=[
                Check("postgres", lambda: postgres.ping(pool)),
                Check("broker", publisher.check),
                Check("redis", listener.check, required=False),
                Check("dispatch", dispatch.check),
                Check("sweep", sweep.check),
                Check("retention", cleaner.check, required=False),
            ],
            is_alive=lambda: all(loop.is_alive for loop in (dispatch, sweep, cleaner)),
        )
        publisher.start()
        listener.start()
        dispatch.start()
        sweep.start()
        cleaner.start()

        shutdown.wait()

        log.info("service_stopping")
        for loop in (dispatch, sweep, cleaner):
            loop.ask_to_stop()
        dispatch_loop.wake()
        for loop in (dispatch, sweep, cleaner):
            loop.join(_STOP_SECONDS)
        listener.close()
        publisher.close()
        health.shutdown()


def _count_dead_letters(publisher: Publisher) -> float:
    count = publisher.count(DEAD_QUEUE, timeout_seconds=_COUNT_SECONDS)
    return float("nan") if count is None else count


def _wait(shutdown: Shutdown, pause: timedelta) -> None:
    shutdown.wait(pause.total_seconds())


def main() -> int:
    config = load_config(read_loops_config)
    configure_logs(service="scheduler-loops", level=config.log_level)
    shutdown = Shutdown()
    shutdown.install()
    run(config, shutdown)
    return 0


if __name__ == "__main__":
    sys.exit(main())

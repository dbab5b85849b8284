"""`python -m services.executor`: one executor, until it is told to stop."""

from __future__ import annotations

import functools
import sys
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

import structlog

from libs.common.config import load_config, masked
from libs.common.consumer import Consumer
from libs.common.health import Check, serve_health
from libs.common.hints import STOP_CHANNEL, HintListener
from libs.common.logs import configure_logs
from libs.common.shutdown import Shutdown
from libs.common.topology import run_queue
from services.executor.config import ExecutorConfig, read_config
from services.executor.container_options import ContainerSettings
from services.executor.docker_runtime import CALL_TIMEOUT_SECONDS, DockerRuntime
from services.executor.engine import EngineMonitor
from services.executor.meter import Meter
from services.executor.metrics import SLOTS, SLOTS_USED
from services.executor.network_guard import GuardSettings, NetworkGuard
from services.executor.noop_runtime import NoopRuntime
from services.executor.prefetch import Prefetcher
from services.executor.reaper import Reaper
from services.executor.runtime import EngineUnavailable, Runtime
from services.executor.scheduler_client import SchedulerClient
from services.executor.slots import Duties, Slots
from services.executor.spool import Spool
from services.executor.stopper import Stopper
from services.executor.sync import Sync
from services.executor.sync_request import Identity
from services.executor.tools import Tools

log = structlog.get_logger()

KIB = 1024
MIB = 1024 * 1024

# An engine waits up to 12 s for what it killed to end before it answers.
SIGNAL_TIMEOUT_SECONDS = 30.0

# Three intervals of an idle sync.
SYNC_STALE_SECONDS = 15.0


class Executor:
    """All parts, wired in the order in which a run meets them."""

    def __init__(self, config: ExecutorConfig, shutdown: Shutdown) -> None:
        self._config = config
        self._shutdown = shutdown
        self._boot_id = str(uuid.uuid4())
        self._threads: list[threading.Thread] = []
        self._engine = EngineMonitor(
            runtime=self._open_runtime(), guard=NetworkGuard(_guard_settings(config)), on_change=self._balance
        )
        self._stopper = Stopper(
            open_runtime=functools.partial(self._open_runtime, call_seconds=SIGNAL_TIMEOUT_SECONDS)
        )
        self._spool = Spool(directory=config.spool_directory, limit_bytes=config.spool_mb * MIB)
        # What starts nothing has no control groups to be looked for.
        self._meter = Meter(None if config.runtime == "noop" else config.cgroup_directory)
        self._prefetcher = Prefetcher(runtime=self._open_runtime(), limit=config.pull_limit)
        self._slots: Slots | None = None
        self._sync: Sync | None = None
        self._consumer: Consumer | None = None
        self._hints: HintListener | None = None

    def run(self) -> None:
        """Start, work until the stop is asked, stop. What still runs then is adopted by the next start."""
        server = serve_health(port=self._config.health_port, checks=self._checks(), is_alive=self._is_alive)
        self._start_thread("engine", self._engine.run)
        if self._wait_engine():
            self._start()
            self._shutdown.wait()
            self._stop()
        server.shutdown()

    def _wait_engine(self) -> bool:
        """False when the stop was asked first."""
        while not self._shutdown.asked:
            if self._engine.wait_info(0.5) is not None:
                return True
        return False

    def _start(self) -> None:
        duties = Duties(stopper=self._stopper, prefetcher=self._prefetcher)
        sync = Sync(
            identity=self._identity(),
            post=self._open_scheduler(),
            listener=duties,
            now=self._engine.now,
            output_cap_bytes=self._config.log_max_kb * KIB,
        )
        consumer = Consumer(
            name=f"executor {self._config.executor_id}",
            broker_url=self._config.broker_url,
            queues=[run_queue(pool) for pool in self._config.pools],
            on_delivery=lambda delivery: slots.deliver(delivery),  # noqa: PLW0108  The slots come next.
        )
        slots = Slots(
            count=self._config.slots,
            sync=sync,
            messages=consumer,
            make_tools=lambda: self._make_tools(sync),
            may_take=self._may_take,
        )
        duties.slots = slots
        self._sync, self._consumer, self._slots = sync, consumer, slots
        SLOTS.set(self._config.slots)
        SLOTS_USED.set_function(lambda: sync.running_count)
        slots.start()
        self._threads.extend(slots.threads)
        self._start_thread("stopper", self._stopper.run)
        self._start_thread("spool", self._spool.run)
        self._start_thread("meter", self._meter.run)
        self._start_thread("prefetch", self._prefetcher.run)
        self._start_thread("sync", sync.run)
        self._start_thread("consumer", consumer.run)
        self._start_thread("reaper", self._reap)
        if self._config.redis_url is not None:
            self._hints = HintListener(self._config.redis_url.reveal(), STOP_CHANNEL, sync.hint)
            self._hints.start()
        # What an earlier start left running takes its slots before anything new does.
        while not self._shutdown.asked and not sync.wait_first(0.2):
            pass
        self._balance()

    def _stop(self) -> None:
        """Take nothing new; what ends within the grace is reported; the leases are kept up meanwhile."""
        log.info("executor_stopping")
        self._balance()
        sync, consumer = self._sync, self._consumer
        assert sync is not None and consumer is not None  # noqa: S101, PT018  _start came before.
        deadline = time.monotonic() + self._config.stop_grace.total_seconds()
        while sync.held_count and time.monotonic() < deadline:
            time.sleep(0.05)
        for run in sync.list_unsettled():
            self._spool.keep(run)
        consumer.end()
        sync.end()
        self._join("consumer", "sync")
        log.info("executor_stopped", left_running=sync.held_count)

    def _balance(self) -> None:
        if self._slots is not None:
            self._slots.balance()

    def _may_take(self) -> bool:
        sync = self._sync
        if sync is None or sync.age_seconds is None or sync.replaced or sync.draining:
            return False
        return self._engine.ready and not self._shutdown.asked

    def _reap(self) -> None:
        sync = self._sync
        assert sync is not None  # noqa: S101  _start came before.
        reaper = Reaper(
            runtime=self._open_runtime(), sync=sync, instance=self._config.instance, now=self._engine.now
        )
        while not self._shutdown.wait(reaper.pause_seconds):
            try:
                reaper.run_once()
                self._spool.sweep(holds=sync.holds, ask_live=sync.ask_live)
            except EngineUnavailable as error:
                log.info("reaper_waits", error=str(error))
            except Exception:
                log.exception("reaper_broken")

    def _make_tools(self, sync: Sync) -> Tools:
        config = self._config
        return Tools(
            runtime=self._open_runtime(),
            reporter=sync,
            stops=self._stopper,
            engine=self._engine,
            spool=self._spool,
            meter=self._meter,
            settings=ContainerSettings(
                instance=config.instance,
                executor_id=config.executor_id,
                boot_id=self._boot_id,
                network=config.task_network,
                runtime=config.task_runtime,
                user=config.task_user,
                read_only_root=config.task_read_only_root,
            ),
            pull_limit=config.pull_limit,
        )

    def _identity(self) -> Identity:
        info = self._engine.info
        assert info is not None  # noqa: S101  The engine was waited for.
        return Identity(
            executor_id=self._config.executor_id,
            boot_id=self._boot_id,
            engine_id=info.engine_id,
            host=info.host,
            slots=self._config.slots,
            pools=self._config.pools,
        )

    def _open_scheduler(self) -> Callable[..., Any]:
        client = SchedulerClient(scheduler_url=self._config.scheduler_url, token=self._config.internal_token)
        return client.post

    def _open_runtime(self, *, call_seconds: float = CALL_TIMEOUT_SECONDS) -> Runtime:
        if self._config.runtime == "noop":
            return NoopRuntime()
        return DockerRuntime(self._config.docker_host, call_seconds=call_seconds)

    def _checks(self) -> list[Check]:
        return [
            Check("engine", self._engine.probe),
            Check("broker", self._probe_broker),
            Check("scheduler", self._probe_scheduler),
            Check("spool", self._spool.check, required=False),
            *([Check("redis", self._probe_hints, required=False)] if self._config.redis_url else []),
        ]

    def _probe_broker(self) -> None:
        if self._consumer is None or not self._consumer.connected:
            raise ConnectionError("not connected")

    def _probe_scheduler(self) -> dict[str, Any]:
        if self._sync is not None and self._sync.replaced:
            raise ConnectionRefusedError("another executor has started with this EXECUTOR_ID; give it its own")
        age = self._sync.age_seconds if self._sync is not None else None
        if age is None or age > SYNC_STALE_SECONDS:
            raise TimeoutError("no sync was answered lately")
        return {"lastSyncSeconds": round(age, 1)}

    def _probe_hints(self) -> None:
        if self._hints is None:
            raise ConnectionError("not connected")
        self._hints.check()

    def _is_alive(self) -> bool:
        return all(thread.is_alive() for thread in self._threads)

    def _start_thread(self, name: str, target: Callable[[], None]) -> None:
        thread = threading.Thread(target=target, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _join(self, *names: str) -> None:
        for thread in self._threads:
            if thread.name in names:
                thread.join(timeout=5.0)


def _guard_settings(config: ExecutorConfig) -> GuardSettings:
    return GuardSettings(
        instance=config.instance,
        executor_id=config.executor_id,
        network=config.task_network,
        image=config.guard_image,
        allow=config.task_network_allow,
        deny=config.task_network_deny,
    )


def run() -> None:
    config = load_config(read_config)
    configure_logs(service="executor", level=config.log_level)
    log.info("executor_starting", **masked(config))
    shutdown = Shutdown()
    shutdown.install()
    Executor(config, shutdown).run()


def main() -> int:
    run()
    return 0


if __name__ == "__main__":
    sys.exit(main())

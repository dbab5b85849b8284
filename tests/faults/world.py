"""A whole system of its own, small and in processes: scheduler, two loops, two executors, each behind proxies.

Worlds share servers and the engine, and nothing in them: each has its database, its broker's virtual host and its
instance label. So many can run at once, and they mostly wait. The users service is a stub, there is no gateway.
"""

from __future__ import annotations

import os
import random
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import docker
import pika
import psycopg
import requests
from docker.errors import APIError, NotFound
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import dict_row

from libs.common.topology import DEAD_QUEUE, RUNS_QUEUE
from services.executor.network_guard import GuardSettings, task_network
from services.executor.runtime import LABEL_INSTANCE, LABEL_TASK
from services.executor.tests.guard_rules import GUARD_IMAGE, remove_rules
from tests.faults.oracle import Journal
from tests.faults.part import Part, find_free_port
from tests.faults.tcp_proxy import ProxyLoop, TcpProxy
from tests.faults.users_stub import UsersStub
from tests.integration.polling import wait_until
from tests.servers import Database

ROOT = Path(__file__).parents[2]
IMAGE = "busybox:latest"
TOKEN = "service-token"
# What a task does: ends at once; counts until it is told to end; goes on whatever it is told.
QUICK = "echo one; echo two"
COUNTING = "trap 'echo told; exit 0' USR1; i=0; while :; do echo $i; i=$((i+1)); sleep 0.1; done"
STUBBORN = "trap '' TERM; while :; do sleep 0.1; done"
LOOPS = ("loops-1", "loops-2")
EXECUTORS = ("executor-1", "executor-2")
PARTS = ("scheduler", *LOOPS, *EXECUTORS)
CLIENT = "client"
HEARD_WITHIN = "8 seconds"
# Nobody takes over in the first 45 s of a database server's life.
SERVER_AGE_SECONDS = 50.0
Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """What worlds stand on, and share."""

    loop: ProxyLoop
    users: UsersStub
    redis_url: str
    folder: Path


class World:
    """`root` is the source tree that its processes run."""

    def __init__(self, ground: Ground, *, database: Database, broker_url: str, root: Path = ROOT) -> None:
        self.instance = f"world-{uuid.uuid4().hex[:8]}"
        self.folder = ground.folder / self.instance
        self.failpoints = self.folder / "failpoints"
        self.failpoints.mkdir(parents=True)
        self.engine = docker.from_env(timeout=60)
        # The SDK's client isn't safe for threads, and the journal listens in one of its own.
        self.journal = Journal(docker.from_env(timeout=60), instance=self.instance)
        self._ground = ground
        self._broker_url = broker_url
        self._token = ground.users.make_token()
        # A busy machine may keep a new connection waiting for longer than the tests' usual five seconds.
        owner_dsn = make_conninfo(database.owner_dsn, connect_timeout=30)
        self._database = psycopg.connect(owner_dsn, autocommit=True, row_factory=dict_row)
        self._proxies: dict[tuple[str, str], TcpProxy] = {}
        self._make_network()
        self.parts = self._make_parts(database, root)
        self.journal.start()

    # Its life.

    def prepare(self) -> None:
        """All parts are there, and have been for long, so far as the database can tell."""
        for proxy in self._proxies.values():
            proxy.pass_all()
        self.start()
        wait_until(self._everybody_is_heard, what="both executors had synced", seconds=30.0)
        # Otherwise each case would wait until nobody has to be waited for any more.
        self._database.execute("UPDATE scheduler.parts SET seen_at = now(), since = now() - interval '1 hour'")
        wait_until(self._server_is_settled, what="the database server had run for long", seconds=60.0, every=0.5)

    def start(self) -> None:
        """Whatever doesn't run, and wait until all are ready."""
        for part in self.parts.values():
            if not part.is_running:
                part.start()
        for part in self.parts.values():
            part.wait_ready()

    def close(self) -> None:
        for part in self.parts.values():
            part.kill()
        for proxy in self._proxies.values():
            proxy.close()
        self._database.close()
        self.journal.stop()
        for container in self.list_containers():
            _remove(container)
        for network in self.engine.networks.list(names=[f"{self.instance}-tasks"]):
            network.remove()
        remove_rules(self.engine, self.instance)
        self.engine.close()

    def forget(self) -> None:
        """Delete what the parts have printed: all went well."""
        shutil.rmtree(self.folder)

    # What is done to it.

    def arm(self, failpoint: str) -> None:
        (self.failpoints / failpoint).touch()

    def wait_reached(self, failpoint: str, *, seconds: float = 20.0) -> Part:
        """The part that is held there."""
        (taken,) = wait_until(
            lambda: list(self.failpoints.glob(f"{failpoint}@*")), what=f"{failpoint} was reached", seconds=seconds
        )
        pid = int(taken.name.partition("@")[2])
        return next(part for part in self.parts.values() if part.has(pid))

    def let_go(self) -> None:
        """Whoever is held anywhere goes on; what is armed isn't any more."""
        for file in self.failpoints.iterdir():
            file.unlink()

    def list_links(self, *parts: str) -> Sequence[TcpProxy]:
        """All that lead from or to these."""
        return [proxy for ends, proxy in self._proxies.items() if set(ends) & set(parts)]

    def list_links_between(self, one: str, other: str) -> Sequence[TcpProxy]:
        return [proxy for ends, proxy in self._proxies.items() if set(ends) == {one, other}]

    def wipe_broker(self) -> None:
        with self._channel() as channel:
            channel.queue_delete(RUNS_QUEUE)
            channel.queue_delete(DEAD_QUEUE)

    # What its user does, over a link of their own.

    def request(self, method: str, path: str, *, seconds: float = 10.0, **options: Any) -> requests.Response:
        headers = {"Authorization": f"Bearer {self._token}"} | options.pop("headers", {})
        url = f"http://{self._proxies[CLIENT, 'scheduler'].address}{path}"
        return requests.request(method, url, headers=headers, timeout=seconds, **options)

    def create_task(self, script: str, **fields: Any) -> str:
        body = make_task(script, **fields)
        answer = self.request("POST", "/api/tasks/", json=body)
        assert answer.status_code == 201, answer.text
        task_id: str = answer.json()["id"]
        return task_id

    # What is to be seen.

    def query(self, text: str, **parameters: Any) -> list[dict[str, Any]]:
        return self._database.execute(text, parameters).fetchall()

    def now(self) -> datetime:
        """By the database's clock."""
        moment: datetime = self.query("SELECT now() AS now")[0]["now"]
        return moment

    def read_task(self, task_id: str) -> Row:
        (task,) = self.query("SELECT * FROM scheduler.tasks WHERE id = %(id)s", id=task_id)
        return task

    def list_runs(self, task_id: str) -> Sequence[Row]:
        """In order, each with its lease's end, None when nobody has held it or it has closed."""
        return self.query(
            "SELECT r.*, l.expires_at, l.expires_at > now() AS is_held FROM scheduler.runs r"
            " LEFT JOIN scheduler.leases l ON l.run_id = r.id WHERE r.task_id = %(id)s ORDER BY r.number",
            id=task_id,
        )

    def read_output(self, run_id: str) -> str:
        chunks = self.query("SELECT data FROM scheduler.run_logs WHERE run_id = %(id)s ORDER BY seq", id=run_id)
        return b"".join(chunk["data"] for chunk in chunks).decode()

    def count_open_tasks(self) -> int:
        """Also of tries that were never answered."""
        (row,) = self.query("SELECT count(*) AS open FROM scheduler.tasks WHERE finished_at IS NULL")
        return int(row["open"])

    def list_containers(self, task_id: str | None = None) -> list[Any]:
        labels = [
            f"{LABEL_INSTANCE}={self.instance}",
            LABEL_TASK if task_id is None else f"{LABEL_TASK}={task_id}",
        ]
        found: list[Any] = self.engine.containers.list(all=True, filters={"label": labels}, ignore_removed=True)
        return found

    def tell(self, task_id: str) -> None:
        """End a COUNTING task."""
        self.engine.containers.get(task_id).kill("SIGUSR1")

    def wait_ended(self, task_id: str, *, seconds: float = 30.0) -> None:
        wait_until(lambda: self.read_task(task_id)["finished_at"], what=f"task {task_id} ended", seconds=seconds)

    def wait_heard(self, executor: str, *, since: datetime) -> None:
        wait_until(
            lambda: self.query(
                "SELECT id FROM scheduler.executors WHERE id = %(id)s AND last_seen_at > %(since)s",
                id=executor,
                since=since,
            ),
            what=f"{executor} was heard of",
        )

    def _everybody_is_heard(self) -> bool:
        heard = self.query(
            f"SELECT id FROM scheduler.executors WHERE last_seen_at > now() - interval '{HEARD_WITHIN}'"
        )
        return len(heard) == len(EXECUTORS)

    def _server_is_settled(self) -> bool:
        (row,) = self.query("SELECT extract(epoch FROM now() - pg_postmaster_start_time())::float AS age")
        return bool(row["age"] > SERVER_AGE_SECONDS)

    @contextmanager
    def _channel(self) -> Iterator[Any]:
        connection = pika.BlockingConnection(pika.URLParameters(self._broker_url))
        try:
            yield connection.channel()
        finally:
            connection.close()

    # Making it.

    def _make_network(self) -> None:
        """As the executor would, but small: the engine has room for some thirty of its usual size."""
        network = task_network(
            GuardSettings(
                instance=self.instance,
                executor_id="",
                network=f"{self.instance}-tasks",
                image="",
                allow=(),
                deny=(),
            )
        )
        options = {
            "com.docker.network.bridge.name": network.bridge,
            "com.docker.network.bridge.enable_icc": "false",
            "com.docker.network.bridge.enable_ip_masquerade": "true",
        }

        def create() -> bool:
            subnet = f"10.{random.randrange(200, 250)}.{random.randrange(256)}.0/28"
            pool = docker.types.IPAMConfig(pool_configs=[docker.types.IPAMPool(subnet=subnet)])
            try:
                self.engine.networks.create(
                    network.name, driver="bridge", options=options, labels=dict(network.labels), ipam=pool
                )
            except APIError:
                return False
            return True

        wait_until(create, what="a network was made")

    def _make_parts(self, database: Database, root: Path) -> dict[str, Part]:
        ports = {name: find_free_port() for name in PARTS}
        postgres = conninfo_to_dict(database.dsn)
        redis, broker = urlsplit(self._ground.redis_url), urlsplit(self._broker_url)
        servers = {
            "postgres": ("127.0.0.1", int(postgres["port"] or 0)),
            "redis": (str(redis.hostname), int(redis.port or 0)),
            "broker": (str(broker.hostname), int(broker.port or 0)),
            "scheduler": ("127.0.0.1", ports["scheduler"]),
        }
        common = {
            name: value
            for name, value in os.environ.items()
            if name in ("PATH", "HOME", "LANG", "DOCKER_HOST", "VIRTUAL_ENV")
        } | {
            "USERS_URL": self._ground.users.url,
            "INTERNAL_TOKEN": TOKEN,
            "FAILPOINTS_DIR": str(self.failpoints),
        }

        def link(part: str, server: str) -> TcpProxy:
            host, port = servers[server]
            proxy = self._proxies[part, server] = TcpProxy(self._ground.loop, host=host, port=port)
            return proxy

        def database_url(part: str) -> str:
            return make_conninfo(database.dsn, host="127.0.0.1", port=link(part, "postgres").port)

        def redis_url(part: str) -> str:
            return redis._replace(netloc=link(part, "redis").address).geturl()

        def broker_url(part: str) -> str:
            login = broker.netloc.rpartition("@")[0]
            return broker._replace(netloc=f"{login}@{link(part, 'broker').address}").geturl()

        def make(name: str, arguments: Sequence[str], **environment: str) -> Part:
            return Part(
                name,
                arguments,
                root=root,
                environment=common | environment,
                port=ports[name],
                log=self.folder / f"{name}.log",
            )

        link(CLIENT, "scheduler")
        gunicorn = ("gunicorn", "-c", "deploy/gunicorn.conf.py", "services.scheduler.app:create_app()")
        parts = [
            make(
                "scheduler",
                gunicorn,
                BIND_PORT=str(ports["scheduler"]),
                DATABASE_URL=database_url("scheduler"),
                REDIS_URL=redis_url("scheduler"),
            )
        ]
        parts += [
            make(
                name,
                ("services.scheduler",),
                DATABASE_URL=database_url(name),
                REDIS_URL=redis_url(name),
                BROKER_URL=broker_url(name),
                HEALTH_PORT=str(ports[name]),
            )
            for name in LOOPS
        ]
        parts += [
            make(
                name,
                ("services.executor",),
                BROKER_URL=broker_url(name),
                SCHEDULER_URL=f"http://{link(name, 'scheduler').address}",
                INSTANCE=self.instance,
                EXECUTOR_ID=name,
                EXECUTOR_SLOTS="2",
                EXECUTOR_SPOOL_DIR=str(self.folder / "spool"),
                GUARD_IMAGE=GUARD_IMAGE,
                HEALTH_PORT=str(ports[name]),
            )
            for name in EXECUTORS
        ]
        return {part.name: part for part in parts}


def make_task(script: str, **fields: Any) -> dict[str, Any]:
    return {"image": IMAGE, "command": "sh", "args": ["-c", script], "network": "none", **fields}


def _remove(container: Any) -> None:
    # An executor's own removal may be under way.
    deadline = time.monotonic() + 10.0
    while time.monotonic() < deadline:
        try:
            container.remove(force=True)
        except NotFound:
            return
        except APIError:
            time.sleep(0.1)

"""One storm for all tests of a run, `make faults`, and the ground of small worlds, `make failpoints`."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import docker
import pytest

from tests.faults.case import Case
from tests.faults.matrix import MakeWorld, Matrix, Trial, read_world_count
from tests.faults.plan import REPLICAS
from tests.faults.report import render_text, write_document
from tests.faults.rules import Rule
from tests.faults.storm import Storm, raise_storm, read_settings_from_environment, save_evidence
from tests.faults.task_engine import START_SECONDS, open_task_engine
from tests.faults.tcp_proxy import ProxyLoop
from tests.faults.users_stub import UsersStub
from tests.faults.world import Ground, World
from tests.integration.client import sign_up
from tests.integration.stack import Stack, open_stack
from tests.servers import MakeDatabase, MakeVhosts

# The trials mostly wait, beside the tests that are named before theirs; a storm wants the machine for itself.
_LATE = ("test_failpoints.py", "test_storm.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: _LATE.index(item.path.name) if item.path.name in _LATE else -1)


@pytest.fixture(scope="session")
def _system(engine: docker.DockerClient) -> Iterator[tuple[Stack, docker.DockerClient]]:
    if "ENV_FILE" not in os.environ:
        pytest.fail("These tests need a composed system of their own: `make faults` brings it up.", pytrace=False)
    stack = open_stack(engine)
    stack.wait_until_ready(executors=REPLICAS["executor"])
    task_engine = open_task_engine(stack)
    # The guard's image has just come: the executors may take runs as soon as they have found it.
    sign_up(stack.url).api.run("true", seconds=START_SECONDS)
    yield stack, task_engine
    task_engine.close()


@pytest.fixture(scope="session")
def stack(_system: tuple[Stack, docker.DockerClient]) -> Stack:
    return _system[0]


@pytest.fixture(scope="session")
def task_engine(_system: tuple[Stack, docker.DockerClient]) -> docker.DockerClient:
    """All tasks run there, not on the machine's own engine."""
    return _system[1]


@pytest.fixture(scope="session")
def storm(stack: Stack, task_engine: docker.DockerClient) -> Storm:
    settings = read_settings_from_environment()
    print(f"\nseed {settings.seed}: FAULTS_SEED={settings.seed} repeats this storm", flush=True)
    storm = raise_storm(stack, task_engine, sign_up(stack.url), settings)
    evidence = Path(tempfile.gettempdir()) / f"{stack.project}-{settings.seed}"
    save_evidence(stack, storm, evidence)
    print(f"{render_text(storm)}logs of all parts: {evidence}\n", flush=True)
    if settings.report is not None:
        write_document(storm, settings.report)
    return storm


@pytest.fixture(scope="session")
def ground(redis_url: str) -> Iterator[Ground]:
    """Its folder stays when something in it has gone wrong: a world in which all went well has removed its own."""
    with closing(ProxyLoop()) as loop, closing(UsersStub()) as users:
        folder = Path(tempfile.mkdtemp(prefix="failpoints-"))
        yield Ground(loop=loop, users=users, redis_url=redis_url, folder=folder)
        if not any(each.is_dir() for each in folder.iterdir()):
            shutil.rmtree(folder)


@pytest.fixture(scope="session")
def make_world(ground: Ground, make_shared_database: MakeDatabase, make_vhosts: MakeVhosts) -> MakeWorld:
    """For any thread. Those that are surely wanted have their virtual hosts made at once.

    They start one after the other: all at once they would keep the machine busy for a minute.
    """
    lock = threading.Lock()
    urls = make_vhosts([f"world-{number}" for number in range(read_world_count())])

    def make() -> World:
        with lock:
            broker_url = urls.pop() if urls else make_vhosts([f"world-{uuid.uuid4().hex}"])[0]
            database = make_shared_database("scheduler")
            world = World(ground, database=database, broker_url=broker_url)
            try:
                world.start()
            except BaseException:
                world.close()
                raise
        return world

    return make


@pytest.fixture(scope="session")
def matrix(ground: Ground, make_world: MakeWorld, request: pytest.FixtureRequest) -> Iterator[Matrix]:
    """Of the trials that were selected."""
    trials = _list_trials(request.session)
    seen = ground.folder / "seen.txt"
    print(f"\nwhat is seen, as it is seen: {seen}", flush=True)
    matrix = Matrix(trials, make_world, worlds=read_world_count(), seen=seen)
    yield matrix
    matrix.stop()
    print("\n" + matrix.render(), flush=True)
    if report := os.environ.get("FAILPOINTS_REPORT"):
        Path(report).write_text(matrix.render() + "\n")


@pytest.fixture(scope="session", autouse=True)
def _trials_begin_first(request: pytest.FixtureRequest) -> None:
    """Not when the first test asks for one, but with the first test of any."""
    if _list_trials(request.session):
        request.getfixturevalue("matrix")


def _list_trials(session: pytest.Session) -> list[Trial]:
    selected = [getattr(item, "callspec", None) for item in session.items]
    return [
        trial
        for each in selected
        if each is not None and isinstance(trial := each.params.get("trial"), Case | Rule)
    ]

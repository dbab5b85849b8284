"""One storm for all tests of a run, `make faults`, and the ground of small worlds, `make failpoints`."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import docker
import pytest

from tests.faults.plan import REPLICAS
from tests.faults.report import render
from tests.faults.storm import Storm, raise_storm, read_settings_from_environment, save_evidence
from tests.faults.tcp_proxy import ProxyLoop
from tests.faults.users_stub import UsersStub
from tests.faults.world import Ground
from tests.integration.client import sign_up
from tests.integration.stack import Stack, open_stack


@pytest.fixture(scope="session")
def stack(engine: docker.DockerClient) -> Stack:
    if "ENV_FILE" not in os.environ:
        pytest.fail("These tests need a composed system of their own: `make faults` brings it up.", pytrace=False)
    stack = open_stack(engine)
    for service in ("scheduler-loops", "executor"):
        stack.scale(service, REPLICAS[service])
    stack.wait_until_ready(executors=REPLICAS["executor"])
    return stack


@pytest.fixture(scope="session")
def storm(stack: Stack, pytestconfig: pytest.Config) -> Storm:
    settings = read_settings_from_environment()
    print(f"\nseed {settings.seed}: FAULTS_SEED={settings.seed} repeats this storm", flush=True)
    storm = raise_storm(stack, sign_up(stack.url), settings)
    evidence = Path(tempfile.gettempdir()) / f"{stack.project}-{settings.seed}"
    save_evidence(stack, storm, evidence)
    report = render(storm) + f"logs of all parts: {evidence}\n"
    print(report, flush=True)
    if settings.report is not None:
        settings.report.write_text(report)
    return storm


@pytest.fixture(scope="session")
def ground(redis_url: str) -> Iterator[Ground]:
    """Its folder stays when something in it has gone wrong: a world in which all went well has removed its own."""
    with closing(ProxyLoop()) as loop, closing(UsersStub()) as users:
        folder = Path(tempfile.mkdtemp(prefix="failpoints-"))
        yield Ground(loop=loop, users=users, redis_url=redis_url, folder=folder)
        if not any(each.is_dir() for each in folder.iterdir()):
            shutil.rmtree(folder)

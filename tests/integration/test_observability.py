from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.client import Api, User, expect, new_task
from tests.integration.stack import INSIDE_URLS, Stack
from tests.polling import wait_until

pytestmark = pytest.mark.integration

READ = """
import json, urllib.request
print(json.dumps(urllib.request.urlopen({url!r}, timeout=5).read().decode()))
"""


def read_lines(stack: Stack, service: str) -> Iterator[dict[str, Any]]:
    for container in stack.containers(service):
        for line in container.logs(tail=2000).decode(errors="replace").splitlines():
            if line.startswith("{"):
                yield json.loads(line)


def test_one_request_id_runs_through_the_logs_of_every_service_it_touched(stack: Stack, user: User):
    request_id = f"traced-{secrets.token_hex(8)}"
    task = expect(user.api.post("/api/tasks/", new_task("true"), headers={"X-Request-Id": request_id}), 201)
    user.api.wait_for(task["id"], "completed")

    for service in ("gateway", "scheduler", "scheduler-loops", "executor"):
        wait_until(
            lambda service=service: any(  # type: ignore[misc]
                line.get("request_id") == request_id for line in read_lines(stack, service)
            ),
            what=f"the id stood in a line of {service}",
            seconds=10,
        )
    of_task = [line for line in read_lines(stack, "executor") if line.get("task_id") == task["id"]]
    assert of_task
    assert all(line["run_id"] for line in of_task)


def test_a_refused_request_is_in_the_log_under_its_id(stack: Stack, anyone: Api):
    request_id = f"traced-{secrets.token_hex(8)}"
    anyone.get("/api/tasks/", token="not.a.token", headers={"X-Request-Id": request_id})

    (line,) = wait_until(
        lambda: [line for line in read_lines(stack, "gateway") if line.get("request_id") == request_id],
        what="the request was logged",
    )
    assert (line["event"], line["status"], line["service"]) == ("http_request", 401, "gateway")


def test_no_secret_stands_in_any_log(stack: Stack, user: User):
    secret = f"secret-{secrets.token_hex(8)}"
    user.api.run("sh", "-c", f"true {secret}", environment={"PASSWORD": secret})

    known = [stack.settings[name] for name in stack.settings if name.endswith(("PASSWORD", "TOKEN"))]
    for service in INSIDE_URLS:
        for container in stack.containers(service):
            text = container.logs().decode(errors="replace")
            for word in (secret, user.password, str(user.api.token), *known):
                assert word not in text, f"{service} logged a secret"


@pytest.mark.parametrize("service", INSIDE_URLS)
def test_every_service_serves_liveness_readiness_and_metrics(stack: Stack, service: str):
    def read(path: str) -> str:
        text: str = stack.run_inside("scheduler", READ.format(url=INSIDE_URLS[service] + path))
        return text

    assert json.loads(read("/livez"))["status"] == "alive"
    for check in json.loads(read("/readyz"))["checks"].values():
        assert check["status"] == "up"
        assert check["latencyMs"] >= 0
    assert "# TYPE" in read("/metrics")


@pytest.mark.parametrize(
    ("service", "command", "variable"),
    [
        (
            "gateway",
            ["gunicorn", "-c", "deploy/gunicorn.conf.py", "services.gateway.app:create_app()"],
            "USERS_URL",
        ),
        (
            "users",
            ["gunicorn", "-c", "deploy/gunicorn.conf.py", "services.users.app:create_app()"],
            "DATABASE_URL",
        ),
        (
            "scheduler",
            ["gunicorn", "-c", "deploy/gunicorn.conf.py", "services.scheduler.app:create_app()"],
            "DATABASE_URL",
        ),
        (
            "scheduler-logs",
            ["gunicorn", "-c", "deploy/gunicorn.conf.py", "services.scheduler.log_app:create_app()"],
            "DATABASE_URL",
        ),
        ("scheduler-loops", ["python", "-m", "services.scheduler"], "DATABASE_URL"),
        ("executor", ["python", "-m", "services.executor"], "BROKER_URL"),
    ],
)
def test_a_service_without_a_setting_ends_at_once_with_a_line_that_names_it(
    stack: Stack, service: str, command: list[str], variable: str
):
    image = stack.containers(service)[0].attrs["Config"]["Image"]
    container = stack.engine.containers.create(
        image, command, environment={"BIND_PORT": "8000"}, network_mode="none", labels=["taskrunner.tests"]
    )
    try:
        container.start()
        status = container.wait(timeout=30)["StatusCode"]
        lines = container.logs().decode().splitlines()
    finally:
        container.remove(force=True)

    assert status != 0
    (told,) = [line for line in lines if line.startswith("configuration error:")]
    assert variable in told
    assert not [line for line in lines if "Traceback" in line]

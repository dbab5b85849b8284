"""Writes a lost settings file again, from the containers of the system that it started.

    python3 -m deploy.recovery PROJECT FILE

A new clone beside the data of an earlier one is such a case: passwords that are made anew wouldn't open that data.
Exits 1, and writes nothing, when a password is nowhere to be found.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from deploy.environment import EXAMPLE, read_settings, write_environment

SERVICE_LABEL = "com.docker.compose.service"
PROJECT_LABEL = "com.docker.compose.project"
# RabbitMQ's container knows its password by another name than deploy/.env.
OTHER_NAMES = {"RABBITMQ_DEFAULT_PASS": "RABBITMQ_PASSWORD"}
# Redis keeps nothing, so nothing is closed to whoever comes with a new one; and an older system has none.
MADE_ANEW = frozenset({"REDIS_EXECUTOR_PASSWORD"})
MENTIONED = re.compile(r"^(?:# )?([A-Z][A-Z0-9_]*)=", re.MULTILINE)


def find_settings(containers: Iterable[Mapping[str, Any]], example: str) -> dict[str, str]:
    """What the containers were given, by the names that the example mentions. `containers` as inspected."""
    mentioned = set(MENTIONED.findall(example))
    found: dict[str, str] = {}
    executors = 0
    for container in containers:
        service = container["Config"]["Labels"][SERVICE_LABEL]
        # Compose passes a variable that has no value on as its bare name.
        given = dict(pair.split("=", 1) for pair in container["Config"]["Env"] if "=" in pair)
        given |= {name: given[other] for other, name in OTHER_NAMES.items() if other in given}
        found |= {name: value for name, value in given.items() if name in mentioned and value}
        if service == "gateway":
            found |= _find_address(container)
        executors += service == "executor"
    return found | ({"EXECUTORS": str(executors)} if executors else {})


def _find_address(gateway: Mapping[str, Any]) -> dict[str, str]:
    ports = gateway["HostConfig"]["PortBindings"].values()
    binding = next((bindings[0] for bindings in ports if bindings), None)
    return {"GATEWAY_BIND": binding["HostIp"], "GATEWAY_PORT": binding["HostPort"]} if binding else {}


def list_missing(found: Mapping[str, str], example: str) -> list[str]:
    """The passwords that can't be made anew and were not found."""
    empty = [name for name, value in read_settings(example).items() if not value]
    return [name for name in empty if name not in found and name not in MADE_ANEW]


def inspect_containers(project: str) -> list[dict[str, Any]]:
    """All containers of the project, also those that don't run."""
    listing = ["docker", "ps", "--all", "--quiet", "--filter", f"label={PROJECT_LABEL}={project}"]
    ids = subprocess.run(listing, check=True, capture_output=True, text=True).stdout.split()
    if not ids:
        return []
    inspected = subprocess.run(["docker", "inspect", *ids], check=True, capture_output=True, text=True).stdout
    containers: list[dict[str, Any]] = json.loads(inspected)
    return containers


def main(project: str, file: str) -> int:
    example = EXAMPLE.read_text()
    found = find_settings(inspect_containers(project), example)
    if list_missing(found, example):
        return 1
    default = read_settings(example).get("COMPOSE_PROJECT_NAME", "task-runner")
    write_environment(Path(file), found | ({} if project == default else {"COMPOSE_PROJECT_NAME": project}))
    print(f"wrote {file} again, with the settings of the system '{project}' that is here", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

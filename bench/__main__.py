"""`make bench`: what the system costs, measured against bare baselines, in turn, in this one run.

    python -m bench        the settings file of a running system is named by ENV_FILE

Prints a table of medians with the ratio to each baseline. Sends traffic to the loopback address only.
"""

from __future__ import annotations

import os
import statistics
import uuid
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from bench.api import Api
from bench.containers import BareLoop, measure_lateness, measure_run, measure_throughput
from bench.followers import FAST, FOLLOWERS, STEADY, Following
from bench.latency import create_batches
from bench.rates import CLIENTS, create_one, get_one, measure_rate, probe_gateway
from bench.report import Row, print_table, say
from deploy.environment import gateway_url, read_settings
from services.executor.container_options import ContainerSettings, container_options
from services.executor.spec import TaskSpec

ROUNDS = 5
CONTAINERS_A_ROUND = 60
SINGLE_RUNS = 20
BATCH = 1000
# More than one, so that validating the next batch goes on while the database writes one.
BATCH_CLIENTS = 3

Measure = Callable[[], float]


def build_bare_options(instance: str) -> dict[str, Any]:
    """What the executor itself would create for a task with default limits."""
    spec = TaskSpec(
        task_id=uuid.uuid4(),
        run_id=uuid.uuid4(),
        user_id=uuid.uuid4(),
        number=1,
        image="busybox:latest",
        command=None,
        args=(),
        entrypoint=None,
        environment={},
        time_limit=timedelta(hours=1),
        stop_grace=timedelta(seconds=10),
        cpus=1.0,
        memory_mb=256,
        pids=128,
        network="egress",
        scheduled_at=None,
        request_id=None,
    )
    settings = ContainerSettings(
        # Labelled as nobody's, so that no executor takes the bare loop's containers for its own.
        instance="bench",
        executor_id="bench",
        boot_id="bench",
        network=f"{instance}-tasks",
        runtime="runc",
        user="",
        read_only_root=False,
    )
    return container_options(spec, 1, settings)


def take_in_turn(rounds: int, system: Measure, baseline: Measure, *, name: str) -> tuple[list[float], list[float]]:
    """Samples of both, one after the other, so that a change of the machine's speed meets both."""
    pairs = []
    for number in range(rounds):
        say(f"{name} {number + 1}/{rounds}")
        pairs.append((baseline(), system()))
    return [pair[1] for pair in pairs], [pair[0] for pair in pairs]


def run() -> None:
    settings = read_settings(Path(os.environ["ENV_FILE"]).read_text(encoding="utf-8"))
    api = Api(gateway_url(settings))
    executors = api.call("GET", "/api/health", 200)["services"]["executors"]
    slots = int(executors["slots"])
    bare = BareLoop(build_bare_options(settings["COMPOSE_PROJECT_NAME"]))
    api.sign_up()
    api.wait([api.create(command="true")])
    bare.run(["true"])

    throughput = take_in_turn(
        ROUNDS,
        lambda: measure_throughput(api, count=CONTAINERS_A_ROUND),
        lambda: bare.measure_throughput(count=CONTAINERS_A_ROUND, slots=slots),
        name=f"{CONTAINERS_A_ROUND} containers in {slots} slots",
    )
    alone = take_in_turn(SINGLE_RUNS, lambda: measure_run(api), bare.measure_run, name="one run alone")
    lateness = take_in_turn(SINGLE_RUNS, lambda: measure_lateness(api), bare.measure_start, name="start lateness")
    created = take_in_turn(
        ROUNDS,
        lambda: measure_rate(create_one(api)),
        lambda: measure_rate(probe_gateway(api)),
        name="tasks created",
    )
    batches = take_in_turn(
        ROUNDS,
        lambda: measure_rate(create_batches(api, size=BATCH), clients=BATCH_CLIENTS) * BATCH,
        lambda: measure_rate(create_one(api)),
        name=f"tasks created in batches of {BATCH}",
    )
    got = take_in_turn(
        ROUNDS, lambda: measure_rate(get_one(api)), lambda: measure_rate(probe_gateway(api)), name="GET of a task"
    )

    following = Following(api)
    followed = {
        name: take_in_turn(
            ROUNDS,
            lambda script=script: following.measure_run(script, followers=FOLLOWERS),  # type: ignore[misc]
            lambda script=script: following.measure_run(script, followers=0),  # type: ignore[misc]
            name=f"{FOLLOWERS} followers of a run that prints 10 MB {name}",
        )
        for name, script in (("at once", FAST), ("in 4 s", STEADY))
    }

    print(f"\n{os.cpu_count()} cores, {slots} slots, {CLIENTS} HTTP clients\n")
    print_table(
        [
            Row("containers a second", "/s", throughput[0], "bare loop", throughput[1]),
            Row("one run, POST to exit", "ms", alone[0], "bare create to exit", alone[1]),
            Row("first instruction after due", "ms", lateness[0], "bare create+start", lateness[1]),
            Row("tasks created, single", "/s", created[0], "gateway's /livez", created[1]),
            Row("tasks created, in batches", "/s", batches[0], "created, single", batches[1]),
            Row("GET of a task", "/s", got[0], "gateway's /livez", got[1]),
            *(
                Row(f"10 MB {name}, {FOLLOWERS} followers", "s", samples[0], "not followed", samples[1])
                for name, samples in followed.items()
            ),
        ]
    )
    delay = statistics.median(following.delays)
    print(f"\nthe last of {FOLLOWERS} followers had everything {delay:.2f} s after the run's end")


if __name__ == "__main__":
    run()

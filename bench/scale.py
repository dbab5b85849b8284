"""`make bench-scale`: what requests cost beside millions of tasks, against the same system when it was empty.

    python -m bench.scale    the settings file of a running, empty system is named by ENV_FILE
    BENCH_PENDING, BENCH_FINISHED    how many tasks there are of each, 1,000,000 and 5,000,000 unless given

Prints a table of medians with the ratio of full to empty. The gateway's own answer is among them: if its ratio is
not 1, the machine was not the same. Needs several GB of disk, and some minutes, most of them to fill.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from bench.api import Api
from bench.latency import PAGE, create_batches, list_page, measure_dispatch, measure_latency
from bench.rates import create_one, get_one, probe_gateway
from bench.report import Row, print_table, say
from deploy.environment import gateway_url, read_settings

REPOSITORY = Path(__file__).parents[1]
REQUESTS = 300
DISPATCHES = 15
DEEP = 1000
BATCH = 1000

Samples = dict[str, list[float]]

# Filters of the full system's owner, who has a tenth of everything. On an empty one they cost what a page costs.
FILTERS: Mapping[str, str] = {
    "status": "&status=failed",
    "label": "&label=team:team-3",
    "rare label": "&label=batch:2500",
    "label and status": "&label=team:team-3&status=failed",
    "two labels": "&label=team:team-3&label=batch:2500",
    "name": "&name=nightly",
    "many names": "&name=import-",
    "name and label": "&name=nightly&label=team:team-3",
    "time": "&until=2026-01-01T00:00:00Z",
}


def measure(api: Api) -> Samples:
    """What is measured on both."""
    first = list_page(api)
    return {
        "gateway's own answer": measure_latency(probe_gateway(api), count=REQUESTS),
        "dispatch lateness": measure_dispatch(api, count=DISPATCHES),
        "create": measure_latency(create_one(api), count=REQUESTS),
        "get": measure_latency(get_one(api), count=REQUESTS),
        f"list, page 1 of {PAGE} tasks": measure_latency(first, count=REQUESTS),
        "stats": measure_latency(lambda: api.call("GET", "/api/tasks/stats", 200), count=REQUESTS),
        f"batch of {BATCH}": measure_latency(create_batches(api, size=BATCH), count=10),
    }


def measure_full(api: Api) -> Samples:
    """What exists on the full system only."""
    samples = {f"list, page {DEEP}": measure_latency(list_page(api, pages=DEEP), count=REQUESTS)}
    for name, query in FILTERS.items():
        samples[f"list by {name}"] = measure_latency(list_page(api, query), count=REQUESTS // 3)
    return samples


def fill(owner: str, *, pending: int, finished: int) -> None:
    variables = {"owner": owner, "pending": str(pending), "finished": str(finished)}
    settings = [f"--set={name}={value}" for name, value in variables.items()]
    psql = ["psql", "--no-psqlrc", "--username=taskrunner", "--dbname=taskrunner", "--quiet", *settings]
    subprocess.run(
        [REPOSITORY / "deploy" / "compose.sh", "exec", "-T", "postgres", *psql],
        input=(REPOSITORY / "bench" / "fill.sql").read_bytes(),
        check=True,
    )


def to_rows(empty: Samples, full: Samples) -> list[Row]:
    page = f"list, page 1 of {PAGE} tasks"
    return [
        Row(name, "ms", samples, "empty" if name in empty else "empty, page 1", empty.get(name, empty[page]))
        for name, samples in full.items()
    ]


def run() -> None:
    settings = read_settings(Path(os.environ["ENV_FILE"]).read_text(encoding="utf-8"))
    api = Api(gateway_url(settings))
    owner = api.sign_up()
    # A page to list, of tasks that don't come due.
    create_batches(api, size=PAGE + 10)()
    api.wait([api.create(command="true")])

    say("an empty system")
    empty = measure(api)
    pending = int(os.environ.get("BENCH_PENDING") or 1_000_000)
    finished = int(os.environ.get("BENCH_FINISHED") or 5_000_000)
    say(f"nothing yet: filling it with {pending} pending and {finished} finished tasks")
    began = time.monotonic()
    fill(owner, pending=pending, finished=finished)
    say(f"the full system, which took {time.monotonic() - began:.0f} s to fill")
    full = measure(api) | measure_full(api)

    print(f"\n{os.cpu_count()} cores, {pending} pending and {finished} finished tasks, one client\n")
    print_table(to_rows(empty, full))


if __name__ == "__main__":
    run()

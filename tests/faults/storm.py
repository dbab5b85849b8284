"""A storm from beginning to end: tasks and faults at the same time, then quiet, then what came of it."""

from __future__ import annotations

import json
import os
import random
import secrets
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import docker
from docker.models.containers import Container

from services.executor.runtime import LABEL_INSTANCE, LABEL_TASK
from tests.faults.chaos import Chaos, Struck, list_replicas
from tests.faults.oracle import Findings, Journal, judge
from tests.faults.plan import ENGINE, REPLICAS, Numbers, end_of, list_wipe_times, plan_faults
from tests.faults.work import (
    PROBE_SECONDS,
    WATCH_SECONDS,
    Accepted,
    Client,
    Order,
    Probe,
    Repeating,
    Submitter,
    Watch,
    plan_orders,
)
from tests.integration.client import Json, User, to_time
from tests.integration.stack import Stack

# After the last fault.
END_SECONDS = 120.0
CLEAN_SECONDS = 120.0
LEASE_SECONDS = 20.0
# Of the tasks, as many messages are delivered twice.
DUPLICATES_SHARE = 0.05
# A part that was started again needs a moment to be there.
SETTLED = timedelta(seconds=5)
_LIVE = "('queued', 'claimed', 'running', 'stopping')"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """FAULTS_SEED, FAULTS_TASKS, FAULTS_SECONDS, FAULTS_KILLS, FAULTS_REPORT; the rest follows from these."""

    seed: int
    tasks: int
    numbers: Numbers
    calm_tasks: int
    report: Path | None

    @staticmethod
    def read(environment: Mapping[str, str]) -> Settings:
        kills = int(environment.get("FAULTS_KILLS") or 60)
        tasks = int(environment.get("FAULTS_TASKS") or 300)
        share = kills / 60
        numbers = Numbers(
            seconds=float(environment.get("FAULTS_SECONDS") or Numbers().seconds),
            kills=kills,
            kills_each_role=max(1, round(8 * share)),
            restarts_each_server=max(1, round(3 * share)),
            engine_restarts=max(1, round(2 * share)),
            cuts=max(1, round(5 * share)),
            pauses=max(1, round(5 * share)),
            wipes=max(1, round(2 * share)),
            duplicates=max(2, round(DUPLICATES_SHARE * tasks)),
        )
        report = environment.get("FAULTS_REPORT")
        return Settings(
            seed=int(environment.get("FAULTS_SEED") or secrets.randbelow(1_000_000)),
            tasks=tasks,
            numbers=numbers,
            calm_tasks=12,
            report=Path(report) if report else None,
        )


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Storm:
    """All that was seen. `tasks` are the user's at the end, also such as were made by a try without an answer."""

    settings: Settings
    load_before: float
    began: datetime
    calm_again: datetime
    struck: Sequence[Struck]
    engine_ends: Sequence[int]
    executor_ahead: str
    clock_off_seconds: float
    accepted: Sequence[Accepted]
    calm: Sequence[Accepted]
    given_up: Sequence[Order]
    tasks: Mapping[str, Json]
    runs: Mapping[str, Sequence[Json]]
    logs: Mapping[str, bytes]
    findings: Findings
    changed: Sequence[tuple[Json, Json]]
    watch_rounds: int
    good: Sequence[datetime]
    answers: Counter[str]
    unexpected: Sequence[str]
    open_at_the_end: Sequence[Json]
    clean_after_seconds: float | None
    left: Mapping[str, int]
    failures: Sequence[str] = field(default_factory=list)

    def kills(self) -> Counter[str]:
        return Counter(each.fault.service for each in self.struck if each.fault.kind == "kill" and not each.error)

    def kinds(self) -> Counter[str]:
        return Counter(each.fault.kind for each in self.struck if not each.error)

    def list_struck(self, *kinds: str) -> Sequence[Struck]:
        return [each for each in self.struck if each.fault.kind in kinds]

    def recovered_after_seconds(self) -> Sequence[float]:
        """For each task that was open and due when the last fault was over: how much longer it took to end."""
        return sorted(
            (to_time(task["finishedAt"]) - max(self.calm_again, to_time(task["scheduledAt"]))).total_seconds()
            for task in self.tasks.values()
            if task["finishedAt"] and to_time(task["createdAt"]) < self.calm_again < to_time(task["finishedAt"])
        )

    def lateness_seconds(self) -> Sequence[float]:
        """For each accepted task: from when it was due to its end, without its own time."""
        seconds = []
        for accepted in self.accepted:
            task = self.tasks[accepted.task_id]
            if task["finishedAt"]:
                took = to_time(task["finishedAt"]) - max(to_time(task["createdAt"]), to_time(task["scheduledAt"]))
                seconds.append(took.total_seconds() - accepted.order.sleep_seconds)
        return sorted(seconds)

    def served_again_after_seconds(self) -> Mapping[str, Sequence[float]]:
        """By fault: from the part's return until a user's request was answered well."""
        by_name: dict[str, list[float]] = {}
        for each in self.struck:
            later = next((moment for moment in self.good if moment >= each.ended), None)
            if later is not None and each.fault.seconds:
                by_name.setdefault(each.name, []).append((later - each.ended).total_seconds())
        return {name: sorted(seconds) for name, seconds in sorted(by_name.items())}

    def taken_over(self) -> Sequence[str]:
        """Runs whose container one executor made and another one reported."""
        reporters = {(task_id, run["executorId"]) for task_id, runs in self.runs.items() for run in runs}
        return [
            interval.run_id
            for task_id, intervals in self.findings.intervals.items()
            for interval in intervals
            if (task_id, interval.maker) not in reporters
        ]

    def lost_with_the_engine(self) -> Counter[str]:
        """By task: how many of its runs were lost that lived when the engine was away, or as it came back."""
        outages = [each for each in self.struck if each.fault.service == ENGINE]
        return Counter(
            task_id
            for task_id, runs in self.runs.items()
            for run in runs
            if run["status"] == "lost" and any(_lived_through(each, run) for each in outages)
        )

    def unexplained_runs(self) -> Sequence[str]:
        """Runs that were lost although no fault explains it.

        One that does: it hit the run's own executor or the engine while the run lived, or it lasted so long that
        leases ran out.
        """
        return [
            f"{task_id} run {run['number']} at {run['executorId']}"
            for task_id, runs in self.runs.items()
            for run in runs
            if run["status"] == "lost" and not any(_explains(each, run) for each in self.struck)
        ]


def _explains(struck: Struck, run: Json) -> bool:
    hits = struck.target == run["executorId"] or struck.fault.service == ENGINE
    return (hits or struck.fault.seconds >= LEASE_SECONDS) and _lived_through(struck, run)


def _lived_through(struck: Struck, run: Json) -> bool:
    return struck.began <= to_time(run["finishedAt"]) and to_time(run["queuedAt"]) <= struck.ended + SETTLED


def raise_storm(stack: Stack, task_engine: docker.DockerClient, user: User, settings: Settings) -> Storm:
    """Some calm tasks first, then the storm, then calm ones again, until everything has ended and been cleaned."""
    load_before = os.getloadavg()[0]
    rng = random.Random(settings.seed)
    plan = plan_faults(rng, settings.numbers)
    # What waits for a slot as the broker is wiped is lost with it.
    bursts = list_wipe_times(plan)
    orders = plan_orders(rng, count=settings.tasks, seconds=end_of(plan), bursts=bursts)
    client = Client(stack.url, user.api.token)
    submitter, calm = Submitter(client), Submitter(client)
    watch, probe, journal = Watch(client), Probe(client), Journal(task_engine, instance=stack.project)
    chaos = Chaos(stack)
    (ahead,) = stack.containers("executor-ahead")
    journal.start()
    with (
        Repeating(watch.look, every=WATCH_SECONDS) as watching,
        Repeating(probe.look, every=PROBE_SECONDS) as probing,
    ):
        _work_calmly(calm, watch, settings)
        began = datetime.now(UTC)
        work = threading.Thread(target=submitter.run, args=(orders,), daemon=True)
        work.start()
        struck = chaos.run(plan)
        calm_again = datetime.now(UTC)
        work.join(90.0)
        open_at_the_end = _wait_until_all_ended(watch, END_SECONDS)
        stack.wait_until_ready(executors=REPLICAS["executor"])
        _work_calmly(calm, watch, settings)
        clean_after, left = _wait_until_clean(stack, task_engine, calm_again)
    watch.look()
    findings = judge(journal.stop(), engine_ends=chaos.engine_ends)
    has_gaps = journal.breaks > len(chaos.engine_ends)
    return Storm(
        settings=settings,
        load_before=load_before,
        began=began,
        calm_again=calm_again,
        struck=struck,
        engine_ends=chaos.engine_ends,
        executor_ahead=str(ahead.id)[:12],
        clock_off_seconds=_read_clock(ahead),
        accepted=submitter.accepted,
        calm=calm.accepted,
        given_up=[*submitter.given_up, *calm.given_up],
        tasks=watch.tasks,
        runs={
            task_id: client.insist("GET", f"/api/tasks/{task_id}/runs").json()["items"] for task_id in watch.tasks
        },
        logs={task_id: client.insist("GET", f"/api/tasks/{task_id}/logs").content for task_id in watch.tasks},
        findings=findings,
        changed=watch.changed,
        watch_rounds=watch.rounds,
        good=probe.good,
        answers=client.answers,
        unexpected=client.unexpected,
        open_at_the_end=open_at_the_end,
        clean_after_seconds=clean_after,
        left=left,
        failures=[*watching.failures, *probing.failures, *(["the journal had gaps"] if has_gaps else [])],
    )


def _work_calmly(submitter: Submitter, watch: Watch, settings: Settings) -> None:
    rng = random.Random(settings.seed)
    submitter.run(plan_orders(rng, count=settings.calm_tasks, seconds=2.0))
    _wait_until_all_ended(watch, 40.0)


def _wait_until_all_ended(watch: Watch, seconds: float) -> Sequence[Json]:
    """What is open when the time is over; nothing, when all is well."""
    deadline = time.monotonic() + seconds
    # What is known now may be from before the last task was created.
    rounds = watch.rounds + 2
    while (watch.rounds < rounds or watch.open_tasks) and time.monotonic() < deadline:
        time.sleep(0.5)
    return watch.open_tasks


def _wait_until_clean(
    stack: Stack, task_engine: docker.DockerClient, since: datetime
) -> tuple[float | None, Mapping[str, int]]:
    """How long after the last fault nothing of any task was left, or None; and what is left then."""
    deadline = time.monotonic() + max(CLEAN_SECONDS - (datetime.now(UTC) - since).total_seconds(), 5.0)
    while True:
        left = {"containers": _count_containers(stack, task_engine), "live runs": _count_live_runs(stack)}
        if not any(left.values()):
            return (datetime.now(UTC) - since).total_seconds(), left
        if time.monotonic() > deadline:
            return None, left
        time.sleep(1.0)


def _read_clock(container: Container) -> float:
    """How far its clock is ahead, by a line of its log and when the engine got that."""
    told, _, line = container.logs(timestamps=True, tail=1).decode().partition(" ")
    by_itself = datetime.fromisoformat(json.loads(line)["at"])
    return (by_itself - datetime.fromisoformat(told)).total_seconds()


def _count_containers(stack: Stack, task_engine: docker.DockerClient) -> int:
    labels = [f"{LABEL_INSTANCE}={stack.project}", LABEL_TASK]
    return len(task_engine.containers.list(all=True, filters={"label": labels}, ignore_removed=True))


def _count_live_runs(stack: Stack) -> int:
    query = f"SELECT count(*) FROM scheduler.runs WHERE status IN {_LIVE}"
    (postgres,) = stack.containers("postgres")
    result = postgres.exec_run(["psql", "-U", "taskrunner", "-d", "taskrunner", "-Atc", query])
    assert result.exit_code == 0, result.output
    return int(result.output)


def save_evidence(stack: Stack, storm: Storm, folder: Path) -> None:
    """The services' logs and what is odd, for who looks into a failure."""
    folder.mkdir(parents=True, exist_ok=True)
    for service in REPLICAS:
        for container in list_replicas(stack, service):
            (folder / f"{container.name}.log").write_bytes(container.logs(timestamps=True))
    lines = [f"{each.began:%H:%M:%S.%f} {each.ended:%H:%M:%S.%f} {each.target} {each}" for each in storm.struck]
    (folder / "faults.txt").write_text("\n".join(lines) + "\n")
    runs = [f"{task_id} {run}" for task_id, of_task in storm.runs.items() for run in of_task]
    (folder / "runs.txt").write_text("\n".join(runs) + "\n")


def read_settings_from_environment() -> Settings:
    return Settings.read(os.environ)

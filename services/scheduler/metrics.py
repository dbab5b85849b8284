"""What the scheduler counts about tasks and runs, for Prometheus."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

_WAITS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600)

QUEUE_WAIT = Histogram(
    "taskrunner_queue_wait_seconds", "From a task's due time to the start of its container.", buckets=_WAITS
)
START_LATENESS = Histogram(
    "taskrunner_start_lateness_seconds", "The same, for tasks with a start time of their own.", buckets=_WAITS
)
RUN_DURATION = Histogram(
    "taskrunner_run_duration_seconds",
    "From a container's start to its end.",
    buckets=(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 14_400, 86_400),
)
RUNS = Counter("taskrunner_runs_total", "Runs that have ended.", ["status", "reason"])
TASKS_CREATED = Counter("taskrunner_tasks_created_total", "Tasks that were accepted.")
CLAIMS = Counter("taskrunner_claims_total", "Answers to executors' claims.", ["answer"])
TAKEOVERS = Counter("taskrunner_takeovers_total", "Runs that went from one executor to another.")
SYNC_DURATION = Histogram(
    "taskrunner_sync_duration_seconds",
    "Time in one executor's sync, without HTTP.",
    buckets=(0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5),
)
STORAGE_FREE = Gauge(
    "taskrunner_storage_free_bytes", "Room on the database's disk.", multiprocess_mode="mostrecent"
)
STORAGE_REFUSES = Gauge(
    "taskrunner_storage_refuses", "1 while new tasks are refused for want of room.", multiprocess_mode="livemax"
)

"""What dispatch and sweep count, for Prometheus. Only their process shows these."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

DISPATCHED = Counter("taskrunner_dispatched_total", "Runs that were made for due tasks.")
DISPATCH_BATCH = Histogram(
    "taskrunner_dispatch_batch_runs", "Runs in one dispatch.", buckets=(1, 2, 5, 10, 20, 50, 100, 200)
)
DISPATCH_DURATION = Histogram(
    "taskrunner_dispatch_duration_seconds",
    "One dispatch with its confirms.",
    buckets=(0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 10),
)
PUBLISH_FAILURES = Counter("taskrunner_publish_failures_total", "Messages that the broker did not confirm.")
REPUBLISHED = Counter("taskrunner_republished_total", "Runs that were published again by the sweep.")
EXPIRED = Counter("taskrunner_tasks_expired_total", "Tasks that no executor took within their queueTtlSeconds.")
RUNS_LOST = Counter("taskrunner_runs_lost_total", "Runs that were given up with their silent engine.")
DEAD_LETTERS = Gauge("taskrunner_dead_letters", "Messages that nobody could read; NaN when the broker is away.")
LOOP_FAILURES = Counter("taskrunner_loop_failures_total", "Passes of a loop that ended in an error.", ["loop"])

RETENTION_REMOVED = Counter(
    "taskrunner_retention_removed_total", "Finished tasks that were removed for their age.", ["status"]
)
RETENTION_DURATION = Histogram(
    "taskrunner_retention_duration_seconds",
    "Removing one batch of finished tasks.",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 30),
)
RETENTION_LAG = Gauge(
    "taskrunner_retention_lag_seconds", "For how long the longest finished task should have been gone.", ["status"]
)

TASKS = Gauge("taskrunner_tasks", "Tasks that have not ended.", ["status"])
OVERDUE = Gauge("taskrunner_oldest_due_task_seconds", "How long the longest waiting due task has waited.")
SLOTS = Gauge("taskrunner_slots", "Slots of the executors that were heard of lately.")
SLOTS_USED = Gauge("taskrunner_slots_used", "Those of them that are in use.")
EXECUTORS = Gauge("taskrunner_executors", "Executors that were heard of lately.")

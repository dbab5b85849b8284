"""What the executor counts, named after Prometheus' conventions."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

SLOTS = Gauge("taskrunner_executor_slots", "Runs that this executor may execute at a time.")
SLOTS_USED = Gauge("taskrunner_executor_slots_used", "Runs that may have a container at work.")
_PHASE_DURATION = Histogram(
    "taskrunner_executor_phase_duration_seconds",
    "Time of one step of a run: pull, create, start, run, report, remove.",
    ["phase"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800),
)
PHASES = {name: _PHASE_DURATION.labels(name) for name in ("pull", "create", "start", "run", "report", "remove")}
RUNS = Counter("taskrunner_executor_runs_total", "Runs that ended here.", ["outcome", "reason"])
DEAD_LETTERED = Counter(
    "taskrunner_executor_dead_lettered_total", "Messages that could not be read, rejected into the dead letters."
)
CLAIMS_REFUSED = Counter("taskrunner_executor_claims_refused_total", "Claims that were not granted.", ["reason"])
ADOPTED = Counter("taskrunner_executor_adopted_total", "Runs taken over from an executor that is gone.")
SPOOLED = Counter("taskrunner_executor_spooled_total", "Finished reports that were kept on disk.")
SPOOL_RESTORED = Counter("taskrunner_executor_spool_restored_total", "Reports that were found on disk and sent.")
SPOOL_DROPPED = Counter(
    "taskrunner_executor_spool_dropped_bytes_total", "Output that had no room in the spool; its mark says so."
)
SPOOL_FAILURES = Counter("taskrunner_executor_spool_failures_total", "Reports that could not be kept on disk.")
SPOOL_BYTES = Gauge("taskrunner_executor_spool_bytes", "Bytes in the spool, of all executors that share it.")
REAPED = Counter("taskrunner_executor_reaped_total", "Containers removed that no live run owned.")
LEFTOVERS_STOPPED = Counter(
    "taskrunner_executor_leftovers_stopped_total",
    "Running containers that were stopped because no live run owned them.",
)
SYNC_DURATION = Histogram(
    "taskrunner_executor_sync_duration_seconds",
    "Time of one request to the scheduler.",
    buckets=(0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 20),
)

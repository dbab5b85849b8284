"""What the process that serves output counts, for Prometheus. Only it shows these."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

FOLLOWERS = Gauge("taskrunner_log_followers", "Streams of output that are open now.", multiprocess_mode="livesum")
FOLLOWED_BYTES = Counter("taskrunner_log_followed_bytes_total", "Sent to those who follow output.")
CATCH_UPS = Counter(
    "taskrunner_log_catch_ups_total", "How often somebody who fell behind read on from the database alone."
)

"""gunicorn's settings, the same for gateway, users and scheduler; they differ by the port and the numbers below.

BIND_PORT            the port to listen on, required
WEB_CONCURRENCY      worker processes, default 1: each costs some 60 MB
WEB_WORKER           libs.common.web_worker.Worker, with threads, or libs.common.gevent_worker.Worker, for what
                     strangers reach or many follow: there a client that is slow or stays costs next to nothing,
                     while it would keep a thread, and even their loop, waiting
WEB_THREADS          threads in each worker that has threads, default 16
"""

import json
import os
import uuid
from http import HTTPStatus

import gunicorn.util

bind = f"0.0.0.0:{os.environ['BIND_PORT']}"
workers = int(os.environ.get("WEB_CONCURRENCY", "1"))
threads = int(os.environ.get("WEB_THREADS", "16"))
worker_class = os.environ.get("WEB_WORKER", "libs.common.web_worker.Worker")
# Pools and threads don't survive a fork, so each worker loads the app itself.
preload_app = False

# The workers' heartbeat file must not wait for a disk, and this is the one place that is always in memory.
worker_tmp_dir = "/dev/shm"  # noqa: S108  It is the container's own.
control_socket_disable = True

# Seconds. A gthread worker's timeout watches its main loop, not one request; requests end by the limits of
# what they wait for. Services stop within graceful_timeout, and Compose waits a little longer than that.
timeout = 60
graceful_timeout = 25
# Also the longest that a gevent worker waits for a request's headers.
keepalive = 30

# Enough for a browser's cookies and a token; more is an attack.
limit_request_line = 8190
limit_request_fields = 64
limit_request_field_size = 8190

# Whoever is in front of the gateway is not believed here; TRUSTED_PROXIES of the gateway decides that.
forwarded_allow_ips = ""
proxy_protocol = False

# Each request is logged once, by the service itself, as JSON.
accesslog = None
errorlog = "-"
loglevel = "warning"


def child_exit(server, worker):  # noqa: ARG001  gunicorn passes both.
    """Forgets a worker that has ended, so that its gauges don't count on."""
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        from prometheus_client import multiprocess  # noqa: PLC0415

        multiprocess.mark_process_dead(worker.pid)


def answer_unreadable(connection, status, _reason, detail):
    """What can't be read as a request never reaches the app: it is answered here, in the form of all errors."""
    request_id = uuid.uuid4().hex
    body = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "code": "internal_error" if status == HTTPStatus.INTERNAL_SERVER_ERROR else "malformed_request",
        "requestId": request_id,
    }
    content = json.dumps(body)
    head = (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
        "Connection: close",
        "Cache-Control: no-store",
        "Content-Type: application/problem+json",
        f"Content-Length: {len(content)}",
        f"X-Request-Id: {request_id}",
    )
    gunicorn.util.write_nonblock(connection, "\r\n".join((*head, "", content)).encode("ascii"))


# gunicorn has no setting for this, and its own answer is a page of HTML.
gunicorn.util.write_error = answer_unreadable

"""The whole process, with a real broker and engine, and the scheduler's protocol in memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from libs.common.messages import RunMessage
from libs.common.topology import DEAD_QUEUE, RUNS_QUEUE
from services.executor.tests.fake_engine.daemon import FakeDaemon
from services.executor.tests.fake_runtime import Program
from services.executor.tests.stand import ROOT, Stand, ends, read, read_status
from tests.polling import wait_until

pytestmark = pytest.mark.component

COUNTING = "i=0; while [ $i -lt 40 ]; do echo line $i; echo e$i >&2; sleep 0.1; i=$((i+1)); done; printf end"


def test_runs_end_each_in_their_own_way(stand: Stand):
    stand.start()
    value = "a b=\"c\" 'd'\n=ü"
    hello = stand.add("echo", "a b", ";", "&&", "$(id)")
    environment = stand.add("sh", "-c", 'printf %s "$A"', environment={"A": value})
    fails = stand.add("sh", "-c", "echo why >&2; exit 3")
    missing = stand.add("no-such-command")
    # The engine misses what happens in the first moments of a container.
    hungry = stand.add("sh", "-c", "sleep 0.5; exec tail /dev/zero", memoryMb=16)
    slow = stand.add("sleep", "60", timeoutSeconds=1)
    binary = stand.add("sh", "-c", "head -c 100000 /dev/urandom | tee /proc/self/fd/2")
    egress = stand.add("true", network="egress")

    for row in (hello, environment, fails, missing, hungry, slow, binary, egress):
        stand.scheduler.wait_finished(row, 60)

    assert hello.result == b"a b ; && $(id)\n"
    assert environment.result == value.encode()
    assert ends(fails) == ("failed", "exit_nonzero", 3)
    assert ends(missing) == ("failed", "invalid_command", 127)
    assert ends(hungry) == ("failed", "oom_killed", 137)
    assert ends(slow) == ("failed", "timeout", 143)
    assert ends(egress) == ("completed", None, 0)
    assert binary.output("stdout") == binary.output("stderr")
    assert len(binary.output("stdout")) == 100_000
    assert binary.result == binary.output("stdout")[-65536:]
    wait_until(lambda: stand.containers() == [], what="removing the containers")


def test_an_executor_of_two_pools_takes_from_both_and_never_more_than_it_has_slots(stand: Stand):
    stand.start(EXECUTOR_POOLS="default, gpu", EXECUTOR_SLOTS="2")
    rows = [stand.add("sleep", "0.5", pool=pool) for pool in ("gpu", "default") * 3]

    for row in rows:
        stand.scheduler.wait_finished(row)

    presented = [request["executor"] for request in stand.scheduler.requests]
    assert {tuple(executor["pools"]) for executor in presented} == {("default", "gpu")}
    assert max(executor["running"] for executor in presented) == 2


def test_a_draining_executor_gives_back_what_it_is_sent_and_ends_what_it_has(stand: Stand):
    stand.start()
    has = stand.add("sleep", "2")
    stand.wait_started(has)
    stand.scheduler.draining = True

    refused = stand.add("true")
    assert stand.scheduler.wait_finished(has)["outcome"] == "completed"

    wait_until(lambda: stand.count(RUNS_QUEUE) == 1, what="giving the message back")
    assert refused.status == "queued"
    stand.scheduler.draining = False
    assert stand.scheduler.wait_finished(refused)["outcome"] == "completed"


def test_a_killed_executor_adopts_its_running_containers(stand: Stand):
    process, _ = stand.start()
    counting = stand.add("sh", "-c", COUNTING)
    ends_meanwhile = stand.add("sh", "-c", "sleep 1; printf bye; exit 4")
    stand.wait_started(counting, ends_meanwhile)
    started = {each.id: each.attrs["State"]["StartedAt"] for each in stand.containers()}
    stand.scheduler.wait(lambda: len(counting.output("stdout")) > 0)

    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_until(lambda: sum(each.status == "exited" for each in stand.containers()) == 1)
    stand.start()
    stand.scheduler.wait_finished(counting)
    stand.scheduler.wait_finished(ends_meanwhile)

    lines = "".join(f"line {number}\n" for number in range(40)) + "end"
    assert counting.output("stdout") == counting.result == lines.encode()
    assert counting.output("stderr") == "".join(f"e{number}\n" for number in range(40)).encode()
    assert ends(ends_meanwhile) == ("failed", "exit_nonzero", 4)
    assert ends_meanwhile.output("stdout") == b"bye"
    for row in (counting, ends_meanwhile):
        assert row.finished is not None
        assert started[row.finished["containerId"]][:23] == row.finished["startedAt"][:23]


def test_an_orderly_stop_leaves_what_runs_to_be_adopted(stand: Stand):
    process, _ = stand.start()
    row = stand.add("sh", "-c", "sleep 3; echo done")
    stand.wait_started(row)

    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
    assert [each.status for each in stand.containers()] == ["running"]

    stand.start()
    assert stand.scheduler.wait_finished(row)["outcome"] == "completed"
    assert row.result == b"done\n"


def test_another_executor_on_the_engine_takes_over(stand: Stand):
    process, _ = stand.start("executor-1")
    row = stand.add("sh", "-c", "sleep 3; echo done")
    stand.wait_started(row)
    process.send_signal(signal.SIGKILL)
    process.wait()

    stand.start("executor-2")
    stand.scheduler.adoptions.append(row.task["runId"])

    assert stand.scheduler.wait_finished(row)["outcome"] == "completed"
    assert row.result == b"done\n"
    assert row.epoch == 2


def test_a_stop_reaches_a_running_container_within_two_seconds(stand: Stand):
    stand.start()
    row = stand.add("sleep", "60")
    stand.wait_started(row)

    row.stop = True
    stand.scheduler.wait_finished(row, 2.5)

    assert ends(row) == ("cancelled", None, 143)


def test_a_scheduler_that_is_away_loses_nothing(stand: Stand):
    stand.start()
    row = stand.add("sh", "-c", "sleep 1; echo done")
    stand.wait_started(row)

    stand.scheduler.away = True
    wait_until(lambda: [each.status for each in stand.containers()] == ["exited"])
    waiting = stand.add("true")
    stand.scheduler.away = False

    assert stand.scheduler.wait_finished(row)["outcome"] == "completed"
    assert row.result == b"done\n"
    assert stand.scheduler.wait_finished(waiting)["outcome"] == "completed"


def test_an_end_that_was_seen_outlives_its_executor_and_its_container(stand: Stand, tmp_path: Path):
    process, _ = stand.start("executor-1", EXECUTOR_SPOOL_DIR=str(tmp_path))
    row = stand.add("sh", "-c", "echo begin; sleep 2; echo end; echo why >&2; exit 5")
    stand.scheduler.wait(lambda: row.output("stdout") == b"begin\n")

    stand.scheduler.away = True
    wait_until(lambda: list(tmp_path.glob("*.run")) != [], what="keeping the report")
    process.send_signal(signal.SIGKILL)
    process.wait()
    for container in stand.containers():
        container.remove(force=True)
    stand.scheduler.away = False
    stand.start("executor-2", EXECUTOR_SPOOL_DIR=str(tmp_path))
    stand.scheduler.adoptions.append(row.task["runId"])
    stand.scheduler.wait_finished(row)

    assert ends(row) == ("failed", "exit_nonzero", 5)
    assert row.output("stdout") == row.result == b"begin\nend\n"
    assert row.output("stderr") == b"why\n"
    wait_until(lambda: list(tmp_path.iterdir()) == [], what="forgetting the report")


def test_an_executor_that_stops_while_the_scheduler_is_away_leaves_its_reports_on_disk(
    stand: Stand, tmp_path: Path
):
    process, _ = stand.start(EXECUTOR_SPOOL_DIR=str(tmp_path), EXECUTOR_STOP_GRACE_SECONDS="1")
    row = stand.add("sh", "-c", "sleep 1; echo done")
    stand.wait_started(row)
    stand.scheduler.away = True
    wait_until(lambda: [each.status for each in stand.containers()] == ["exited"])

    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0

    assert [path.stem for path in tmp_path.iterdir()] == [row.task["runId"]]
    stand.scheduler.away = False
    stand.start(EXECUTOR_SPOOL_DIR=str(tmp_path))
    assert stand.scheduler.wait_finished(row)["outcome"] == "completed"
    assert row.output("stdout") == b"done\n"


def test_a_message_that_comes_twice_runs_once(stand: Stand):
    stand.start()
    row = stand.add("sleep", "1")
    stand.publish(row)

    stand.scheduler.wait_finished(row)
    stand.publish(row)
    after = stand.add("true")
    stand.scheduler.wait_finished(after)

    assert row.finished_reports == 1
    assert row.epoch == 1


def test_messages_that_cannot_be_read_are_dead_letters_and_claims_of_unknown_runs_are_acknowledged(stand: Stand):
    _, port = stand.start()
    unreadable = [b"{}", b"\xff", b'{"v": 2, "runId": "x"}']

    for body in unreadable:
        stand.publish_body(body)
    stand.publish_body(RunMessage(run_id=uuid.uuid4(), task_id=uuid.uuid4()).encode())
    row = stand.add("true")

    stand.scheduler.wait_finished(row)
    wait_until(lambda: stand.count(DEAD_QUEUE) == len(unreadable))
    assert stand.count(RUNS_QUEUE) == 0
    metrics = read(port, "/metrics")
    assert "taskrunner_executor_dead_lettered_total 3.0" in metrics
    assert 'taskrunner_executor_claims_refused_total{reason="unknown"} 1.0' in metrics


def test_more_output_than_is_kept_is_cut_with_a_mark(stand: Stand):
    stand.start()
    row = stand.add("sh", "-c", "head -c 7000000 /dev/zero; printf end")

    stand.scheduler.wait_finished(row)

    assert b"truncated" in row.output("stdout")[-100:]
    assert row.result.endswith(b"end")


def test_health_and_metrics_are_served(stand: Stand):
    _, port = stand.start()
    stand.scheduler.wait_finished(stand.add("true"))

    metrics = read(port, "/metrics")

    assert read_status(port, "/livez") == 200
    assert "taskrunner_executor_slots 3.0" in metrics
    assert 'taskrunner_executor_runs_total{outcome="completed",reason=""} 1.0' in metrics
    for phase in ("create", "start", "run"):
        assert f'taskrunner_executor_phase_duration_seconds_count{{phase="{phase}"}} 1.0' in metrics


def test_an_engine_that_is_away_is_told_and_gets_nothing_new(stand: Stand, tmp_path: Path):
    daemon = FakeDaemon(tmp_path / "docker.sock")
    daemon.engine.images.add("taskrunner:dev")
    daemon.engine.programs["wait",] = Program(runs_on=True)
    _, port = stand.start(DOCKER_HOST=daemon.docker_host)
    row = stand.add("wait")
    stand.wait_started(row)

    daemon.down()
    wait_until(lambda: read_status(port, "/readyz") == 503, what="saying that it isn't ready")
    waiting = stand.add("true")
    assert read_status(port, "/livez") == 200
    assert (row.finished, waiting.status) == (None, "queued")

    daemon.up()
    stand.scheduler.wait_finished(waiting)
    assert read_status(port, "/readyz") == 200
    daemon.engine.finish(next(iter(daemon.engine.containers.values())), 3)
    assert stand.scheduler.wait_finished(row)["exitCode"] == 3
    daemon.engine.check_journal()
    daemon.down()


def test_a_missing_setting_is_named_at_the_start():
    environment = {"PATH": os.environ["PATH"], "SCHEDULER_URL": "http://scheduler:8002", "INTERNAL_TOKEN": "x"}

    ended = subprocess.run(
        [sys.executable, "-m", "services.executor"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        check=False,
        timeout=30,
    )

    assert ended.returncode != 0
    assert len(ended.stderr.splitlines()) == 1
    assert b"BROKER_URL" in ended.stderr

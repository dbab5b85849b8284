"""Whether a task went as it should, by the database, by the engine's events and by its output."""

from __future__ import annotations

from collections.abc import Sequence

from tests.faults.world import COUNTING, QUICK, World


def describe(world: World, task_id: str) -> str:
    """For whoever looks into a failure."""
    task = world.read_task(task_id)
    shown = (
        "number",
        "status",
        "executor_id",
        "epoch",
        "publish_count",
        "claimed_at",
        "started_at",
        "finished_at",
    )
    runs = [{name: str(run[name]) for name in shown} for run in world.list_runs(task_id)]
    said = f"{task['status']} {task['reason']} {task['error_msg']}"
    return f"task {task_id} {said}, runs {runs}, logs in {world.folder}"


def judge(
    world: World,
    task_id: str,
    *,
    runs: Sequence[str],
    starts: int = 1,
    status: str = "completed",
    reason: str | None = None,
) -> None:
    """AssertionError unless the ended task, its runs in order, and its containers are so."""
    task = world.read_task(task_id)
    said = describe(world, task_id)
    findings = world.journal.look()
    assert not findings.overlaps, f"two containers at a time: {findings.overlaps}"
    assert not findings.restarts, f"started twice: {findings.restarts}"
    assert (task["status"], task["reason"]) == (status, reason), said
    assert [run["status"] for run in world.list_runs(task_id)] == runs, f"its runs aren't {runs}: {said}"
    assert task["attempts"] == 1, said
    seen = findings.intervals.get(task_id, ())
    assert len(seen) == starts, f"started {len(seen)} times, not {starts}: {said}"
    assert all(each.ended is not None for each in seen), "it still runs"


def judge_output(output: str, script: str, *, was_told: bool) -> None:
    """Nothing of it is missing and nothing there twice, whoever took it from the engine."""
    if script == QUICK:
        assert output == "one\ntwo\n"
    elif script == COUNTING:
        lines = output.splitlines()
        counted = lines[:-1] if was_told else lines
        assert counted == [str(number) for number in range(len(counted))], output
        assert not was_told or lines[-1] == "told", output[-200:]

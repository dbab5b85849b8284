"""What a storm was and did, on one page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from tests.faults.plan import ENGINE, ROLES, SERVERS
from tests.faults.storm import Storm


def render(storm: Storm) -> str:
    return "\n".join(_lines(storm)) + "\n"


def _lines(storm: Storm) -> Iterable[str]:
    kills, kinds = storm.kills(), storm.kinds()
    yield f"seed {storm.settings.seed} · storm of {(storm.calm_again - storm.began).total_seconds():.0f} s"
    yield f"kills {sum(kills[role] for role in ROLES)}: " + _join((role, kills[role]) for role in ROLES)
    yield "servers killed: " + _join((server, kills[server]) for server in SERVERS)
    ways = Counter(each.fault.kind for each in storm.struck if each.fault.service == ENGINE)
    yield f"the tasks' engine went down {len(storm.engine_ends)} times: " + _join(sorted(ways.items()))
    others = ((kind, count) for kind, count in sorted(kinds.items()) if kind not in ("kill", "stop"))
    yield "other faults: " + _join(others)
    met = [each.detail for each in storm.struck if each.fault.kind == "duplicate"]
    yield f"messages published again: {sum(met)}; wiped: " + _join(
        (each.fault.kind, each.detail) for each in storm.struck if each.fault.kind in ("purge", "delete")
    )
    for each in storm.struck:
        if each.error:
            yield f"not carried out: {each.name} at {each.fault.at:.0f} s: {each.error}"
    yield f"tasks: {len(storm.accepted)} accepted in the storm, {len(storm.calm)} in calm, {len(storm.tasks)} made"
    yield "statuses: " + _join(sorted(Counter(task["status"] for task in storm.tasks.values()).items()))
    yield "attempts: " + _join(sorted(Counter(task["attempts"] for task in storm.tasks.values()).items()))
    yield "runs of a task: " + _join(sorted(Counter(len(runs) for runs in storm.runs.values()).items()))
    yield "runs: " + _join(sorted(Counter(run["status"] for runs in storm.runs.values() for run in runs).items()))
    started = sum(storm.findings.starts_per_run.values())
    yield f"containers started: {started}, taken over by another executor: {len(storm.taken_over())}"
    lost = storm.lost_with_the_engine()
    yield f"runs lost with the engine: {sum(lost.values())}, of {len(lost)} tasks"
    yield f"overlaps: {len(storm.findings.overlaps)}, terminal tasks that changed: {len(storm.changed)}"
    yield "answers to clients: " + _join(sorted(storm.answers.items()))
    yield f"from due to ended, without a task's own time: {_percentiles(storm.lateness_seconds())}"
    yield f"from the last fault to the end of what was open: {_percentiles(storm.recovered_after_seconds())}"
    if storm.clean_after_seconds is None:
        yield f"not clean: {dict(storm.left)}"
    else:
        yield f"clean {storm.clean_after_seconds:.0f} s after the last fault"
    yield "served again after the part was back, other faults going on:"
    for name, seconds in storm.served_again_after_seconds().items():
        yield f"  {name:22} {_percentiles(seconds)}"


def _join(pairs: Iterable[tuple[object, object]]) -> str:
    return ", ".join(f"{name} {value}" for name, value in pairs) or "none"


def _percentiles(ordered: Sequence[float]) -> str:
    if not ordered:
        return "none"
    middle, late = ordered[len(ordered) // 2], ordered[min(len(ordered) - 1, round(len(ordered) * 0.99))]
    return f"p50 {middle:.1f} s, p99 {late:.1f} s, max {ordered[-1]:.1f} s (of {len(ordered)})"

"""What a storm was and did, on one page: as lines for the terminal, and as a document to keep."""

from __future__ import annotations

import os
import platform
import subprocess
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from tests.faults.plan import ENGINE, ROLES, SERVERS
from tests.faults.storm import Storm

Fact = tuple[str, str]


def render_text(storm: Storm) -> str:
    return "".join(f"{name}: {value}\n" for name, value in [*_list_facts(storm), *_list_returns(storm)])


def render_document(storm: Storm) -> str:
    """A page in Markdown: where and when, then the figures."""
    when = f"{storm.began:%Y-%m-%d %H:%M} UTC, commit {_find_commit()}"
    lines = [
        "# Soak report",
        "",
        f"`make soak FAULTS_SEED={storm.settings.seed}`, {when}. {_describe_machine(storm)}",
        "",
        "Tasks and faults at the same time on one composed system; what must hold: tests/faults/test_storm.py.",
        "",
        *_list_rows("what", _list_facts(storm)),
        "",
        "How long after a part was back a user's request was answered well again, other faults going on:",
        "",
        *_list_rows("fault", _list_returns(storm)),
    ]
    return "\n".join(lines) + "\n"


def _list_rows(heading: str, facts: Iterable[Fact]) -> Iterable[str]:
    yield f"| {heading} | |"
    yield "|---|---|"
    for name, value in facts:
        yield f"| {name} | {value} |"


def _find_commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _describe_machine(storm: Storm) -> str:
    pages, page_bytes = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    before, after = storm.load_before, os.getloadavg()[0]
    return (
        f"Machine: {os.cpu_count()} cores, {pages * page_bytes / 1024**3:.0f} GiB, Linux {platform.release()}; "
        f"load average {before:.1f} before, {after:.1f} at the end."
    )


def _list_facts(storm: Storm) -> Iterable[Fact]:
    kills, kinds = storm.kills(), storm.kinds()
    yield "seed", str(storm.settings.seed)
    yield "length", f"{(storm.calm_again - storm.began).total_seconds():.0f} s of faults"
    of_roles = _join((role, kills[role]) for role in ROLES)
    yield "services killed", f"{sum(kills[role] for role in ROLES)}: {of_roles}"
    yield "servers killed", _join((server, kills[server]) for server in SERVERS)
    ways = Counter(each.fault.kind for each in storm.struck if each.fault.service == ENGINE)
    yield "the tasks' engine went down", f"{len(storm.engine_ends)}: {_join(sorted(ways.items()))}"
    yield (
        "other faults",
        _join((kind, count) for kind, count in sorted(kinds.items()) if kind not in ("kill", "stop")),
    )
    yield "messages published again", str(sum(each.detail for each in storm.list_struck("duplicate")))
    yield (
        "messages wiped",
        _join((each.fault.kind, each.detail) for each in storm.list_struck("purge", "delete")),
    )
    yield "not carried out", _join((each.name, each.error) for each in storm.struck if each.error)
    yield (
        "tasks",
        f"{len(storm.accepted)} accepted in the storm, {len(storm.calm)} in calm, {len(storm.tasks)} made",
    )
    yield "statuses", _join(sorted(Counter(task["status"] for task in storm.tasks.values()).items()))
    yield "attempts of a task", _join(sorted(Counter(task["attempts"] for task in storm.tasks.values()).items()))
    yield "runs of a task", _join(sorted(Counter(len(runs) for runs in storm.runs.values()).items()))
    yield "runs", _join(sorted(Counter(run["status"] for runs in storm.runs.values() for run in runs).items()))
    yield "containers started", str(sum(storm.findings.starts_per_run.values()))
    yield "taken over by another executor", str(len(storm.taken_over()))
    lost = storm.lost_with_the_engine()
    yield "runs lost with the engine", f"{sum(lost.values())}, of {len(lost)} tasks"
    yield "two containers of a task at a time", str(len(storm.findings.overlaps))
    yield "terminal tasks that changed", str(len(storm.changed))
    yield "answers to clients", _join(sorted(storm.answers.items()))
    yield "from due to ended, without a task's own time", _percentiles(storm.lateness_seconds())
    yield "from the last fault to the end of what was open", _percentiles(storm.recovered_after_seconds())
    clean = storm.clean_after_seconds
    yield "clean after the last fault", f"no: {dict(storm.left)}" if clean is None else f"{clean:.0f} s"


def _list_returns(storm: Storm) -> Iterable[Fact]:
    for name, seconds in storm.served_again_after_seconds().items():
        yield name, _percentiles(seconds)


def _join(pairs: Iterable[tuple[object, object]]) -> str:
    return ", ".join(f"{name} {value}" for name, value in pairs) or "none"


def _percentiles(ordered: Sequence[float]) -> str:
    if not ordered:
        return "none"
    middle, late = ordered[len(ordered) // 2], ordered[min(len(ordered) - 1, round(len(ordered) * 0.99))]
    return f"p50 {middle:.1f} s, p99 {late:.1f} s, max {ordered[-1]:.1f} s (of {len(ordered)})"


def write_document(storm: Storm, path: Path) -> None:
    path.write_text(render_document(storm))

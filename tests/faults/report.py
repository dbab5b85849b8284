"""What a storm was and did, on one page: as lines for the terminal, and as a document to keep."""

from __future__ import annotations

import os
import platform
import subprocess
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from tests.faults.plan import ENGINE, ROLES, SERVERS, WIPES
from tests.faults.storm import Storm
from tests.integration.client import TERMINAL

Fact = tuple[str, str]

_INTRODUCTION = """\
Tasks are created through the gateway all the time, and all the time something is killed, frozen, cut off or
restarted: in one composed system with two replicas of the scheduler's loops, three executors (one of them with a
clock that is an hour ahead) and an engine of its own. The seed decides what is hit when, and which tasks come
when. `tests/faults/test_storm.py` asserts what is promised."""

_MEASURED = """\
Starts and ends of containers are the engine's own events, whatever the system believed; so are overlaps.
Statuses, results and output are what a user reads at the gateway: all tasks every three seconds, and each result
and output is compared with what the command printed. Tasks in calm came before the first fault or after the last.
Recovery counts, for each task that was open and due when the last fault was over, from then to the task's end,
its own seconds included."""


def render_text(storm: Storm) -> str:
    facts = [*_list_deeds(storm), *_list_promises(storm), *_list_more(storm), *_list_returns(storm)]
    return "".join(f"{name}: {value}\n" for name, value in facts)


def render_document(storm: Storm) -> str:
    """A page in Markdown: what this is, where and when, and the figures."""
    when = f"{storm.began:%Y-%m-%d %H:%M} UTC, commit {_find_commit()}"
    lines = [
        "# Soak report",
        "",
        _INTRODUCTION,
        "",
        f"`make soak FAULTS_SEED={storm.settings.seed}`, {when}.",
        _describe_machine(storm),
        "",
        "## What was promised, and what came of it",
        "",
        *_list_rows("promise", "seen", _list_promises(storm)),
        "",
        _MEASURED,
        "",
        "## What was done to it",
        "",
        *_list_rows("what", "how much", _list_deeds(storm)),
        "",
        "## What else was seen",
        "",
        *_list_rows("what", "how much", _list_more(storm)),
        "",
        "How long after a part was back a user's request was answered well again, other faults going on:",
        "",
        *_list_rows("fault", "seconds", _list_returns(storm)),
    ]
    return "\n".join(lines) + "\n"


def _list_rows(name_heading: str, value_heading: str, facts: Iterable[Fact]) -> Iterable[str]:
    yield f"| {name_heading} | {value_heading} |"
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


def _list_deeds(storm: Storm) -> Iterable[Fact]:
    kills, kinds = storm.kills(), storm.kinds()
    yield "seed", str(storm.settings.seed)
    yield "length", f"{(storm.calm_again - storm.began).total_seconds():.0f} s of faults"
    yield (
        "tasks",
        f"{len(storm.accepted)} accepted in the storm, {len(storm.calm)} in calm, {len(storm.tasks)} made",
    )
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
    lost = [each.detail for each in storm.list_struck(*WIPES)]
    yield "messages wiped", f"{sum(lost)}, at least {min(lost, default=0)} each time"
    yield "not carried out", _join((each.name, each.error) for each in storm.struck if each.error)


def _list_promises(storm: Storm) -> Iterable[Fact]:
    """In the order of tests/faults/test_storm.py, which asserts them."""
    accepted = [*storm.accepted, *storm.calm]
    count = len(accepted)
    ended = sum(storm.tasks[each.task_id]["status"] in TERMINAL for each in accepted)
    right = sum(
        (storm.tasks[each.task_id]["status"], storm.tasks[each.task_id]["result"]) == (each.status, each.output)
        for each in accepted
    )
    complete = sum(storm.logs[each.task_id] == each.output.encode() for each in accepted)
    again = sum(len(storm.runs[each.task_id]) > 1 for each in storm.calm)
    yield "every task that was answered 201 has ended", f"{ended} of {count}"
    yield "its status and result are its command's", f"{right} of {count}"
    yield "its output is complete", f"{complete} of {count}"
    yield "never two containers of a task at a time", f"{len(storm.findings.overlaps)} were"
    yield "no run is started twice", f"{len(storm.findings.restarts)} were"
    yield "no terminal task changes", f"{len(storm.changed)} did, in {storm.watch_rounds} looks at all of them"
    yield "a task that no fault touched takes one attempt", f"{again} of {len(storm.calm)} in calm took more"
    yield "a run is lost only by a fault", f"{len(storm.unexplained_runs())} were lost otherwise"
    yield "recovered 40 s after the last fault (p99)", _percentiles(storm.recovered_after_seconds())
    clean = storm.clean_after_seconds
    after = f"no: {dict(storm.left)}" if clean is None else f"{clean:.0f} s"
    yield "no container and no live run is left 120 s after the last fault", after
    yield "no errors but 502, 503 and 504 at the gateway", f"{len(storm.unexpected)} others"


def _list_more(storm: Storm) -> Iterable[Fact]:
    yield "statuses", _join(sorted(Counter(task["status"] for task in storm.tasks.values()).items()))
    yield "attempts", _join_counts(Counter(task["attempts"] for task in storm.tasks.values()))
    yield "runs, with those that were lost", _join_counts(Counter(len(runs) for runs in storm.runs.values()))
    yield "runs", _join(sorted(Counter(run["status"] for runs in storm.runs.values() for run in runs).items()))
    yield "containers started", str(sum(storm.findings.starts_per_run.values()))
    yield "taken over by another executor", str(len(storm.taken_over()))
    lost = storm.lost_with_the_engine()
    yield "runs lost with the engine", f"{sum(lost.values())}, of {len(lost)} tasks"
    yield "answers to clients", _join(sorted(storm.answers.items()))
    yield "from due to ended, without a task's own time", _percentiles(storm.lateness_seconds())


def _list_returns(storm: Storm) -> Iterable[Fact]:
    for name, seconds in storm.served_again_after_seconds().items():
        yield name, _percentiles(seconds)


def _join(pairs: Iterable[tuple[object, object]]) -> str:
    return ", ".join(f"{name} {value}" for name, value in pairs) or "none"


def _join_counts(tasks: Counter[int]) -> str:
    return _join((f"{number}:", f"{count} tasks") for number, count in sorted(tasks.items()))


def _percentiles(ordered: Sequence[float]) -> str:
    if not ordered:
        return "none"
    middle, late = ordered[len(ordered) // 2], ordered[min(len(ordered) - 1, round(len(ordered) * 0.99))]
    return f"p50 {middle:.1f} s, p99 {late:.1f} s, max {ordered[-1]:.1f} s (of {len(ordered)})"


def write_document(storm: Storm, path: Path) -> None:
    path.write_text(render_document(storm))

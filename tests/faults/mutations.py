"""The source with one rule switched off: a suite that stays green without a rule doesn't test it.

Each is one small edit, which must fit the source exactly: one that has rotted fails in `make test`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.faults.case import Case
from tests.faults.crash_table import KILL
from tests.faults.matrix import Trial
from tests.faults.rules import Rule
from tests.faults.world import ROOT
from tests.servers import Database

COPIED = ("libs", "services")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutation:
    """`file` with `new` for `old`; `trial` must fail then, with words that `breaks` matches."""

    file: str
    old: str
    new: str
    trial: Trial
    breaks: str


MUTATIONS: Mapping[str, Mutation] = {
    "S1, one live run a task": Mutation(
        file="services/scheduler/migrations/0001_tasks_and_runs.sql",
        old="CREATE UNIQUE INDEX runs_one_live",
        new="CREATE INDEX runs_one_live",
        trial=Rule("one_live_run"),
        breaks="a second live run was let in",
    ),
    "S2, the container's name is the task's id": Mutation(
        file="services/executor/execution.py",
        old="self._runtime.create(str(spec.task_id), options)",
        new="self._runtime.create(str(spec.run_id), options)",
        trial=Rule("leftover"),
        breaks="two containers at a time",
    ),
    "S3, an adopter starts nothing": Mutation(
        file="services/executor/execution.py",
        old="        if state.never_started:\n            try:\n",
        new=(
            "        if state.never_started:\n"
            "            self._runtime.start(state.container_id)\n"
            "            state = self._following.get_state(state.container_id)\n"
            "        if state.never_started:\n            try:\n"
        ),
        trial=Case("container_not_started", KILL),
        breaks="its runs aren't",
    ),
    "S4, proof before a run is closed": Mutation(
        file="services/scheduler/sql/runs.sql",
        old="   AND l.expires_at < now() - %(silence)s\n",
        # What follows is bound to the second half.
        new="   AND l.expires_at < now() OR l.expires_at < now() - %(silence)s\n",
        trial=Rule("all_executors_away"),
        breaks="it was closed without proof",
    ),
    "the sweep": Mutation(
        file="services/scheduler/sweep.py",
        old="        now = self._monotonic()\n        self.publish_again()\n",
        new="        now = self._monotonic()\n",
        trial=Case("run_not_published", KILL),
        breaks="not recovered within 16 s",
    ),
    "45 s after a restart": Mutation(
        file="services/scheduler/sync.py",
        old="settle: timedelta = timedelta(seconds=45)",
        new="settle: timedelta = timedelta(seconds=0)",
        trial=Rule("scheduler_away"),
        breaks="it was taken over within 45 s",
    ),
}


def mutate(mutation: Mutation, text: str) -> str:
    """ValueError when the edit doesn't fit in exactly one place."""
    if text.count(mutation.old) != 1:
        raise ValueError(f"the edit of {mutation.file} fits {text.count(mutation.old)} times, not once")
    return text.replace(mutation.old, mutation.new)


def copy_mutated(mutation: Mutation, root: Path) -> None:
    """What the processes need of the source tree, below `root`."""
    for name in COPIED:
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("tests", "__pycache__"))
    (root / "deploy").mkdir()
    shutil.copy(ROOT / "deploy/gunicorn.conf.py", root / "deploy")
    path = root / mutation.file
    path.write_text(mutate(mutation, path.read_text()))


def migrate_from(root: Path, empty: Database) -> Database:
    """The empty database with that tree's schema. One at a time: the server's roles are shared."""
    dsn = make_conninfo(empty.owner_dsn, user="scheduler")
    password = str(conninfo_to_dict(empty.owner_dsn)["password"])
    subprocess.run(
        [sys.executable, "-m", "libs.common.migrate", "scheduler"],
        cwd=root,
        env=os.environ | {"DATABASE_URL": empty.owner_dsn, "SCHEDULER_DB_PASSWORD": password},
        check=True,
        capture_output=True,
    )
    return Database(name=empty.name, dsn=dsn, owner_dsn=empty.owner_dsn)

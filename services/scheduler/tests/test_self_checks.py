"""What must agree: enums and CHECKs, queries and their users, the page and the code."""

from __future__ import annotations

import dataclasses
import re
from enum import StrEnum
from pathlib import Path

import pytest

from libs.common.migrate import read_migrations
from libs.common.postgres import load_queries
from services.scheduler.states import (
    LOG_STREAM_NUMBERS,
    RUN_MOVES,
    TASK_MOVES,
    ExecutorState,
    Network,
    OnExecutorLost,
    Reason,
    RunStatus,
    StopReason,
    TaskStatus,
)
from services.scheduler.store import NewTask

_PACKAGE = Path(__file__).parents[1]
_PAGE = (_PACKAGE.parents[1] / "docs" / "task-model.md").read_text(encoding="utf-8")
_SCHEMA = "\n".join(migration.text for migration in read_migrations("scheduler"))


@pytest.mark.parametrize(
    ("constraint", "names"),
    [
        ("tasks_status", TaskStatus),
        ("tasks_reason", Reason),
        ("tasks_network", Network),
        ("tasks_on_executor_lost", OnExecutorLost),
        ("runs_status", RunStatus),
        ("runs_reason", Reason),
        ("runs_stop_reason", StopReason),
        ("executors_state", ExecutorState),
    ],
)
def test_the_names_of_an_enum_are_those_of_its_check(constraint, names):
    match = re.search(rf"CONSTRAINT {constraint} CHECK \(\w+ IN \(([^)]*)\)\)", _SCHEMA)

    assert match is not None
    assert re.findall(r"'(\w+)'", match[1]) == list(names)


def test_the_numbers_of_the_streams_are_those_of_their_check():
    match = re.search(r"CONSTRAINT run_logs_stream CHECK \(stream IN \(([^)]*)\)\)", _SCHEMA)

    assert match is not None
    assert [int(number) for number in match[1].split(",")] == list(LOG_STREAM_NUMBERS.values())


def test_every_named_query_is_used_and_every_used_one_exists():
    code = "\n".join(path.read_text(encoding="utf-8") for path in _PACKAGE.glob("*.py"))
    used = set(re.findall(r'QUERIES\["(\w+)"\]', code)) | set(re.findall(r'"(find_page_by_\w+)"', code))

    assert used == set(load_queries("services.scheduler"))


def test_the_insert_of_tasks_names_every_field_of_a_new_one():
    text = load_queries("services.scheduler")["create_tasks"].decode()
    columns = [name.strip() for name in text.partition("(")[2].partition(")")[0].split(",")]

    fields = {field.name for field in dataclasses.fields(NewTask)}
    assert set(columns) == fields | {"due_at", "expires_at", "created_at", "updated_at"}


@pytest.mark.parametrize(("heading", "moves"), [("Moves of a task", TASK_MOVES), ("Moves of a run", RUN_MOVES)])
def test_the_table_of_moves_in_the_task_model_is_the_codes(heading, moves):
    section = _PAGE.partition(f"### {heading}\n")[2].partition("\n#")[0]
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \|", section, re.MULTILINE)

    assert {source: set(re.findall(r"`(\w+)`", targets)) for source, targets in rows} == {
        str(source): {str(target) for target in targets} for source, targets in moves.items()
    }


@pytest.mark.parametrize("names", [TaskStatus, RunStatus])
def test_the_task_model_says_something_about_every_state(names: type[StrEnum]):
    for name in names:
        assert re.search(rf"^- \*\*`{name}`\*\*", _PAGE, re.MULTILINE), name

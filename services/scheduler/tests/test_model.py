"""The system as a machine that anything may happen to: do the promises of docs/task-model.md hold in any order?

The scheduler and its database are the real ones; executors, engines, broker and time are models (`model/`). By
hand, for as long as one likes: `MODEL_EXAMPLES=5000 MODEL_SEED=7 pytest services/scheduler/tests/test_model.py`,
and with `MODEL_MUTATIONS=all` the whole mutation check. MODEL_SHRINK=0 shows a failure at once, as it was found.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import psycopg
import pytest
import structlog
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test
from psycopg.rows import dict_row
from psycopg_pool import ConnectionPool

from libs.common.postgres import Connection, Pool
from services.scheduler import endings, retry, run_store
from services.scheduler.dispatch import Dispatcher
from services.scheduler.retry import Ending, decide_ending
from services.scheduler.states import Outcome
from services.scheduler.sync import SyncConfig
from services.scheduler.tests.model.clock import install_clock
from services.scheduler.tests.model.machine import SystemMachine
from services.scheduler.tests.model.world import World

pytestmark = pytest.mark.component

EXAMPLES = int(os.environ.get("MODEL_EXAMPLES", "60"))
SHRINK = os.environ.get("MODEL_SHRINK", "1") == "1"
STEPS = int(os.environ.get("MODEL_STEPS", "40"))
# 0: each test has its own.
SEED = int(os.environ.get("MODEL_SEED", "0"))
# Each rule's absence is found within so many examples, or the model isn't good enough.
MUTATION_EXAMPLES = int(os.environ.get("MODEL_MUTATION_EXAMPLES", "1000"))


class Machines:
    """Makes a machine an example, and counts them."""

    def __init__(self, pool: Pool, *, sync_config: SyncConfig, rules_off: tuple[str, ...] = ()) -> None:
        self.count = 0
        self._pool = pool
        self._sync_config = sync_config
        self._rules_off = rules_off

    def run(self, *, examples: int, phases: tuple[Phase, ...], seed_number: int = SEED) -> None:
        def make() -> SystemMachine:
            self.count += 1
            return SystemMachine(World(self._pool, sync_config=self._sync_config, rules_off=self._rules_off))

        factory: Any = seed(seed_number)(make)
        run_state_machine_as_test(
            factory,
            settings=settings(
                max_examples=examples,
                stateful_step_count=STEPS,
                phases=phases,
                deadline=None,
                database=None,
                report_multiple_bugs=False,
                suppress_health_check=list(HealthCheck),
            ),
        )


@pytest.fixture
def model_database(make_database) -> Any:
    database = make_database("scheduler")
    install_clock(database.owner_dsn, database.name)
    return database


@pytest.fixture
def model_pool(model_database) -> Iterator[Pool]:
    """As open_pool's, but without the check of each connection: thousands of steps would wait for it."""
    pool = ConnectionPool(
        model_database.dsn,
        connection_class=Connection,
        min_size=1,
        max_size=2,
        kwargs={"row_factory": dict_row, "autocommit": True, "options": "-c timezone=UTC"},
        open=True,
    )
    with pool:
        yield pool


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Thousands of surprises that were handled are no news here."""
    with structlog.testing.capture_logs():
        yield


def test_the_promises_hold_whatever_happens_in_whatever_order(model_pool):
    machines = Machines(model_pool, sync_config=SyncConfig())
    print(  # noqa: T201  Shown when it fails.
        f"seed {SEED}, {EXAMPLES} examples of up to {STEPS} steps"
    )

    machines.run(examples=EXAMPLES, phases=(Phase.generate, Phase.shrink) if SHRINK else (Phase.generate,))


# The mutation check: a suite that stays green without a rule doesn't test it.


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutation:
    """A rule switched off: by a statement, in the models (`model`), or by `patch`. `breaks`: how it shows.

    Any seed finds it; this one soon.
    """

    breaks: str
    statement: str = ""
    model: str = ""
    patch: Callable[[pytest.MonkeyPatch], None] = lambda _: None
    sync_config: SyncConfig = field(default_factory=SyncConfig)
    seed: int = 1


def _never_publish_again(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Dispatcher, "publish_again", lambda *_, **__: 0)


def _try_for_ever(patch: pytest.MonkeyPatch) -> None:
    def decide(outcome: Outcome, **facts: Any) -> Ending:
        return decide_ending(outcome, **facts | {"policy": replace(facts["policy"], max_attempts=20)})

    patch.setattr(endings, "decide_ending", decide)


def _retry_at_once(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(retry, "decide_backoff", lambda *_, **__: timedelta(0))


def _close_when_the_lease_runs_out(patch: pytest.MonkeyPatch) -> None:
    text = run_store.QUERIES["lock_lost_runs"].decode()
    changed = re.sub(r"AND l\.expires_at .*? ORDER BY", "AND l.expires_at < now() ORDER BY", text, flags=re.S)
    assert changed != text
    patch.setattr(run_store, "QUERIES", {**run_store.QUERIES, "lock_lost_runs": changed.encode()})


MUTATIONS = {
    "S1, the unique index": Mutation(statement="DROP INDEX scheduler.runs_one_live", breaks="S1", seed=3),
    "S2, exclusive names": Mutation(model="S2", breaks="S4|promise 2|started twice"),
    "S3, an adopter starts nothing": Mutation(model="S3", breaks="S3|S4|promise 2"),
    "S4, proof before a run is closed": Mutation(
        patch=_close_when_the_lease_runs_out, breaks="S4|promise 2", seed=3
    ),
    "the sweep's second publish": Mutation(patch=_never_publish_again, breaks="promise 1"),
    "the limit on attempts": Mutation(patch=_try_for_ever, breaks="retry: more attempts"),
    "the backoff": Mutation(patch=_retry_at_once, breaks="retry: the backoff"),
    "45 s after a restart": Mutation(sync_config=SyncConfig(settle=timedelta(0)), breaks="within 45 s"),
    "the trigger on terminal tasks": Mutation(
        statement="DROP TRIGGER tasks_terminal ON scheduler.tasks", breaks="promise 4", seed=3
    ),
    "the trigger on terminal runs": Mutation(
        statement="DROP TRIGGER runs_terminal ON scheduler.runs", breaks="promise 4", seed=3
    ),
}


# These two take some hundred examples, a minute each: by hand, before the machine or a rule is changed.
BY_HAND = {"S2, exclusive names", "S3, an adopter starts nothing"}
CHECKED = [rule for rule in MUTATIONS if os.environ.get("MODEL_MUTATIONS") == "all" or rule not in BY_HAND]


@pytest.mark.parametrize("rule", CHECKED)
def test_without_a_rule_the_machine_finds_a_broken_promise(rule, model_database, model_pool, monkeypatch):
    mutation = MUTATIONS[rule]
    mutation.patch(monkeypatch)
    with psycopg.connect(model_database.owner_dsn, autocommit=True) as connection:
        connection.execute(mutation.statement or "SELECT")
    machines = Machines(model_pool, sync_config=mutation.sync_config, rules_off=(mutation.model,))

    with pytest.raises(AssertionError, match=mutation.breaks):
        machines.run(examples=MUTATION_EXAMPLES, phases=(Phase.generate,), seed_number=SEED or mutation.seed)

    print(f"without {rule}: found after {machines.count} examples")  # noqa: T201  Shown with -s.

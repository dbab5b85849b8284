"""With a safety rule switched off, its trial in tests/faults/test_failpoints.py fails: `make mutations`."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from tests.faults.mutations import MUTATIONS, Mutation, copy_mutated, migrate_from, mutate
from tests.faults.world import ROOT, Ground, World
from tests.servers import MakeDatabase, MakeVhosts


@pytest.fixture(scope="session")
def failures(
    ground: Ground, make_shared_database: MakeDatabase, make_vhosts: MakeVhosts
) -> Iterator[Mapping[str, Future[str]]]:
    """By rule, what its trial says without it; all are tried at once, each in a world of its own."""
    urls = dict(
        zip(MUTATIONS, make_vhosts([f"mutation-{number}" for number in range(len(MUTATIONS))]), strict=True)
    )
    lock = threading.Lock()

    def fail(rule: str) -> str:
        mutation = MUTATIONS[rule]
        root = ground.folder / f"source-{list(MUTATIONS).index(rule)}"
        copy_mutated(mutation, root)
        with lock:
            database = migrate_from(root, make_shared_database())
        world = World(ground, database=database, broker_url=urls[rule], root=root)
        try:
            world.prepare()
            said = _run(mutation, world)
        finally:
            world.close()
        if mutation.breaks in said:
            world.forget()
            shutil.rmtree(root)
        return said

    with ThreadPoolExecutor(len(MUTATIONS)) as pool:
        yield {rule: pool.submit(fail, rule) for rule in MUTATIONS}


def _run(mutation: Mutation, world: World) -> str:
    try:
        seconds = mutation.trial.run(world)
    except AssertionError as failure:
        return str(failure)
    return f"all was well after {seconds:.1f} s"


@pytest.mark.mutations
@pytest.mark.parametrize("rule", MUTATIONS)
def test_without_a_rule_its_trial_fails(failures: Mapping[str, Future[str]], rule: str):
    said = failures[rule].result()

    assert MUTATIONS[rule].breaks in said


@pytest.mark.parametrize("rule", MUTATIONS)
def test_the_edit_that_switches_a_rule_off_fits_the_source(rule: str):
    text = (ROOT / MUTATIONS[rule].file).read_text()

    assert mutate(MUTATIONS[rule], text) != text


def test_an_edit_that_does_not_fit_is_an_error():
    mutation = MUTATIONS["the sweep"]

    with pytest.raises(ValueError, match="fits 0 times"):
        mutate(mutation, "")
    with pytest.raises(ValueError, match="fits 2 times"):
        mutate(mutation, mutation.old * 2)

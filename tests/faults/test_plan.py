from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise

import pytest

from tests.faults.plan import (
    ENGINE,
    FIRST_ACT_ONLY,
    LONG_ABSENCE_SECONDS,
    LONG_PAUSE_SECONDS,
    REPLICAS,
    ROLES,
    SERVERS,
    Numbers,
    end_of,
    list_wipe_times,
    plan_faults,
)
from tests.faults.work import BURST, LONG_SECONDS, plan_orders

SEEDS = range(20)


def test_the_same_seed_gives_the_same_plan_and_another_one_another():
    plans = [plan_faults(random.Random(seed), Numbers()) for seed in (1, 1, 2)]

    assert plans[0] == plans[1]
    assert plans[0] != plans[2]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_plan_has_all_that_was_asked_for(seed: int):
    plan = plan_faults(random.Random(seed), Numbers())

    kills = Counter(fault.service for fault in plan if fault.kind == "kill")
    kinds = Counter(fault.kind for fault in plan)
    assert all(kills[role] >= 8 for role in ROLES)
    assert sum(kills[role] for role in ROLES) == 60
    assert all(kills[server] == 3 for server in SERVERS)
    assert sorted(fault.kind for fault in plan if fault.service == ENGINE) == ["kill", "stop"]
    assert kinds["cut"] == 5
    assert kinds["pause"] == 5
    assert kinds["purge"] == kinds["delete"] == 1
    assert sum(fault.count for fault in plan) == 15


@pytest.mark.parametrize("seed", SEEDS)
def test_no_part_is_hit_while_it_is_away(seed: int):
    plan = plan_faults(random.Random(seed), Numbers())

    for service, replicas in REPLICAS.items():
        for replica in range(replicas):
            of_part = [fault for fault in plan if (fault.service, fault.replica) == (service, replica)]
            absences = [fault for fault in of_part if fault.seconds]
            assert all(earlier.at + earlier.seconds < later.at for earlier, later in pairwise(absences))


@pytest.mark.parametrize("seed", SEEDS)
def test_executors_are_frozen_for_long_when_leases_can_be_taken_over_and_the_plan_keeps_about_its_time(seed: int):
    numbers = Numbers()
    plan = plan_faults(random.Random(seed), numbers)

    truth_stands = max(fault.at + fault.seconds for fault in plan if fault.service in FIRST_ACT_ONLY)
    frozen = [fault for fault in plan if fault.seconds == LONG_PAUSE_SECONDS]
    assert len(frozen) == 2
    assert all(fault.at + LONG_PAUSE_SECONDS > truth_stands + 45 for fault in frozen)
    assert end_of(plan) < 1.4 * numbers.seconds


@pytest.mark.parametrize("seed", SEEDS)
def test_of_several_of_a_kind_never_all_are_away_for_long(seed: int):
    plan = plan_faults(random.Random(seed), Numbers())

    for service in ("executor", "scheduler-loops"):
        absences = [each for each in plan if each.service == service and each.seconds >= LONG_ABSENCE_SECONDS]
        for absence in absences:
            others = [each for each in absences if each.at <= absence.at < each.at + each.seconds]
            assert len({each.replica for each in others}) < REPLICAS[service]


def test_orders_are_spread_over_the_storm_and_of_several_kinds():
    orders = plan_orders(random.Random(1), count=300, seconds=100.0)

    assert len({order.number for order in orders}) == 300
    assert 0 <= orders[0].at <= orders[-1].at <= 100.0
    assert {order.exit_code for order in orders} == {0, 3}
    assert min(order.sleep_seconds for order in orders) == 0
    assert max(order.sleep_seconds for order in orders) == LONG_SECONDS
    assert any(order.due_in_seconds for order in orders)


@pytest.mark.parametrize(("count", "at_once"), [(300, BURST), (40, 10)])
def test_with_each_wipe_comes_a_burst_of_tasks_but_half_of_them_are_spread(count: int, at_once: int):
    wipes = list_wipe_times(plan_faults(random.Random(1), Numbers()))

    orders = plan_orders(random.Random(1), count=count, seconds=170.0, bursts=wipes)

    times = Counter(order.at for order in orders)
    assert len(wipes) == 2
    assert len(orders) == count
    assert [times[at] for at in wipes] == [at_once] * 2
    assert orders == sorted(orders, key=lambda order: order.at)

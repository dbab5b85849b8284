"""Who gets how much of the room, as a decision: properties that hold whatever waits and whatever is under way."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from services.scheduler.shares import MANY_TASKS, Lane, Room, decide_room, decide_shares

NOW = datetime(2026, 1, 31, 8, 15, tzinfo=UTC)
POOLS = ("default", "gpu")
USERS = tuple(UUID(int=number) for number in range(1, 5))
LIMITS = {"": 0, "a": 1, "b": 3}


def make_lane(user: UUID = USERS[0], **changes) -> Lane:
    lane = Lane(
        pool="default",
        priority=5,
        user_id=user,
        concurrency_key="",
        concurrency_limit=0,
        due_at=NOW,
        tasks=MANY_TASKS,
        quota=None,
        user_runs=0,
        pool_runs=0,
        group_runs=0,
    )
    return replace(lane, **changes)


@st.composite
def situations(draw):
    """Lanes that agree on what is under way, and the room in each pool."""
    places = [(user, pool, name) for user in USERS for pool in POOLS for name in LIMITS]
    under_way = {place: draw(st.integers(0, 3)) for place in places}
    quotas = {user: draw(st.none() | st.integers(0, 8)) for user in USERS}
    key = st.tuples(
        st.sampled_from(USERS), st.sampled_from(POOLS), st.integers(3, 6), st.sampled_from(list(LIMITS))
    )
    keys = draw(st.lists(key, unique=True, max_size=12))
    lanes = [
        make_lane(
            user,
            pool=pool,
            priority=priority,
            concurrency_key=name,
            concurrency_limit=LIMITS[name],
            due_at=NOW - timedelta(seconds=draw(st.integers(0, 9))),
            tasks=draw(st.sampled_from([0, 1, 2, MANY_TASKS])),
            quota=quotas[user],
            user_runs=sum(runs for (who, _, _), runs in under_way.items() if who == user),
            pool_runs=sum(runs for (who, where, _), runs in under_way.items() if (who, where) == (user, pool)),
            group_runs=sum(
                runs for (who, _, group), runs in under_way.items() if name and (who, group) == (user, name)
            ),
        )
        for user, pool, priority, name in keys
    ]
    return lanes, {pool: draw(st.integers(0, 12)) for pool in POOLS}


def may_have_another(index, lanes, rooms, chosen) -> bool:
    """By the definition: is there room, a task, and neither quota nor group in the way?"""
    lane = lanes[index]
    mine = Counter(chosen)
    of_user = sum(count for other, count in mine.items() if lanes[other].user_id == lane.user_id)
    of_pool = sum(count for other, count in mine.items() if lanes[other].pool == lane.pool)
    of_group = sum(
        count
        for other, count in mine.items()
        if (lanes[other].user_id, lanes[other].concurrency_key) == (lane.user_id, lane.concurrency_key)
    )
    return (
        of_pool < rooms[lane.pool]
        and (mine[index] < lane.tasks or lane.tasks >= MANY_TASKS)
        and (lane.quota is None or lane.user_runs + of_user < lane.quota)
        and (lane.concurrency_limit == 0 or lane.group_runs + of_group < lane.concurrency_limit)
    )


@given(situations())
def test_nobody_gets_more_than_there_is_room_and_what_quota_and_group_allow(situation):
    lanes, rooms = situation

    chosen = decide_shares(lanes, rooms)

    for number, index in enumerate(chosen):
        assert may_have_another(index, lanes, rooms, chosen[:number])


@given(situations())
def test_no_room_stays_unused_while_somebody_may_have_it(situation):
    lanes, rooms = situation

    chosen = decide_shares(lanes, rooms)

    assert not [index for index in range(len(lanes)) if may_have_another(index, lanes, rooms, chosen)]


@given(situations())
def test_each_place_goes_to_the_most_urgent_then_to_who_has_the_fewest_under_way(situation):
    lanes, rooms = situation

    chosen = decide_shares(lanes, rooms)

    for number, index in enumerate(chosen):
        before = chosen[:number]

        def rank(which, before=before):
            lane = lanes[which]
            mine = sum((lanes[other].user_id, lanes[other].pool) == (lane.user_id, lane.pool) for other in before)
            return -lane.priority, lane.pool_runs + mine, lane.due_at

        rivals = [
            which
            for which in range(len(lanes))
            if lanes[which].pool == lanes[index].pool and may_have_another(which, lanes, rooms, before)
        ]
        assert rank(index) == min(map(rank, rivals))


def test_whoever_comes_with_one_task_is_next_however_many_another_has_waiting():
    hog = make_lane(USERS[0], due_at=NOW - timedelta(hours=1), user_runs=7, pool_runs=7)
    late = make_lane(USERS[1], tasks=1)

    assert decide_shares([hog, late], {"default": 2}) == [1, 0]


def test_who_is_alone_gets_everything():
    assert decide_shares([make_lane(user_runs=50, pool_runs=50)], {"default": 9}) == [0] * 9


def test_two_users_share_what_there_is_until_both_have_the_same():
    chosen = decide_shares([make_lane(USERS[0], pool_runs=4), make_lane(USERS[1])], {"default": 10})

    assert Counter(chosen) == {0: 3, 1: 7}


def make_room(**changes) -> Room:
    return replace(Room(pool="default", slots=4, free=4, claims_total=0, outstanding=0), **changes)


def test_the_broker_holds_a_run_for_each_free_slot_and_fewer_than_there_are_slots_besides():
    assert decide_room(make_room(), claimed=0) == 4 + 3
    assert decide_room(make_room(free=0), claimed=0) == 3
    assert decide_room(make_room(free=0, outstanding=3), claimed=0) == 0
    assert decide_room(make_room(free=2, outstanding=9), claimed=0) == 0
    assert decide_room(make_room(slots=1, free=0), claimed=2) == 0, "one slot: who comes now gets it next"
    assert decide_room(make_room(slots=1, free=1), claimed=0) == 1


def test_the_broker_holds_more_when_runs_are_so_short_that_it_would_run_dry():
    assert decide_room(make_room(free=0), claimed=1000) == 100


@given(st.integers(1, 50), st.integers(0, 50), st.integers(0, 80))
def test_with_runs_of_a_second_whoever_comes_now_gets_one_of_the_next_slots(slots, free, outstanding):
    free = min(free, slots)
    # In two seconds each slot takes two.
    room = decide_room(make_room(slots=slots, free=free, outstanding=outstanding), claimed=2 * slots)

    assert outstanding + room <= max(outstanding, free + slots - 1)

"""Who gets how much of the room: priority first, then a fair share for each user, within quotas and groups. Pure.

Within a priority the next place goes to the user of whom the fewest tasks are under way in that pool; among
equals, to whose task has been due the longest. So nobody waits behind another's backlog, and one alone gets all.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

# How far ahead of the executors the broker's queue is kept, as a part of what they took in the claim window.
_AHEAD = 0.1
# So many tasks of a lane are counted; that many are taken for any number of them.
MANY_TASKS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """A pool's executors: their slots, those that are free, and the runs that are on their way to them.

    `claims_total` only ever grows.
    """

    pool: str
    slots: int
    free: int
    claims_total: int
    outstanding: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """Pending tasks of one user that wait in one line, due since `due_at`, and what of the user is under way.

    `tasks`: those that are due, counted up to MANY_TASKS; 0 when what was due is gone. `quota` None: no limit.
    `concurrency_limit` 0: no group.
    """

    pool: str
    priority: int
    user_id: UUID
    concurrency_key: str
    concurrency_limit: int
    due_at: datetime
    tasks: int
    quota: int | None
    user_runs: int
    pool_runs: int
    group_runs: int


def decide_room(room: Room, *, claimed: int) -> int:
    """How many more runs may be on their way to a pool. `claimed`: in the last claim window.

    One for each free slot, and some that wait on the broker, so that a slot which becomes free finds one there:
    one fewer than there are slots, so that who comes now gets a slot within one run's time; more when runs are so
    short that the queue would be empty before it is filled again.
    """
    return max(room.free + max(room.slots - 1, int(claimed * _AHEAD)) - room.outstanding, 0)


def decide_shares(lanes: Sequence[Lane], rooms: Mapping[str, int]) -> list[int]:
    """The lanes that may each have one task dispatched, by index and in order; a lane as often as it may.

    A lane of MANY_TASKS may get more than it has; the next pass gives those places to others.
    """
    left = Counter(rooms)
    of_user: Counter[UUID] = Counter()
    in_pool: Counter[tuple[UUID, str]] = Counter()
    in_group: Counter[tuple[UUID, str]] = Counter()
    of_lane: Counter[int] = Counter()
    chosen: list[int] = []

    def rank(index: int) -> tuple[int, int, datetime, int]:
        lane = lanes[index]
        load = lane.pool_runs + in_pool[lane.user_id, lane.pool]
        return (-lane.priority, load, lane.due_at, index)

    line = [rank(index) for index, lane in enumerate(lanes) if lane.tasks]
    heapq.heapify(line)
    while line:
        known = heapq.heappop(line)
        index = known[-1]
        lane = lanes[index]
        group = (lane.user_id, lane.concurrency_key)
        is_over_quota = lane.quota is not None and lane.user_runs + of_user[lane.user_id] >= lane.quota
        is_group_full = lane.concurrency_limit > 0 and lane.group_runs + in_group[group] >= lane.concurrency_limit
        is_empty = of_lane[index] >= lane.tasks < MANY_TASKS
        if left[lane.pool] <= 0 or is_empty or is_over_quota or is_group_full:
            # None of these becomes better within this pass.
            continue
        if known == rank(index):
            chosen.append(index)
            left[lane.pool] -= 1
            of_lane[index] += 1
            of_user[lane.user_id] += 1
            in_pool[lane.user_id, lane.pool] += 1
            in_group[group] += 1
        # With its user's new load, also when another lane of the same user raised it meanwhile.
        heapq.heappush(line, rank(index))
    return chosen

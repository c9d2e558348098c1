"""The queue of a replica: under any traffic nothing is lost, computed twice or too late, or kept waiting for ever."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from energymt.pool.batcher import HEARD, Batcher, Entry
from energymt.pool.wire import Ragged, Request


def entry(
    lengths: list[int],
    arrived: float = 0.0,
    *,
    name: str = "",
    gradient: bool = True,
    precision: str = "fp32",
    alone: bool = False,
    seconds: float = 60.0,
    client: str = "me",
) -> Entry:
    """A request of sentences that take so many positions."""
    source = Ragged(np.zeros(sum(lengths), dtype=np.int32), np.array(lengths, dtype=np.int32))
    target = Ragged(np.zeros(0, dtype=np.int32), np.zeros(len(lengths), dtype=np.int32))
    request = Request(name, client, source, target, gradient, precision, seconds=seconds, alone=alone)
    return Entry(request, arrived)


def size(batch: list[Entry]) -> int:
    """Padded positions."""
    return max(int(e.request.lengths.max(initial=1)) for e in batch) * sum(len(e.request) for e in batch)


def full(*entries: Entry, tokens: int = 100, wait: float = 1.0, room: int = 1000) -> Batcher:
    batcher = Batcher(tokens, wait, room)
    for one in entries:
        assert batcher.add(one)
    return batcher


def expecting(batcher: Batcher, caller: str = "you") -> Batcher:
    """The same, when it has answered somebody else at time 0."""
    other = Batcher(batcher.tokens, batcher.wait, batcher.room)
    other.add(entry([1], client=caller))
    other.take()
    for one in batcher.entries:
        other.add(one)
    return other


@dataclass
class Traffic:
    """What came out of a replica's life: batches with the time at which they began, and who was handed back when."""

    batches: list[tuple[float, list[Entry]]]
    late: list[tuple[float, Entry]]
    refused: list[Entry]
    queued: int  # most sentences at a time


def live(batcher: Batcher, arrivals: list[Entry], speed: float) -> Traffic:
    """A replica's loop on a clock of its own: arrivals in order, one batch at a time, `speed` positions a second."""
    traffic, waiting, now = Traffic([], [], [], 0), list(arrivals), 0.0
    while waiting or batcher.entries:
        while waiting and waiting[0].arrived <= now:
            one = waiting.pop(0)
            if not batcher.add(one):
                traffic.refused.append(one)
            traffic.queued = max(traffic.queued, len(batcher))
        traffic.late += [(now, one) for one in batcher.late(now)]
        due = batcher.due(now)
        if due is None:
            now = waiting[0].arrived if waiting else now
        elif due > 0:
            now = min([now + due, *(one.arrived for one in waiting[:1])])
        else:
            batch = batcher.take()
            traffic.batches.append((now, batch))
            now += size(batch) / speed
    return traffic


entries = st.builds(
    dict,
    lengths=st.lists(st.integers(0, 12), max_size=5),
    gap=st.sampled_from([0.0, 0.0, 0.0, 0.001, 0.3, 5.0]),
    gradient=st.booleans(),
    precision=st.sampled_from(["fp32", "bf16"]),
    alone=st.sampled_from([False, False, False, True]),
    seconds=st.sampled_from([0.0, 0.05, 1.0, 60.0]),
    client=st.sampled_from(["me", "you"]),
)


@given(
    arriving=st.lists(entries, max_size=40),
    tokens=st.integers(1, 60),
    wait=st.sampled_from([0.0, 0.002, 1.0]),
    room=st.integers(1, 30),
    speed=st.sampled_from([20.0, 1000.0]),
)
def test_any_traffic(arriving: list[dict], tokens: int, wait: float, room: int, speed: float) -> None:
    arrivals, now = [], 0.0
    for one in arriving:
        now += one.pop("gap")
        arrivals.append(entry(one.pop("lengths"), now, **one))
    traffic = live(Batcher(tokens, wait, room), arrivals, speed)
    computed = [one for _, batch in traffic.batches for one in batch]

    # Nothing is lost and nothing computed twice.
    assert sorted(map(id, [*computed, *(one for _, one in traffic.late), *traffic.refused])) == sorted(
        map(id, arrivals)
    )
    order = {id(one): number for number, one in enumerate(arrivals)}
    left = [id(one) for one in arrivals if one not in traffic.refused]
    lost = {id(one): moment for moment, one in traffic.late}
    for began, batch in traffic.batches:
        # The budget holds but for a single request, kinds are not mixed, and who wants to be alone is.
        assert size(batch) <= tokens or len(batch) == 1
        assert len({one.kind for one in batch}) == 1
        assert len(batch) == 1 or not any(one.request.alone for one in batch)
        # The oldest of the queue is in it, so that nobody waits for ever.
        left = [one for one in left if lost.get(one, began + 1) > began]
        assert min(left, key=order.__getitem__) == id(batch[0])
        left = [one for one in left if one not in set(map(id, batch))]
        # Nothing is computed too late.
        assert all(one.arrived <= began < one.deadline for one in batch)
    assert all(moment >= one.deadline for moment, one in traffic.late)

    # The queue is bounded, but for a single request.
    sentences = [max(1, len(one.request)) for one in arrivals]
    assert traffic.queued <= max([room, *sentences])


@given(st.lists(st.integers(1, 12), min_size=1, max_size=12), st.integers(1, 60))
def test_an_idle_replica_keeps_nobody_longer_than_it_may(lengths: list[int], tokens: int) -> None:
    arrivals = [entry([length], 0.01 * n, seconds=[60.0, 0.5][n % 2]) for n, length in enumerate(lengths)]
    traffic = live(Batcher(tokens, 2.0, 1000), arrivals, speed=1e9)
    assert not traffic.late  # half of their time is enough
    for began, batch in traffic.batches:
        assert began <= batch[0].arrived + 2.0 + 1e-6


def test_like_lengths_go_together() -> None:
    requests = [entry([length], n) for n, length in enumerate([10, 50, 12, 2, 11, 9])]
    batcher = full(*requests, tokens=48)
    assert [one.longest for one in batcher.take()] == [10, 11, 9, 12]
    assert [one.longest for one in batcher.take()] == [50]  # the oldest that is left, though it does not fit
    assert [one.longest for one in batcher.take()] == [2]
    assert batcher.due(0.0) is None


def test_padding_counts() -> None:
    batcher = full(entry([1, 1]), entry([1, 30]), entry([1]), tokens=100)
    assert [len(one.request) for one in batcher.take()] == [2, 1]  # 5 × 30 would be 150
    assert [len(one.request) for one in batcher.take()] == [2]


def test_a_full_batch_goes_at_once_and_others_wait() -> None:
    batcher = expecting(full(entry([30]), wait=1.0))
    assert batcher.due(0.0) == 1.0
    assert batcher.due(0.75) == 0.25
    assert batcher.due(7.0) == 0.0
    batcher.add(entry([30], 0.5))
    assert batcher.due(0.5) == 0.5  # of the first one
    batcher.add(entry([30], 0.5))
    assert batcher.due(0.5) == 0.0  # a fourth would not fit
    assert expecting(full(entry([101]))).due(0.0) == expecting(full(entry([1], alone=True))).due(0.0) == 0.0


def test_nobody_waits_for_callers_that_are_there_or_gone() -> None:
    assert full(entry([1]), wait=1.0).due(0.0) == 0.0  # a caller alone
    batcher = expecting(full(entry([1]), entry([1], 0.2), wait=1.0))
    assert batcher.due(0.25) == 0.75
    batcher.add(entry([1], 0.25, client="you"))
    assert batcher.due(0.25) == 0.0
    assert [one.request.client for one in batcher.take()] == ["me", "me", "you"]
    batcher.add(entry([1], HEARD))
    assert batcher.due(HEARD) == 1.0  # the other asked at 0.25
    batcher.add(entry([1], HEARD + 0.125))
    assert batcher.due(HEARD + 0.25) == 0.0


def test_somebody_in_a_hurry_is_not_kept_until_it_is_too_late() -> None:
    batcher = expecting(full(entry([1]), entry([1], 0.1, gradient=False, seconds=0.4), wait=1.0))
    assert batcher.due(0.1) == pytest.approx(0.2)
    assert batcher.due(0.301) == 0.0
    assert batcher.late(0.49) == []
    [dropped] = batcher.late(0.5)
    assert dropped.request.seconds == 0.4


def test_room() -> None:
    batcher = full(entry([1] * 9), room=10)
    assert len(batcher) == 9
    assert not batcher.add(entry([1, 1]))
    assert batcher.add(entry([1]))
    assert not batcher.add(entry([]))  # also a request of nothing takes room
    assert full(entry([1] * 50), room=10).take()  # an empty queue has room for anything


def test_dropping_keeps_the_order_of_the_rest() -> None:
    batcher = full(*(entry([1], n, name=str(n)) for n in range(5)))
    assert [one.request.id for one in batcher.drop(lambda one: one.request.id in "13")] == ["1", "3"]
    assert [one.request.id for one in batcher.take()] == ["0", "2", "4"]

"""A caller's end on a clock of its own: whom it asks, when it asks another one, and what it raises, never too late."""

import gc
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from energymt.errors import EnergyTimeout, EnergyUnavailable, EnergyVersionError, PoolError
from energymt.pool.client import GoneError
from tests.pool.callers import (
    Behaviour,
    Pool,
    answers,
    caller,
    dies,
    in_turn,
    never,
    refuses,
    reply,
    send,
)

# -------------------------------------------------------------------------------------------------------- whom it asks


def test_the_least_loaded_is_asked() -> None:
    pool = Pool(answers(), answers(), answers())
    pool.loads = {0: 20, 1: 5, 2: 9}
    send(caller(pool)).result()
    assert pool.order == [1]


def test_what_is_in_flight_counts_as_load() -> None:
    pool = Pool(answers(), answers(), answers())
    client = caller(pool)
    tickets = [send(client, sentences) for sentences in (4, 3, 2, 1, 1)]
    assert pool.order == [0, 1, 2, 2, 1]  # 4; 3; 2; then 2 has the fewest (2), then 1 and 2 have 3 each, and 1 is first
    assert client.in_flight() == Counter({0: 4, 1: 4, 2: 3})
    for ticket in tickets:
        ticket.result()
    assert not client.in_flight()


def test_a_ticket_that_is_dropped_is_in_flight_no_more() -> None:
    pool = Pool(answers(), never)
    client = caller(pool, deadline=1.0)
    for _ in range(4):
        send(client)
    gc.collect()
    assert not client.in_flight()
    pool.behaviours = {0: never, 1: never}
    with pytest.raises(EnergyTimeout):
        send(client).result()
    assert not client.in_flight()  # nor one that failed


def test_deterministic_calls_depend_on_their_number_and_on_who_is_there() -> None:
    pool = Pool(answers(), answers(), answers())
    client = caller(pool, alone=True)
    for load in (0, 50, 7, 3, 2, 1):
        pool.loads = {2: load, 0: 9, 1: 1}
        send(client).result()
    assert pool.order == [0, 1, 2, 0, 1, 2]
    assert all(request.alone for _, _, request in pool.asked)
    again = Pool(answers(), answers(), answers())
    other = caller(again, alone=True)
    tickets = [send(other) for _ in range(6)]  # all in flight at once
    assert again.order == pool.order
    del tickets


def test_the_same_question_keeps_its_name() -> None:
    pool = Pool(in_turn(dies(1.0), answers()), answers())
    client = caller(pool)
    send(client).result()
    send(client).result()
    first, second, third = (request for _, _, request in pool.asked)
    assert first.id == second.id != third.id
    assert second.client == first.client == client.id
    assert (first.seconds, second.seconds) == (60.0, 59.0)  # what is left


# ------------------------------------------------------------------------------------------------- when it asks another


def test_another_is_asked_at_once_when_one_dies() -> None:
    pool = Pool(dies(2.0), answers(1.0))
    assert send(caller(pool)).result().replica == "replica"
    assert [(at, replica) for at, replica, _ in pool.asked] == [(0.0, 0), (2.0, 1)]
    assert pool.reports == [(2.0, 0)]
    assert pool.since == pytest.approx(3.0, abs=0.1)


def test_another_is_asked_when_one_is_not_there_any_more() -> None:
    pool = Pool(answers(), answers())
    del pool.behaviours[0]  # the view does not know yet
    send(caller(pool)).result()
    assert pool.order == [0, 1]
    assert pool.views == [False, True]  # after trouble the supervisor is asked anew


def test_the_only_one_is_asked_again_after_a_pause() -> None:
    pool = Pool(in_turn(dies(), dies(), dies(), answers(0.5)))
    send(caller(pool)).result()
    assert pool.order == [0, 0, 0, 0]
    times = [at for at, _, _ in pool.asked]
    assert all(0.099 < second - first < 0.2 for first, second in pairwise(times))


def test_a_second_one_is_asked_beside_one_that_is_slow() -> None:
    pool = Pool(never, answers(1.0))
    send(caller(pool)).result()
    assert [(at, replica) for at, replica, _ in pool.asked] == [(0.0, 0), (10.0, 1)]
    assert pool.reports == [(10.0, 0)]
    assert pool.since == pytest.approx(11.0, abs=0.2)


def test_the_slow_one_is_welcome_if_it_answers_first() -> None:
    pool = Pool(lambda request: (12.0, replace(reply(request), replica="slow")), answers(30.0))
    assert send(caller(pool)).result().replica == "slow"
    assert pool.order == [0, 1]
    assert pool.since == pytest.approx(12.0, abs=0.2)


def test_complaints_are_repeated_and_of_those_who_deserve_them() -> None:
    """Twice of the one that was asked first; once of the second one, which had its own time."""
    pool = Pool(never, never, dies(1.0))
    pool.loads = {0: 0, 1: 1, 2: 2}
    with pytest.raises(EnergyTimeout):
        send(caller(pool, deadline=29.0)).result()
    assert [(round(at), replica) for at, replica, _ in pool.asked] == [(0, 0), (10, 1), (20, 2)]
    rounded = [(round(at), replica) for at, replica in pool.reports]
    assert rounded == [(10, 0), (20, 0), (20, 1), (21, 2), (21, 0), (21, 1)]


def test_one_that_was_asked_a_moment_ago_is_not_complained_of() -> None:
    pool = Pool(dies(12.0), answers(5.0), answers(5.0))
    send(caller(pool)).result()
    assert [(round(at), replica) for at, replica, _ in pool.asked] == [(0, 0), (10, 1), (12, 2)]
    assert [(round(at), replica) for at, replica in pool.reports] == [(10, 0), (12, 0)]


def test_an_answer_that_came_while_the_caller_was_away_is_taken() -> None:
    """Neither is the replica reported, nor another one asked, nor is it too late: the answer lies there."""
    for away in (30.0, 500.0):
        pool = Pool(answers(5.0), answers())
        ticket = send(caller(pool))
        pool.clock.now += away
        ticket.result()
        assert (pool.order, pool.reports) == ([0], [])


def test_a_second_result_is_the_first() -> None:
    pool = Pool(answers())
    ticket = send(caller(pool))
    assert ticket.result() is ticket.result()
    assert pool.order == [0]


def test_busy_ones_are_left_alone_for_as_long_as_they_ask() -> None:
    pool = Pool(in_turn(refuses("busy", 4.0), answers()))
    send(caller(pool)).result()
    assert [at for at, _, _ in pool.asked] == [0.0, 4.0]
    assert pool.reports == []  # it is alive


def test_others_are_asked_before_a_busy_one_is_waited_for() -> None:
    pool = Pool(refuses("busy", 4.0), in_turn(refuses("busy", 2.0), answers()), refuses("busy", 3.0))
    pool.loads = {0: 0, 1: 1, 2: 2}
    send(caller(pool)).result()
    assert [(at, replica) for at, replica, _ in pool.asked] == [(0.0, 0), (0.0, 1), (0.0, 2), (2.0, 0), (2.0, 1)]


def test_one_that_leaves_is_not_waited_for() -> None:
    pool = Pool(refuses("draining"), answers())
    send(caller(pool)).result()
    assert pool.order == [0, 1]
    assert pool.since < 1.0


def test_a_pool_that_comes_back_is_found() -> None:
    pool = Pool(answers())
    loads, pool.loads = pool.loads, {}
    ticket = send(caller(pool))
    assert pool.order == []

    def back(seconds: float, sleep: Callable[[float], None] = pool.clock.sleep) -> None:
        sleep(seconds)
        if pool.since > 20.0:
            pool.loads = loads

    pool.clock.sleep = back  # type: ignore[method-assign]
    ticket.result()
    assert 20.0 < pool.since < 21.0


def test_replicas_are_asked_as_known_when_the_supervisor_is_gone() -> None:
    pool = Pool(answers(), answers())
    client = caller(pool)
    send(client).result()
    pool.gone = GoneError("its supervisor is gone")
    send(client).result()
    assert len(pool.order) == 2 and pool.since < 1.0


# ------------------------------------------------------------------------------------------------------- what it raises


def raised(pool: Pool, kind: type[PoolError], deadline: float = 30.0, **more: Any) -> str:
    """The error's sentence; it comes at the deadline."""
    with pytest.raises(kind) as found:
        send(caller(pool, deadline=deadline), **more).result()
    assert type(found.value) is kind
    assert deadline <= pool.since <= deadline + 0.5
    assert "energymt pool status" in str(found.value) or "energymt pool up" in str(found.value)
    return str(found.value)


def test_nobody_there() -> None:
    pool = Pool()
    pool.trouble = "replicas: 0 restarting, 1 dead"
    said = raised(pool, EnergyUnavailable)
    assert "for 30 s (replicas: 0 restarting, 1 dead)" in said
    assert "start it by `energymt pool up ESTIMATOR" in said
    assert len(pool.views) < 400 and all(pause < 0.101 for pause in pool.clock.sleeps)


def test_no_supervisor() -> None:
    pool = Pool()
    pool.gone = GoneError("its supervisor does not answer")
    assert "(its supervisor does not answer)" in raised(pool, EnergyUnavailable)


def test_all_die() -> None:
    pool = Pool(dies(), dies(0.3))
    assert "(the actor died)" in raised(pool, EnergyUnavailable)
    assert len(pool.asked) < 400  # with pauses


def test_all_are_slow() -> None:
    assert "did not answer 3 sentences within 30 s: it is too slow" in raised(Pool(never, never), EnergyTimeout)


def test_all_are_busy() -> None:
    pool = Pool(refuses("busy", 5.0), refuses("busy", 5.0))
    raised(pool, EnergyTimeout)
    assert len(pool.asked) == 2 * 6


def test_all_are_late() -> None:
    raised(Pool(refuses("late", seconds=2.0)), EnergyTimeout)


def test_all_are_too_old() -> None:
    pool = Pool(refuses("stale", version=3), refuses("stale", version=3))
    assert "holds version 3 and version 4 was asked for, for 30 s" in raised(pool, EnergyVersionError, version=4)
    assert not pool.reports


def test_a_reply_that_is_too_old_is_never_accepted() -> None:
    pool = Pool(answers(version=3), answers(version=3))
    assert "holds version 3 and version 4" in raised(pool, EnergyVersionError, version=4)
    pool = Pool(answers(version=3), answers(version=5))
    assert send(caller(pool), version=4).result().version == 5
    assert pool.order == [0, 1]


def test_what_was_true_last_is_said() -> None:
    """At first busy, and then all were gone: more replicas would not have helped."""
    pool = Pool(refuses("busy", 1.0))

    def end(seconds: float, sleep: Callable[[float], None] = pool.clock.sleep) -> None:
        sleep(seconds)
        if pool.since > 10.0:
            pool.loads, pool.trouble = {}, "replicas: 0 dead"

    pool.clock.sleep = end  # type: ignore[method-assign]
    assert "(replicas: 0 dead)" in raised(pool, EnergyUnavailable)


@pytest.mark.parametrize("replicas", [1, 2, 5])
def test_a_request_that_raises_everywhere_is_not_tried_for_ever(replicas: int) -> None:
    """Nor is it held against the replicas, which would be restarted one after the other."""
    pool = Pool(*[refuses("failed")] * replicas)
    with pytest.raises(EnergyUnavailable, match=r"cannot answer this request .*replica-x: a bug"):
        send(caller(pool)).result()
    assert pool.order == list(range(min(2, replicas)))
    assert pool.since < 1.0 and not pool.reports


def test_a_request_that_raises_on_one_replica_is_answered_by_another() -> None:
    pool = Pool(refuses("failed"), answers())
    send(caller(pool)).result()
    assert pool.order == [0, 1]


def test_whatever_happens_it_ends_at_the_deadline_with_nothing_wrong() -> None:
    """Random pools: an answer is of the version asked for, an error comes in time, and nothing stays in flight."""
    ends = Counter()
    for seed in range(400):
        draw = random.Random(seed)
        behaviours: list[Behaviour] = [
            never,
            answers(draw.choice([0.1, 5.0, 40.0]), version=4),
            answers(0.1, version=0),
            dies(draw.choice([0.0, 3.0])),
            *(refuses(reason, draw.choice([0.1, 3.0]), 0.2) for reason in ("busy", "late", "stale", "draining")),
        ]
        usual = draw.sample(behaviours, 2)
        pool = Pool(*(in_turn(*draw.choices(usual, k=draw.randrange(1, 6))) for _ in range(draw.randrange(4))))
        deadline = draw.choice([0.0, 1.0, 25.0])
        client = caller(pool, deadline=deadline, alone=draw.random() < 0.3)
        try:
            found = send(client, version=4).result()
        except PoolError as error:
            assert pool.since >= deadline
            ends[type(error).__name__] += 1
        else:
            assert found.version == 4
            ends["answer"] += 1
        assert pool.since <= deadline + 0.5
        assert not client.in_flight()
        assert len(pool.asked) <= 20 + 40 * len(pool.behaviours) * deadline
    assert set(ends) == {"answer", "EnergyTimeout", "EnergyUnavailable", "EnergyVersionError"}
    assert min(ends.values()) > 10

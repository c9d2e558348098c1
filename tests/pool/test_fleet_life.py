"""The lives of replicas: they fail to start, are replaced, become stale, join, leave, and are given up."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from energymt.pool.fleet import Action, Fleet, wanted_size
from tests.pool.fleets import ALL, LIMITS, in_state, live, ping, starts, state_of

R, S, H, Q, D, X = ALL  # restarting, stale, healthy, suspect, dead, retired


def test_a_process_that_dies_while_it_starts_backs_off_and_is_given_up() -> None:
    fleet = Fleet(1, LIMITS)
    done = live(fleet, 60.0, lambda f, a, now: f.died(0, now, "no weights") if a.kind == "start" else None)
    assert starts(done) == [0.0, 1.0, 3.0, 7.0]
    member = fleet.replicas[0]
    assert (member.state, member.failures, member.restarts, member.last_error) == (D, 4, 3, "no weights")
    assert done[-1][1] == Action("give up", 0)
    assert [now for now, action in done if action.kind == "kill"] == [0.25, 1.25, 3.25, 7.25]  # before the pause


def test_a_process_that_dies_when_first_asked_is_given_up_too() -> None:
    """Healthy for a moment is not healthy."""
    fleet = Fleet(1, LIMITS)

    def happen(fleet: Fleet, action: Action, now: float) -> None:
        if action.kind == "start":
            ping(fleet, now)
            assert state_of(fleet) == H
            fleet.died(0, now, "crashed")

    assert starts(live(fleet, 60.0, happen)) == [0.0, 1.0, 3.0, 7.0]
    assert fleet.replicas[0].failures == LIMITS.starts


def test_an_error_of_its_own_is_not_tried_for_long() -> None:
    """Another start would raise it again; a process that was killed in between may have been another's fault."""
    fleet = Fleet(1, LIMITS)
    raised = iter([True, False, True, True])
    done = live(fleet, 60.0, lambda f, a, now: f.died(0, now, "no", raised=next(raised)) if a.kind == "start" else None)
    assert starts(done) == [0.0, 1.0, 3.0, 7.0]
    fleet = Fleet(1, LIMITS)
    done = live(fleet, 60.0, lambda f, a, now: f.died(0, now, "no", raised=True) if a.kind == "start" else None)
    assert starts(done) == [0.0, 1.0]
    assert done[-1][1] == Action("give up", 0)


def test_the_pause_has_a_limit() -> None:
    fleet = Fleet(1, replace(LIMITS, starts=99))
    done = live(fleet, 30.0, lambda f, a, now: f.died(0, now, "no") if a.kind == "start" else None)
    assert starts(done)[:7] == [0.0, 1.0, 3.0, 7.0, 11.0, 15.0, 19.0]


@pytest.mark.parametrize("lived", ["it answered a request", "it lived for a while"])
def test_who_has_lived_is_replaced_at_once_and_for_ever(lived: str) -> None:
    fleet, now = Fleet(1, LIMITS), 0.0
    fleet.step(now)
    for restarts in range(1, 12):
        ping(fleet, now)
        if lived == "it answered a request":
            ping(fleet, now, served=1)
        now += 1.0 if lived == "it answered a request" else LIMITS.trust
        fleet.died(0, now, "killed")
        assert fleet.step(now) == [Action("kill", 0), Action("start", 0)]
        assert (fleet.replicas[0].restarts, fleet.replicas[0].failures) == (restarts, 0)


def test_a_success_wipes_out_the_failures_before_it() -> None:
    fleet = in_state(R)
    for now in (0.0, 10.0, 20.0):
        fleet.died(0, now, "no")
        fleet.step(now + 5.0)
    assert fleet.replicas[0].failures == 3
    ping(fleet, 26.0)
    assert fleet.replicas[0].failures == 3  # not yet
    ping(fleet, 27.0, served=1)
    assert fleet.replicas[0].failures == 0


def test_last_words_wipe_out_nothing() -> None:
    fleet = in_state(R)
    fleet.died(0, 1.0, "no")
    ping(fleet, 1.5, served=1)
    assert (fleet.replicas[0].failures, state_of(fleet)) == (1, D)


def test_a_wedged_model_answers_pings_and_is_ended_all_the_same() -> None:
    fleet = in_state(H)
    ping(fleet, 1.0, served=10, busy=3)
    for now in (2.0, 4.0):
        fleet.reported(0, now)
        ping(fleet, now + 1.0, served=10, busy=3)
    assert state_of(fleet) == Q and fleet.serving() == [0]
    fleet.reported(0, 6.0)
    assert fleet.step(6.0) == [Action("kill", 0), Action("start", 0)]
    assert "callers waited for it in vain" in fleet.replicas[0].last_error


def test_a_new_process_starts_with_a_clean_sheet() -> None:
    fleet = in_state(H)
    ping(fleet, 1.0, served=10, busy=3)
    fleet.reported(0, 2.0)
    fleet.missed(0, 3.0)
    fleet.died(0, 4.0, "killed")
    fleet.step(4.0)
    member = fleet.replicas[0]
    assert (member.misses, member.reports, member.served, member.busy, member.version) == (0, 0, 0, 0, -1)
    assert (member.restarts, member.last_error) == (1, "killed")


def test_healthy_ones_are_offered_before_suspects() -> None:
    fleet = Fleet(3, LIMITS)
    fleet.step(0.0)
    for number in range(3):
        ping(fleet, 1.0, number=number)
    fleet.missed(0, 2.0)
    assert fleet.serving() == [1, 2, 0]


def test_a_release_makes_all_others_stale_and_each_comes_back_by_itself() -> None:
    fleet = Fleet(3, LIMITS)
    fleet.step(0.0)
    for number in range(3):
        ping(fleet, 1.0, number=number)
    fleet.activated(1, 5, 2.0)
    fleet.release(5, 3.0)
    assert fleet.serving() == [1]
    assert fleet.step(3.0) == [Action("sync", 0), Action("sync", 2)]
    fleet.activated(0, 5, 4.0)
    ping(fleet, 4.0, number=2, version=5)
    assert sorted(fleet.serving()) == [0, 1, 2]
    assert fleet.step(4.0) == []


def test_replicas_that_run_already_are_adopted() -> None:
    """By a supervisor that was started anew: as many as there should be are there, so none is started."""
    fleet = Fleet(2, LIMITS)
    fleet.adopt(4, 0.0)
    fleet.adopt(1, 0.0)
    assert fleet.step(0.0) == [] and fleet.serving() == []
    ping(fleet, 1.0, number=4, served=900)
    ping(fleet, 1.0, number=1, served=800, version=3)
    assert fleet.serving() == [4]
    assert fleet.step(1.0) == [Action("sync", 1)]
    fleet.resize(3)
    assert fleet.step(2.0)[-1] == Action("start", 5)  # a number that nobody has had


def test_the_last_adopted_one_goes_if_there_are_too_many() -> None:
    fleet = Fleet(1, LIMITS)
    for number in (0, 1, 2):
        fleet.adopt(number, 0.0)
    assert fleet.step(0.0) == [Action("drain", 2), Action("drain", 1)]


def test_growing() -> None:
    fleet = in_state(H)
    fleet.resize(3)
    assert fleet.step(1.0) == [Action("start", 1), Action("start", 2)]
    assert fleet.step(2.0) == []


@pytest.mark.parametrize(
    "victim, happens",
    [
        (3, lambda f: None),  # of equals the youngest
        (1, lambda f: f.release(0, 2.0) or ping(f, 2.0, number=1, version=9)),  # a stale one before all that serve
        (0, lambda f: f.died(0, 2.0, "killed")),
        (3, lambda f: f.missed(0, 2.0)),  # a suspect serves
    ],
)
def test_shrinking_takes_who_is_missed_least(victim: int, happens: Callable[[Fleet], None]) -> None:
    fleet = Fleet(4, LIMITS)
    fleet.step(0.0)
    for number in range(4):
        ping(fleet, 1.0, number=number)
    happens(fleet)
    fleet.resize(3)
    kind = "kill" if victim == 0 else "drain"  # nothing to finish for a dead one
    assert fleet.step(3.0)[0] == Action(kind, victim)
    assert victim not in fleet.serving()
    assert len(fleet.counted()) == 3


def test_a_retired_one_finishes_its_work_and_goes() -> None:
    fleet = in_state(H)
    ping(fleet, 0.5, served=5, busy=0)
    fleet.resize(0)
    assert fleet.step(1.0) == [Action("drain", 0)]
    assert fleet.step(1.1) == []  # its last ping was before, and requests may have come since
    ping(fleet, 2.0, served=5, busy=2)
    ping(fleet, 4.0, served=7, busy=0)
    assert fleet.step(4.1) == []
    ping(fleet, 6.0, served=7, busy=0)
    assert fleet.step(6.1) == [Action("kill", 0)]
    assert fleet.step(6.2) == [] and not fleet.replicas


def given_up() -> Fleet:
    """Of three replicas number 1 could not be brought up."""
    fleet = Fleet(3, replace(LIMITS, starts=1))
    fleet.step(0.0)
    fleet.died(1, 0.0, "no weights")
    for number in (0, 2):
        ping(fleet, 0.0, number=number)
    assert fleet.step(0.0) == [Action("kill", 1), Action("give up", 1)]
    assert fleet.step(99.0) == [Action("give up", 1)]  # as long as it is so
    return fleet


def test_one_that_was_given_up_counts_and_goes_first() -> None:
    fleet = given_up()
    fleet.resize(4)
    assert fleet.step(100.0) == [Action("give up", 1), Action("start", 3)]  # no more processes than the size
    fleet.resize(2)
    assert fleet.step(101.0) == [Action("drain", 3)]  # it has not started; then the dead one
    assert sorted(fleet.replicas) == [0, 2, 3]
    assert fleet.step(102.0) == []
    fleet.resize(3)
    assert fleet.step(103.0) == [Action("start", 4)]  # room for a new attempt, under a new number


def test_one_that_is_gone_is_no_error() -> None:
    """What was under way when a replica was removed."""
    fleet = Fleet(0, LIMITS)
    ping(fleet, 1.0, number=7)
    fleet.missed(7, 1.0)
    fleet.reported(7, 1.0)
    fleet.died(7, 1.0, "killed")
    fleet.activated(7, 1, 1.0)
    assert fleet.step(1.0) == [] and not fleet.replicas


@pytest.mark.parametrize(
    "size, wait, idle, wanted",
    [(2, 0.5, 0.0, 3), (4, 0.5, 0.0, 4), (2, 0.1, 0.0, 2), (2, 0.0, 61.0, 1), (1, 0.0, 61.0, 1), (2, 0.5, 61.0, 3)],
)
def test_the_size_that_is_wanted(size: int, wait: float, idle: float, wanted: int) -> None:
    assert wanted_size(size, 1, 4, wait, aim=0.25, idle=idle, linger=60.0) == wanted

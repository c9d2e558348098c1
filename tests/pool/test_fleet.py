"""The states of a pool's replicas: every edge of the drawing, no other one, and what each asks the supervisor to do."""

import random
from dataclasses import dataclass, field

import pytest

from energymt.pool.fleet import Action, Fleet, Member, ReplicaState
from tests.pool.fleets import (
    ALL,
    GONE,
    LIMITS,
    Event,
    died,
    in_state,
    missed,
    pinged,
    released,
    reported,
    resized,
    state_of,
    step,
    switched,
    wedged,
)

BUSY = [event for now in range(1, 51) for event in (pinged(now, busy=1), step(now))]
R, S, H, Q, D, X = ALL  # restarting, stale, healthy, suspect, dead, retired
EDGES: list[tuple[str, ReplicaState, list[Event], ReplicaState | None]] = [
    ("a ping, current version", R, [pinged()], H),
    ("a ping, another version", R, [pinged(version=7)], S),
    ("pings missed and reports", R, [missed(9), *wedged(9, version=7)], S),  # a process that starts has its own limit
    ("just in time", R, [step(100.0)], R),
    ("too long", R, [step(100.1)], D),
    ("process gone", R, [died], D),
    ("superfluous", R, [resized(0)], X),
    ("a ping, current version", S, [pinged()], H),
    ("a ping, another version", S, [pinged(version=7)], S),
    ("its version is released", S, [released(-1)], H),
    ("it switched", S, [switched(0)], H),
    ("it switched to another one", S, [switched(7)], S),
    ("pings missed", S, [missed(2)], S),
    ("too many pings missed", S, [missed(3)], D),
    ("reports", S, wedged(9, version=7, busy=1), S),  # nobody may ask it
    ("process gone", S, [died], D),
    ("superfluous", S, [resized(0)], X),
    ("a ping", H, [pinged()], H),
    ("a ping, another version", H, [pinged(version=7)], S),
    ("another version is released", H, [released(1)], S),
    ("it switched before the release", H, [switched(1)], S),
    ("it switched, and then the release", H, [switched(1), released(1)], H),
    ("a ping missed", H, [missed(1)], Q),
    ("two pings missed", H, [missed(2)], Q),
    ("too many pings missed", H, [missed(3)], D),
    ("a report", H, [reported()], Q),
    ("many reports at once", H, [reported(50)], Q),
    ("reports, nothing answered", H, wedged(3, busy=1), D),
    ("reports, but it answers", H, [event for n in range(1, 9) for event in wedged(1, busy=1, served=n)], Q),
    ("reports, but nothing is left to answer", H, wedged(9, busy=0), Q),
    ("process gone", H, [died], D),
    ("superfluous", H, [resized(0)], X),
    ("a ping too early", Q, [pinged(29.0)], Q),
    ("a ping after a quiet time", Q, [pinged(30.0)], H),
    ("a ping after a report, nothing answered", Q, [reported(), pinged(90.0, busy=1)], Q),
    ("a ping, another version", Q, [pinged(version=7)], S),
    ("another version is released", Q, [released(1)], S),
    ("one more ping missed", Q, [missed(1)], Q),
    ("two more pings missed", Q, [missed(2)], D),
    ("a ping, and two missed", Q, [pinged(), missed(2)], Q),
    ("reports, nothing answered", Q, wedged(3, busy=1), D),
    ("process gone", Q, [died], D),
    ("superfluous", Q, [resized(0)], X),
    ("its last words", D, [pinged()], D),
    ("it switched before it died", D, [switched(0), released(0)], D),
    ("pings missed and reports", D, [missed(9), *wedged(9, busy=1)], D),
    ("before the pause is over", D, [step(0.5)], D),
    ("after the pause", D, [step(1.0)], R),
    ("superfluous", D, [resized(0)], GONE),
    ("one ping without work", X, [pinged(), step(2.0)], X),  # it may be an old one
    ("pings without work", X, [pinged(), pinged(2.0), step(2.0)], GONE),
    ("a ping with work in between", X, [pinged(), pinged(busy=1), pinged(), step(2.0)], X),
    ("work for as long as it may", X, BUSY, X),
    ("work for too long", X, [*BUSY, step(50.1)], GONE),
    ("pings missed", X, [missed(3), step(2.0)], GONE),
    ("process gone", X, [died, step(2.0)], GONE),
    ("a release", X, [released(1)], X),
    ("wanted again", X, [resized(1)], X),  # another one is started
]


@pytest.mark.parametrize("state, events, wanted", [edge[1:] for edge in EDGES], ids=[f"{e[1]}: {e[0]}" for e in EDGES])
def test_edges(state: ReplicaState, events: list[Event], wanted: ReplicaState | None) -> None:
    fleet = in_state(state)
    for event in events:
        event(fleet)
    assert state_of(fleet) == wanted


def test_a_start_that_takes_too_long_is_ended_and_tried_again() -> None:
    fleet = in_state(R)
    assert fleet.step(100.0) == []
    assert fleet.step(100.1) == [Action("kill", 0)]
    assert "did not start within 100 s" in fleet.replicas[0].last_error
    assert fleet.step(101.0) == []
    assert fleet.step(101.2) == [Action("start", 0)]
    assert fleet.step(201.1) == []  # the limit counts from the new start


DRAWN = {
    (GONE, R),
    (R, S),
    (R, D),
    (S, H),
    (S, D),
    (H, Q),
    (Q, H),
    (H, S),
    (Q, S),
    (H, D),
    (Q, D),
    (D, R),
    *((state, X) for state in (R, S, H, Q)),
    (X, GONE),
    (D, GONE),
}


@dataclass
class Watched(Fleet):
    """Notes which edges were taken."""

    edges: set[tuple[ReplicaState | None, ReplicaState | None]] = field(default_factory=set)

    def _turn(self, replica: Member, state: ReplicaState, now: float) -> None:
        if replica.state != state:
            self.edges.add((replica.state, state))
        super()._turn(replica, state, now)


def happen(fleet: Fleet, draw: random.Random, now: float) -> float:
    """Anything, to any replica; what time it is then."""
    number, version = draw.randrange(fleet.next_number + 1), draw.choice([fleet.version, fleet.version, -1, 0, 1, 2])
    name = draw.choice(["pinged"] * 8 + ["missed"] * 4 + ["reported"] * 3 + ["died", "release", "resize", "activated"])
    arguments = {
        "pinged": (number, now, version, draw.randrange(4), draw.randrange(3)),
        "missed": (number, now),
        "reported": (number, now),
        "died": (number, now, "killed"),
        "release": (draw.randrange(3), now),
        "resize": (draw.randrange(1, 4),),
        "activated": (number, version, now),
    }
    getattr(fleet, name)(*arguments[name])
    return now + draw.choice([0.0, 0.0, 0.5, 3.0, 40.0, 120.0])


def test_any_history() -> None:
    """Edges that are drawn are taken, others are not, and the actions leave the right processes behind."""
    edges = set()
    for seed in range(100):
        draw, now = random.Random(seed), 0.0
        fleet = Watched(draw.randrange(1, 4), LIMITS)
        processes: set[int] = set()  # that run, as far as the actions say
        for _ in range(150):
            now = happen(fleet, draw, now)
            before = {number: member.state for number, member in fleet.replicas.items()}
            for action in fleet.step(now):
                act(fleet, action, processes)
            members = fleet.replicas.values()
            assert len(fleet.counted()) == fleet.size
            assert processes == {m.number for m in members if m.state != D}  # nothing left behind, nothing missing
            serving = {m.number for m in members if m.state in (H, Q)}
            assert set(fleet.serving()) == serving and all(fleet.replicas[n].version == fleet.version for n in serving)
            assert all(m.misses < LIMITS.misses and m.reports < LIMITS.reports for m in members if m.number in serving)
            for number in before.keys() | fleet.replicas.keys():
                first, second = before.get(number), state_of(fleet, number)
                if second is GONE or first is GONE or (first, second) == (D, R):
                    fleet.edges.add((first, second))
        edges |= fleet.edges
    assert edges == DRAWN


def act(fleet: Fleet, action: Action, processes: set[int]) -> None:
    state = state_of(fleet, action.replica)
    if action.kind == "start":
        assert action.replica not in processes and state == R
        processes.add(action.replica)
    elif action.kind == "kill":
        assert action.replica in processes and state in (D, R, GONE)
        processes.remove(action.replica)
    else:
        assert {"sync": S, "drain": X, "give up": D}[action.kind] == state


def require_drawn(before: dict[int, ReplicaState], fleet: Fleet) -> None:
    """What was seen may turn a replica along at most two edges: a report too many goes through suspicion."""
    for number, state in before.items():
        after = state_of(fleet, number)
        through = {second for first, second in DRAWN if first == state and second is not GONE}
        assert after == state or (state, after) in DRAWN or any((middle, after) in DRAWN for middle in through)
        assert not (state == D and after not in (D, R, GONE))
        assert not (state == X and after not in (X, GONE))

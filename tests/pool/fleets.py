"""Fleets in any state, what may happen to them, and the time that passes."""

from collections.abc import Callable

from energymt.pool.fleet import Action, Fleet, Limits, ReplicaState

LIMITS = Limits(start=100.0, drain=50.0, trust=30.0, backoff=1.0, longest_backoff=4.0, starts=4)
ALL = list(ReplicaState)
GONE = None


def in_state(state: ReplicaState, size: int = 1) -> Fleet:
    """A fleet whose replica 0 is in a state, at time 0; the only way there is through what happens."""
    fleet = Fleet(size, LIMITS)
    fleet.step(0.0)
    if state == ReplicaState.STALE:
        fleet.pinged(0, 0.0, version=-1, served=0, busy=0)
    elif state != ReplicaState.RESTARTING:
        fleet.pinged(0, 0.0, version=0, served=0, busy=0)
    if state == ReplicaState.SUSPECT:
        fleet.missed(0, 0.0)
    elif state == ReplicaState.DEAD:
        fleet.died(0, 0.0, "killed")
    elif state == ReplicaState.RETIRED:
        fleet.resize(0)
        fleet.step(0.0)
    assert state_of(fleet) == state
    return fleet


def state_of(fleet: Fleet, number: int = 0) -> ReplicaState | None:
    return fleet.replicas[number].state if number in fleet.replicas else GONE


def ping(fleet: Fleet, now: float, *, version: int = 0, served: int = 0, busy: int = 0, number: int = 0) -> None:
    fleet.pinged(number, now, version, served, busy)


Event = Callable[[Fleet], object]


def pinged(now: float = 1.0, **seen: int) -> Event:
    return lambda fleet: ping(fleet, now, **seen)


def missed(count: int = 1) -> Event:
    return lambda fleet: [fleet.missed(0, 1.0) for _ in range(count)]


def reported(count: int = 1) -> Event:
    return lambda fleet: [fleet.reported(0, 1.0) for _ in range(count)]


def died(fleet: Fleet) -> None:
    fleet.died(0, 1.0, "killed")


def released(version: int) -> Event:
    return lambda fleet: fleet.release(version, 1.0)


def switched(version: int) -> Event:
    return lambda fleet: fleet.activated(0, version, 1.0)


def step(now: float) -> Event:
    return lambda fleet: fleet.step(now)


def resized(size: int) -> Event:
    return lambda fleet: (fleet.resize(size), fleet.step(1.0))


def wedged(pings: int, **seen: int) -> list[Event]:
    """Callers complain before each of so many pings."""
    return [event for _ in range(pings) for event in (reported(5), pinged(**seen))]


def live(fleet: Fleet, until: float, events: Callable[[Fleet, Action, float], None], tick: float = 0.25) -> list:
    """Step through time; `events` answers the actions."""
    done, now = [], 0.0
    while now <= until:
        for action in fleet.step(now):
            done.append((now, action))
            events(fleet, action, now)
        now += tick
    return done


def starts(done: list) -> list[float]:
    return [now for now, action in done if action.kind == "start"]

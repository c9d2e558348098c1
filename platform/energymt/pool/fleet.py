"""The states of a pool's replicas, as a pure machine: what was seen goes in, what must be done comes out.

    restarting ──ping──> stale ──current version──> healthy <──pings── suspect
        │                  ^                           │  ──missed, reported──^
        └── too long ──> dead <── missed too often, reported too often, process gone
                          └──> restarting (a new process)          retired: drained, then gone

A dead replica never comes back to life: another process takes its place. A stale one answers pings and must not serve.
Time is an argument; nothing in here sleeps, and nothing knows Ray.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum


class State(StrEnum):
    """Of a replica."""

    RESTARTING = "restarting"  # its process was started and has not answered yet
    STALE = "stale"  # answers, but holds another version of the energy
    HEALTHY = "healthy"
    SUSPECT = "suspect"  # serves, but missed a ping or was reported by a caller
    DEAD = "dead"  # waits for its replacement
    RETIRED = "retired"  # finishes what it has, then goes


SERVING = (State.HEALTHY, State.SUSPECT)


@dataclass(frozen=True)
class Limits:
    """How patient a pool is; seconds."""

    misses: int = 3  # pings in a row before a replica is dead
    reports: int = 3  # callers' reports without an answered request in between before a replica is dead
    start: float = 300.0  # until a new process must have answered
    drain: float = 60.0  # until a retired one goes, whatever it has
    trust: float = 30.0  # without a miss or report until a suspect is healthy again
    backoff: float = 1.0  # before a replacement that follows a start that failed; doubles up to `longest_backoff`
    longest_backoff: float = 60.0
    starts: int = 5  # in a row that never became healthy: then the pool gives the replica up


@dataclass(frozen=True)
class Action:
    """What the supervisor must do."""

    kind: str  # "start", "kill", "sync", "drain", "give up"
    replica: int


@dataclass
class Replica:
    """What is known of one."""

    number: int
    state: State
    since: float
    version: int = -1
    misses: int = 0
    reports: int = 0
    served: int = 0  # requests, at its last ping
    busy: int = 0  # requests in flight, at its last ping
    trouble: float = 0.0  # time of the last miss or report
    failures: int = 0  # starts in a row that never became healthy
    restarts: int = 0
    start_at: float = 0.0  # of the next process
    last_error: str = ""


@dataclass
class Fleet:
    """All replicas of a pool.

    Args:
        size: replicas wanted.
        limits: see `Limits`.
        version: of the energy that may be served.
    """

    size: int
    limits: Limits = field(default_factory=Limits)
    version: int = 0
    replicas: dict[int, Replica] = field(default_factory=dict)
    next_number: int = 0

    def serving(self) -> list[int]:
        """Replicas that callers may use: healthy ones before suspects."""
        found = [replica for replica in self.replicas.values() if replica.state in SERVING]
        return [replica.number for replica in sorted(found, key=lambda replica: replica.state == State.SUSPECT)]

    def counted(self) -> list[Replica]:
        """Replicas that make up the size of the pool."""
        return [replica for replica in self.replicas.values() if replica.state != State.RETIRED]

    def adopt(self, number: int, now: float) -> None:
        """A replica that runs already; it serves when it has answered a ping."""
        self.replicas[number] = Replica(number, State.RESTARTING, now)
        self.next_number = max(self.next_number, number + 1)

    # What was seen.

    def pinged(self, number: int, now: float, version: int, served: int, busy: int) -> None:
        """It answered a ping."""
        replica = self.replicas[number]
        if replica.state == State.DEAD:  # its last words; no way back
            return
        if served > replica.served:
            replica.reports = 0
        replica.version, replica.misses, replica.served, replica.busy = version, 0, served, busy
        if replica.state == State.RETIRED:
            return
        if version != self.version:
            self._turn(replica, State.STALE, now)
        elif replica.state in (State.RESTARTING, State.STALE):
            replica.failures = 0
            self._turn(replica, State.HEALTHY, now)
        elif replica.state == State.SUSPECT and not replica.reports and now - replica.trouble >= self.limits.trust:
            self._turn(replica, State.HEALTHY, now)

    def missed(self, number: int, now: float) -> None:
        """It did not answer a ping in time."""
        replica = self.replicas[number]
        if replica.state in (State.DEAD, State.RESTARTING):  # a process that starts has its own limit
            return
        replica.misses += 1
        replica.trouble = now
        if replica.misses >= self.limits.misses:
            self.died(number, now, f"it missed {replica.misses} pings in a row")
        elif replica.state == State.HEALTHY:
            self._turn(replica, State.SUSPECT, now)

    def reported(self, number: int, now: float) -> None:
        """A caller waited for it in vain: a wedged model still answers pings."""
        replica = self.replicas.get(number)
        if replica is None or replica.state not in SERVING:
            return
        replica.reports += 1
        replica.trouble = now
        if replica.reports >= self.limits.reports:
            self.died(number, now, f"{replica.reports} callers in a row waited for it in vain")
        else:
            self._turn(replica, State.SUSPECT, now)

    def died(self, number: int, now: float, reason: str) -> None:
        """Its process is gone, or as good as gone."""
        replica = self.replicas.get(number)
        if replica is None or replica.state == State.DEAD:
            return
        if replica.state == State.RETIRED:
            del self.replicas[number]
            return
        never_lived = replica.state in (State.RESTARTING, State.STALE)
        replica.failures = replica.failures + 1 if never_lived else 0
        delay = self.limits.backoff * 2 ** (replica.failures - 1) if replica.failures else 0.0
        replica.start_at = now + min(delay, self.limits.longest_backoff)
        replica.last_error = reason
        self._turn(replica, State.DEAD, now)

    # What is wanted.

    def release(self, version: int, now: float) -> None:
        """From now on only this version may be served."""
        self.version = version
        for replica in self.replicas.values():
            if replica.state in SERVING and replica.version != version:
                self._turn(replica, State.STALE, now)
            elif replica.state == State.STALE and replica.version == version:
                self._turn(replica, State.HEALTHY, now)

    def activated(self, number: int, version: int, now: float) -> None:
        """It has switched to another version."""
        replica = self.replicas[number]
        replica.version = version
        if replica.state == State.STALE and version == self.version:
            self._turn(replica, State.HEALTHY, now)

    def resize(self, size: int) -> None:
        """Another number of replicas."""
        self.size = size

    def step(self, now: float) -> list[Action]:
        """What must be done now; call it again soon."""
        actions = [action for replica in list(self.replicas.values()) for action in self._look_at(replica, now)]
        missing = self.size - len(self.counted())
        for _ in range(missing):
            number, self.next_number = self.next_number, self.next_number + 1
            self.replicas[number] = Replica(number, State.RESTARTING, now)
            actions.append(Action("start", number))
        for replica in self._superfluous(-missing):
            self._turn(replica, State.RETIRED, now)
            actions.append(Action("drain", replica.number))
        return actions

    def _look_at(self, replica: Replica, now: float) -> Iterable[Action]:
        if replica.state == State.RESTARTING and now - replica.since > self.limits.start:
            self.died(replica.number, now, f"it did not start within {self.limits.start:.0f} s")
        if replica.state == State.STALE:
            yield Action("sync", replica.number)
        elif replica.state == State.RETIRED:
            if replica.busy == 0 or now - replica.since > self.limits.drain:
                yield Action("kill", replica.number)
        elif replica.state == State.DEAD:
            if replica.failures >= self.limits.starts:
                yield Action("give up", replica.number)
            elif now >= replica.start_at:
                yield Action("kill", replica.number)
                replica.restarts += 1
                replica.misses = replica.reports = replica.served = replica.busy = 0
                replica.version = -1
                self._turn(replica, State.RESTARTING, now)
                yield Action("start", replica.number)

    def _superfluous(self, count: int) -> list[Replica]:
        """Those that are missed least: what does not serve first, then the youngest."""
        ranked = sorted(self.counted(), key=lambda replica: (replica.state in SERVING, -replica.number))
        return ranked[: max(0, count)]

    def _turn(self, replica: Replica, state: State, now: float) -> None:
        if replica.state != state:
            replica.state, replica.since = state, now


def wanted_size(size: int, least: int, most: int, wait: float, aim: float, idle: float, linger: float) -> int:
    """How many replicas to have: one more while requests wait too long, one less after a quiet time.

    Args:
        size: now.
        least, most: bounds.
        wait: seconds that requests waited in the queue, on average.
        aim: seconds that they may.
        idle: seconds since a replica was last needed.
        linger: seconds after which one goes.
    """
    if wait > aim:
        size += 1
    elif idle > linger:
        size -= 1
    return max(least, min(most, size))

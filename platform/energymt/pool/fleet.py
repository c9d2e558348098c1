"""The states of a pool's replicas, as a pure machine: what was seen goes in, what must be done comes out.

    from         to           when
    (nothing)    restarting   there are too few; or it runs already and the supervisor is new
    restarting   stale        a ping is answered
    stale        healthy      it holds the current version, as it may do at once
    healthy      suspect      a ping is missed, or a caller waited in vain
    suspect      healthy      no trouble for a while, and something answered or nothing to do since the last report
    serving      stale        it holds another version (serving: healthy or suspect)
    serving      dead         pings missed in a row, reports without an answer in between
    stale        dead         pings missed in a row
    restarting   dead         no ping answered in time
    any          dead         its process is gone
    dead         restarting   after a pause; its old process is ended before
    any but dead retired      there are too many
    retired      (nothing)    all that it had is answered, or it took too long, or it is gone
    dead         (nothing)    there are too many

A dead replica never comes back to life: another process takes its place. A stale one answers pings and must not serve.
One that dies again and again without having served is given up: it stays dead, and counts as one of the pool.
Time is an argument; nothing in here sleeps, and nothing knows Ray.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum


class ReplicaState(StrEnum):
    """Of a replica."""

    RESTARTING = "restarting"  # its process was started and has not answered yet
    STALE = "stale"  # answers, but holds another version of the energy
    HEALTHY = "healthy"
    SUSPECT = "suspect"  # serves, but missed a ping or was reported by a caller
    DEAD = "dead"  # waits for its replacement
    RETIRED = "retired"  # finishes what it has, then goes


State = ReplicaState
SERVING = (State.HEALTHY, State.SUSPECT)
CALM = 2  # pings in a row without work until a retired replica has none: the first may be older than its retirement


@dataclass(frozen=True)
class Limits:
    """How patient a pool is; seconds."""

    misses: int = 3  # pings in a row before a replica is dead
    reports: int = 3  # pings in a row with a caller's report before each, and nothing answered, before it is dead
    start: float = 300.0  # until a new process must have answered
    drain: float = 60.0  # until a retired one goes, whatever it has
    trust: float = 30.0  # without a miss or report until a suspect is healthy again
    backoff: float = 1.0  # before a replacement that follows a start that failed; doubles up to `longest_backoff`
    longest_backoff: float = 60.0
    starts: int = 6  # in a row that neither served nor lived for `trust`: then the pool gives the replica up
    errors: int = 2  # in a row of them that ended in an error of its own, which another start only repeats: the same


@dataclass(frozen=True)
class Action:
    """What the supervisor must do."""

    kind: str  # "start", "kill", "sync", "drain", "give up"
    replica: int


@dataclass
class Member:
    """What is known of one replica."""

    number: int
    state: ReplicaState
    since: float
    version: int = -1
    misses: int = 0
    reports: int = 0
    reported: bool = False  # since its last ping
    served: int = 0  # requests, at its last ping
    busy: int = 0  # requests in flight, at its last ping
    calm: int = 0  # pings in a row without any
    trouble: float = 0.0  # time of the last miss or report
    lives_since: float | None = None  # when this process first had the current version
    left_over: bool = False  # dead, and its process may still be there
    failures: int = 0  # starts in a row that came to nothing
    errors: int = 0  # of them, the last ones in a row that raised
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
        reserved: replicas of the numbers below it have room of their own, so these numbers are given again.
    """

    size: int
    limits: Limits = field(default_factory=Limits)
    version: int = 0
    reserved: int = 0
    replicas: dict[int, Member] = field(default_factory=dict)
    next_number: int = 0

    def serving(self) -> list[int]:
        """Replicas that callers may use: healthy ones before suspects."""
        found = [replica for replica in self.replicas.values() if replica.state in SERVING]
        return [replica.number for replica in sorted(found, key=lambda replica: replica.state == State.SUSPECT)]

    def counted(self) -> list[Member]:
        """Replicas that make up the size of the pool."""
        return [replica for replica in self.replicas.values() if replica.state != State.RETIRED]

    def settled(self) -> bool:
        """Whether it has what it can have: every replica serves, or was given up."""
        return all(replica.state in SERVING or self._hopeless(replica) for replica in self.counted())

    def adopt(self, number: int, now: float) -> None:
        """A replica that runs already; it serves when it has answered a ping."""
        self.replicas[number] = Member(number, State.RESTARTING, now)
        self.next_number = max(self.next_number, number + 1)

    # What was seen.

    def pinged(self, number: int, now: float, version: int, served: int, busy: int) -> None:
        """It answered a ping."""
        replica = self.replicas.get(number)
        if replica is None or replica.state == State.DEAD:  # its last words; no way back
            return
        if served > replica.served or not busy:
            replica.reports = 0
        replica.version, replica.misses, replica.served, replica.busy = version, 0, served, busy
        replica.reported, replica.calm = False, 0 if busy else replica.calm + 1
        if self._proven(replica, now):
            replica.failures = 0
        if replica.state == State.RETIRED:
            return
        if replica.state == State.RESTARTING:
            self._turn(replica, State.STALE, now)
        self._compare(replica, now)
        if replica.state == State.SUSPECT and not replica.reports and now - replica.trouble >= self.limits.trust:
            self._turn(replica, State.HEALTHY, now)

    def missed(self, number: int, now: float) -> None:
        """It did not answer a ping in time."""
        replica = self.replicas.get(number)
        if replica is None or replica.state in (State.DEAD, State.RESTARTING):  # a start has its own limit
            return
        replica.misses += 1
        replica.trouble = now
        if replica.misses >= self.limits.misses:
            self.died(number, now, f"it missed {replica.misses} pings in a row")
        elif replica.state == State.HEALTHY:
            self._turn(replica, State.SUSPECT, now)

    def reported(self, number: int, now: float) -> None:
        """A caller waited for it in vain: a wedged model still answers pings.

        All reports between two pings are one: a replica that is only slow is reported by many callers at once.
        """
        replica = self.replicas.get(number)
        if replica is None or replica.state not in SERVING:
            return
        replica.reports += not replica.reported
        replica.reported, replica.trouble = True, now
        if replica.reports >= self.limits.reports:
            self.died(number, now, f"callers waited for it in vain through {replica.reports} pings in a row")
        else:
            self._turn(replica, State.SUSPECT, now)

    def died(self, number: int, now: float, reason: str, *, raised: bool = False) -> None:
        """Its process is gone, or as good as gone; `raised`: it never began, for its own code raised an error."""
        replica = self.replicas.get(number)
        if replica is None or replica.state == State.DEAD:
            return
        if replica.state == State.RETIRED:
            replica.calm = CALM
            return
        replica.failures = 0 if self._proven(replica, now) else replica.failures + 1
        replica.errors = replica.errors + 1 if raised else 0
        delay = self.limits.backoff * 2 ** (replica.failures - 1) if replica.failures else 0.0
        replica.start_at = now + min(delay, self.limits.longest_backoff)
        replica.last_error, replica.left_over = reason, True
        self._turn(replica, State.DEAD, now)

    # What is wanted.

    def release(self, version: int, now: float) -> None:
        """From now on only this version may be served."""
        self.version = version
        for replica in self.replicas.values():
            self._compare(replica, now)

    def activated(self, number: int, version: int, now: float) -> None:
        """It has switched to another version."""
        replica = self.replicas.get(number)
        if replica is not None:
            replica.version = version
            self._compare(replica, now)

    def resize(self, size: int) -> None:
        """Another number of replicas."""
        self.size = size

    def step(self, now: float) -> list[Action]:
        """What must be done now, in this order; call it again soon."""
        actions = list(self._shrink(now))
        for replica in list(self.replicas.values()):
            actions += self._look_at(replica, now)
        for _ in range(self.size - len(self.counted())):
            number = next((free for free in range(self.reserved) if free not in self.replicas), self.next_number)
            self.adopt(number, now)
            actions.append(Action("start", number))
        return actions

    def _shrink(self, now: float) -> Iterable[Action]:
        """Let those go that are missed least: what does not serve first, then the youngest."""
        ranked = sorted(self.counted(), key=lambda replica: (replica.state in SERVING, -replica.number))
        for replica in ranked[: max(0, len(ranked) - self.size)]:
            if replica.state == State.DEAD:
                del self.replicas[replica.number]
                if replica.left_over:
                    yield Action("kill", replica.number)
            else:
                replica.calm = 0
                self._turn(replica, State.RETIRED, now)
                yield Action("drain", replica.number)

    def _look_at(self, replica: Member, now: float) -> Iterable[Action]:
        number = replica.number
        if replica.state == State.RESTARTING and now - replica.since > self.limits.start:
            self.died(number, now, f"it did not start within {self.limits.start:.0f} s")
        if replica.state == State.STALE:
            yield Action("sync", number)
        elif replica.state == State.RETIRED and (replica.calm >= CALM or now - replica.since > self.limits.drain):
            del self.replicas[number]
            yield Action("kill", number)
        elif replica.state == State.DEAD:
            if replica.left_over:
                replica.left_over = False
                yield Action("kill", number)
            if self._hopeless(replica):
                yield Action("give up", number)
            elif now >= replica.start_at:
                fresh = Member(number, State.RESTARTING, now, failures=replica.failures, last_error=replica.last_error)
                fresh.restarts, fresh.errors = replica.restarts + 1, replica.errors
                self.replicas[number] = fresh
                yield Action("start", number)

    def _hopeless(self, replica: Member) -> bool:
        """Whether it is dead for good."""
        spent = replica.failures >= self.limits.starts or replica.errors >= self.limits.errors
        return replica.state == State.DEAD and spent

    def _proven(self, replica: Member, now: float) -> bool:
        """Whether its start was a success: a replica that dies as soon as it is asked has not lived."""
        lived = replica.lives_since is not None and now - replica.lives_since >= self.limits.trust
        return replica.served > 0 or lived

    def _compare(self, replica: Member, now: float) -> None:
        """Its version with the one that may be served, which a newer one may not be either."""
        if replica.state in SERVING and replica.version != self.version:
            self._turn(replica, State.STALE, now)
        elif replica.state == State.STALE and replica.version == self.version:
            self._turn(replica, State.HEALTHY, now)

    def _turn(self, replica: Member, state: ReplicaState, now: float) -> None:
        if replica.state != state:
            replica.state, replica.since = state, now
        if state == State.HEALTHY and replica.lives_since is None:
            replica.lives_since = now


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

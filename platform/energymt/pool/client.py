"""A caller's end of the pool: which replica to ask, when to ask another, and when to give up.

Nothing waits past its deadline. Scoring changes nothing on a replica, so a request may be asked again anywhere: when a
replica dies, refuses, or takes longer than an attempt may; an earlier attempt that answers after all is welcome.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from itertools import count
from math import inf
from typing import Protocol
from weakref import WeakSet

from energymt.errors import EnergyTimeout, EnergyUnavailable, EnergyVersionError
from energymt.pool.naming import command
from energymt.pool.wire import Ragged, Refusal, Reply, Request

PAUSE = 0.1  # seconds until everybody is asked again, or a pool that has nobody to ask is looked at
TURN = 0.05  # seconds of listening to all that were asked, one after the other


class GoneError(Exception):
    """The process behind a call is gone."""


class Call(Protocol):
    """A request on its way."""

    def wait(self, seconds: float) -> Reply | Refusal | None:
        """The answer, or None if there is none yet. Raises GoneError if there will be none."""
        ...


@dataclass(frozen=True)
class View:
    """Who can be asked, best first, with the sentences that wait there; and why nobody can."""

    queues: dict[int, int]
    trouble: str = ""


class Transport(Protocol):
    """How requests reach replicas."""

    name: str

    def view(self, fresh: bool, seconds: float) -> View:
        """Who can be asked; `fresh` asks the supervisor now, and nobody waits longer than `seconds` for it.

        Raises GoneError if it does not answer: what was seen before holds still.
        """
        ...

    def send(self, replica: int, request: Request) -> Call:
        """Send without waiting. Raises GoneError if the replica is not there."""
        ...

    def report(self, replica: int) -> None:
        """Say that a caller waited for it in vain."""
        ...


class Clock(Protocol):
    """Seconds; the module `time` is one."""

    def monotonic(self) -> float: ...

    def sleep(self, seconds: float, /) -> None: ...


class Client:
    """Asks a pool; many threads may share one.

    Args:
        transport: to its replicas.
        deadline: seconds until `result` raises.
        attempt: seconds after which another replica is asked too.
        alone: every request is one batch, on a replica that depends on the number of the call alone.
        clock: of this machine.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        deadline: float = 120.0,
        attempt: float = 30.0,
        alone: bool = False,
        clock: Clock = time,
    ) -> None:
        self.transport, self.deadline, self.attempt, self.alone = transport, deadline, attempt, alone
        self.clock = clock
        self.id = uuid.uuid4().hex
        self.calls = count()
        self.last_view: View | None = None
        self.tickets: WeakSet[Ticket] = WeakSet()  # one that its caller has dropped is in flight no more
        self.lock = threading.Lock()

    def submit(
        self,
        source: Ragged,
        target: Ragged,
        *,
        gradient: bool,
        precision: str = "fp32",
        version: int = 0,
        deadline: float | None = None,
    ) -> Ticket:
        """Send a request; several may be in flight."""
        number, seconds = next(self.calls), self.deadline if deadline is None else deadline
        request = Request(
            f"{self.id}-{number}", self.id, source, target, gradient, precision, version, seconds, self.alone
        )
        ticket = Ticket(self, request, number, self.clock.monotonic() + seconds)
        with self.lock:
            self.tickets.add(ticket)
        ticket.ask()
        return ticket

    def in_flight(self) -> Counter[int]:
        """Sentences that this caller has at each replica."""
        found: Counter[int] = Counter()
        with self.lock:
            for ticket in self.tickets:
                found.update(dict.fromkeys(list(ticket.running), len(ticket.request)))
        return found

    def view(self, fresh: bool, seconds: float) -> View:
        """Who can be asked; the last that was known, if there is nobody who would know better within `seconds`."""
        try:
            self.last_view = self.transport.view(fresh, seconds)
        except GoneError as error:
            return replace(self.last_view or View({}), trouble=str(error))
        return self.last_view

    def choose(self, view: View, avoid: Collection[int], number: int) -> int | None:
        """The least loaded replica that is not to be avoided, None if there is none."""
        able = [replica for replica in view.queues if replica not in avoid]
        if not able:
            return None
        if self.alone:
            return sorted(able)[number % len(able)]
        own = self.in_flight()
        return min(able, key=lambda replica: view.queues[replica] + own[replica])


@dataclass(eq=False)
class Ticket:
    """A request in flight."""

    client: Client
    request: Request
    number: int
    ends: float  # on this machine's clock
    running: dict[int, Call] = field(default_factory=dict)
    asked: dict[int, float] = field(default_factory=dict)  # when
    tried: set[int] = field(default_factory=set)  # in this round; they died or refused
    pause: float = 0.0  # until the next round
    ask_at: float = 0.0
    refusal: Refusal | None = None  # the last one
    failures: dict[int, str] = field(default_factory=dict)  # replicas on which this very request raises an error
    trouble: str = ""
    reply: Reply | None = None

    def ask(self) -> None:
        """Ask one replica that was not asked yet; once all were, rest a little, and then anew."""
        left = max(0.0, self.ends - self.client.clock.monotonic())
        view = self.client.view(fresh=bool(self.tried or self.trouble), seconds=left)
        now = self.client.clock.monotonic()
        replica = self.client.choose(view, self.tried | self.running.keys(), self.number)
        if replica is None:
            self._rest(view, now)
            return
        try:
            self.running[replica] = self.client.transport.send(replica, replace(self.request, seconds=self.ends - now))
        except GoneError as error:
            self._lost(replica, error)
        else:
            self.asked[replica], self.ask_at = now, now + self.client.attempt

    def result(self) -> Reply:
        """Wait for the answer.

        Raises:
            EnergyTimeout, EnergyUnavailable, EnergyVersionError: see there; never later than the deadline.
        """
        clock = self.client.clock
        try:
            while self.reply is None:
                self.reply = self._listen()  # before the clock: it may have come while the caller was away
                now = clock.monotonic()
                if self.reply is None and (now >= self.ends or len(self.failures) > 1):
                    raise self._error()
                if self.reply is None and now >= self.ask_at:
                    self._complain(now)
                    self.ask()
            return self.reply
        finally:
            self.running.clear()

    def _listen(self) -> Reply | None:
        """Wait for the answer until something else is to be done."""
        clock = self.client.clock
        until = min(self.ends, self.ask_at)
        if not self.running:
            clock.sleep(max(0.0, until - clock.monotonic()))
        single, turn = len(self.running) == 1, TURN / max(1, len(self.running))
        for replica, call in list(self.running.items()):
            try:
                answer = call.wait(max(turn, until - clock.monotonic()) if single else turn)
            except GoneError as error:
                self._lost(replica, error)
                continue
            if isinstance(answer, Reply) and answer.version >= self.request.version:
                return answer
            if isinstance(answer, Reply):
                answer = Refusal(answer.id, answer.replica, "stale", answer.version)
            if answer is not None:
                self._refused(replica, answer)
        return None

    def _refused(self, replica: int, refusal: Refusal) -> None:
        if refusal.reason == "failed":
            self.failures[replica] = f"{refusal.replica}: {refusal.detail}"
        self.refusal, self.trouble = refusal, f"{refusal.replica} refused: {refusal.reason}"
        self._next(replica, refusal.seconds if refusal.reason == "busy" else PAUSE)

    def _lost(self, replica: int, error: GoneError) -> None:
        self.client.transport.report(replica)
        self.refusal, self.trouble = None, str(error) or f"replica {replica} is gone"
        self._next(replica, PAUSE)

    def _next(self, replica: int, pause: float) -> None:
        """This one does not answer: another is asked at once, and itself after a pause."""
        self.running.pop(replica, None)
        self.pause = min(self.pause, pause) if self.tried else pause
        self.tried.add(replica)
        self.ask_at = min(self.ask_at, self.client.clock.monotonic())

    def _complain(self, now: float) -> None:
        """Of those that have not answered within an attempt."""
        for replica in self.running:
            if now - self.asked[replica] >= self.client.attempt:
                self.client.transport.report(replica)

    def _rest(self, view: View, now: float) -> None:
        """There is nobody left to ask."""
        if self.failures and self.failures.keys() >= view.queues.keys():
            raise self._error()
        if self.running:
            self.ask_at = now + self.client.attempt
        else:
            self.ask_at = now + (self.pause if self.tried else PAUSE)
        if not view.queues:
            self.refusal, self.trouble = None, view.trouble or self.trouble
        self.tried.clear()

    def _was_slow(self) -> bool:
        """Whether it was waiting that used up the time, and not replicas that went while another was just asked."""
        waited = self.client.clock.monotonic() - min((self.asked[replica] for replica in self.running), default=inf)
        return bool(self.running) and (not self.trouble or waited >= min(self.client.attempt, self.request.seconds) / 2)

    def _error(self) -> EnergyTimeout | EnergyUnavailable | EnergyVersionError:
        pool, seconds = self.client.transport.name, f"{self.request.seconds:g} s"
        if self.failures:
            return EnergyUnavailable(
                f"The energy pool {pool} cannot answer this request ({'; '.join(self.failures.values())}): caller and "
                f"replicas may be of different versions; see the log of the replica."
            )
        if self._was_slow() or (self.refusal is not None and self.refusal.reason in ("busy", "late")):
            return EnergyTimeout(
                f"The energy pool {pool} did not answer {len(self.request)} sentences within {seconds}: it is too slow "
                f"for its callers; see {command('status', pool)}, add replicas, or raise the deadline."
            )
        if self.refusal is not None and self.refusal.reason == "stale":
            return EnergyVersionError(
                f"The energy pool {pool} holds version {self.refusal.version} and version {self.request.version} was "
                f"asked for, for {seconds}: a learning step did not end; see {command('status', pool)}."
            )
        reason = f" ({self.trouble})" if self.trouble else ""
        return EnergyUnavailable(
            f"The energy pool {pool} had no replica that could answer for {seconds}{reason}: see "
            f"{command('status', pool)}, or start it by {command('up ESTIMATOR', pool)}."
        )

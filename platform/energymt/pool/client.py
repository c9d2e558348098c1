"""A caller's end of the pool: which replica to ask, when to ask another, and when to give up.

Nothing waits past its deadline. Scoring changes nothing on a replica, so a request may be asked again anywhere: when a
replica dies, refuses, or takes longer than an attempt may; an earlier attempt that answers after all is welcome.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Protocol

from energymt.errors import EnergyTimeout, EnergyUnavailable, EnergyVersionError
from energymt.pool.wire import Ragged, Refusal, Reply, Request

PAUSE = 0.1  # seconds between two looks at a pool that has nobody to ask


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

    def view(self, fresh: bool) -> View:
        """Who can be asked; `fresh` asks the supervisor now. Raises GoneError if there is no pool."""
        ...

    def send(self, replica: int, request: Request) -> Call:
        """Send without waiting. Raises GoneError if the replica is not there."""
        ...

    def report(self, replica: int) -> None:
        """Say that a caller waited for it in vain."""
        ...


class Client:
    """Asks a pool.

    Args:
        transport: to its replicas.
        deadline: seconds until `result` raises.
        attempt: seconds after which another replica is asked too.
        alone: every request is one batch, on a replica that depends on the number of the call alone.
    """

    def __init__(
        self, transport: Transport, *, deadline: float = 120.0, attempt: float = 30.0, alone: bool = False
    ) -> None:
        self.transport, self.deadline, self.attempt, self.alone = transport, deadline, attempt, alone
        self.id = uuid.uuid4().hex
        self.calls = count()
        self.in_flight: dict[int, int] = {}  # sentences that this caller has at each replica

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
        ticket = Ticket(self, request, number, time.monotonic() + seconds)
        ticket.start()
        return ticket

    def choose(self, view: View, avoid: Sequence[int], number: int) -> int | None:
        """The least loaded replica, one that did not fail if there is one; None if nobody serves."""
        able = [replica for replica in view.queues if replica not in avoid] or list(view.queues)
        if not able:
            return None
        if self.alone:
            return sorted(able)[number % len(able)]
        return min(able, key=lambda replica: view.queues[replica] + self.in_flight.get(replica, 0))

    def count(self, replica: int, sentences: int) -> None:
        """Book what is in flight."""
        self.in_flight[replica] = self.in_flight.get(replica, 0) + sentences


@dataclass
class Ticket:
    """A request in flight."""

    client: Client
    request: Request
    number: int
    ends: float  # on this machine's monotonic clock
    running: dict[int, Call] = field(default_factory=dict)
    failed: list[int] = field(default_factory=list)
    asked_at: float = 0.0
    refusal: Refusal | None = None
    trouble: str = ""
    reply: Reply | None = None

    def start(self) -> None:
        """Ask somebody, if there is somebody to ask."""
        try:
            view = self.client.transport.view(fresh=bool(self.failed) or self.refusal is not None)
        except GoneError as error:
            self.trouble = str(error)
            return
        self.trouble = view.trouble
        replica = self.client.choose(view, [*self.failed, *self.running], self.number)
        if replica is None or replica in self.running:
            return
        left = max(0.0, self.ends - time.monotonic())
        try:
            self.running[replica] = self.client.transport.send(replica, replace(self.request, seconds=left))
        except GoneError:
            self._give_up_on(replica)
            return
        self.client.count(replica, len(self.request))
        self.asked_at = time.monotonic()

    def result(self) -> Reply:
        """Wait for the answer.

        Raises:
            EnergyTimeout, EnergyUnavailable, EnergyVersionError: see there; never later than the deadline.
        """
        try:
            while self.reply is None:
                now = time.monotonic()
                if now >= self.ends:
                    raise self._error()
                if not self.running:
                    self.start()
                    if not self.running:
                        time.sleep(min(PAUSE, max(0.0, self.ends - now)))
                        continue
                elif now - self.asked_at >= self.client.attempt:
                    self._ask_another()
                self._listen(min(self.ends, self.asked_at + self.client.attempt))
            return self.reply
        finally:
            for replica in list(self.running):
                self._end(replica)

    def _listen(self, until: float) -> None:
        """Look for an answer; to several attempts by turns."""
        turns = len(self.running)
        for replica, call in list(self.running.items()):
            left = max(0.0, until - time.monotonic())
            try:
                answer = call.wait(left if turns == 1 else min(left, 0.05))
            except GoneError:
                self._give_up_on(replica)
                continue
            if answer is None:
                continue
            self._end(replica)
            if isinstance(answer, Refusal):
                self._refused(replica, answer)
            elif answer.version < self.request.version:
                self._refused(replica, Refusal(answer.id, answer.replica, "stale", answer.version))
            else:
                self.reply = answer
                return

    def _ask_another(self) -> None:
        """An attempt takes too long: the replica is suspect, and somebody else is asked beside it."""
        slow = list(self.running)[-1]
        if slow not in self.failed:
            self.client.transport.report(slow)
            self.failed.append(slow)
        self.asked_at = time.monotonic()
        self.start()

    def _give_up_on(self, replica: int) -> None:
        self._end(replica)
        self.client.transport.report(replica)
        self.failed.append(replica)

    def _refused(self, replica: int, refusal: Refusal) -> None:
        self.refusal = refusal
        if refusal.reason != "busy":
            self.failed.append(replica)
        pause = refusal.seconds if refusal.reason == "busy" else PAUSE
        if not self.running:
            time.sleep(min(pause, max(0.0, self.ends - time.monotonic())))

    def _end(self, replica: int) -> None:
        if self.running.pop(replica, None) is not None:
            self.client.count(replica, -len(self.request))

    def _error(self) -> EnergyTimeout | EnergyUnavailable | EnergyVersionError:
        pool, seconds = self.client.transport.name, f"{self.request.seconds:.0f} s"
        if self.running or (self.refusal is not None and self.refusal.reason in ("busy", "late")):
            return EnergyTimeout(
                f"The energy pool {pool} did not answer {len(self.request)} sentences within {seconds}: it is too slow "
                f"for its callers; see `energymt pool status`, add replicas, or raise the deadline."
            )
        if self.refusal is not None and self.refusal.reason == "stale":
            return EnergyVersionError(
                f"The energy pool {pool} holds version {self.refusal.version} and version {self.request.version} was "
                f"asked for, for {seconds}: a learning step did not end; see `energymt pool status`."
            )
        reason = f" ({self.trouble})" if self.trouble else ""
        return EnergyUnavailable(
            f"The energy pool {pool} had no replica that could answer for {seconds}{reason}: see `energymt pool "
            f"status`, or start it by `energymt pool up`."
        )

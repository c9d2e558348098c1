"""Replicas that behave as a test says, on a clock that passes when somebody waits."""

from collections.abc import Callable
from typing import Any

import numpy as np

from energymt.pool.client import Client, GoneError, Ticket, View
from energymt.pool.wire import Ragged, Refusal, Reply, Request

Answer = Reply | Refusal | GoneError | None
Behaviour = Callable[[Request], tuple[float, Answer]]  # seconds until the answer, and the answer; None: never


class Clock:
    """Seconds that pass when somebody waits for them."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.sleeps: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.sleeps.append(seconds)
        self.now += seconds


class Call:
    def __init__(self, clock: Clock, ready: float, answer: Answer) -> None:
        self.clock, self.ready, self.answer = clock, ready, answer

    def wait(self, seconds: float) -> Reply | Refusal | None:
        assert seconds >= 0
        if self.answer is None or self.ready > self.clock.now + seconds:
            self.clock.now += seconds
            return None
        self.clock.now = max(self.clock.now, self.ready)
        if isinstance(self.answer, GoneError):
            raise self.answer
        return self.answer


class Pool:
    """See `energymt.pool.client.Transport`: replicas that behave as a test says."""

    name = "default"

    def __init__(self, *behaviours: Behaviour) -> None:
        self.clock = Clock()
        self.behaviours = dict(enumerate(behaviours))
        self.loads = dict.fromkeys(self.behaviours, 0)
        self.trouble = ""
        self.gone: GoneError | None = None  # instead of a view
        self.asked: list[tuple[float, int, Request]] = []
        self.reports: list[tuple[float, int]] = []
        self.views: list[bool] = []

    def view(self, fresh: bool, seconds: float) -> View:
        self.views.append(fresh)
        if self.gone is not None:
            raise self.gone
        return View(dict(self.loads), self.trouble)

    def send(self, replica: int, request: Request) -> Call:
        self.asked.append((self.since, replica, request))
        if replica not in self.behaviours:
            raise GoneError(f"replica {replica} is gone")
        seconds, answer = self.behaviours[replica](request)
        return Call(self.clock, self.clock.now + seconds, answer)

    def report(self, replica: int) -> None:
        self.reports.append((self.since, replica))

    @property
    def since(self) -> float:
        return round(self.clock.now - 1000.0, 3)

    @property
    def order(self) -> list[int]:
        return [replica for _, replica, _ in self.asked]


def reply(request: Request, version: int = 0) -> Reply:
    return Reply(request.id, "replica", version, np.zeros(len(request)), None)


def answers(seconds: float = 0.1, version: int = 0) -> Behaviour:
    return lambda request: (seconds, reply(request, version))


def refuses(reason: str, pause: float = 0.0, seconds: float = 0.0, version: int = 0) -> Behaviour:
    return lambda request: (seconds, Refusal(request.id, "replica-x", reason, version, pause, "a bug"))


def dies(seconds: float = 0.0) -> Behaviour:
    return lambda request: (seconds, GoneError("the actor died"))


def never(request: Request) -> tuple[float, Answer]:
    return 0.0, None


def in_turn(*behaviours: Behaviour) -> Behaviour:
    """One after the other, the last one from then on."""
    left = list(behaviours)
    return lambda request: (left.pop(0) if len(left) > 1 else left[0])(request)


def caller(pool: Pool, **options: Any) -> Client:
    return Client(pool, clock=pool.clock, **{"deadline": 60.0, "attempt": 10.0, **options})


def send(client: Client, sentences: int = 3, **more: Any) -> Ticket:
    rows = Ragged(np.zeros(sentences, dtype=np.int32), np.ones(sentences, dtype=np.int32))
    return client.submit(rows, rows, **{"gradient": False, **more})

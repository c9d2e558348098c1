"""How a process reaches supervisor and replicas when the supervisor is frozen: nobody waits past a deadline."""

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import GetTimeoutError

from energymt.errors import EnergyTimeout, EnergyUnavailable
from energymt.pool import connection
from energymt.pool.client import Client, GoneError, View
from energymt.pool.connection import RayTransport
from tests.pool.callers import Call, Clock, send


class Ray:
    """A pool of one replica that never answers, in place of Ray; `answer` is what its supervisor says."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.questions = 0
        self.answer: Callable[[float], View] = lambda seconds: View({0: 0})

    def view(self) -> int:
        self.questions += 1
        return self.questions

    def get(self, question: int, timeout: float) -> View:
        return self.answer(timeout)

    def frozen(self, seconds: float) -> View:
        self.clock.sleep(seconds)
        raise GetTimeoutError

    @property
    def since(self) -> float:
        return self.clock.now - 1000.0


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Ray:
    found = Ray()
    actor = SimpleNamespace(view=SimpleNamespace(remote=found.view), report=SimpleNamespace(remote=lambda number: None))
    monkeypatch.setattr(connection, "ray", found)
    monkeypatch.setattr(connection, "time", found.clock)
    monkeypatch.setattr(connection.actors, "find", lambda name: actor)
    return found


@pytest.fixture
def transport(ray: Ray) -> RayTransport:
    found = RayTransport("default")
    found.post = SimpleNamespace(send=lambda handle, request: Call(ray.clock, 0.0, None))  # type: ignore[assignment]
    return found


@pytest.fixture
def elsewhere() -> Callable[[Callable[[], Any]], threading.Event]:
    """Run something in another thread; the event is set when it has ended, or raised."""

    def run(work: Callable[[], Any]) -> threading.Event:
        ended = threading.Event()

        def whole() -> None:
            try:
                work()
            except GoneError:
                pass
            finally:
                ended.set()

        threading.Thread(target=whole, daemon=True).start()
        return ended

    return run


def test_a_frozen_supervisor_costs_no_deadline(ray: Ray, transport: RayTransport) -> None:
    client = Client(transport, deadline=1.0, attempt=30.0, clock=ray.clock)
    client.view(fresh=True, seconds=60.0)
    ray.clock.now += 3.0  # the view is too old
    ray.answer, start = ray.frozen, ray.since
    with pytest.raises(EnergyTimeout, match="did not answer 3 sentences within 1 s"):
        send(client).result()
    assert ray.since - start <= 1.0


def test_it_is_listened_to_once_however_much_is_submitted(ray: Ray, transport: RayTransport) -> None:
    client = Client(transport, deadline=60.0, attempt=30.0, clock=ray.clock)
    client.view(fresh=True, seconds=60.0)
    ray.clock.now += 3.0
    ray.answer, start, questions = ray.frozen, ray.since, ray.questions
    tickets = [send(client) for _ in range(20)]
    assert ray.since - start <= 1.0
    assert ray.questions == questions + 1
    assert all(ticket.running for ticket in tickets)


def test_one_that_never_answered(ray: Ray, transport: RayTransport) -> None:
    client = Client(transport, deadline=3.0, clock=ray.clock)
    ray.answer = ray.frozen
    with pytest.raises(EnergyUnavailable, match=r"for 3 s \(its supervisor does not answer\)"):
        send(client).result()
    assert ray.since <= 3.0


def test_one_that_answers_late_is_heard(ray: Ray, transport: RayTransport) -> None:
    ray.answer = ray.frozen
    with pytest.raises(GoneError):
        transport.view(fresh=False, seconds=60.0)
    ray.answer = lambda seconds: View({0: 7})
    assert transport.view(fresh=False, seconds=60.0).queues == {0: 7}
    assert ray.questions == 1
    ray.answer = ray.frozen
    with pytest.raises(GoneError):
        transport.view(fresh=True, seconds=60.0)
    ray.clock.now += connection.ASK_SECONDS + 1.0
    with pytest.raises(GoneError):
        transport.view(fresh=True, seconds=60.0)
    assert ray.questions == 3


def test_the_others_go_on_while_one_listens(ray: Ray, transport: RayTransport, elsewhere: Any) -> None:
    transport.view(fresh=True, seconds=60.0)
    listening, thawed = threading.Event(), threading.Event()

    def slow(seconds: float) -> View:
        if listening.is_set():
            raise GetTimeoutError
        listening.set()
        thawed.wait(30.0)
        return View({0: 5})

    ray.answer = slow
    first = elsewhere(lambda: transport.view(fresh=True, seconds=60.0))
    assert listening.wait(10.0)
    others = [elsewhere(lambda: transport.view(fresh=True, seconds=60.0)) for _ in range(3)]
    try:
        assert all(other.wait(10.0) for other in others)
        assert not first.is_set()
    finally:
        thawed.set()
    assert first.wait(10.0)
    assert transport.view(fresh=False, seconds=60.0).queues == {0: 5}


def test_reports_and_answers_come_from_many_threads(ray: Ray, transport: RayTransport, elsewhere: Any) -> None:
    """While one thread leaves out the handles of replicas that went, another reports one."""
    waiting = []

    class Queues(dict[int, int]):
        def __contains__(self, number: object) -> bool:
            if not waiting:
                waiting.append(elsewhere(lambda: transport.report(1)))
                waiting[0].wait(0.5)
            return super().__contains__(number)

    request = send(Client(transport, clock=ray.clock)).request
    for number in range(3):
        transport.send(number, request)
    ray.answer = lambda seconds: View(Queues({0: 0, 1: 0}))
    transport.view(fresh=True, seconds=60.0)
    assert waiting[0].wait(10.0)
    assert transport.handles.keys() == {0}

"""A pool that learns, in this process: real replicas behind handles that can be held up, made to raise, and killed."""

import asyncio
import time
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayActorError, RayTaskError

from energymt.models.learning import LessonOptions
from energymt.pool import teaching
from energymt.pool.fleet import Fleet
from energymt.pool.lessons import LearnPart, pack_lesson
from energymt.pool.replica import Replica
from energymt.pool.teaching import Teaching
from tests import estimators, lessons
from tests.pool.pools import replica, shipped

OPTIONS = LessonOptions(rate=1e-2)


class Handle:
    """As Ray's of an actor: what was sent goes on, whether its answer is waited for or not."""

    def __init__(self, served: Replica) -> None:
        self.served, self.calls = served, Counter[str]()
        self.held: dict[str, asyncio.Event] = {}
        self.dies_at, self.gone = "", asyncio.Event()

    @property
    def learn(self) -> "Handle":
        return self

    def hold(self, work: str) -> asyncio.Event:
        """It does not begin with such work until the event is set."""
        self.held[work] = asyncio.Event()
        return self.held[work]

    def remote(self, work: str, *arguments: Any) -> "asyncio.Future[Any]":
        self.calls[work] += 1
        return asyncio.shield(asyncio.ensure_future(self._answer(work, *arguments)))

    async def _answer(self, work: str, *arguments: Any) -> Any:
        if work == self.dies_at:
            self.gone.set()
        done, dead = asyncio.ensure_future(self._do(work, *arguments)), asyncio.ensure_future(self.gone.wait())
        await asyncio.wait([done, dead], return_when=asyncio.FIRST_COMPLETED)
        if dead.done():
            done.cancel()
            raise RayActorError()
        dead.cancel()
        return done.result()

    async def _do(self, work: str, *arguments: Any) -> Any:
        if work in self.held:
            await self.held[work].wait()
        try:
            return shipped(await self.served.learn(work, *shipped(arguments)))
        except Exception as error:
            raise RayTaskError(work, str(error), error) from None


class School:
    """See `energymt.pool.copies.Ground`; its replicas serve at once.

    Args:
        patch: Ray's object store is left out.
        size: replicas.
    """

    name = "school"

    def __init__(self, patch: pytest.MonkeyPatch, size: int) -> None:
        patch.setattr(teaching, "ray", SimpleNamespace(put=lambda value: value))
        self.model, self.fleet, self.handles = estimators.estimator("kiwi"), Fleet(size), {}
        self.fleet.step(time.monotonic())
        for number in range(size):
            self.enter(number)
        self.runs = {"run"}
        self.teaching = Teaching(self, lambda: self.runs, (), 0.0)

    def enter(self, number: int) -> None:
        """A process of that number, new or in place of another, has answered."""
        self.handles[number] = Handle(replica(number=number, learns="head"))
        self.ping(number)

    def ping(self, number: int) -> None:
        version = self.handles[number].served.server.version
        self.fleet.pinged(number, time.monotonic(), version, served=0, busy=0)

    async def replace(self) -> None:
        """All processes ended, and others have answered; they are brought up to date in the background."""
        for number in list(self.handles):
            self.fleet.died(number, time.monotonic(), "killed")
        while any(replica.state != "restarting" for replica in self.fleet.replicas.values()):
            self.fleet.step(time.monotonic())
            await asyncio.sleep(0.01)
        for number in list(self.handles):
            self.enter(number)
            if self.fleet.replicas[number].state == "stale":
                self.teaching.copies.sync(number)

    async def restart(self, lease: float) -> None:
        """The supervisor's process ended; another one has found the replicas, and has heard of no caller yet."""
        self.runs, self.fleet = set(), Fleet(len(self.handles))
        for number in self.handles:
            self.fleet.adopt(number, time.monotonic())
        self.teaching = Teaching(self, lambda: self.runs, self.handles, lease)
        for number, handle in self.handles.items():
            self.teaching.seen(number, await handle.served.ping())
            self.ping(number)

    def part(self, step: int, seconds: float = 30.0, run: str = "run", **more: Any) -> LearnPart:
        """All of a step."""
        lesson = pack_lesson(lessons.lesson(self.model, seed=step + 1))
        return LearnPart(run, step, 0, 1, *lesson, **{"options": OPTIONS, "seconds": seconds, **more})

    def versions(self) -> list[int]:
        """Of the weights that the replicas have."""
        return [handle.served.copy.learner.version for handle in self.handles.values()]

"""One shard of a learning step on its way to a gradient: who was asked, and whose answer may still come.

    asked      the replica whose turn it is, and once
    doubted    it is gone, or was suspected since: another one is asked too, and the first answer is taken
    trusted    it lives and computes: it is waited for, until the deadline of the step

Nobody is sent a second copy of what it may still compute: that would only queue behind the first.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any, Protocol

from ray.exceptions import RayActorError, RayError, RayTaskError

from energymt.errors import EnergymtError
from energymt.pool.fleet import Fleet, ReplicaState
from energymt.pool.lessons import LearnRefusal, Shard, ShardGradient

PAUSE = 0.1  # seconds between two looks for a replica


class Ground(Protocol):
    """What a supervisor has."""

    name: str
    fleet: Fleet
    handles: dict[int, Any]


class RefusedError(Exception):
    """A step that is not taken."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.refusal = LearnRefusal(reason, detail)


@dataclass(frozen=True)
class Ask:
    """A replica that was sent the shard."""

    number: int
    handle: Any
    since: float


class Asking:
    """For one shard.

    Args:
        ground: the supervisor.
        shard: what is to be differentiated.
        place: of the shard among those of its step: each begins with another replica.
    """

    def __init__(self, ground: Ground, shard: Shard, place: int) -> None:
        self.ground, self.shard, self.place = ground, shard, place
        self.running: dict[asyncio.Task[ShardGradient], Ask] = {}
        self.asked: dict[int, Any] = {}  # their handles: the replacement of a replica has another
        self.failures: list[str] = []

    async def gradient(self, until: float) -> ShardGradient:
        """Of the shard.

        Raises:
            RefusedError: "late", the deadline came first; "unavailable", nobody was there to ask; "failed", it raised
                twice, or said what is wrong with the shard.
        """
        try:
            while (left := until - time.monotonic()) > 0:
                self._ask_another(left)
                done = await self._first(min(PAUSE, left))
                for task in done:
                    if (found := self._answer(task)) is not None:
                        return found
                if done:
                    await asyncio.sleep(min(PAUSE, left))  # whoever failed is not asked again at once
        finally:
            for task in self.running:
                task.cancel()
        raise self._overdue()

    def _ask_another(self, seconds: float) -> None:
        """Unless there is somebody whose answer will come."""
        if not all(map(self._doubted, self.running.values())) or (number := self._next()) is None:
            return
        handle = self.asked[number] = self.ground.handles[number]
        task = asyncio.create_task(asked(handle, seconds, "differentiate", self.shard))
        self.running[task] = Ask(number, handle, time.monotonic())

    async def _first(self, seconds: float) -> set[asyncio.Task[ShardGradient]]:
        """Who has answered."""
        if not self.running:
            await asyncio.sleep(seconds)
            return set()
        return (await asyncio.wait(self.running, timeout=seconds, return_when=asyncio.FIRST_COMPLETED))[0]

    def _answer(self, task: asyncio.Task[ShardGradient]) -> ShardGradient | None:
        number = self.running.pop(task).number
        try:
            return task.result()
        except RayTaskError as error:
            self.failures.append(" ".join(str(error.cause or error).split())[:200])
            if len(self.failures) > 1 or isinstance(error.cause, EnergymtError):  # what was asked is at fault
                raise RefusedError("failed", "; ".join(self.failures)) from None
            if self._next() is None:  # it computes no more, and there is no other
                del self.asked[number]
        except (TimeoutError, RayError):
            pass  # the supervisor looks after it
        return None

    def _next(self) -> int | None:
        """Whom to ask, of those that were not."""
        handles = self.ground.handles
        left = [number for number in reachable(self.ground) if handles[number] is not self.asked.get(number)]
        return left[self.place % len(left)] if left else None

    def _doubted(self, ask: Ask) -> bool:
        """Whether an answer may never come: the replica is gone, or there was trouble with it since it was asked."""
        replica = self.ground.fleet.replicas.get(ask.number)
        if replica is None or self.ground.handles.get(ask.number) is not ask.handle:
            return True
        if replica.state == ReplicaState.SUSPECT:
            return replica.trouble > ask.since
        return replica.state != ReplicaState.HEALTHY

    def _overdue(self) -> RefusedError:
        if not self.running and not reachable(self.ground):
            return RefusedError("unavailable", "; ".join(["no replica serves", *self.failures]))
        who = " and ".join(f"replica {ask.number}" for ask in self.running.values()) or "the pool"
        return RefusedError(
            "late",
            f"{who} still computed the gradient when the time of the step was over; start the pool with more "
            f"`lesson_seconds`, or give lessons of fewer pairs or samples",
        )


def reachable(ground: Ground) -> list[int]:
    """The replicas that serve and can be asked, by number."""
    return sorted(number for number in ground.fleet.serving() if number in ground.handles)


async def asked(handle: Any, seconds: float, work: str, *arguments: Any) -> Any:
    """What a replica makes of a part of a step.

    Raises:
        TimeoutError, RayError: it does not answer, or it raised.
    """
    if handle is None:
        raise RayActorError()
    return await asyncio.wait_for(_awaited(handle.learn.remote(work, *arguments)), seconds)


async def _awaited(reference: Any) -> Any:
    return await reference

"""The copies of a learning estimator, one a replica: asked for gradients, changed together, brought up to date."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable
from dataclasses import replace
from typing import Any

from ray.exceptions import RayError

from energymt.pool.asking import PAUSE, Asking, Ground, RefusedError, asked, reachable
from energymt.pool.fleet import SERVING, ReplicaState
from energymt.pool.lessons import LearnPart, Shard, ShardGradient, WireState

logger = logging.getLogger(__name__)
CALM = 1.0  # seconds until a replica that could not be brought up to date is tried again
ANSWERING = (*SERVING, ReplicaState.STALE)
CALL = 60.0  # seconds for a state to travel
SWITCH = 30.0  # seconds that are waited for a replica to put a new version in place


class Copies:
    """Of one pool; lives in its supervisor."""

    def __init__(self, ground: Ground) -> None:
        self.ground = ground
        self.kept: WireState | None = None  # of the present version, for replicas to come
        self.said = ""  # the digest of the present version, where it was prepared under this supervisor
        self.syncing: set[int] = set()
        self.lost = False
        self.tasks: set[asyncio.Task[None]] = set()

    @property
    def version(self) -> int:
        """That may be served."""
        return self.ground.fleet.version

    def trouble(self) -> str:
        """Why nothing is served, if it is for what was learnt."""
        if not self.lost:
            return ""
        return (
            f"version {self.version} was lost with all replicas that held it: restore the learner's state from the "
            f"checkpoint of the run"
        )

    async def serving(self, until: float) -> list[int]:
        """The replicas that can be asked, as soon as there is one."""
        while not (found := reachable(self.ground)):
            if time.monotonic() > until:
                raise RefusedError("unavailable", "no replica serves")
            await asyncio.sleep(PAUSE)
        return found

    async def prepared(self, said: str, ready: list[int], until: float) -> WireState:
        """What was prepared, from one of those that hold it: released without a copy, it could die with them."""
        for number in ready:
            state: WireState | None = await self._tried(self._ask(number, min(CALL, _left(until)), "prepared", said))
            if state is not None:
                return state
        raise RefusedError(_reason(until), "no replica that prepared the step handed it on")

    async def release(self, state: WireState, said: str, ready: list[int], until: float) -> None:
        """From here on only this version may be served; those that prepared it switch now.

        One that has not switched at the deadline is brought up to date in the background.
        """
        self.ground.fleet.release(state.version, time.monotonic())
        self.kept, self.said = state, said
        limit = min(SWITCH, _left(until))
        await asyncio.gather(*[self._activate(number, state.version, limit) for number in ready])

    def sync(self, number: int) -> None:
        """Bring a replica up to date, in the background."""
        if number not in self.syncing:
            self.syncing.add(number)
            self._spawn(self._sync(number))

    async def differentiate(self, shard: Shard, place: int, until: float) -> ShardGradient:
        """The gradient of a shard; see `asking.Asking`."""
        return await Asking(self.ground, shard, place).gradient(until)

    async def prepare(
        self, version: int, sent: Any, part: LearnPart, last: dict[str, Any], until: float
    ) -> tuple[str, list[int]]:
        """The digest of the new version, and the replicas that hold it beside the old one.

        One that is slow is waited for until a quarter of the time is left, which is for the rest of the step.
        """
        numbers = self.ground.fleet.serving()
        limit = max(PAUSE, 0.75 * (until - time.monotonic()))
        work = [self._tried(self._ask(n, limit, "prepare", version, sent, part.options, last)) for n in numbers]
        digests = {n: d for n, d in zip(numbers, await asyncio.gather(*work), strict=True) if d is not None}
        if not digests:
            raise RefusedError(_reason(until), "no replica could prepare the step")
        right = Counter(digests.values()).most_common(1)[0][0]
        for number in [n for n, d in digests.items() if d != right]:
            self.ground.fleet.died(number, time.monotonic(), "its learnt weights are not those of the others")
        return right, [number for number, found in digests.items() if found == right]

    async def _activate(self, number: int, version: int, limit: float = SWITCH) -> bool:
        done = bool(await self._tried(self._ask(number, limit, "activate", version, self.said)))
        if done:
            self.ground.fleet.activated(number, version, time.monotonic())
        return done

    async def state(self, version: int, until: float) -> WireState:
        """Weights and moments of a version, from whoever holds it."""
        if self.kept is not None and self.kept.version == version:
            return self.kept
        for number in self.ground.fleet.serving():
            found: WireState | None = await self._tried(self._ask(number, min(CALL, _left(until)), "export"))
            if found is not None and found.version == version:
                return found
        raise RefusedError("unavailable", f"no replica holds version {version}")

    async def restore(self, state: WireState | None, until: float) -> WireState:
        """Put all replicas where a state says, or where they began, under a new version; returns the state of that."""
        version = max(self.version, 0 if state is None else state.version) + 1
        while not (numbers := [n for n, r in self.ground.fleet.replicas.items() if r.state in ANSWERING]):
            if time.monotonic() > until:
                raise RefusedError("unavailable", "no replica answers")
            await asyncio.sleep(PAUSE)
        start = await self._start(numbers, version, until)
        state = start if state is None else state
        found, wanted = (len(item.arrays["weights_P"]) for item in (state, start))
        if found != wanted:
            raise RefusedError(
                "failed",
                f"the state holds {found:,} learnt weights and this pool learns {wanted:,}: it was saved by a pool of "
                f"another estimator, or one that learns other parts",
            )
        state = replace(state, version=version, last={**state.last, "version": version} if state.last else {})
        self.ground.fleet.release(version, time.monotonic())
        self.kept, self.said, self.lost = state, "", False
        limit = min(CALL, _left(until))
        await asyncio.gather(*[self._install(number, state, limit) for number in numbers])
        return state

    async def _start(self, numbers: list[int], version: int, until: float) -> WireState:
        """Where the estimator began, under a new version, from whoever says so: all of them began alike."""
        for number in numbers:
            limit = min(CALL, max(PAUSE, (until - time.monotonic()) / 2))  # the next one has time, too
            found: WireState | None = await self._tried(self._ask(number, limit, "first", version))
            if found is not None:
                return found
        raise RefusedError(_reason(until), "no replica says where the estimator began")

    async def _install(self, number: int, state: WireState, limit: float) -> None:
        async def install() -> bool:
            await self._ask(number, limit, "install", state)
            return True

        if await self._tried(install()):
            self.ground.fleet.activated(number, state.version, time.monotonic())

    async def _sync(self, number: int) -> None:
        version = self.version
        try:
            if not (self.said and await self._activate(number, version)):
                await self._install(number, await self.state(version, time.monotonic() + CALL), CALL)
            self.lost = False
        except RefusedError:
            self.lost = not self.ground.fleet.serving() and version == self.version
            await asyncio.sleep(CALM)
        finally:
            self.syncing.discard(number)

    async def _ask(self, number: int, seconds: float, work: str, *arguments: Any) -> Any:
        return await asked(self.ground.handles.get(number), seconds, work, *arguments)

    async def _tried(self, work: Awaitable[Any]) -> Any | None:
        """What a replica answers, or None if it fails: it will be looked after."""
        try:
            return await work
        except (TimeoutError, RayError) as error:
            logger.warning("A replica of pool %s failed in a step: %s", self.ground.name, str(error)[:300])
            return None

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task


def _reason(until: float) -> str:
    """Of a refusal when nobody answered."""
    return "late" if time.monotonic() >= until else "unavailable"


def _left(until: float) -> float:
    """Seconds for a call that must be tried once, however late it is."""
    return max(PAUSE, until - time.monotonic())

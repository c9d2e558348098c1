"""How a pool learns: a step's parts are gathered, the replicas take it together, and the version counts up.

    gather       the parts of (run, step) from all trainers, until a deadline
    differentiate   a shard a replica; that of a replica which fails goes to another
    prepare      the mean gradient to all replicas, which compute the new weights beside the old and say their digest
    keep         the supervisor takes a copy of them: replicas that all end at once take nothing with them
    release      from here on only the new version may be served
    activate     every replica that prepared it switches between two batches; others are brought up to date

Until the release nothing has changed, and a step that fails is as if it had never been. A step that was taken is not
taken again: the replicas remember it with their weights, so also a supervisor that was started anew knows.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray

from energymt.pool.asking import PAUSE, Ground, RefusedError
from energymt.pool.copies import Copies
from energymt.pool.fleet import ReplicaState
from energymt.pool.health import Health
from energymt.pool.lessons import LearnPart, LearnRefusal, LearnReply, WireState, combine, share_out

logger = logging.getLogger(__name__)


@dataclass
class Round:
    """A step whose parts are coming in."""

    ends: float
    parts: dict[int, LearnPart] = field(default_factory=dict)
    answer: asyncio.Future[LearnReply | LearnRefusal] = field(default_factory=asyncio.Future)
    task: asyncio.Task[None] | None = None


class Teaching:
    """The learning of one pool; lives in its supervisor.

    Args:
        ground: the supervisor.
        runs: says whose trainers are alive.
        adopted: replicas that ran before the supervisor did: what they have learnt is not known yet.
        lease: seconds that a run whose trainers were alive before the supervisor was has to say that they still are.
    """

    def __init__(
        self, ground: Ground, runs: Callable[[], Collection[str]], adopted: Collection[int], lease: float
    ) -> None:
        self.fleet, self.name, self.runs = ground.fleet, ground.name, runs
        self.copies = Copies(ground)
        self.unseen = set(adopted)
        self.heard = time.monotonic() + lease  # who has given no sign of life by then is dead
        self.last: dict[str, Any] = {}
        self.run = ""  # that learns here
        self.rounds: dict[tuple[str, int], Round] = {}
        self.turn = asyncio.Lock()

    # For trainers.

    async def learn(self, part: LearnPart) -> LearnReply | LearnRefusal:
        """Wait for the other parts, and for the step."""
        try:
            if fault := part.fault():
                raise RefusedError("failed", f"the part is damaged: {fault}")
            until = time.monotonic() + part.seconds
            await self._admit(part.run, until)
            if (done := self._done(part)) is not None:
                return done
            entered = self._enter(part, until)
        except RefusedError as error:
            return error.refusal
        try:
            return await asyncio.wait_for(asyncio.shield(entered.answer), max(0.0, entered.ends - time.monotonic()))
        except TimeoutError:
            if entered.task is None:
                return self._late(part, entered)
            return await asyncio.shield(entered.answer)  # it is being taken, and nothing in it outlives the deadline

    async def state(self, seconds: float) -> WireState | LearnRefusal:
        """Weights and moments of the present version, for the checkpoint of a run."""
        try:
            until = time.monotonic() + seconds
            async with self._turn(until):
                return await self.copies.state(self.fleet.version, until)
        except RefusedError as error:
            return error.refusal

    async def restore(self, run: str, state: WireState | None, seconds: float) -> int | LearnRefusal:
        """Put all replicas where a checkpoint says, or, without one, where they began; returns their new version."""
        try:
            until = time.monotonic() + seconds
            await self._settle(run, until)
            async with self._turn(until):
                self._require_free(run)
                return await self._begin(run, state, until)
        except RefusedError as error:
            return error.refusal

    def seen(self, number: int, health: Health) -> None:
        """A replica answered. One that is ahead was active before this supervisor was: its version is the true one."""
        self.unseen.discard(number)
        if health.version > self.fleet.version:
            self.fleet.release(health.version, time.monotonic())
            self.last, self.copies.kept, self.copies.said = health.last, None, ""
        elif health.version == self.fleet.version and not self.last:
            self.last = health.last

    # A step.

    async def _admit(self, run: str, until: float) -> None:
        """Let one run learn at a time; a new one begins with the estimator as it was."""
        await self._settle(run, until)
        if self._owner() in ("", run):
            self.run = run
            return
        self._require_free(run)
        async with self._turn(until):
            if self._owner() != run:
                self._require_free(run)  # of several that waited for their turn the first has it
                await self._begin(run, None, until)

    async def _settle(self, run: str, until: float) -> None:
        """A supervisor that was started anew knows neither versions nor callers until they give a sign of life."""
        while self._unheard() or self._awaited(run):
            if time.monotonic() > until:
                raise RefusedError("unavailable", "replicas or trainers have not answered the new supervisor")
            await asyncio.sleep(PAUSE)

    def _unheard(self) -> set[int]:
        return self.unseen & {n for n, r in self.fleet.replicas.items() if r.state == ReplicaState.RESTARTING}

    def _awaited(self, run: str) -> bool:
        """Whether it is another run that taught these replicas, and may still be alive."""
        owner = self._owner()
        return not self.run and owner not in ("", run, *self.runs()) and time.monotonic() < self.heard

    def _owner(self) -> str:
        return self.run or str(self.last.get("run", ""))

    def _require_free(self, run: str) -> None:
        owner = self._owner()
        if owner != run and owner in self.runs():
            raise RefusedError("leased", f"the run {owner} learns in this pool: start another pool, or wait for it")

    async def _begin(self, run: str, state: WireState | None, until: float) -> int:
        """Under the turn: a run has the pool, from a state or from the start on; if that fails, as before."""
        former, self.run = self.run, run
        try:
            restored = await self.copies.restore(state, until)
        except BaseException:
            self.run = former
            raise
        self.last = dict(restored.last)
        return restored.version

    def _done(self, part: LearnPart) -> LearnReply | None:
        """The answer to a step that was taken already."""
        if self.last.get("run") != part.run or part.step > self.last["step"]:
            return None
        if part.step < self.last["step"]:
            raise RefusedError("past", f"step {part.step} was asked for and step {self.last['step']} was taken")
        return LearnReply(part.run, part.step, self.last["version"], self.last["metrics"])

    def _enter(self, part: LearnPart, until: float) -> Round:
        """Add a part to its round, which begins when all are there."""
        found = self.rounds.setdefault(part.key, Round(until))
        for other in found.parts.values():
            if (other.parts, other.options) != (part.parts, part.options):
                raise RefusedError("failed", "the trainers of a step disagree on the number of parts or the options")
        if found.task is None:
            found.parts[part.part] = part
            if len(found.parts) == part.parts:
                found.task = asyncio.get_running_loop().create_task(self._take(part.key, found))
        return found

    def _late(self, part: LearnPart, found: Round) -> LearnRefusal:
        if self.rounds.get(part.key) is found:
            del self.rounds[part.key]
        missing = " and ".join(str(number) for number in range(part.parts) if number not in found.parts)
        return LearnRefusal(
            "late",
            f"part {missing} of {part.parts} of step {part.step} of the run {part.run} did not come within "
            f"{part.seconds:g} s; see that all trainers run",
        )

    async def _take(self, key: tuple[str, int], found: Round) -> None:
        answer: LearnReply | LearnRefusal
        try:
            async with self._turn(found.ends):
                if self.run != key[0]:
                    raise RefusedError("leased", f"the run {self.run} learns in this pool by now")
                parts = [found.parts[number] for number in sorted(found.parts)]
                answer = await self._step(parts, found.ends)
        except RefusedError as error:
            answer = error.refusal
        except Exception as error:
            logger.exception("Pool %s could not take step %s.", self.name, key)
            answer = LearnRefusal("failed", f"{type(error).__name__}: {error}")
        self.rounds.pop(key, None)
        if not found.answer.done():
            found.answer.set_result(answer)

    @asynccontextmanager
    async def _turn(self, until: float) -> AsyncIterator[None]:
        """One thing at a time changes what is learnt, or reads it."""
        try:
            await asyncio.wait_for(self.turn.acquire(), max(0.0, until - time.monotonic()))
        except TimeoutError:
            raise RefusedError("late", "a step or a state that came before was still under way") from None
        try:
            yield
        finally:
            self.turn.release()

    async def _step(self, parts: list[LearnPart], until: float) -> LearnReply:
        first, version, copies = parts[0], self.fleet.version, self.copies
        serving = await copies.serving(until)
        shards = share_out(parts, len(serving), version)
        if not shards:
            raise RefusedError("failed", "the step holds no sentence")
        work = [asyncio.create_task(copies.differentiate(shard, place, until)) for place, shard in enumerate(shards)]
        try:
            mean, metrics = combine(await asyncio.gather(*work))
        finally:
            for task in work:  # a step that one shard has failed asks for no other
                task.cancel()
        if not np.isfinite(mean).all():
            raise RefusedError("failed", "the gradient of the estimator is not finite; lower the learning rate")
        last = {"run": first.run, "step": first.step, "version": version + 1, "metrics": metrics}
        said, ready = await copies.prepare(version + 1, ray.put(mean), first, last, until)
        state = await copies.prepared(said, ready, until)
        self.last = last
        await copies.release(state, said, ready, until)
        return LearnReply(first.run, first.step, version + 1, metrics)

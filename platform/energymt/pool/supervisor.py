"""The supervisor of a pool: pings its replicas, replaces the dead, scales, and keeps the callers' leases.

What to do is decided by `fleet.Fleet`; here it is done. If the supervisor's own process ends, Ray starts it again, and
it finds its replicas by their names.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayActorError

from energymt.pool import actors
from energymt.pool.client import View
from energymt.pool.fleet import Action, Fleet, Limits, State, wanted_size
from energymt.pool.health import Health
from energymt.pool.lessons import LearnPart, LearnRefusal, LearnReply, WireState
from energymt.pool.settings import PoolConfig
from energymt.pool.teaching import Teaching
from energymt.pool.telemetry import Gauges, numbers

logger = logging.getLogger(__name__)
TICK = 0.25  # seconds between two looks at the fleet
GRACE = 2.0  # seconds that an ended process has to go; one that is frozen never would
PUBLISH = 5.0  # seconds between two readings for Ray's metrics
NOTHING_LEARNT = -1  # the version of a replica that begins when others have learnt already
STATIC = LearnRefusal("failed", "the pool is static: start it with `energymt pool up ... --set learns=head`")


@dataclass
class Lease:
    """A caller that lives."""

    client: str
    label: str
    run: str
    since: float
    seen: float


@dataclass
class Supervisor:
    """Keeps a pool alive.

    Args:
        name: of the pool.
        config: see `PoolConfig`.
        limits: of the fleet.
    """

    name: str
    config: PoolConfig
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        self.fleet = Fleet(self.config.replicas, self.limits, reserved=self.config.replicas)
        self.handles: dict[int, Any] = actors.replicas_of(self.name)
        now = time.monotonic()
        for number in self.handles:
            self.fleet.adopt(number, now)
        self.health: dict[int, Health] = {}
        self.waits: dict[int, tuple[float, ...]] = {}  # seconds in the queue, of what was answered since the last ping
        self.pinging: set[int] = set()
        self.pinged_at: dict[int, float] = {}
        self.leases: dict[str, Lease] = {}
        self.started = now
        self.needed = now
        self.gave_up = ""
        self.group = ray.util.get_placement_group(actors.group_name(self.name)) if self._has_group() else None
        lease = self.config.lease_seconds if self.handles else 0.0
        learns = self.config.learns is not None
        self.teaching = Teaching(self, self._runs, self.handles, lease) if learns else None
        self.gauges, self.published = Gauges(self.name), now
        self.loop: asyncio.Task[None] | None = None
        self.stopped = False
        self.tasks: set[asyncio.Task[None]] = set()

    def _has_group(self) -> bool:
        table = ray.util.placement_group_table()
        return any(
            entry["name"] == actors.group_name(self.name) and entry["state"] == "CREATED" for entry in table.values()
        )

    async def run(self) -> None:
        """Begin, at whatever is asked or told first; another call changes nothing, and after `stop` none does."""
        if not self.stopped and (self.loop is None or self.loop.done()):
            self.loop = asyncio.get_running_loop().create_task(self._supervise())

    async def view(self) -> View:
        """Who can be asked, for callers."""
        await self.run()
        queues = {n: self.health[n].queued for n in self.fleet.serving() if n in self.health}
        return View(queues, self._trouble())

    async def report(self, replica: int) -> None:
        """A caller waited for it in vain."""
        await self.run()
        self.fleet.reported(replica, time.monotonic())

    async def beat(self, client: str, label: str, run: str = "") -> None:
        """A caller lives: its lease is renewed."""
        await self.run()
        now = time.monotonic()
        lease = self.leases.setdefault(client, Lease(client, label, run, now, now))
        lease.seen = now

    async def leave(self, client: str) -> None:
        """A caller ends: what it held returns."""
        await self.run()
        self.leases.pop(client, None)
        for number, handle in self.handles.items():
            if number in self.fleet.serving():
                handle.forget.remote(client)

    async def learn(self, part: LearnPart) -> LearnReply | LearnRefusal:
        """Take a step together; see `teaching.Teaching`."""
        await self.run()
        return STATIC if self.teaching is None else await self.teaching.learn(part)

    async def learnt(self, seconds: float) -> WireState | LearnRefusal:
        """What was learnt so far."""
        await self.run()
        return STATIC if self.teaching is None else await self.teaching.state(seconds)

    async def restore(self, run: str, state: WireState | None, seconds: float) -> int | LearnRefusal:
        """Go back to a state, or to the start."""
        await self.run()
        return STATIC if self.teaching is None else await self.teaching.restore(run, state, seconds)

    async def status(self) -> dict[str, Any]:
        """Everything that `energymt pool status` shows."""
        await self.run()
        now, replicas = time.monotonic(), []
        for number, replica in sorted(self.fleet.replicas.items()):
            health = self.health.get(number)
            facts = {} if health is None else asdict(health)
            waits, latencies = facts.pop("waits", ()), facts.pop("latencies", ())
            facts |= {f"wait_p{q}": _percentile(waits, q) for q in (50, 95)}
            facts |= {f"latency_p{q}": _percentile(latencies, q) for q in (50, 95)}
            facts |= {"number": number, "state": str(replica.state), "restarts": replica.restarts}
            replicas.append(facts | {"error": replica.last_error})
        return {
            "name": self.name,
            "estimator": self.config.estimator,
            "settings": self.config.model_dump(mode="json"),
            "version": self.fleet.version,
            "learns": self.config.learns,
            "lesson_seconds": self.config.lesson_seconds,
            "seconds": now - self.started,
            "replicas": replicas,
            "leases": [{"label": lease.label, "seconds": now - lease.since} for lease in self.leases.values()],
            "trouble": self._trouble(),
            "gave_up": bool(self.gave_up),
        }

    async def stop(self) -> int:
        """End every replica; how many there were."""
        self.stopped = True
        if self.loop is not None:
            self.loop.cancel()
        processes = [(health.process, health.node) for health in self.health.values()]
        ended = len(self.handles)
        for number in list(self.handles):
            self._kill(number)
        until = time.monotonic() + GRACE
        while time.monotonic() < until and any(actors.lives(*process) for process in processes):
            await asyncio.sleep(0.05)
        for process in processes:
            actors.end_process(*process)
        return ended

    # The loop.

    async def _supervise(self) -> None:
        while True:
            try:
                now = time.monotonic()
                self._ping_all(now)
                self._scale(now)
                self._expire(now)
                actions = self.fleet.step(now)
                self.gave_up = ""  # said anew at every step as long as the replica is there
                for action in actions:
                    self._do(action)
                if now - self.published >= PUBLISH:
                    self.published = now
                    self.gauges.set(numbers(await self.status()))
            except Exception:
                logger.exception("The supervisor of pool %s goes on after an error.", self.name)
            await asyncio.sleep(TICK)

    def _do(self, action: Action) -> None:
        number = action.replica
        if action.kind == "start":
            self.handles[number] = actors.start_replica(
                self.name,
                self.config,
                number,
                self.fleet.version if self.teaching is None or not self.fleet.version else NOTHING_LEARNT,
                self.group if number < self.config.replicas else None,
            )
        elif action.kind == "kill":
            self._kill(number)
        elif action.kind == "sync" and self.teaching is not None:
            self.teaching.copies.sync(number)
        elif action.kind == "drain":
            self.handles[number].drain.remote()
        elif action.kind == "give up":
            replica = self.fleet.replicas[number]
            self.gave_up = f"replica {number} failed {replica.failures} times: {replica.last_error}"

    def _kill(self, number: int) -> None:
        handle, health = self.handles.pop(number, None), self.health.pop(number, None)
        if handle is None:
            return
        actors.end(handle)
        if health is not None:
            asyncio.get_running_loop().call_later(GRACE, actors.end_process, health.process, health.node)

    def _ping_all(self, now: float) -> None:
        for number in list(self.handles):
            due = now - self.pinged_at.get(number, -1e9) >= self.config.ping_seconds
            if number not in self.pinging and due and number in self.fleet.replicas:
                self.pinged_at[number] = now
                self.pinging.add(number)
                task = asyncio.get_running_loop().create_task(self._ping(number, self.handles[number]))
                self.tasks.add(task)
                task.add_done_callback(self.tasks.discard)

    async def _ping(self, number: int, handle: Any) -> None:
        starting = self.fleet.replicas[number].state == State.RESTARTING
        try:
            limit = self.limits.start if starting else self.config.ping_seconds
            health: Health = await asyncio.wait_for(_awaited(handle.ping.remote()), limit)
        except TimeoutError:
            if self.handles.get(number) is handle:
                self.fleet.missed(number, time.monotonic())
        except RayActorError as error:
            if self.handles.get(number) is handle:
                self.fleet.died(number, time.monotonic(), _reason(error), raised=error.actor_init_failed)
        else:
            if self.handles.get(number) is handle:
                before = self.health.get(number)
                fresh = health.served - (before.served if before is not None else 0)
                if fresh > 0 or not health.busy:  # else what it is busy with waits as its last requests did
                    self.waits[number] = health.waits[-fresh:] if fresh > 0 else ()
                self.health[number] = health
                if self.teaching is not None:
                    self.teaching.seen(number, health)
                self.fleet.pinged(number, time.monotonic(), health.version, health.served, health.busy)
        finally:
            self.pinging.discard(number)

    def _scale(self, now: float) -> None:
        most = self.config.most_replicas or self.config.replicas
        if most <= self.config.replicas:
            return
        waits = [wait for number in self.fleet.serving() for wait in self.waits.get(number, ())]
        if waits:
            self.needed = now
        wait = sum(waits) / len(waits) if waits else 0.0
        size = wanted_size(
            self.fleet.size,
            self.config.replicas,
            most,
            wait,
            self.config.aim_wait_ms / 1e3,
            now - self.needed,
            self.config.linger_seconds,
        )
        if size < self.fleet.size or self.fleet.settled():  # what is on its way is not asked for twice, but may go
            self.fleet.resize(size)

    def _expire(self, now: float) -> None:
        for client in [c for c, lease in self.leases.items() if now - lease.seen > self.config.lease_seconds]:
            logger.warning("Caller %s of pool %s is gone; what it held returns.", self.leases[client].label, self.name)
            task = asyncio.get_running_loop().create_task(self.leave(client))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

    def _runs(self) -> set[str]:
        return {lease.run for lease in self.leases.values()}

    def _trouble(self) -> str:
        if self.gave_up:
            return self.gave_up
        if self.teaching is not None and (trouble := self.teaching.copies.trouble()):
            return trouble
        if not self.fleet.serving():
            states = ", ".join(f"{r.number} {r.state}" for r in self.fleet.replicas.values()) or "none"
            return f"replicas: {states}"
        return ""


async def _awaited(reference: Any) -> Any:
    return await reference


def _reason(error: RayActorError) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else f"{text[:140]} … {text[-140:]}"


def _percentile(values: Any, q: int) -> float:
    return float(np.percentile(values, q)) if len(values) else 0.0

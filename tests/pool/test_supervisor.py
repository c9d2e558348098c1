"""A supervisor without Ray: replicas that answer pings or are never placed, and what it starts and lets go."""

import asyncio
import os
import platform
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from energymt.pool import supervisor
from energymt.pool.fleet import Limits, ReplicaState
from energymt.pool.health import Health
from energymt.pool.settings import PoolConfig
from energymt.pool.supervisor import Supervisor

GROUP = object()
Run = Callable[[Awaitable[Any]], Any]


class Cluster:
    """Handles of replicas by number, and those that were started, with the group of each."""

    def __init__(self) -> None:
        self.there: dict[int, Any] = {}
        self.started: dict[int, Any] = {}
        self.ended: list[Any] = []
        self.room = 99

    def start(self, pool: str, config: PoolConfig, number: int, version: int, group: Any = None) -> Any:
        self.started[number] = group
        return self.replica(number, placed=len(self.started) <= self.room)

    def replica(self, number: int, placed: bool = True) -> Any:
        async def ping() -> Health:
            if not placed:
                await asyncio.sleep(3600)
            counts = dict.fromkeys(("served", "sentences", "flagged", "refused", "busy", "queued"), 0)
            place = {"number": number, "version": 0, "process": os.getpid(), "node": f"not-{platform.node()}"}
            return Health(**place, **counts, fill=0.0, waits=(), latencies=(), last={})

        remote = {"ping": ping, "drain": lambda: None, "forget": lambda client: None}
        return SimpleNamespace(**{name: SimpleNamespace(remote=call) for name, call in remote.items()})


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    found = Cluster()
    monkeypatch.setattr(supervisor.actors, "replicas_of", lambda name: dict(found.there))
    monkeypatch.setattr(supervisor.actors, "start_replica", found.start)
    monkeypatch.setattr(supervisor.actors, "end", found.ended.append)
    monkeypatch.setattr(supervisor, "Gauges", lambda name: SimpleNamespace(set=lambda values: None))
    monkeypatch.setattr(supervisor, "TICK", 0.01)
    monkeypatch.setattr(Supervisor, "_has_group", lambda self: True)
    monkeypatch.setattr(supervisor.ray.util, "get_placement_group", lambda name: GROUP)
    return found


def of(limits: Limits | None = None, **settings: Any) -> Supervisor:
    return Supervisor(
        "default", PoolConfig(**{"estimator": "here", "ping_seconds": 0.1, **settings}), limits or Limits()
    )


async def until(condition: Callable[[], Any]) -> None:
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come to that")


def states(pool: Supervisor) -> list[str]:
    return [str(replica.state) for _, replica in sorted(pool.fleet.replicas.items())]


# ------------------------------------------------------------------------------------------------------------- scaling


def passing(pool: Supervisor, seconds: float, waits: float | None = None) -> None:
    """Time, in which the replicas that serve answer every ping, and requests wait so long or there are none."""
    now, end = pool.needed, pool.needed + seconds
    while now < end:
        now += 1.0
        serving = pool.fleet.serving()
        pool.waits = {} if waits is None else dict.fromkeys(serving, (waits,))
        pool._scale(now)
        for number in serving:
            pool.fleet.pinged(number, now, 0, 0, 0)
        for action in pool.fleet.step(now):
            if action.kind == "kill":
                pool.fleet.died(action.replica, now, "killed")


def grown(broken: Callable[[Supervisor], Any]) -> Supervisor:
    """A pool of one to four replicas that has grown to three, of which the third has a trouble."""
    pool = of(most_replicas=4)
    pool.fleet.step(pool.needed)
    pool.fleet.pinged(0, pool.needed, 0, 0, 0)
    pool.fleet.resize(3)
    pool.fleet.step(pool.needed)
    pool.fleet.pinged(1, pool.needed, 0, 0, 0)
    broken(pool)
    return pool


def not_placed(pool: Supervisor) -> None:
    """There is no room for it."""


def given_up(pool: Supervisor) -> None:
    for _ in range(2):
        pool.fleet.died(2, pool.needed, "no weights", raised=True)
        pool.fleet.step(pool.needed + 60.0)


@pytest.mark.parametrize("broken", [not_placed, given_up])
def test_an_idle_pool_shrinks_whatever_a_replica_lacks(broken: Callable[[Supervisor], Any], cluster: Cluster) -> None:
    pool = grown(broken)
    passing(pool, 200.0)
    assert pool.fleet.size == 1
    assert pool.fleet.serving() == [0] and len(pool.fleet.counted()) == 1


def test_a_busy_pool_asks_for_nothing_beside_what_is_on_its_way(cluster: Cluster) -> None:
    pool = grown(not_placed)
    passing(pool, 100.0, waits=9.0)
    assert (pool.fleet.size, len(pool.fleet.replicas)) == (3, 3)


def test_a_busy_pool_grows_beside_one_that_was_given_up(cluster: Cluster) -> None:
    pool = grown(given_up)
    assert pool.fleet.replicas[2].state == ReplicaState.DEAD
    passing(pool, 5.0, waits=9.0)
    assert pool.fleet.size == 4 and 3 in pool.fleet.replicas


def test_a_trouble_that_went_with_its_replica_is_told_no_more(cluster: Cluster, run: Run) -> None:
    async def scenario() -> None:
        pool = of(Limits(backoff=0.0, errors=1), replicas=1, most_replicas=2, linger_seconds=3600.0)
        await until_serving(pool, 1)
        pool.fleet.resize(2)
        await until(lambda: 1 in pool.fleet.replicas)
        pool.fleet.died(1, 0.0, "no weights", raised=True)
        await until(lambda: "no weights" in pool.gave_up)
        pool.fleet.resize(1)
        await until(lambda: 1 not in pool.fleet.replicas)
        await until(lambda: not pool.gave_up)
        await pool.stop()

    run(scenario())


async def until_serving(pool: Supervisor, number: int) -> None:
    await pool.run()
    await until(lambda: len(pool.fleet.serving()) == number)


# -------------------------------------------------------------------------------------------------------- begun anew


def test_what_it_misses_is_started_where_room_is_reserved(cluster: Cluster, run: Run) -> None:
    """Replica 0 died while there was no supervisor."""

    async def scenario() -> None:
        cluster.there = {1: cluster.replica(1)}
        pool = of(replicas=2)
        await until_serving(pool, 2)
        await pool.stop()
        assert cluster.started == {0: GROUP}

    run(scenario())


@pytest.mark.parametrize(
    "told",
    [lambda pool: pool.beat("me", "here:1"), lambda pool: pool.report(1), lambda pool: pool.leave("me")],
    ids=["beat", "report", "leave"],
)
def test_a_caller_that_only_lives_has_it_begin(told: Callable[[Supervisor], Any], cluster: Cluster, run: Run) -> None:
    async def scenario() -> None:
        cluster.there = {1: cluster.replica(1)}
        pool = of(replicas=2)
        await told(pool)
        await until(lambda: states(pool) == ["healthy", "healthy"])
        await pool.stop()

    run(scenario())


def test_nothing_begins_after_its_end(cluster: Cluster, run: Run) -> None:
    async def scenario() -> None:
        pool = of()
        await until_serving(pool, 1)
        await pool.stop()
        await asyncio.sleep(0.1)
        await pool.beat("me", "here:1")
        await pool.view()
        await asyncio.sleep(0.2)
        assert pool.loop is not None and pool.loop.done()
        assert not pool.handles

    run(scenario())

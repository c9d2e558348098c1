"""Steps of a pool that learns, on real replicas in this process: they end in time, and what fails changes nothing."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

from energymt.pool.lessons import LearnRefusal, LearnReply
from tests.pool.schools import School

Run = Callable[[Any], Any]
Open = Callable[[int], School]


@pytest.fixture
def school(monkeypatch: pytest.MonkeyPatch) -> Open:
    return lambda size: School(monkeypatch, size)


def refused(answer: Any, reason: str, text: str) -> None:
    assert isinstance(answer, LearnRefusal), answer
    assert answer.reason == reason and text in answer.detail


@pytest.mark.parametrize("size", [1, 2])
def test_a_step_ends_at_its_deadline_and_the_next_is_taken(size: int, school: Open, run: Run) -> None:
    """The replica lives and computes: it gets no second copy, and nobody else does its work."""

    async def scenario() -> None:
        pool = school(size)
        go_on = pool.handles[size - 1].hold("differentiate")
        late = await pool.teaching.learn(pool.part(0, seconds=1.0))
        refused(late, "late", f"replica {size - 1} still computed the gradient")
        assert [handle.calls["differentiate"] for handle in pool.handles.values()] == [1] * size
        assert pool.versions() == [0] * size
        waiting = asyncio.create_task(pool.teaching.learn(pool.part(0)))
        go_on.set()
        reply = await waiting
        assert isinstance(reply, LearnReply) and reply.version == 1
        assert pool.versions() == [1] * size

    run(scenario())


@pytest.mark.parametrize("trouble", ["missed", "reported", "died"])
def test_another_replica_is_asked_when_there_is_trouble_with_the_first(trouble: str, school: Open, run: Run) -> None:
    async def scenario() -> None:
        pool = school(2)
        pool.handles[1].hold("differentiate")
        if trouble != "died":
            pool.handles[1].hold("prepare")
        learning = asyncio.create_task(pool.teaching.learn(pool.part(0, seconds=8.0)))
        while not pool.handles[1].calls["differentiate"]:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)
        assert pool.handles[0].calls["differentiate"] == 1, "nobody doubts replica 1"
        if trouble == "died":
            pool.fleet.died(1, time.monotonic(), "killed")
            pool.handles[1].gone.set()
        else:
            getattr(pool.fleet, trouble)(1, time.monotonic())
        reply = await learning
        assert isinstance(reply, LearnReply) and reply.version == 1
        assert [pool.handles[number].calls["differentiate"] for number in (0, 1)] == [2, 1]

    run(scenario())


def test_the_replacement_of_a_replica_is_asked(school: Open, run: Run) -> None:
    async def scenario() -> None:
        pool = school(1)
        pool.handles[0].hold("differentiate")
        learning = asyncio.create_task(pool.teaching.learn(pool.part(0)))
        while not pool.handles[0].calls["differentiate"]:
            await asyncio.sleep(0.01)
        pool.handles[0].gone.set()
        pool.fleet.died(0, time.monotonic(), "killed")
        while pool.fleet.replicas[0].state != "restarting":
            pool.fleet.step(time.monotonic())
            await asyncio.sleep(0.01)
        pool.enter(0)
        reply = await learning
        assert isinstance(reply, LearnReply) and reply.version == 1

    run(scenario())


def test_what_waits_for_its_turn_has_a_deadline(school: Open, run: Run) -> None:
    async def scenario() -> None:
        pool = school(1)
        assert isinstance(await pool.teaching.learn(pool.part(0)), LearnReply)
        async with pool.teaching.turn:
            text = "still under way"
            refused(await pool.teaching.learn(pool.part(1, seconds=0.2)), "late", text)
            refused(await pool.teaching.state(0.2), "late", text)
            refused(await pool.teaching.restore("run", None, 0.2), "late", text)
        reply = await pool.teaching.learn(pool.part(1))
        assert isinstance(reply, LearnReply) and reply.version == 2

    run(scenario())

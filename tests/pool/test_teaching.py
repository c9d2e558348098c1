"""Steps of a pool that learns, on real replicas in this process: they end in time, and what fails changes nothing."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from energymt.models.learning import EstimatorLearner
from energymt.pool.lessons import LearnRefusal, LearnReply
from tests import estimators, lessons
from tests.pool.schools import OPTIONS, School

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


def test_of_two_runs_that_find_the_owner_dead_one_is_admitted(school: Open, run: Run) -> None:
    async def scenario() -> None:
        pool = school(1)
        assert isinstance(await pool.teaching.learn(pool.part(0)), LearnReply)
        pool.runs = {"first", "second"}
        async with pool.teaching.turn:
            both = [asyncio.create_task(pool.teaching.learn(pool.part(0, run=name))) for name in ("first", "second")]
            await asyncio.sleep(0.1)
        reply, refusal = await asyncio.gather(*both)
        assert isinstance(reply, LearnReply) and reply.run == "first"
        refused(refusal, "leased", "the run first learns in this pool")
        assert pool.versions() == [reply.version] == [3], "one step, one start, one step"

    run(scenario())


def test_a_step_of_a_run_that_lost_the_pool_is_not_taken(school: Open, run: Run) -> None:
    """It waits for its turn behind another run, which begins because the trainers of this one are taken for dead."""

    async def scenario() -> None:
        pool = school(1)
        assert isinstance(await pool.teaching.learn(pool.part(0)), LearnReply)
        async with pool.teaching.turn:
            start = asyncio.create_task(pool.teaching.restore("next", None, 30.0))
            await asyncio.sleep(0.1)
            step = asyncio.create_task(pool.teaching.learn(pool.part(1)))
            await asyncio.sleep(0.1)
            pool.runs = {"next"}
        version = await start
        refused(await step, "leased", "the run next learns in this pool by now")
        assert pool.versions() == [version]

    run(scenario())


@pytest.mark.parametrize("lives", [True, False])
def test_a_new_supervisor_waits_for_the_run_that_learnt_here(lives: bool, school: Open, run: Run) -> None:
    async def scenario() -> None:
        pool = school(1)
        assert isinstance(await pool.teaching.learn(pool.part(0)), LearnReply)
        await pool.restart(lease=2.0 if lives else 0.5)
        pool.runs.add("other")
        other = asyncio.create_task(pool.teaching.learn(pool.part(0, run="other")))
        await asyncio.sleep(0.2)
        if lives:
            pool.runs.add("run")
            refused(await other, "leased", "the run run learns in this pool")
            assert (await pool.teaching.learn(pool.part(0))).version == 1, "it was taken"
            assert (await pool.teaching.learn(pool.part(1))).version == 2
        else:
            assert (await other).version == 3, "one step, one start, one step"

    run(scenario())


def test_a_run_that_cannot_begin_leaves_the_pool_to_the_one_before(school: Open, run: Run) -> None:
    async def scenario() -> None:
        pool = school(1)
        assert isinstance(await pool.teaching.learn(pool.part(0)), LearnReply)
        pool.runs = {"next"}
        pool.handles[0].hold("first")
        assert isinstance(await pool.teaching.learn(pool.part(0, 0.3, run="next")), LearnRefusal)
        pool.handles[0].held.clear()
        assert (await pool.teaching.learn(pool.part(0, run="next"))).version == 3, "from the start"

    run(scenario())


def test_what_was_learnt_outlives_all_replicas(school: Open, run: Run) -> None:
    """They die as soon as the new version is released, and before one has put it in place."""

    async def scenario() -> None:
        pool = school(2)
        for handle in pool.handles.values():
            handle.dies_at = "activate"
        reply = await pool.teaching.learn(pool.part(0))
        assert isinstance(reply, LearnReply) and reply.version == 1
        await pool.replace()
        while pool.versions() != [1, 1]:
            await asyncio.sleep(0.01)
        local = EstimatorLearner(estimators.estimator("kiwi"), "head")
        found = local.differentiate(lessons.lesson(local.estimator), OPTIONS.form)
        local.prepare(1, found.gradient_P / found.count, OPTIONS, {})
        local.activate(1)
        for handle in pool.handles.values():
            torch.testing.assert_close(
                handle.served.copy.learner.state.weights_P, local.state.weights_P, rtol=0, atol=1e-5
            )

    run(scenario())


def test_a_step_that_nobody_keeps_is_not_released(school: Open, run: Run) -> None:
    async def scenario() -> None:
        pool = school(2)
        for handle in pool.handles.values():
            handle.dies_at = "prepared"
        refused(await pool.teaching.learn(pool.part(0)), "unavailable", "no replica that prepared the step")
        await pool.replace()
        assert (await pool.teaching.learn(pool.part(0))).version == 1

    run(scenario())


def test_the_next_replica_says_where_the_estimator_began(school: Open, run: Run) -> None:
    async def scenario() -> None:
        pool = school(2)
        assert isinstance(await pool.teaching.learn(pool.part(0)), LearnReply)
        pool.handles[0].dies_at = "first"
        assert await pool.teaching.restore("run", None, 30.0) == 2
        assert pool.handles[1].served.copy.learner.version == 2

    run(scenario())


@pytest.mark.parametrize("fault", ["token id 9999", "not finite"])
def test_a_lesson_that_cannot_be_learnt_is_refused_at_once(fault: str, school: Open, run: Run) -> None:
    async def scenario() -> None:
        pool = school(1)
        part = pool.part(0)
        if fault == "not finite":
            part.log_probs[0] = -np.inf
        else:
            part.target.values[0] = 9999
        refused(await pool.teaching.learn(part), "failed", fault)
        assert pool.handles[0].calls["differentiate"] == 1, "another replica would say the same"
        assert isinstance(await pool.teaching.learn(pool.part(0)), LearnReply)

    run(scenario())

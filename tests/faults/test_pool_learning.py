"""Replicas, supervisor and trainers of a pool that learns are killed: no step is lost, none is taken twice."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from energymt.errors import EnergyTimeout
from energymt.models.learning import EstimatorLearner, LessonOptions
from energymt.pool.settings import PoolConfig
from tests import estimators, lessons
from tests.faults.pool_estimators import brake, trap

pytestmark = pytest.mark.faults
NAME, OPTIONS = "school", LessonOptions(rate=1e-2)


@pytest.fixture(scope="module")
def pool(cluster: Path) -> Iterator[None]:
    """Two replicas that learn their heads, with brakes."""
    from energymt.pool import lifecycle

    config = PoolConfig(
        estimator="tests.faults.pool_estimators:trapped",
        replicas=2,
        cpus=0.5,
        ping_seconds=1.0,
        lease_seconds=4.0,
        learns="head",
    )
    lifecycle.up(NAME, config, wait=180.0)
    yield
    lifecycle.down(NAME)


class Trainer:
    """Of one run, with what its steps must come to."""

    def __init__(self, run: str) -> None:
        from energymt.pool.connection import Connection
        from energymt.pool.learner import PooledLearner

        self.connection = Connection(NAME, run=run, beat_seconds=0.5, deadline=120.0)
        self.learner = PooledLearner(self.connection, seconds=120.0)
        self.model = estimators.estimator("kiwi")
        self.local = EstimatorLearner(estimators.estimator("kiwi"), "head")
        self.steps = 0

    def learn(self) -> Any:
        """The next step, here and there."""
        self.take()
        reply = self.learner.learn(self.lesson(self.steps), self.steps, options=OPTIONS)
        self.steps += 1
        return reply

    def take(self) -> None:
        """The next step here alone."""
        found = self.local.differentiate(self.lesson(self.steps), OPTIONS.form)
        version = self.local.version + 1
        self.local.prepare(version, found.gradient_P / found.count, OPTIONS, {})
        self.local.activate(version)

    def lesson(self, step: int) -> Any:
        return lessons.lesson(self.model, seed=step + 1)

    def require_right(self, version: int) -> None:
        """All replicas that serve have the weights of these steps."""
        from energymt.pool.estimator import PooledEstimator

        pooled = PooledEstimator(self.connection.client, self.model.table_VD, self.model.vocabulary, version=version)
        source = estimators.source_of(self.model, estimators.SOURCES)
        target = estimators.target_of(self.model, estimators.TRANSLATIONS)
        with torch.no_grad():
            wanted = self.local.estimator(source, target)
        tickets = [pooled.submit(source, target) for _ in range(6)]
        for ticket in tickets:
            torch.testing.assert_close(ticket.result(), wanted, rtol=0, atol=2e-5)
            assert ticket.reply().version == version


@pytest.fixture
def trainer(pool: None, request: pytest.FixtureRequest) -> Iterator[Trainer]:
    """A run of its own."""
    settled()
    found = Trainer(request.node.name)
    yield found
    found.connection.close()
    for file in brake(0).parent.glob("brake-*"):
        file.unlink()


def status() -> dict[str, Any]:
    from energymt.pool import lifecycle

    return lifecycle.status(NAME)


def settled() -> None:
    """Both replicas serve."""
    wait_for(lambda: [row["state"] for row in status()["replicas"]] == ["healthy"] * 2 and -1 not in processes())


def wait_for(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, status()
        time.sleep(0.2)


def processes() -> list[int]:
    return [row.get("process", -1) for row in status()["replicas"]]  # one that starts has none


def test_a_replica_is_killed_between_two_steps(trainer: Trainer) -> None:
    trainer.learn()
    os.kill(processes()[0], signal.SIGKILL)
    trainer.learn()
    reply = trainer.learn()
    settled()
    trainer.require_right(reply.version)


def test_a_replica_is_killed_while_it_differentiates(trainer: Trainer) -> None:
    trainer.learn()
    victim = processes()[1]
    brake(victim).write_text("3")
    threading.Timer(1.0, os.kill, (victim, signal.SIGKILL)).start()
    reply = trainer.learn()
    settled()
    trainer.require_right(reply.version)


def test_a_replica_is_killed_between_prepare_and_activate(trainer: Trainer) -> None:
    """It has the new version beside the old one, and takes it with it; its replacement gets it from the others."""
    trainer.learn()
    victim = processes()[0]
    trap(victim).touch()
    reply = trainer.learn()
    wait_for(lambda: victim not in processes())
    settled()
    trainer.require_right(reply.version)


def test_replicas_are_too_slow_for_a_step(trainer: Trainer) -> None:
    """They live, and are waited for until the deadline; what they still compute then is nothing to the next step."""
    version = trainer.learn().version
    slow = processes()
    for process in slow:
        brake(process).write_text("8")
    trainer.learner.seconds = 3.0
    with pytest.raises(EnergyTimeout, match=r"replica \d still computed the gradient .* more `lesson_seconds`"):
        trainer.learner.learn(trainer.lesson(1), 1, options=OPTIONS)
    for process in slow:
        brake(process).unlink()
    trainer.learner.seconds = 120.0
    reply = trainer.learn()
    assert reply.version == version + 1
    trainer.require_right(reply.version)
    assert processes() == slow


def test_all_replicas_are_killed(trainer: Trainer) -> None:
    """The supervisor keeps what was learnt."""
    trainer.learn()
    reply = trainer.learn()
    for process in processes():
        os.kill(process, signal.SIGKILL)
    trainer.require_right(reply.version)
    trainer.require_right(trainer.learn().version)


def test_the_supervisor_is_killed(trainer: Trainer) -> None:
    """It knows from the replicas which version is the true one, and which step was taken."""
    import ray

    from energymt.pool import actors

    before = trainer.learn()
    reply = trainer.learn()
    ray.kill(actors.find(actors.supervisor_name(NAME)), no_restart=False)
    again = trainer.learner.learn(trainer.lesson(1), 1, options=OPTIONS)
    assert (again, again.version) == (reply, before.version + 1)
    reply = trainer.learn()
    assert reply.version == before.version + 2
    trainer.require_right(reply.version)


def test_a_trainer_is_killed_in_a_step(trainer: Trainer) -> None:
    """The other one is told, and nothing was learnt; without it the run goes on."""
    trainer.learn()
    version = trainer.learner.state().version
    trainer.learner.seconds = 3.0
    with pytest.raises(EnergyTimeout, match=r"part 1 of 2 of step 1 .* did not come within 3 s"):
        trainer.learner.learn(trainer.lesson(1), 1, parts=2, options=OPTIONS)
    trainer.learner.seconds = 120.0
    assert trainer.learn().version == version + 1

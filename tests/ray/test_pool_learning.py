"""A pool that learns: its copies change together, by the step that one process would take."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from energymt.errors import EnergyTimeout, EnergyUnavailable
from energymt.models.learning import EstimatorLearner, LessonOptions
from energymt.pool.lessons import load_state, save_state
from energymt.pool.settings import PoolConfig
from tests import estimators, lessons

pytestmark = pytest.mark.ray
OPTIONS = LessonOptions(rate=1e-2)


@pytest.fixture(scope="module")
def pool(local_ray: Path) -> Iterator[str]:
    """Three replicas that learn head and adapters."""
    from energymt.pool import lifecycle

    config = PoolConfig(
        estimator=str(estimators.converted("kiwi")),
        replicas=3,
        cpus=0.25,
        ping_seconds=0.5,
        learns="lora",
        lesson_seconds=77.0,
    )
    lifecycle.up("school", config, wait=240.0)
    yield "school"
    lifecycle.down("school")


def connected(name: str, run: str, seconds: float | None = 60.0) -> Any:
    """A connection and a learner."""
    from energymt.pool.connection import Connection
    from energymt.pool.learner import PooledLearner

    connection = Connection(name, run=run, beat_seconds=0.5, deadline=60.0)
    return connection, PooledLearner(connection, seconds)


def scores_of(connection: Any, version: int) -> torch.Tensor:
    """What the pool makes of five translations, at this version at least."""
    from energymt.pool.estimator import PooledEstimator

    local = estimators.estimator("kiwi")
    pooled = PooledEstimator(connection.client, local.table_VD, local.vocabulary, version=version)
    target = estimators.target_of(local, estimators.TRANSLATIONS)
    return pooled(estimators.source_of(local, estimators.SOURCES), target)


def alone(steps: int, learns: Any = "lora") -> EstimatorLearner:
    """The same steps in this process."""
    learner = EstimatorLearner(estimators.estimator("kiwi"), learns)
    for step in range(steps):
        found = learner.differentiate(lessons.lesson(learner.estimator, seed=step + 1), OPTIONS.form)
        learner.prepare(step + 1, found.gradient_P / found.count, OPTIONS, {})
        learner.activate(step + 1)
    return learner


def local_scores(learner: EstimatorLearner) -> torch.Tensor:
    model = learner.estimator
    with torch.no_grad():
        return model(
            estimators.source_of(model, estimators.SOURCES), estimators.target_of(model, estimators.TRANSLATIONS)
        )


def test_two_trainers_and_three_replicas_learn_as_one_process(pool: str) -> None:
    model = estimators.estimator("kiwi")
    replies: dict[int, list[Any]] = {0: [], 1: []}
    connections = [connected(pool, "two-trainers") for _ in range(2)]
    before = scores_of(connections[0][0], 0)

    def teach(part: int) -> None:
        for step in range(4):
            cut = (0, 2) if part == 0 else (2, 5)
            lesson = lessons.lesson(model, *cut, seed=step + 1)
            replies[part].append(connections[part][1].learn(lesson, step, part=part, parts=2, options=OPTIONS))

    threads = [threading.Thread(target=teach, args=(part,)) for part in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert replies[0] == replies[1]
    versions = [reply.version for reply in replies[0]]
    assert versions == list(range(versions[0], versions[0] + 4))
    wanted = alone(4)
    found = scores_of(connections[0][0], versions[-1])
    torch.testing.assert_close(found, local_scores(wanted), rtol=0, atol=2e-5)
    assert (found - before).abs().max() > 0.01
    metrics = replies[0][-1].metrics
    assert metrics["margin"] == pytest.approx(metrics["gold_score"] - metrics["sample_score"])
    for connection, _ in connections:
        connection.close()


def test_a_step_is_taken_once_and_no_step_comes_back(pool: str) -> None:
    connection, learner = connected(pool, "once")
    lesson = lessons.lesson(estimators.estimator("kiwi"))
    first = learner.learn(lesson, 0, options=OPTIONS)
    again = learner.learn(lesson, 0, options=OPTIONS)
    assert again == first
    second = learner.learn(lesson, 1, options=OPTIONS)
    assert second.version == first.version + 1
    with pytest.raises(EnergyUnavailable, match="step 0 was asked for and step 1 was taken"):
        learner.learn(lesson, 0, options=OPTIONS)
    connection.close()


def test_the_pool_says_how_long_a_step_may_take(pool: str) -> None:
    connection, learner = connected(pool, "patient", seconds=None)
    assert learner.seconds == 77.0
    connection.close()


def test_a_part_that_does_not_come(pool: str) -> None:
    connection, learner = connected(pool, "late", seconds=2.0)
    lesson = lessons.lesson(estimators.estimator("kiwi"))
    learner.learn(lesson, 0, options=OPTIONS)
    version = learner.state().version
    with pytest.raises(EnergyTimeout, match=r"part 1 of 2 of step 1 of the run late did not come within 2 s"):
        learner.learn(lesson, 1, parts=2, options=OPTIONS)
    assert learner.state().version == version
    learner.seconds = 60.0
    assert learner.learn(lesson, 1, options=OPTIONS).version == version + 1
    connection.close()


def test_a_state_goes_into_a_checkpoint_and_back(pool: str, tmp_path: Path) -> None:
    connection, learner = connected(pool, "resumed")
    model = estimators.estimator("kiwi")
    for step in range(2):
        learner.learn(lessons.lesson(model, seed=step + 1), step, options=OPTIONS)
    save_state(learner.state(), tmp_path / "state")
    on = learner.learn(lessons.lesson(model, seed=3), 2, options=OPTIONS)
    wanted = scores_of(connection, on.version)

    version = learner.restore(load_state(tmp_path / "state"))
    assert version > on.version, "a version never comes back with other weights"
    again = learner.learn(lessons.lesson(model, seed=3), 2, options=OPTIONS)
    assert again.metrics == pytest.approx(on.metrics, rel=1e-5)
    torch.testing.assert_close(scores_of(connection, again.version), wanted, rtol=0, atol=1e-6)
    torch.testing.assert_close(wanted, local_scores(alone(3)), rtol=0, atol=2e-5)

    state = learner.state()
    other = replace(state, arrays={"weights_P": state.arrays["weights_P"][:-1]})
    with pytest.raises(EnergyUnavailable, match=r"holds [\d,]+ learnt weights and this pool learns [\d,]+"):
        learner.restore(other)
    torch.testing.assert_close(scores_of(connection, again.version), wanted, rtol=0, atol=1e-6)

    version = learner.restore(None)
    torch.testing.assert_close(scores_of(connection, version), local_scores(alone(0)), rtol=0, atol=1e-6)
    connection.close()


def test_one_run_learns_at_a_time_and_the_next_begins_anew(pool: str) -> None:
    model = estimators.estimator("kiwi")
    first, learner = connected(pool, "first-run")
    done = learner.learn(lessons.lesson(model), 0, options=OPTIONS)
    second, other = connected(pool, "second-run")
    with pytest.raises(EnergyUnavailable, match="the run first-run learns in this pool"):
        other.learn(lessons.lesson(model), 0, options=OPTIONS)
    first.close()
    reply = other.learn(lessons.lesson(model, seed=1), 0, options=OPTIONS)
    assert reply.version > done.version
    torch.testing.assert_close(scores_of(second, reply.version), local_scores(alone(1)), rtol=0, atol=2e-5)
    second.close()


def test_a_static_pool_does_not_learn(local_ray: Path) -> None:
    from energymt.pool import lifecycle

    lifecycle.up("static", PoolConfig(estimator=str(estimators.converted("kiwi")), cpus=0.25), wait=240.0)
    connection, learner = connected("static", "any")
    with pytest.raises(EnergyUnavailable, match=r"the pool is static: start it with .*learns=head"):
        learner.learn(lessons.lesson(estimators.estimator("kiwi")), 0)
    connection.close()
    lifecycle.down("static")

"""One copy of an estimator that learns: it serves what was released, and nothing that has the number alone."""

import numpy as np
import torch

from energymt.models.learning import LessonOptions
from energymt.pool.copy import LearningCopy
from energymt.pool.server import Server
from energymt.pool.settings import PoolConfig
from tests import estimators


def copy() -> LearningCopy:
    return LearningCopy(Server(estimators.estimator("kiwi")), PoolConfig(estimator="any", learns="head"))


def gradient(found: LearningCopy, value: float) -> np.ndarray:
    return np.full(len(found.learner.start_P), value, dtype=np.float32)


def test_weights_of_a_step_that_was_given_up_are_not_served() -> None:
    """It was late, and another step of the same number was taken without it."""
    late, right = copy(), copy()
    late.prepare(1, gradient(late, 1.0), LessonOptions(), {})
    said = right.prepare(1, gradient(right, -1.0), LessonOptions(), {})
    assert not late.activate(1, said)
    assert late.server.version == 0 and torch.equal(late.learner.state.weights_P, late.learner.start_P)
    assert right.activate(1, said) and right.server.version == 1
    late.install(right.export())
    assert late.server.version == 1 and torch.equal(late.learner.state.weights_P, right.learner.state.weights_P)

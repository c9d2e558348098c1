"""What a replica of a learning pool does in a step: differentiate, prepare, activate; hand its state on, or take one.

Every method runs in the replica's model thread, so between two batches; a batch never sees half a version.
"""

from __future__ import annotations

from typing import Any

import torch

from energymt.models.learning import EstimatorLearner, LessonOptions
from energymt.pool.lessons import Shard, ShardGradient, WireState, from_wire, gradient_to_wire, to_wire, unpack_lesson
from energymt.pool.server import Server
from energymt.pool.settings import PoolConfig
from energymt.pool.wire import Array, from_numpy


class LearningCopy:
    """One of the copies of an estimator that learns.

    Args:
        server: whose estimator it is.
        config: of the pool, one that learns.
    """

    def __init__(self, server: Server, config: PoolConfig) -> None:
        assert config.learns is not None
        self.server, self.said = server, ""
        self.learner = EstimatorLearner(
            server.estimator,
            config.learns,
            rank=config.lora_rank,
            budget=config.tokens_per_batch,
            version=server.version,
        )

    def differentiate(self, shard: Shard) -> ShardGradient:
        """The gradient of a shard.

        Raises:
            RuntimeError: this copy holds another version than the one that the step began with.
        """
        if shard.version != self.learner.version:
            raise RuntimeError(f"{self.server.name} holds version {self.learner.version} and not {shard.version}")
        device = self.learner.start_P.device
        return gradient_to_wire(self.learner.differentiate(unpack_lesson(shard, device), shard.form))

    def prepare(self, version: int, mean: Array, options: LessonOptions, last: dict[str, Any]) -> str:
        """The new version beside the old one; its digest. Refuses to go on from another than the one before."""
        if version != self.learner.version + 1:
            raise RuntimeError(f"{self.server.name} holds version {self.learner.version} and cannot prepare {version}")
        self.said = self.learner.prepare(version, from_numpy(mean), options, last)
        return self.said

    def prepared(self, said: str) -> WireState | None:
        """The weights with this digest before they are served, to be kept elsewhere; None if they are not here."""
        ready = self.learner.prepared
        return to_wire(ready) if ready is not None and self.said == said else None

    def activate(self, version: int, said: str) -> bool:
        """Serve a prepared version from now on; False if it is not there, or is another than the one released.

        A step that was given up may leave weights behind that have the number of the step taken instead.
        """
        if self.said != said:
            return False
        done = self.learner.activate(version)
        self.server.version = self.learner.version
        return done

    def export(self) -> WireState:
        """For another copy, or a checkpoint."""
        return to_wire(self.learner.state)

    def first(self, version: int) -> WireState:
        """The state before the first step, under a new version."""
        return to_wire(self.learner.first(version))

    def install(self, state: WireState) -> None:
        """Take over a state."""
        with torch.no_grad():
            self.learner.install(from_wire(state))
        self.server.version = self.learner.version

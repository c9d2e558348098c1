"""The one training loop.

    for batch in plan:                       all micro-batches of one optimizer step
        for step in trainable.steps(batch):  most methods yield one
            optimise(step)                   counts over workers, forward, backward, gradients over workers, AdamW
        now and then: log, evaluate on dev, keep the best, checkpoint

A loss is Σ weight · Σ sum / Σ count, the sums over micro-batches and workers. Counts are known before the first
forward pass, so every micro-batch is divided by the global count at once; see `energymt.optimisation`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from lightning.fabric import Fabric

from energymt.checkpoints import Checkpoints, Progress
from energymt.configuration import TrainingConfig
from energymt.data.batching import Plan
from energymt.errors import DivergenceError
from energymt.models.network import Network
from energymt.optimisation import learning_rate, make_optimizer, optimise
from energymt.records import Mixture, Step, StepBatch
from energymt.window import Window

logger = logging.getLogger(__name__)


class Trainable(Protocol):
    """A method: what it trains, on which data, by which loss, and what says on dev that it got better."""

    METRIC: str  # of the class, or of an instance whose configuration chooses it
    HIGHER_IS_BETTER: bool
    config: TrainingConfig
    model: Network
    plan: Plan

    def steps(self, batch: StepBatch) -> Iterator[Step | Mixture]:
        """The optimizer steps that this batch gives."""
        ...

    def evaluate(self) -> dict[str, float]:
        """Dev values of the current model, `METRIC` among them; a `dev/stop` above 0 ends the run."""
        ...


@runtime_checkable
class Compared(Protocol):
    """A method whose dev values may be compared with those of the start."""

    def begin(self) -> bool:
        """A run begins, and goes on from no checkpoint; every worker is told. Whether the start is looked at."""
        ...


Report = Callable[[int, dict[str, float]], None]


@dataclass
class Stop:
    """Set by a signal handler or a scheduler: the loop ends behind the current step, with a checkpoint."""

    requested: bool = False


@dataclass(frozen=True)
class Result:
    """What a run came to."""

    progress: Progress
    metrics: dict[str, float]  # dev values of the final model
    metric: str  # what chose the checkpoint
    higher_is_better: bool
    interrupted: bool = False


def fit(trainable: Trainable, fabric: Fabric, folder: Path, report: Report, stop: Stop | None = None) -> Result:
    """Train until the budget, the patience or `stop` ends it; resume from `folder` if it holds checkpoints.

    Raises:
        DivergenceError: loss or gradient not finite; nothing is updated, the last checkpoint stays.
    """
    config, model, stop = trainable.config, trainable.model, stop or Stop()
    criterion = trainable.METRIC, trainable.HIGHER_IS_BETTER
    model.to(fabric.device)
    optimizer = make_optimizer(model, config.optimizer)
    checkpoints = Checkpoints(folder, config.keep_best, trainable)
    progress, passed_over = checkpoints.resume(model, optimizer)
    damage = f"{passed_over} {checkpoints.leave_out_damaged(progress, trainable.HIGHER_IS_BETTER)}".strip()
    if damage and fabric.is_global_zero:
        logger.warning("%s The run goes on from step %d.", damage, progress.step)
        report(progress.step, {"checkpoints/passed_over": 1.0})
    take_up(progress, config)
    resumed_at, window = progress.step, Window()
    batches = trainable.plan.iterate(progress.step, rank=fabric.global_rank, world=fabric.world_size)
    look_first(trainable, fabric, checkpoints, progress, report)
    window.lap()
    while progress.step < config.steps and not progress.stopped_early and not stop.requested:
        model.train()
        rate = learning_rate(config.optimizer, progress.step, config.steps)
        for step in trainable.steps(next(batches)):
            window.add(optimise(step, model, optimizer, fabric, config, progress.step, rate))
        progress.step += 1
        progress.seconds += window.lap()
        if progress.step % config.log_every == 0:
            report(progress.step, {**window.means(), "train/learning_rate": rate, "time/run_s": progress.seconds})
        if progress.step % config.evaluate_every == 0 or progress.step == config.steps:
            report(progress.step, assess(trainable, fabric, checkpoints, progress))
            window.lap()
        if fabric.is_global_zero and progress.step % config.checkpoint_every == 0:
            checkpoints.save(model, optimizer, progress)
    if fabric.is_global_zero and progress.step > resumed_at and progress.step % config.checkpoint_every != 0:
        checkpoints.save(model, optimizer, progress)
    if stop.requested and progress.step < config.steps and not progress.stopped_early:
        return Result(progress, {}, *criterion, interrupted=True)
    if not progress.kept:  # every best model of a finished run was damaged: its last one is left
        report(progress.step, assess(trainable, fabric, checkpoints, progress))
    return Result(progress, finish(trainable, fabric, checkpoints, progress), *criterion)


def look_first(
    trainable: Trainable, fabric: Fabric, checkpoints: Checkpoints, progress: Progress, report: Report
) -> None:
    """Dev values before the first step, for a method that compares with them; the start may turn out to be the best."""
    if progress.step == 0 and isinstance(trainable, Compared) and trainable.begin():
        report(0, assess(trainable, fabric, checkpoints, progress))


def take_up(progress: Progress, config: TrainingConfig) -> None:
    """Judge patience by the configuration of this start; a run that has been given more steps has all of it again."""
    if progress.stopped_early and 0 < progress.budget < config.steps:
        progress.evaluations_without_gain = 0
    progress.stopped_early = progress.evaluations_without_gain >= config.patience
    progress.budget = config.steps


def assess(trainable: Trainable, fabric: Fabric, checkpoints: Checkpoints, progress: Progress) -> dict[str, float]:
    """Evaluate on dev (the first worker does, all learn the result) and bring `progress` up to date."""
    trainable.model.eval()
    values = trainable.evaluate() if fabric.is_global_zero else {}
    values = fabric.broadcast(values)
    value = values[trainable.METRIC]
    if not math.isfinite(value):
        raise DivergenceError(f"{trainable.METRIC} is {value} at step {progress.step}; the last checkpoint is kept.")
    sign = 1 if trainable.HIGHER_IS_BETTER else -1
    if progress.best is None or sign * value > sign * progress.best:
        progress.best, progress.best_step, progress.evaluations_without_gain = value, progress.step, 0
    else:
        progress.evaluations_without_gain += 1
    if values.get("dev/stop", 0.0) > 0:  # uses up all patience, so that the run is not taken up by itself
        progress.evaluations_without_gain = max(progress.evaluations_without_gain, trainable.config.patience)
    progress.stopped_early = progress.evaluations_without_gain >= trainable.config.patience
    if fabric.is_global_zero:
        checkpoints.keep(trainable.model, progress, value, trainable.HIGHER_IS_BETTER)
    progress.kept = fabric.broadcast(progress.kept)
    return values


def finish(trainable: Trainable, fabric: Fabric, checkpoints: Checkpoints, progress: Progress) -> dict[str, float]:
    """Leave the best model in place: the best checkpoint, or the mean of the kept ones where that is better on dev."""
    if not fabric.is_global_zero:
        return {}
    steps = sorted(int(step) for step in progress.kept)
    trainable.model.eval()
    checkpoints.load_kept(trainable.model, [progress.best_step])
    best = trainable.evaluate()
    if len(steps) > 1:
        checkpoints.load_kept(trainable.model, steps)
        averaged = trainable.evaluate()
        sign = 1 if trainable.HIGHER_IS_BETTER else -1
        if sign * averaged[trainable.METRIC] > sign * best[trainable.METRIC]:
            return {**averaged, "checkpoints/averaged": float(len(steps))}
        checkpoints.load_kept(trainable.model, [progress.best_step])
    return {**best, "checkpoints/averaged": 1.0}

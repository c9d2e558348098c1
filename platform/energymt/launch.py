"""A run from command to registry: tracked, here or on Ray, its model registered at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from energymt import runs
from energymt.configuration import TrainingConfig
from energymt.errors import INTERRUPTED
from energymt.outcome import Outcome
from energymt.tracking import NO_TRACKING, Tracker, open_tracker


@dataclass(frozen=True)
class Placement:
    """Where a run trains."""

    workers: int = 1
    gpus_per_worker: float = 0.0
    on_ray: bool = False


@dataclass(frozen=True)
class Bookkeeping:
    """Where a run is written down."""

    uri: str | None  # MLflow store; None is the default one, "none" is no tracking
    experiment: str
    run_name: str
    registered_name: str
    parent_run_id: str | None = None


@dataclass(frozen=True)
class Ending:
    """What to tell the user, and the exit code."""

    sentence: str
    exit_code: int
    metrics: dict[str, float]


def launch(
    trainable: str,
    config: TrainingConfig,
    folder: Path,
    placement: Placement,
    bookkeeping: Bookkeeping,
    echo: Callable[[str], None],
) -> Ending:
    """Train, track and register. An interrupted run ends with exit code 130 and goes on by the same command."""
    tracker = open_tracker(
        bookkeeping.uri,
        bookkeeping.experiment,
        bookkeeping.run_name,
        folder,
        parent_run_id=bookkeeping.parent_run_id,
    )
    status = "FAILED"
    try:
        if bookkeeping.uri != NO_TRACKING:
            from energymt.tracking.provenance import describe_run

            describe_run(tracker, trainable, config.model_dump(mode="json"), folder)
        outcome = _train(trainable, config, folder, placement, tracker, echo)
        status = "KILLED" if outcome.interrupted else "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        left = tracker.finish(status)
        if left:
            echo(left)
    if outcome.interrupted:
        sentence = f"Stopped at step {outcome.step} of {config.steps}; the same command goes on from there."
        return Ending(sentence, INTERRUPTED, outcome.metrics)
    value = outcome.metrics.get(outcome.metric, outcome.best or 0.0)
    sentence = f"{folder / runs.MODEL} holds the model: {outcome.metric} {value:.4g} after {outcome.step} steps."
    if outcome.best_step == 0 and outcome.metrics.get("checkpoints/averaged", 1.0) == 1.0:
        sentence += " No evaluation was better than that of the start, so it is the model that the run began with."
    if bookkeeping.uri != NO_TRACKING:
        sentence += " " + _register(folder, outcome.metric, value, outcome.higher_is_better, bookkeeping)
    return Ending(sentence, 0, outcome.metrics)


def _train(
    trainable: str,
    config: TrainingConfig,
    folder: Path,
    placement: Placement,
    tracker: Tracker,
    echo: Callable[[str], None],
) -> Outcome:
    if not placement.on_ray:
        return Outcome.of(runs.train(trainable, config, folder, tracker, echo))
    start_ray([config])
    from energymt.cluster.launch import Workers, train_on_ray

    workers = Workers(placement.workers, gpus=placement.gpus_per_worker)
    return train_on_ray(trainable, config, folder, workers=workers, tracker=tracker, echo=echo)


def start_ray(configs: Iterable[TrainingConfig]) -> None:
    """Start or join the Ray that runs train in: that of the energy pools of this machine where a run asks one.

    Raises:
        EnergyUnavailable: a run asks a pool, and none is up.
        ResourceError: the Ray at RAY_ADDRESS does not answer, or a local one does not start.
    """
    from energymt.cluster import runtime
    from energymt.pool import ground
    from energymt.quality import POOL

    runtime.prepare_environment()
    if any(str(getattr(config, "quality", "")).startswith(POOL) for config in configs):
        ground.join()
    else:
        runtime.start()


def _register(folder: Path, metric: str, value: float, higher_is_better: bool, bookkeeping: Bookkeeping) -> str:
    from energymt.tracking.outbox import run_id_of
    from energymt.tracking.registry import register_model

    version = register_model(
        folder / runs.MODEL,
        bookkeeping.registered_name,
        metric=metric,
        value=value,
        mode="max" if higher_is_better else "min",
        run_id=run_id_of(folder),
        uri=bookkeeping.uri,
    )
    return f"Registered as {version.address}{' (champion)' if version.champion else ''}: {version.reason}."
